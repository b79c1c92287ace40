"""`perceiver-vl bench …`: cost and accuracy, measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from perceiver_vl.cli.options import JsonOption, require_extra
from perceiver_vl.cli.show import print_json, print_provenance
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perceiver_vl.bench.tables import Section
    from perceiver_vl.tasks.provenance import RunInfo

QuickOption = Annotated[bool, typer.Option("--quick", help="Once, and only what takes seconds.")]
SeedOption = Annotated[int, typer.Option(help="Of weights and inputs.")]
BenchDeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, …")]

bench_app = typer.Typer(no_args_is_help=True, help="Measure cost and accuracy.")


@bench_app.command()
def cost(
    frames: Annotated[
        str, typer.Option("--num-frames", help="Frames of a clip, one number or more.")
    ] = "1,8,16,32,64,128",
    sizes: Annotated[str, typer.Option(help="Pixels a side of 8 frames, multiples of 32.")] = "320,384,448,512,576",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once, each with 40 words.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each setting.")] = 3,
    most_seconds: Annotated[
        float, typer.Option(min=0.0, help="Count a setting that would take longer a run, without running it.")
    ] = 5.0,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """A clip and 40 words, ours beside ViLT, TimeSformer, CLIP and Perceiver IO: operations, seconds, memory."""
    numbers, pixels = read_numbers("num_frames", frames), read_numbers("sizes", sizes)
    if quick:
        runs, most_seconds = 1, min(most_seconds, 2.0)
    from perceiver_vl.bench.cost import measure_cost
    from perceiver_vl.bench.tables import cost_sections

    report = measure_cost(
        frames=numbers,
        sizes=pixels,
        batch_size=batch_size,
        runs=runs,
        most_seconds=most_seconds,
        seed=seed,
        device=device,
        progress=True,
    )
    show(report, cost_sections(report), as_json, report.crossovers)


@bench_app.command()
def length(
    minutes: Annotated[str, typer.Option(help="Minutes of video, a frame a second.")] = "1,5,20,60",
    chunk_frames: Annotated[int, typer.Option(min=1, help="Frames read at a time.")] = 32,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each video.")] = 1,
    most_seconds: Annotated[
        float, typer.Option(min=0.0, help="Leave out a video that would take longer a run.")
    ] = 180.0,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of minutes of video: chunk by chunk, and all frames at once where they fit."""
    numbers = read_numbers("minutes", minutes)
    from perceiver_vl.bench.length import measure_length
    from perceiver_vl.bench.tables import length_section

    report = measure_length(
        minutes=numbers,
        chunk_frames=chunk_frames,
        runs=runs,
        most_seconds=min(most_seconds, 10.0) if quick else most_seconds,
        seed=seed,
        device=device,
        progress=True,
    )
    show(report, [length_section(report)], as_json)


