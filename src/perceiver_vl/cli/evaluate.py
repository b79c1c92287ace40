"""`perceiver-vl evaluate`: a model on a task, by the task's official metric."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceiver_vl.budget import ComputeBudget
from perceiver_vl.cli.options import (
    BenchmarkOption,
    BudgetOption,
    ColumnsOption,
    DeviceOption,
    JsonOption,
    MaxBrokenOption,
    MetadataOption,
    ModelOption,
    SplitOption,
    StrictOption,
    parse_columns,
)
from perceiver_vl.cli.show import print_damaged, print_json, print_retrieval, print_skipped, print_task
from perceiver_vl.console import out
from perceiver_vl.errors import UsageError

if TYPE_CHECKING:
    from perceiver_vl.data.clips import ClipSource
    from perceiver_vl.data.records import Problem


TASKS = (
    "retrieval",
    "question-answering",
    "vqa",
    "counting",
    "multiple-choice",
    "pairs",
    "image-classification",
)


def evaluate(
    model: ModelOption,
    data: Annotated[str, typer.Option(help="Folder of media, or folder or URL of shards.")],
    task: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(TASKS)}."),
    ] = "retrieval",
    split: SplitOption = None,
    benchmark: BenchmarkOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    submission: Annotated[
        Path | None, typer.Option(help="Write the predictions here, as the benchmark's own server wants them.")
    ] = None,
    streams: Annotated[
        str, typer.Option(help="Retrieval: of multi, mixed, single, cascade, cascade-single.")
    ] = "multi,mixed,cascade",
    shortlist: Annotated[int, typer.Option(help="Retrieval: candidates that a cascade re-ranks.")] = 20,
    captions: Annotated[
        int | None, typer.Option(help="Retrieval: use the first so many captions of a clip (default: all).")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames sampled of a clip (default: the processor's).")] = None,
    budget: BudgetOption = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    strict: StrictOption = False,
    max_broken: MaxBrokenOption = 0.1,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a task by its official metric."""
    if task not in TASKS:
        raise UsageError(f"task={task}: unknown, choose from {', '.join(TASKS)}")
    dials, names = ComputeBudget.parse(budget), parse_columns(columns)
    if task == "retrieval" and submission:
        raise UsageError(f"submission={submission}: retrieval has none, its ranks are its result")
    from perceiver_vl.data.opening import open_clips
    from perceiver_vl.files import write_text
    from perceiver_vl.pretrained_folder import load_folder, load_retriever
    from perceiver_vl.tasks import task_of
    from perceiver_vl.tasks.evaluation import evaluate_task
    from perceiver_vl.tasks.record import evaluation_record
    from perceiver_vl.tasks.retrieval import evaluate_retrieval

    common: dict[str, Any] = {
        "num_frames": frames,
        "budget": dials,
        "batch_size": batch_size,
        "strict": strict,
        "max_broken": max_broken,
        "progress": True,
    }
    where: dict[str, Any] = {"benchmark": benchmark, "split": split, "metadata": metadata, "columns": names}

    def opened(processor: Any, need: Any) -> "tuple[ClipSource, list[Problem]]":
        size = processor.image_processor.size["height"], processor.image_processor.size["width"]
        return open_clips(data, size, need=need, strict=strict, max_broken=max_broken, **where)

    result: Any
    if task == "retrieval":
        retriever, processor = load_retriever(model, device)
        source, problems = opened(processor, "text")
        which = [stream.strip() for stream in streams.split(",")]
        result = evaluate_retrieval(
            retriever,
            processor,
            source,
            streams=which,
            captions_per_clip=captions,
            shortlist=shortlist,
            **common,
        )
    else:
        asked = task_of(task)
        answerer, processor = load_folder(asked.model_class, asked.name, model, device)
        source, problems = opened(processor, "label" if task == "image-classification" else None)
        result = evaluate_task(asked, answerer, processor, source, **common)
        if submission:
            write_text(submission, asked.submission(result.predictions))
        elif not result.metrics:
            raise UsageError(f"{data}: does not say what is right, write the predictions with --submission FILE")
    result.skipped[:0] = problems
    if as_json:
        num_frames = dials.frames or frames or processor.image_processor.num_frames
        record = evaluation_record(
            model, processor, source, data=data, split=split, num_frames=num_frames, budget=dials
        )
        print_json({**result.to_dict(), "record": vars(record)})
        return
    if task == "retrieval":
        print_retrieval(result)
    else:
        print_task(result)
    print_skipped(result.skipped)
    print_damaged(result.damaged)
    if submission:
        out.print(f"{len(result.predictions)} predictions: {submission}")
