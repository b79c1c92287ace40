"""`perceiver-vl bench …`: cost and accuracy, measured."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import (
    BudgetOption,
    ColumnsOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxFailedFractionOption,
    MetadataOption,
    ModelOption,
    SplitOption,
    ThreadsOption,
    check_file,
    parse_columns,
    read_budget,
    read_numbers,
    require_extra,
)
from perceiver_vl.cli.show import print_bench, print_json
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.threads import use_threads

QuickOption = Annotated[bool, typer.Option("--quick", help="Once, and only what takes seconds.")]
RunsOption = Annotated[int, typer.Option(min=1, help="Measured runs of each setting.")]
SeedOption = Annotated[int, typer.Option(help="Of weights and inputs.")]
BenchDeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, …")]
FrameCountsOption = Annotated[str, typer.Option("--num-frames", help="Frames of a clip, one number or more.")]
DataOption = Annotated[
    str, typer.Option(help="Folder of media, folder or URL of shards, or `world`: the generated world's test split.")
]
ClipsOption = Annotated[int | None, typer.Option(min=1, help="Use the first so many clips (default: all; world: 256).")]

bench_app = typer.Typer(no_args_is_help=True, help="Measure cost and accuracy.")


@bench_app.command()
def cost(
    frames: FrameCountsOption = "1,8,16,32,64,128",
    sizes: Annotated[str, typer.Option(help="Pixels a side of 8 frames, multiples of 32.")] = "320,384,448,512,576",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once, each with 40 words.")] = 1,
    runs: RunsOption = 3,
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
    from perceiver_vl.bench.cost import measure_cost

    report = measure_cost(
        frames=numbers,
        sizes=pixels,
        batch_size=batch_size,
        runs=1 if quick else runs,
        most_seconds=min(most_seconds, 2.0) if quick else most_seconds,
        seed=seed,
        device=device,
        progress=True,
    )
    print_bench(report, as_json, report.crossovers)


@bench_app.command()
def length(
    minutes: Annotated[str, typer.Option(help="Minutes of video, a frame a second.")] = "1,5,20,60",
    chunk_frames: Annotated[int, typer.Option(min=1, help="Frames of a chunk.")] = 32,
    runs: RunsOption = 1,
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

    report = measure_length(
        minutes=numbers,
        chunk_frames=chunk_frames,
        runs=runs,
        most_seconds=min(most_seconds, 10.0) if quick else most_seconds,
        seed=seed,
        device=device,
        progress=True,
    )
    print_bench(report, as_json)


@bench_app.command()
def ask(
    frames: FrameCountsOption = "8,32,64,256",
    runs: RunsOption = 3,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """The second question about a clip over the first: what a cached clip saves."""
    numbers = read_numbers("num_frames", frames)
    from perceiver_vl.bench.vision_cache import measure_vision_cache

    report = measure_vision_cache(frames=numbers, runs=runs, seed=seed, device=device, progress=True)
    print_bench(report, as_json)


@bench_app.command()
def rerank(
    candidates: Annotated[int, typer.Option(min=1, help="Clips of the shortlist.")] = 1000,
    runs: RunsOption = 5,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Re-rank a shortlist for a query: from stored partial attentions, beside the decoder over the clips' latents."""
    from perceiver_vl.bench.reranking import measure_reranking

    report = measure_reranking(candidates=candidates, runs=runs, seed=seed, device=device, progress=True)
    print_bench(report, as_json)


