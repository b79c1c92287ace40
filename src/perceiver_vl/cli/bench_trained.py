"""`perceiver-vl bench frontier` and `bench cascade`: accuracy against cost, of a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.bench import bench_app, read_numbers, show
from perceiver_vl.cli.options import (
    BudgetOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SplitOption,
    ThreadsOption,
    read_budget,
    require_extra,
)
from perceiver_vl.utils.threads import use_threads

DataOption = Annotated[
    str, typer.Option(help="Folder of media, folder or URL of shards, or `world`: the generated world's test split.")
]
__all__ = ["bench_app"]

ClipsOption = Annotated[int | None, typer.Option(min=1, help="Use the first so many clips (default: all; world: 256).")]


@bench_app.command()
def frontier(
    model: ModelOption,
    data: DataOption,
    task: Annotated[str, typer.Option(help="As for evaluate: retrieval, question-answering, …")] = "retrieval",
    stream: Annotated[str, typer.Option(help="Retrieval, whose R@1 is the score: multi, mixed or cascade.")] = "mixed",
    split: SplitOption = None,
    clips: ClipsOption = None,
    frames: Annotated[
        str, typer.Option("--num-frames", help="Of the grid (default: the processor's, a half, a quarter).")
    ] = "",
    latents: Annotated[str, typer.Option(help="Of the grid (default: all, a half, a quarter).")] = "",
    text_latents: Annotated[str, typer.Option(help="Of the grid, retrieval (default: all, a half).")] = "",
    cross_attentions: Annotated[str, typer.Option(help="Of the grid (default: every number).")] = "",
    blocks: Annotated[str, typer.Option(help="Of the grid (default: all; fewer are early exits).")] = "",
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each setting.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips scored at once; times are of one at a time.")] = 32,
    svg: Annotated[Path | None, typer.Option(help="Also draw score against time here.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy against operations and time over a grid of budgets; the best go with the model, for --budget 50ms."""
    typed = {
        "frames": frames,
        "latents": latents,
        "text_latents": text_latents,
        "cross_attentions": cross_attentions,
        "blocks": blocks,
    }
    grid = {name: read_numbers(name, text) for name, text in typed.items() if text}
    if svg is not None:
        require_extra("matplotlib", "report")
    use_threads(threads)
    from perceiver_vl.bench.frontier import measure_frontier
    from perceiver_vl.bench.trained import frontier_sections

    report = measure_frontier(
        model,
        data,
        task=task,
        stream=stream,
        split=split,
        clips=clips,
        grid=grid,
        runs=runs,
        batch_size=batch_size,
        device=device,
        dtype=dtype or "float32",
        progress=True,
    )
    if svg is not None:
        from perceiver_vl.bench.trained_figures import frontier_figures
        from perceiver_vl.utils.files import write_text

        write_text(svg, frontier_figures(report)[0])
    show(report, frontier_sections(report), as_json, [f"the front: {report.frontier_file}"])


@bench_app.command()
def cascade(
    model: ModelOption,
    data: DataOption,
    split: SplitOption = None,
    items: Annotated[str, typer.Option(help="n, of n texts against n clips, one number or more.")] = "10,30,100,300",
    shortlist: Annotated[int, typer.Option(min=1, help="Candidates that the cascade re-ranks.")] = 20,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each stream.")] = 3,
    most_seconds: Annotated[
        float, typer.Option(min=0.0, help="Extrapolate the single stream where it would take longer a run.")
    ] = 120.0,
    budget: BudgetOption = "",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """n texts against n clips in every stream: what the cascade saves of the single stream's time, and its recall."""
    numbers = read_numbers("items", items)
    dials = read_budget(budget, model, device, dtype)
    use_threads(threads)
    from perceiver_vl.bench.cascade import measure_cascade
    from perceiver_vl.bench.sources import open_source
    from perceiver_vl.bench.trained import cascade_section
    from perceiver_vl.models.loading import load_retriever

    retriever, processor = load_retriever(model, device, dtype)
    report = measure_cascade(
        retriever,
        processor,
        open_source(data, processor, split=split, default_clips=max(numbers)),
        items=numbers,
        shortlist=shortlist,
        runs=runs,
        most_seconds=most_seconds,
        budget=dials,
        data=data,
        progress=True,
    )
    show(report, [cascade_section(report)], as_json)
