"""`perceiver-vl bench components`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.bench import QuickOption
from perceiver_vl.cli.learning import TextOption, VisionOption, WorkersOption
from perceiver_vl.cli.options import JsonOption, ThreadsOption, read_names
from perceiver_vl.cli.show import print_json, print_section
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.threads import use_threads


def components(
    output: Annotated[
        Path, typer.Option("--out", help="Folder for components.html, components.json and the runs.")
    ] = Path("runs/components"),
    only: Annotated[
        str, typer.Option(help="Some of the switches (default: all, and the best few together); a+b: both at once.")
    ] = "",
    tasks: Annotated[
        str, typer.Option(help="retrieval, questions, or with --data encoders-retrieval, encoders-questions.")
    ] = "",
    recipes: Annotated[
        bool,
        typer.Option(
            "--recipes", help="Beside the small recipes as they are, leaving out what they have beyond the paper."
        ),
    ] = False,
    list_them: Annotated[bool, typer.Option("--list", help="Say which switches there are, and whose.")] = False,
    seeds: Annotated[int, typer.Option(min=0, help="Trainings of each row; 0: what they cost alone.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The seed of the first of these trainings.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the baseline (default: as in its recipe); others cost as much.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data (docs/learning.md): over encoders, instead of the world.")
    ] = None,
    vision: VisionOption = None,
    text: TextOption = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """What ideas of the literature are worth here: each switch alone, and the best few together, at equal operations
    of training and held against equal operations of use; goes on where it was stopped.
    """
    from perceiver_vl.bench.components.switches import SWITCHES, beside_recipes, choose_switches

    switches = choose_switches(read_names(only), beside_recipes() if recipes else SWITCHES)
    if list_them:
        from perceiver_vl.bench.components.report import list_section

        print_section(list_section(switches))
        return
    use_threads(threads)
    if any(one is None for one in (data, vision, text)) and any(one is not None for one in (data, vision, text)):
        raise UsageError("encoders: of both sides and on real data, give vision, text and data together")
    if recipes and data is not None:
        raise UsageError("recipes: are of the generated world, leave data, vision and text out")
    from perceiver_vl.bench.components.measure import measure_components
    from perceiver_vl.bench.components.trials import encoder_trials, world_trials

    if data is not None and vision is not None and text is not None:
        from perceiver_vl.bench.learning.over_encoders import OverEncoders

        over = OverEncoders(vision, text, data, output)
        over.prepare(workers, progress=True)
        trials = encoder_trials(over, steps)
    else:
        trials = world_trials(2 if quick else steps, quick, recipes)
    known = [trial.name for trial in trials]
    chosen = read_names(tasks) or (known[:1] if quick else known)
    for name in chosen:
        if name not in known:
            raise UsageError(f"tasks={name}: unknown, choose from {', '.join(known)}")
    if quick and not only:
        switches = [
            switch for switch in switches if switch.name.removeprefix("without-") in ("patch-norm", "focal-weights")
        ]
    again = ["perceiver-vl", "bench", "components", "--out", str(output), "--seeds", str(seeds)]
    again += ["--first-seed", str(first_seed)] if first_seed else []
    given = (("--tasks", tasks), ("--steps", steps), ("--data", data), ("--vision", vision), ("--text", text))
    again += [word for name, value in given if value for word in (name, str(value))] + ["--recipes"] * recipes
    report = measure_components(
        [trial for trial in trials if trial.name in chosen],
        switches,
        output,
        seeds=min(seeds, 1) if quick else seeds,
        first_seed=first_seed,
        best_together=not only and seeds > 0,
        again=shlex.join([*again, *(["--quick"] if quick else []), "--only"]),
        **({"counted": 1} if quick else {}),
        workers=workers,
        progress=True,
    )
    if as_json:
        print_json(report.to_dict())
        return
    for section in report.sections():
        print_section(section)
    for sentence in report.sentences():
        out.print(sentence, soft_wrap=False)
    for name, reason in report.failed.items():
        out.print(f"not measured: {name} ({reason})")
    out.print(f"{output / 'components.html'}, {output / 'components.json'}")
