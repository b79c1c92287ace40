"""`perceiver-vl caption`: what clips and images show, in words."""

from pathlib import Path
from typing import Annotated, Any

import typer

from perceiver_vl.cli.options import (
    BudgetOption,
    DeviceOption,
    DtypeOption,
    EndOption,
    FpsOption,
    JsonOption,
    ModelOption,
    SpillOption,
    StartOption,
    ThreadsOption,
    read_budget,
)
from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import MediaError, UsageError
from perceiver_vl.utils.threads import use_threads


def caption(
    clips: Annotated[list[Path], typer.Argument(metavar="CLIP...", help="Videos or images.")],
    model: ModelOption,
    beams: Annotated[int, typer.Option(min=1, help="Captions followed at a time; 1 is greedy.")] = 1,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a caption at most (default: what the model has room for).")
    ] = None,
    start: StartOption = None,
    end: EndOption = None,
    fps: FpsOption = None,
    spill: SpillOption = None,
    budget: BudgetOption = "",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say in words what clips and images show."""
    if not any(clip.exists() for clip in clips):
        raise UsageError(f"{clips[0]}: no such file")
    dials = read_budget(budget, model, device, dtype)
    from perceiver_vl.models.folder import check_model_folder  # light: mistakes are told at once

    check_model_folder(model)
    use_threads(threads)
    from perceiver_vl import pipeline

    describe = pipeline("captioning", model, device, dtype=dtype)
    how: dict[str, Any] = {"start": start, "end": end, "fps": fps, "spill": spill, "budget": dials, "progress": True}
    results, failed = [], 0
    for clip in clips:
        try:
            said = describe(str(clip), beams=beams, max_new_tokens=max_new_tokens, **how)
        except MediaError as error:
            failed += 1
            err.print(f"error: {error}")
            results.append({"clip": str(clip), "error": error.reason})
            continue
        results.append({"clip": str(clip), **said})
        if not as_json:
            out.print(said["caption"] if len(clips) == 1 else f"{clip}: {said['caption']}")
    if as_json:
        print_json(results)
    if failed:
        raise typer.Exit(1)
