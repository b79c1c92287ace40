"""`perceiver-vl train`."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import JsonOption, require_extra
from perceiver_vl.cli.report import report_at_end
from perceiver_vl.cli.show import (
    print_damaged,
    print_dry_run,
    print_json,
    print_skipped,
)
from perceiver_vl.utils.console import out


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, or the name of a recipe of the package, as in world.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in training.max_steps=100.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the output folder.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Processes on this machine; each takes its own batches.")] = 1,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would be and cost, from one small batch; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model by a recipe; writes a folder that from_pretrained loads."""
    require_extra("accelerate", "train")
    require_extra("jsonargparse", "train")
    from perceiver_vl.training.recipe import read_recipe

    plan = read_recipe(recipe, overrides or ())
    if dry:
        from perceiver_vl.training.dry_run import dry_run

        seen = dry_run(plan, processes)
        if as_json:
            print_json(seen.to_dict())
        else:
            print_dry_run(seen)
        return
    from perceiver_vl.training import train as run
    from perceiver_vl.utils.launch import beside_others, is_first_process

    command = ["train", str(recipe), *(overrides or ()), *(["--resume"] if resume else [])]
    with beside_others(processes, command):
        result = run(plan, resume=resume)
    if not is_first_process():
        return
    report_at_end(result.output)
    if as_json:
        print_json(result.to_dict())
        return
    if result.retrieval:
        result.retrieval.print()
    if result.task:
        result.task.print()
    print_skipped(result.skipped)
    print_damaged(result.damaged)
    out.print(f"{result.steps} steps in {result.seconds:.0f} s; the model is in {result.output}")
