"""The command line: parse, call, print. Heavy imports happen inside the commands, so that help and mistakes are
quick.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from perceiver_vl.budget import ComputeBudget
from perceiver_vl.console import err, out
from perceiver_vl.errors import PerceiverVLError, UsageError

if TYPE_CHECKING:
    from perceiver_vl.data.folder import Problem
    from perceiver_vl.model.released import Conversion
    from perceiver_vl.search import SearchResult
    from perceiver_vl.tasks.retrieval import RetrievalResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Perceiver-VL: train, evaluate and search video, images and text with iterative latent attention.",
)

bench_app = typer.Typer(no_args_is_help=True, help="Measure cost and accuracy.")
app.add_typer(bench_app, name="bench")

ModelOption = Annotated[Path, typer.Option("--model", help="Model folder, as written by train or save_pretrained.")]
BudgetOption = Annotated[
    str,
    typer.Option(help="Dials, as in frames=8,latents=64,text_latents=16,cross_attentions=1; those left out stay full."),
]
SplitOption = Annotated[str | None, typer.Option(help="Keep one split of the metadata.")]
MetadataOption = Annotated[Path | None, typer.Option(help="Metadata file, if it is not metadata.jsonl|csv|parquet.")]
ColumnsOption = Annotated[
    str, typer.Option(help="Names of the metadata's columns, as in file_name=file,text=captions,split=split.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first broken file instead of skipping it.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU if there is one).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in training.max_steps=100.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the output folder.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Processes on this machine; each takes its own batches.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a model by a recipe; writes a folder that from_pretrained loads."""
    _require_extra("accelerate", "train")
    _require_extra("jsonargparse", "train")
    from perceiver_vl.recipe import read_recipe

    plan = read_recipe(recipe, overrides or ())
    from perceiver_vl.parallel import beside_others, is_first_process
    from perceiver_vl.training import train as run

    command = ["train", str(recipe), *(overrides or ()), *(["--resume"] if resume else [])]
    with beside_others(processes, command):
        result = run(plan, resume=resume)
    if not is_first_process():
        return
    if as_json:
        retrieval = result.retrieval and result.retrieval.to_dict()
        skipped = [vars(problem) for problem in result.skipped]
        _print_json({"output": str(result.output), "steps": result.steps, "retrieval": retrieval, "skipped": skipped})
        return
    if result.retrieval:
        _print_retrieval(result.retrieval)
    _print_skipped(result.skipped)
    out.print(f"{result.steps} steps in {result.seconds:.0f} s; the model is in {result.output}")