@bench_app.command()
def ask(
    frames: Annotated[str, typer.Option("--num-frames", help="Frames of a clip, one number or more.")] = "8,32,64,256",
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each question.")] = 3,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """The second question about a clip over the first: what a cached clip saves."""
    numbers = read_numbers("num_frames", frames)
    from perceiver_vl.bench.questions import measure_questions
    from perceiver_vl.bench.tables import questions_section

    report = measure_questions(frames=numbers, runs=runs, seed=seed, device=device, progress=True)
    show(report, [questions_section(report)], as_json)


@bench_app.command()
def rerank(
    candidates: Annotated[int, typer.Option(min=1, help="Clips of the shortlist.")] = 1000,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each way.")] = 5,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Re-rank a shortlist for a query: from stored partial attentions, beside the decoder over the clips' latents."""
    from perceiver_vl.bench.reranking import measure_reranking
    from perceiver_vl.bench.tables import reranking_section

    report = measure_reranking(candidates=candidates, runs=runs, seed=seed, device=device, progress=True)
    show(report, [reranking_section(report)], as_json)


@bench_app.command()
def elastic(
    output: Annotated[Path, typer.Option("--out", help="Folder of the runs; those done are not trained again.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Of the recipe, key=value.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="An elastic recipe of retrieval (default: recipes/world_elastic.yaml).")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Budgets with semicolons between, as in 'full;latents=8;frames=4,blocks=1'.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings, one or more.")] = "0",
    stream: Annotated[str, typer.Option(help="Whose recall is compared: multi, mixed, single, cascade.")] = "mixed",
    metric: Annotated[str, typer.Option(help="Which recall: r1, r5 or r10.")] = "r1",
    elastic_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the elastic model (default: as many as of the others).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one elastic model, and one for each budget alone; the recall of both at every budget."""
    for module in ("accelerate", "jsonargparse"):
        require_extra(module, "train")
    numbers = read_numbers("seeds", seeds)
    from perceiver_vl.bench.elastic import BUDGETS, RECIPE, elastic_section, measure_elastic

    report = measure_elastic(
        output,
        recipe or RECIPE,
        overrides or (),
        budgets=budgets or BUDGETS,
        seeds=numbers,
        stream=stream,
        metric=metric,
        elastic_steps=elastic_steps,
        progress=True,
    )
    show(report, [elastic_section(report)], as_json, repeats=f"seeds {seeds}")


@bench_app.command(name="all")
def all_benches(
    output: Annotated[Path, typer.Option("--out", help="Folder for bench.html and bench.json.")],
    model: Annotated[Path | None, typer.Option(help="A trained model of retrieval: frontier and cascade too.")] = None,
    data: Annotated[str | None, typer.Option(help="Its clips, as for bench frontier; `world` for made ones.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each setting.")] = 3,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """cost, length, ask and rerank in one run, and frontier and cascade where there is a model: a page of tables and
    figures, and the figures as JSON.
    """
    require_extra("matplotlib", "report")
    if (model is None) != (data is None):
        raise UsageError("model and data: go together, the frontier is of a trained model on some data")
    from perceiver_vl.bench.page import run_benches

    report = run_benches(
        output, quick=quick, runs=runs, trained=model, data=data or "", seed=seed, device=device, progress=True
    )
    if as_json:
        print_json(report.to_dict())
        return
    for sentence in report.cost.crossovers:
        out.print(sentence, soft_wrap=False)
    out.print(f"{output / 'bench.html'}, {output / 'bench.json'}")


@bench_app.command()
def learning(
    output: Annotated[Path, typer.Option("--out", help="Folder for learning.html, learning.json and the runs.")],
    parts: Annotated[str, typer.Option(help="Some of the parts, by their names in learning.json (default: all).")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data (docs/learning.md): its parts instead of the world's.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each on its share of the cores.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of everything: what comes out says nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train small models, ours beside a joint transformer, and test what they learned; goes on where it was stopped."""
    require_extra("matplotlib", "report")
    from perceiver_vl.bench.learning.real import guessers_section, real_parts
    from perceiver_vl.bench.learning.report import measure_learning, shown
    from perceiver_vl.bench.learning.world import FULL, QUICK, compared, world_parts

    scale = QUICK if quick else FULL
    found = world_parts(scale) if data is None else real_parts(data, scale)
    named = [name.strip() for name in parts.split(",") if name.strip()]
    known = [part.name for part in found]
    for name in named:
        if name not in known:
            raise UsageError(f"parts={name}: unknown, choose from {', '.join(known)}")
    chosen = [part for part in found if not named or part.name in named]
    names = [part.name for part in chosen]
    report = measure_learning(
        chosen,
        output,
        compared=compared(scale) if "comparison" in names else (),
        beside={"real-questions": [guessers_section(data)]} if data and "real-questions" in names else None,
        workers=workers,
        progress=True,
    )
    if as_json:
        print_json(report.to_dict())
        return
    for section in shown(report):
        print_section(section)
    for name, reason in report.failed.items():
        out.print(f"not measured: {name} ({reason})", markup=False)
    out.print(f"{output / 'learning.html'}, {output / 'learning.json'}")


@bench_app.command()
def kernels(
    frames: Annotated[int, typer.Option("--num-frames", min=1, help="Frames of a clip.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips, each with 40 words.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each form.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of a forward: eager, sdpa, compiled; float32, bfloat16, int8; at base size, random weights."""
    from perceiver_vl.bench.kernels import kernels_section, measure_kernels

    report = measure_kernels(frames=frames, batch_size=batch_size, runs=runs, seed=seed, device=device, progress=True)
    show(report, [kernels_section(report)], as_json)


@bench_app.command()
def decoding(
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each decoder.")] = 3,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: JsonOption = False,
) -> None:
    """Clips a second a core, sampled and resized: ours, PyAV, and OpenCV, decord and torchcodec where installed."""
    from perceiver_vl.bench.decoding import decoding_section, measure_decoding

    report = measure_decoding(runs=runs, seed=seed, progress=True)
    show(report, [decoding_section(report)], as_json)


def read_numbers(name: str, text: str) -> list[int]:
    """`8,16,32` → the numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{name}={text}: need whole numbers, as in 8,16,32")
    return [int(part) for part in parts]


def print_section(section: "Section") -> None:
    """A table of a bench, at most 80 columns wide, and its notes."""
    table = Table(
        title=section.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False
    )
    for number, column in enumerate(section.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in section.rows:
        table.add_row(*row)
    out.print(table, soft_wrap=False)
    for note in section.notes:
        out.print(note, style="dim", markup=False, soft_wrap=False)
    out.print()


def show(
    report: "RunInfo",
    sections: "Iterable[Section]",
    as_json: bool,
    sentences: "Iterable[str]" = (),
    repeats: str = "",
) -> None:
    """A report as JSON, or its tables, what they come to in words, and what it takes to get them again (`repeats` as of
    `print_provenance`).
    """
    if as_json:
        print_json(report.to_dict())
        return
    for section in sections:
        print_section(section)
    for sentence in sentences:
        out.print(sentence, markup=False, soft_wrap=False)
    print_provenance(report, repeats)