@bench_app.command()
def index(
    rows: Annotated[str, typer.Option(help="Sizes of the index, in clips.")] = "10000,100000,1000000",
    runs: RunsOption = 50,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """An index of made-up clips: opening, queries with and without a filter, memory, bytes, building, updating."""
    numbers = read_numbers("rows", rows)
    from perceiver_vl.bench.index import measure_index

    report = measure_index(numbers, runs=runs, seed=seed, progress=True)
    print_bench(report, as_json, repeats=f"{runs} queries, seed {seed}")


@bench_app.command()
def moments(
    hours: Annotated[str, typer.Option(help="Hours of the libraries that are searched, made up.")] = "1,10,100",
    video_seconds: Annotated[float, typer.Option(help="Seconds of the 720p video that is indexed.")] = 120.0,
    dtype: Annotated[str | None, typer.Option(help="Index it in this dtype, too: bfloat16 or int8.")] = None,
    runs: RunsOption = 3,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where in the video: windows from stored numbers beside decoding and encoding them, indexing, queries by hours."""
    numbers = read_numbers("hours", hours)
    use_threads(threads)
    from perceiver_vl.bench.moments import QUICK_HOURS, measure_moments

    sizes = QUICK_HOURS if quick else numbers
    how = {"segments": 12, "video_s": min(4.0, video_seconds), "runs": 1} if quick else {"video_s": video_seconds}
    how = {"runs": runs, **how}
    report = measure_moments(hours=sizes, dtype=dtype, seed=seed, progress=True, **how)  # type: ignore[arg-type]
    print_bench(report, as_json)


@bench_app.command()
def serve(
    index: Annotated[str | None, typer.Option(help="Index to serve, with its model (default: made up).")] = None,
    rows: Annotated[
        int, typer.Option(min=2000, help="Clips of the made-up index, or segments of its videos.")
    ] = 50_000,
    moments: Annotated[bool, typer.Option("--moments", help="Ask for moments instead of clips.")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Also measure the page, in Chromium.")] = False,
    callers: Annotated[int, typer.Option(min=1, help="How many ask at once.")] = 16,
    requests: Annotated[int, typer.Option(min=16, help="Requests of a run.")] = 320,
    runs: RunsOption = 3,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """The service from outside: command to first answer, p50 and p95, and what answering many together gains."""
    from perceiver_vl.bench.serving import measure_serving

    how = {"moments": moments, "browser": browser, "callers": callers, "requests": requests}
    report = measure_serving(index, rows=rows, **how, runs=runs, seed=seed, progress=True)  # type: ignore[arg-type]
    print_bench(report, as_json)


@bench_app.command()
def elastic(
    output: Annotated[Path, typer.Option("--out", help="Folder of the runs; those done are not trained again.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Of the recipe, key=value.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="An elastic recipe of retrieval, a file or a name (default: world_elastic).")
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
    """Train one elastic model, and an individual one for each budget; the recall of both at every budget."""
    for module in ("accelerate", "jsonargparse"):
        require_extra(module, "train")
    numbers = read_numbers("seeds", seeds)
    from perceiver_vl.bench.elastic import BUDGETS, RECIPE, measure_elastic

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
    print_bench(report, as_json, repeats=f"seeds {seeds}")


@bench_app.command(name="all")
def all_benches(
    output: Annotated[Path, typer.Option("--out", help="Folder for bench.html and bench.json.")],
    model: Annotated[Path | None, typer.Option(help="A trained model of retrieval: frontier and cascade too.")] = None,
    data: Annotated[str | None, typer.Option(help="Its clips, as for bench frontier; `world` for made ones.")] = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    max_failed_fraction: MaxFailedFractionOption = 0.1,
    runs: RunsOption = 3,
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
    names = parse_columns(columns)
    from perceiver_vl.bench.run_all import run_benches

    report = run_benches(
        output,
        quick=quick,
        runs=runs,
        trained=model,
        data=data or "",
        metadata=metadata,
        columns=names,
        max_failed_fraction=max_failed_fraction,
        seed=seed,
        device=device,
        progress=True,
    )
    if as_json:
        print_json(report.to_dict())
        return
    for sentence in report.cost.crossovers:
        out.print(sentence, soft_wrap=False)
    out.print(f"{output / 'bench.html'}, {output / 'bench.json'}")


@bench_app.command()
def kernels(
    frames: Annotated[int, typer.Option("--num-frames", min=1, help="Frames of a clip.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips, each with 40 words.")] = 1,
    runs: RunsOption = 5,
    seed: SeedOption = 0,
    device: BenchDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of a forward: eager, sdpa, compiled; float32, bfloat16, int8; at base size, random weights."""
    from perceiver_vl.bench.kernels import measure_kernels

    report = measure_kernels(frames=frames, batch_size=batch_size, runs=runs, seed=seed, device=device, progress=True)
    print_bench(report, as_json)


@bench_app.command()
def decoding(
    runs: RunsOption = 3,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Clips a second a core, sampled and resized: ours, PyAV, and OpenCV, decord and torchcodec where installed."""
    from perceiver_vl.bench.decoding import measure_decoding

    report = measure_decoding(runs=runs, seed=seed, progress=True)
    print_bench(report, as_json)


@bench_app.command()
def frontier(
    model: ModelOption,
    data: DataOption,
    task: Annotated[str, typer.Option(help="As for evaluate: retrieval, question-answering, …")] = "retrieval",
    stream: Annotated[str, typer.Option(help="Retrieval, whose R@1 is the score: multi, mixed or cascade.")] = "mixed",
    split: SplitOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    max_failed_fraction: MaxFailedFractionOption = 0.1,
    clips: ClipsOption = None,
    frames: Annotated[
        str, typer.Option("--num-frames", help="Of the grid (default: the processor's, a half, a quarter).")
    ] = "",
    latents: Annotated[str, typer.Option(help="Of the grid (default: all, a half, a quarter).")] = "",
    text_latents: Annotated[str, typer.Option(help="Of the grid, retrieval (default: all, a half).")] = "",
    cross_attentions: Annotated[str, typer.Option(help="Of the grid (default: every number).")] = "",
    blocks: Annotated[str, typer.Option(help="Of the grid (default: all; fewer are early exits).")] = "",
    runs: RunsOption = 5,
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
    check_file("--svg", svg)
    use_threads(threads)
    from perceiver_vl.bench.frontier import measure_frontier

    report = measure_frontier(
        model,
        data,
        task=task,
        stream=stream,
        split=split,
        metadata=metadata,
        columns=parse_columns(columns),
        max_failed_fraction=max_failed_fraction,
        clips=clips,
        grid=grid,
        runs=runs,
        batch_size=batch_size,
        device=device,
        dtype=dtype or "float32",
        progress=True,
    )
    if svg is not None:
        from perceiver_vl.bench.figures import frontier_figures
        from perceiver_vl.utils.files import write_text

        write_text(svg, frontier_figures(report)[0])
    print_bench(report, as_json, [f"the front: {report.frontier_file}"])


@bench_app.command()
def cascade(
    model: ModelOption,
    data: DataOption,
    split: SplitOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    max_failed_fraction: MaxFailedFractionOption = 0.1,
    items: Annotated[str, typer.Option(help="n, of n texts against n clips, one number or more.")] = "10,30,100,300",
    shortlist: Annotated[int, typer.Option(min=1, help="Candidates that the cascade re-ranks.")] = 20,
    runs: RunsOption = 3,
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
    numbers, names = read_numbers("items", items), parse_columns(columns)
    chosen = read_budget(budget, model, device, dtype)
    use_threads(threads)
    from perceiver_vl.bench.cascade import measure_cascade
    from perceiver_vl.bench.videos import open_videos
    from perceiver_vl.models.loading import load_retriever

    retriever, processor = load_retriever(model, device, dtype)
    report = measure_cascade(
        retriever,
        processor,
        open_videos(
            data,
            processor,
            split=split,
            metadata=metadata,
            columns=names,
            max_failed_fraction=max_failed_fraction,
            default_clips=max(numbers),
        ),
        items=numbers,
        shortlist=shortlist,
        runs=runs,
        most_seconds=most_seconds,
        max_failed_fraction=max_failed_fraction,
        budget=chosen,
        data=data,
        progress=True,
    )
    print_bench(report, as_json)


@bench_app.command()
def distill(
    model: ModelOption,
    teacher: Annotated[str, typer.Option(help="What it learned from: a model folder, or a dual encoder.")],
    data: DataOption,
    split: SplitOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    max_failed_fraction: MaxFailedFractionOption = 0.1,
    clips: ClipsOption = None,
    frames: FrameCountsOption = "8,32,128",
    runs: RunsOption = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips scored at once; times are of one at a time.")] = 16,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """A student beside its teacher: recall by captions where there are some, operations and time, by frames."""
    numbers, names = read_numbers("num_frames", frames), parse_columns(columns)
    use_threads(threads)
    from perceiver_vl.bench.students import measure_distillation
    from perceiver_vl.bench.videos import WORLD, open_videos
    from perceiver_vl.models.loading import load_retriever
    from perceiver_vl.models.perceiver_vl.from_encoders import resolve_model

    open_them = partial(
        open_videos,
        data,
        split=split,
        metadata=metadata,
        columns=names,
        max_failed_fraction=max_failed_fraction,
        clips=clips,
        need="text" if data == WORLD else None,
    )
    report = measure_distillation(
        load_retriever(resolve_model(teacher, err.print), device),
        load_retriever(model, device),
        open_them,
        frames=numbers,
        runs=runs,
        batch_size=batch_size,
        max_failed_fraction=max_failed_fraction,
        data=data,
        progress=True,
    )
    print_bench(report, as_json)