@app.command()
def evaluate(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="Folder of media with metadata.")],
    task: Annotated[str, typer.Option(help="What to evaluate: retrieval.")] = "retrieval",
    split: SplitOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    streams: Annotated[
        str, typer.Option(help="Of multi, mixed, single, cascade, cascade-single.")
    ] = "multi,mixed,cascade",
    shortlist: Annotated[int, typer.Option(help="Candidates that a cascade re-ranks.")] = 20,
    captions: Annotated[
        int | None, typer.Option(help="Use the first so many captions of a clip (default: all).")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames sampled of a clip (default: the processor's).")] = None,
    budget: BudgetOption = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    strict: StrictOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a task by its official metric."""
    if task != "retrieval":
        raise UsageError(f"task={task}: unknown, choose from retrieval")
    dials, names = ComputeBudget.parse(budget), _columns(columns)
    from perceiver_vl.data.clips import FolderClips
    from perceiver_vl.data.folder import read_folder
    from perceiver_vl.pretrained_folder import load_retriever
    from perceiver_vl.tasks.record import evaluation_record
    from perceiver_vl.tasks.retrieval import evaluate_retrieval

    retriever, processor = load_retriever(model, device)
    folder = read_folder(data, split=split, metadata=metadata, columns=names, strict=strict)
    size = processor.image_processor.size
    source = FolderClips(folder.records, (size["height"], size["width"]))
    result = evaluate_retrieval(
        retriever,
        processor,
        source,
        streams=[stream.strip() for stream in streams.split(",")],
        num_frames=frames,
        captions_per_clip=captions,
        shortlist=shortlist,
        budget=dials,
        batch_size=batch_size,
        strict=strict,
        progress=True,
    )
    result.skipped[:0] = folder.problems
    if not as_json:
        _print_retrieval(result)
        _print_skipped(result.skipped)
        return
    num_frames = dials.frames or frames or processor.image_processor.num_frames
    record = evaluation_record(
        model, processor, source, data=str(data), split=split, num_frames=num_frames, budget=dials
    )
    _print_json({**result.to_dict(), "record": vars(record)})


@app.command()
def index(
    model: ModelOption,
    media: Annotated[Path, typer.Option(help="Folder of clips and images.")],
    output: Annotated[Path, typer.Option("--out", help="Index folder, made or brought up to date.")],
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    split: SplitOption = None,
    frames: Annotated[int | None, typer.Option(help="Frames sampled of a clip (default: the processor's).")] = None,
    budget: BudgetOption = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    strict: StrictOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode every clip and image of a folder once; again: only what is new, changed or gone."""
    dials, names = ComputeBudget.parse(budget), _columns(columns)
    from perceiver_vl.search import build_index

    report = build_index(
        model,
        media,
        output,
        budget=dials,
        metadata=metadata,
        columns=names,
        split=split,
        num_frames=frames,
        batch_size=batch_size,
        strict=strict,
        progress=True,
        device=device,
    )
    if as_json:
        _print_json(report.as_dict())
        return
    out.print(report.summary())
    _print_skipped(report.skipped)


@app.command()
def search(
    index: Annotated[Path, typer.Option(help="Index folder.")],
    queries: Annotated[list[str], typer.Argument(metavar="WORDS...", help="One or more queries, each in quotes.")],
    top: Annotated[int, typer.Option(help="Clips to show.")] = 10,
    shortlist: Annotated[int, typer.Option(help="Candidates that the mixed stream re-ranks.")] = 100,
    rerank: Annotated[str, typer.Option(help="combined, mixed or none.")] = "combined",
    html: Annotated[Path | None, typer.Option(help="Also write a page of filmstrips here.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the index's model is now, if it has moved.")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find clips by words: shortlist by the multi-stream, re-rank by the mixed stream."""
    from perceiver_vl.search import Searcher, write_page

    searcher = Searcher(index, model, device)
    results = [searcher.search(words, top=top, shortlist=shortlist, rerank=rerank) for words in queries]  # type: ignore[arg-type]
    if html:
        write_page(html, results)
    if as_json:
        _print_json([result.as_dict() for result in results])
        return
    for result in results:
        _print_hits(result)
    if html:
        out.print(f"filmstrips: {html}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="The authors' .ckpt: a file, or hf://owner/name/file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write, new or empty.")],
    task: Annotated[
        str | None,
        typer.Option(
            help="pretraining, retrieval, question-answering or image-classification (default: what its heads are for)."
        ),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Folder or hub name of the tokenizer that it was trained with.")
    ] = "google-bert/bert-base-uncased",
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of every attention, which no shape tells (default: width / 64).")
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames that the processor samples of a clip (default: 8, or fewer if it has fewer)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn the authors' checkpoint into a folder that from_pretrained loads."""
    from perceiver_vl.convert import convert as run

    given = {} if num_attention_heads is None else {"num_attention_heads": num_attention_heads}
    result = run(source, output, task=task, tokenizer=tokenizer, num_frames=num_frames, progress=True, **given)
    if as_json:
        _print_json(
            {"out": str(result.folder), "task": result.task, "parameters": result.parameters, **vars(result.conversion)}
        )
        return
    _print_conversion(result.conversion)
    out.print(f"{result.task} model of {result.parameters / 1e6:.1f} M parameters: {result.folder}")


@app.command()
def world(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    clips: Annotated[int, typer.Option(help="Clips in all splits together.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 8,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    held_out: Annotated[
        int | None, typer.Option(help="Clips of validation and of test (default: an eighth, at most 256).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the generated world: video files with captions whose truth is known."""
    from perceiver_vl.data.world import write_world

    counts = write_world(folder, clips, seed, num_frames=frames, size=size, held_out=held_out, progress=True)
    if as_json:
        _print_json({"out": str(folder), **counts})
    else:
        out.print(f"{folder}: " + ", ".join(f"{count} clips for {split}" for split, count in counts.items()))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option()] = 0,
    as_json: JsonOption = False,
) -> None:
    """The whole story in minutes: make a world, train, evaluate three streams and the cascade, index, search,
    report.
    """
    for module, extra in (("accelerate", "train"), ("jsonargparse", "train"), ("matplotlib", "report")):
        _require_extra(module, extra)
    from perceiver_vl.demo import run_demo

    result = run_demo(output, seed)
    if as_json:
        _print_json(result.to_dict())
        return
    out.print(result.table())
    out.print(f"the page: {result.report}")


@bench_app.command()
def cost(
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each setting.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Operations and seconds of encoding at several settings of the dials, at base size with random weights."""
    from perceiver_vl.bench.cost import measure_cost

    report = measure_cost(runs=runs, seed=seed, device=device, progress=True)
    if as_json:
        _print_json(report.to_dict())
        return
    table = Table(title=f"encoding one example, base size, {report.parameters / 1e6:.1f} M parameters")
    for column in ("input", "GFLOPs", "ms (median)", "fastest", "slowest", "relative"):
        table.add_column(column, justify="left" if column == "input" else "right")
    reference = report.costs[0].milliseconds
    for row in report.costs:
        times = (f"{value:.0f}" for value in (row.milliseconds, row.fastest, row.slowest))
        table.add_row(row.name, f"{row.gflops:.1f}", *times, f"{row.milliseconds / reference:.2f}")
    out.print(table)
    _print_provenance(report)


@bench_app.command()
def kernels(
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips, each with 40 words.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each form.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of a forward: eager, sdpa, compiled; float32, bfloat16; at base size with random weights."""
    from perceiver_vl.bench.kernels import measure_kernels

    report = measure_kernels(frames=frames, batch_size=batch_size, runs=runs, seed=seed, device=device, progress=True)
    if as_json:
        _print_json(report.to_dict())
        return
    table = Table(title=f"encoding {report.batch_size} × {report.frames} frames and 40 words, base size")
    for column in ("form", "dtype", "ms", "fastest", "slowest", "ratio", "MiB", "max diff"):
        table.add_column(column, justify="left" if column in ("form", "dtype") else "right", no_wrap=True)
    reference = next(row for row in report.forms if (row.form, row.dtype) == ("sdpa", "float32"))
    for row in report.forms:
        times = (f"{value:.0f}" for value in (row.milliseconds, row.fastest, row.slowest))
        relative = f"{row.milliseconds / reference.milliseconds:.2f}"
        table.add_row(row.form, row.dtype, *times, relative, f"{row.peak_mib:.0f}", f"{row.difference:.1e}")
    out.print(table)
    _print_provenance(report)


def _print_provenance(report: Any) -> None:
    """What it takes to get the figures of a bench again."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    out.print(f"{report.command}; {report.runs} interleaved runs, seed {report.seed}; {report.machine}; {versions}")


def main() -> None:
    """Entry point: errors are one line on standard error; exit code 2 for usage, 1 for failure."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while waiting slow a busy machine down
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes its own comings and goings,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and its process group that a machine has no name
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except PerceiverVLError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except SystemExit as stop:  # typer makes a silent one of an interrupt
        if stop.code == 130:
            _fail("interrupted", 130)
        raise


def _fail(message: str, code: int) -> None:
    err.print(f"error: {' '.join(message.split())}", markup=False)
    sys.exit(code)


def _require_extra(module: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UsageError(f"{module} is not installed: pip install 'perceiver-vl[{extra}]'")


def _columns(text: str) -> dict[str, str]:
    columns = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = part.partition("=")
        if not (name and equals and column):
            raise UsageError(f"columns {part!r}: need name=column, as in file_name=file")
        columns[name] = column
    return columns


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _print_retrieval(result: "RetrievalResult") -> None:
    """Both directions of every stream, with its time and operations for one text query."""
    title = f"{result.captions} captions, {result.clips} clips, budget {result.budget}, shortlist {result.shortlist}"
    table = Table(title=title, collapse_padding=True, pad_edge=False)  # as narrow as a terminal of 80 columns
    figures = "R@1", "R@5", "R@10", "median rank", "mean rank", "ms a query", "MFLOPs a query"
    for column in ("stream", "query", *figures):
        table.add_column(column, justify="right" if column in figures else "left", no_wrap=column == "stream")
    for stream in result.streams:
        cost = f"{1e3 * stream.seconds_per_query:.2f}", f"{stream.flops_per_query / 1e6:.1f}"
        for query, recall, price in (
            ("text", stream.text_to_video, cost),
            ("video", stream.video_to_text, ("", "")),
        ):
            recalls = f"{recall.r1:.1f}", f"{recall.r5:.1f}", f"{recall.r10:.1f}"
            ranks = f"{recall.median_rank:.1f}", f"{recall.mean_rank:.1f}"
            name = stream.stream if price == cost else ""
            table.add_row(name, query, *recalls, *ranks, *price)
    out.print(table, soft_wrap=False)
    chance = ", ".join(f"R@{k} {100 * min(1.0, k / result.clips):.1f}" for k in (1, 5, 10))
    out.print(f"chance, text → video: {chance}")
    flops = f"{result.flops_per_clip / 1e9:.3g} GFLOPs"
    out.print(
        f"encoding a clip once (multi, mixed, cascade): {1e3 * result.seconds_per_clip:.1f} ms with decoding, {flops}"
    )


def _print_hits(result: "SearchResult") -> None:
    table = Table(title=f"“{result.query}”", title_justify="left")
    for column in ("", "file", "score", "cosine", "match", "seconds", "caption"):
        justify: Literal["left", "right"] = "left" if column in ("file", "caption") else "right"
        table.add_column(column, justify=justify, overflow="fold")  # a name that is cut short cannot be opened
    for hit in result.hits:
        match = "" if hit.mixed_score is None else f"{hit.mixed_score:.2f}"
        duration = "" if hit.duration is None else f"{hit.duration:.1f}"
        caption = hit.texts[0] if hit.texts else ""
        table.add_row(
            str(hit.rank), hit.file_name, f"{hit.score:.2f}", f"{hit.multi_score:.3f}", match, duration, caption
        )
    out.print(table, soft_wrap=False)
    total = 1e3 * result.seconds["total"]
    recall = f"recall of the shortlist against exact search {result.recall:.3f}"
    out.print(f"{result.searched} clips searched in {total:.1f} ms ({result.method}, {recall})")


def _print_conversion(conversion: "Conversion") -> None:
    """What was loaded, left and starts fresh, by parts instead of by tensors."""
    table = Table(title="tensors")
    for column in ("", "of the checkpoint", "in the model", "tensors"):
        table.add_column(column, justify="right" if column == "tensors" else "left", overflow="fold")
    loaded = Counter((_part(theirs), _part(ours)) for ours, theirs in conversion.loaded.items())
    left = Counter((theirs.split(".")[0], why) for theirs, why in conversion.left.items())
    for (theirs, ours), count in loaded.items():
        table.add_row("loaded", theirs, ours, str(count))
    for (theirs, why), count in sorted(left.items()):
        table.add_row("left", theirs, why, str(count))
    for ours, count in Counter(_part(name) for name in conversion.fresh).items():
        table.add_row("fresh", "", ours, str(count))
    out.print(table)


def _part(name: str) -> str:
    """The part that a tensor belongs to: its name's first words, and whether a block reads or thinks."""
    words = [word for word in name.removeprefix("perceiver_vl.").split(".") if not word.isdigit()]
    return ".".join(words[: 3 if "reads" in words or "thoughts" in words else 2])


def _print_skipped(problems: "list[Problem]", most: int = 20) -> None:
    """Files that were left out, in a list at the end."""
    if not problems:
        return
    err.print(f"skipped {len(problems)} files:", markup=False)
    for problem in problems[:most]:
        err.print(f"  {problem.file_name}: {problem.reason}", markup=False)
    if len(problems) > most:
        err.print(f"  … and {len(problems) - most} more (all of them with --json)", markup=False)
