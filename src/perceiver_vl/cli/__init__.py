"""The command line: parse, call, print. Heavy imports happen inside the commands, so that help and mistakes are
quick.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli import data as data_commands
from perceiver_vl.cli.ask import ask
from perceiver_vl.cli.bench_trained import bench_app
from perceiver_vl.cli.evaluate import evaluate
from perceiver_vl.cli.options import (
    BudgetOption,
    ColumnsOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxBrokenOption,
    MetadataOption,
    ModelOption,
    SplitOption,
    StrictOption,
    ThreadsOption,
    parse_columns,
    read_budget,
    require_extra,
)
from perceiver_vl.cli.report import report, report_at_end
from perceiver_vl.cli.show import (
    print_conversion,
    print_damaged,
    print_dry_run,
    print_hits,
    print_json,
    print_retrieval,
    print_skipped,
    print_task,
)
from perceiver_vl.cli.watch import watch
from perceiver_vl.cost_limit import is_limit
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import PREEMPTED, PerceiverVLError, PreemptedError, UsageError
from perceiver_vl.utils.threads import use_threads

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Perceiver-VL: train, evaluate and search video, images and text with iterative latent attention.",
)


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/.")],
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
        print_retrieval(result.retrieval)
    if result.task:
        print_task(result.task)
    print_skipped(result.skipped)
    print_damaged(result.damaged)
    out.print(f"{result.steps} steps in {result.seconds:.0f} s; the model is in {result.output}")


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
    max_broken: MaxBrokenOption = 0.1,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    compiled: CompileOption = False,
    threads: ThreadsOption = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Encode on a Ray cluster (auto, HOST:PORT), or on all cores (local)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode every clip and image of a folder once; again: only what is new, changed or gone."""
    names = parse_columns(columns)
    if ray is not None:
        require_extra("ray", "cluster")
    dials = read_budget(budget, model, device, dtype)
    use_threads(threads)
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
        max_broken=max_broken,
        progress=True,
        device=device,
        dtype=dtype,
        compiled=compiled,
        ray=ray,
    )
    if as_json:
        print_json(report.as_dict())
        return
    out.print(report.summary())
    print_skipped(report.skipped)
    print_damaged(report.damaged)


def search(
    index: Annotated[Path, typer.Option(help="Index folder.")],
    queries: Annotated[list[str], typer.Argument(metavar="WORDS...", help="One or more queries, each in quotes.")],
    top: Annotated[int, typer.Option(help="Clips to show.")] = 10,
    shortlist: Annotated[int, typer.Option(help="Candidates that the mixed stream re-ranks.")] = 100,
    rerank: Annotated[str, typer.Option(help="combined, mixed or none.")] = "combined",
    html: Annotated[Path | None, typer.Option(help="Also write a page of filmstrips here.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the index's model is now, if it has moved.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find clips by words: shortlist by the multi-stream, re-rank by the mixed stream."""
    use_threads(threads)
    from perceiver_vl.search import Searcher, write_page

    searcher = Searcher(index, model, device)
    results = [searcher.search(words, top=top, shortlist=shortlist, rerank=rerank) for words in queries]  # type: ignore[arg-type]
    if html:
        write_page(html, results)
    if as_json:
        print_json([result.as_dict() for result in results])
        return
    for result in results:
        print_hits(result)
    if html:
        out.print(f"filmstrips: {html}")


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
    from perceiver_vl.models.perceiver_vl.convert import convert as run

    given = {} if num_attention_heads is None else {"num_attention_heads": num_attention_heads}
    result = run(source, output, task=task, tokenizer=tokenizer, num_frames=num_frames, progress=True, **given)
    if as_json:
        print_json(
            {"out": str(result.folder), "task": result.task, "parameters": result.parameters, **vars(result.conversion)}
        )
        return
    print_conversion(result.conversion)
    out.print(f"{result.task} model of {result.parameters / 1e6:.1f} M parameters: {result.folder}")


def export(
    model: ModelOption,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    format: Annotated[str, typer.Option(help="onnx, or torch (exported programs, .pt2).")] = "onnx",
    budget: BudgetOption = "",
    as_json: JsonOption = False,
) -> None:
    """Write a model as graphs that run without this package, for any batch, number of frames and length of text."""
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require_extra(module, "export")
    dials = read_budget(budget, model, "cpu", None)
    if is_limit(budget):
        dials = replace(dials, frames=None)  # a graph takes any number
    from perceiver_vl.inference.export import export as run

    result = run(model, output, format=format, budget=dials, progress=True)  # type: ignore[arg-type]
    if as_json:
        print_json({"out": str(result.folder), "format": result.format, "parts": [vars(part) for part in result.parts]})
        return
    for part in result.parts:
        given, found = ", ".join(part.inputs), ", ".join(part.outputs)
        out.print(
            f"{result.folder / part.file}: {given} → {found}; differs from the model by {part.max_difference:.1e}"
        )


def demo(
    output: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option()] = 0,
    as_json: JsonOption = False,
) -> None:
    """The whole story in minutes: make a world, train, evaluate three streams and the cascade, index, search,
    report.
    """
    for module, extra in (("accelerate", "train"), ("jsonargparse", "train"), ("matplotlib", "report")):
        require_extra(module, extra)
    from perceiver_vl.bench.demo import run_demo

    result = run_demo(output, seed)
    if as_json:
        print_json(result.to_dict())
        return
    out.print(result.table())
    out.print(f"the page: {result.report}")


for _command in (
    train,
    evaluate,
    index,
    search,
    ask,
    watch,
    report,
    data_commands.prepare,
    data_commands.world,
    convert,
    export,
    demo,
):
    app.command()(_command)
app.add_typer(data_commands.data_app, name="data")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point."""
    whole_process = "torch.distributed" not in sys.modules  # else somebody has called this, and goes on
    try:
        _run()
    except SystemExit as stop:
        if whole_process and "torch.distributed" in sys.modules:  # nothing heavy is imported for this
            from perceiver_vl.utils.launch import leave_at_once

            leave_at_once(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
        raise


def _run() -> None:
    """Errors are one line on standard error; exit code 2 for usage, 1 for failure."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while waiting slow a busy machine down
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes its own comings and goings,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and its process group that a machine has no name
    try:
        app()
    except PreemptedError as stopped:
        err.print(str(stopped), markup=False)
        sys.exit(PREEMPTED)
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
