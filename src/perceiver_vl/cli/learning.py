"""`perceiver-vl bench learning`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import JsonOption, read_names, require_extra
from perceiver_vl.cli.show import print_json, print_section
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError

VisionOption = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="With --data: over this vision encoder, as init takes it.")
]
TextOption = Annotated[str | None, typer.Option(metavar="SOURCE", help="And this text encoder.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Runs at a time, each on its share of the cores.")]


def learning(
    output: Annotated[Path, typer.Option("--out", help="Folder for learning.html, learning.json and the runs.")],
    parts: Annotated[str, typer.Option(help="Some of the parts, by their names in learning.json (default: all).")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data (docs/learning.md): its parts instead of the world's.")
    ] = None,
    vision: VisionOption = None,
    text: TextOption = None,
    workers: WorkersOption = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of everything: what comes out says nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train small models, ours beside a joint transformer, and test what they learned; goes on where it was stopped."""
    require_extra("matplotlib", "report")
    from perceiver_vl.bench.learning.real import blind_baselines_section, real_parts
    from perceiver_vl.bench.learning.recipes import FULL, QUICK
    from perceiver_vl.bench.learning.report import measure_learning
    from perceiver_vl.bench.learning.seeing_guessers import guessers_section
    from perceiver_vl.bench.learning.world import cost_runs, world_parts

    scale = QUICK if quick else FULL
    over = None
    if vision is not None or text is not None:
        if vision is None or text is None or data is None:
            raise UsageError("encoders: of both sides and on real data, give vision, text and data together")
        from perceiver_vl.bench.learning.over_encoders import PARTS, OverEncoders, encoder_parts, ridge_sections

        chosen = _chosen(parts, PARTS)  # before minutes of features
        over = OverEncoders(vision, text, data, output, scale)
        over.prepare(workers, progress=True)
        all_parts = encoder_parts(over)
    else:
        all_parts = world_parts(scale) if data is None else real_parts(data, scale)
        chosen = _chosen(parts, [part.name for part in all_parts])
    asked = {"real-questions", "encoders-questions"} & set(chosen)
    baselines = {name: [blind_baselines_section(data)] for name in asked} if data else {}
    if data is None and "comparison" in chosen:
        baselines["comparison"] = [guessers_section(output, scale.clips(4000), scale.clips(2000), progress=True)]
    if over is not None:
        baselines |= ridge_sections(over, chosen, progress=True)
    report = measure_learning(
        [part for part in all_parts if part.name in chosen],
        output,
        cost_runs=cost_runs(scale) if "comparison" in chosen else (),
        baselines=baselines,
        workers=workers,
        progress=True,
    )
    if as_json:
        print_json(report.to_dict())
        return
    for section in report.sections():
        print_section(section)
    for name, reason in report.failed.items():
        out.print(f"not measured: {name} ({reason})")
    out.print(f"{output / 'learning.html'}, {output / 'learning.json'}")


def _chosen(parts: str, known: Sequence[str]) -> list[str]:
    """The parts that are asked for, all where none is; `UsageError` for one that there is not."""
    chosen = read_names(parts) or list(known)
    for name in chosen:
        if name not in known:
            raise UsageError(f"parts={name}: unknown, choose from {', '.join(known)}")
    return chosen
