"""`perceiver-vl evaluate`: a model on a task, by the task's official metric."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceiver_vl.cli.options import (
    BenchmarkOption,
    BudgetOption,
    ColumnsOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxFailedFractionOption,
    MetadataOption,
    ModelOption,
    SplitOption,
    StrictOption,
    ThreadsOption,
    parse_columns,
    read_budget,
)
from perceiver_vl.cli.show import (
    print_damaged,
    print_json,
    print_pretraining,
    print_retrieval,
    print_skipped,
    print_task,
)
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.threads import use_threads

if TYPE_CHECKING:
    from perceiver_vl.data.records import SkippedSample
    from perceiver_vl.data.sources import VideoDataset


TASKS = (
    "retrieval",
    "pre-training",
    "question-answering",
    "vqa",
    "counting",
    "multiple-choice",
    "nlvr2",
    "image-classification",
)
_STREAMS = "multi,mixed,cascade"


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
        str | None,
        typer.Option(help=f"Retrieval: of multi, mixed, single, cascade, cascade-single (default: {_STREAMS})."),
    ] = None,
    shortlist: Annotated[
        int | None, typer.Option(help="Retrieval: candidates that a cascade re-ranks (default: 20).")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Retrieval: the mean over so many equal parts, as in COCO 1k (5) (default: 1).")
    ] = None,
    captions_per_clip: Annotated[
        int | None,
        typer.Option(help="Retrieval, pre-training: use the first so many captions of a clip (default: all)."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Pre-training: of the masks and the pairs that do not match (default: 0).")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames sampled of a clip (default: the processor's).")] = None,
    budget: BudgetOption = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    strict: StrictOption = False,
    max_failed_fraction: MaxFailedFractionOption = 0.1,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    compiled: CompileOption = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a task by its official metric."""
    if task not in TASKS:
        raise UsageError(f"task={task}: unknown, choose from {', '.join(TASKS)}")
    names = parse_columns(columns)
    ranking = {"streams": streams, "shortlist": shortlist, "folds": folds}
    _refuse_others(task, {**ranking, "captions_per_clip": captions_per_clip, "seed": seed, "submission": submission})
    dials = read_budget(budget, model, device, dtype)
    use_threads(threads)
    from perceiver_vl.data.open import open_dataset
    from perceiver_vl.tasks.provenance import evaluation_record
    from perceiver_vl.utils.launch import is_first_process, join_others

    common: dict[str, Any] = {
        "num_frames": num_frames,
        "budget": dials,
        "batch_size": batch_size,
        "strict": strict,
        "max_failed_fraction": max_failed_fraction,
        "progress": is_first_process(),
    }
    if join_others():
        if task == "pre-training":
            raise UsageError("task=pre-training: is measured in one process, start it without torchrun")
        common["shared"] = True
    where: dict[str, Any] = {"benchmark": benchmark, "split": split, "metadata": metadata, "columns": names}

    def opened(processor: Any, need: Any) -> "tuple[VideoDataset, list[SkippedSample]]":
        size = processor.image_processor.size["height"], processor.image_processor.size["width"]
        return open_dataset(data, size, need=need, strict=strict, max_failed_fraction=max_failed_fraction, **where)

    result: Any
    if task == "retrieval":
        from perceiver_vl.models.loading import load_retriever
        from perceiver_vl.tasks.retrieval_folds import evaluate_in_folds

        retriever, processor = load_retriever(model, device, dtype, compiled)
        source, problems = opened(processor, "text")
        result = evaluate_in_folds(
            retriever,
            processor,
            source,
            1 if folds is None else folds,
            streams=[stream.strip() for stream in (_STREAMS if streams is None else streams).split(",")],
            captions_per_clip=captions_per_clip,
            shortlist=20 if shortlist is None else shortlist,
            **common,
        )
    elif task == "pre-training":
        from perceiver_vl.models.loading import load_folder
        from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining
        from perceiver_vl.tasks.pretraining import evaluate_pretraining

        pretrained, processor = load_folder(PerceiverVLForPreTraining, task, model, device, dtype, compiled)
        source, problems = opened(processor, "text")
        result = evaluate_pretraining(
            pretrained, processor, source, captions_per_clip=captions_per_clip, seed=seed or 0, **common
        )
    else:
        from perceiver_vl.models.loading import load_folder
        from perceiver_vl.tasks import task_of
        from perceiver_vl.tasks.evaluation import evaluate_task, usable_examples
        from perceiver_vl.utils.files import write_text

        asked = task_of(task)
        answerer, processor = load_folder(asked.model_class, asked.name, model, device, dtype, compiled)
        source, problems = opened(processor, "label" if task == "image-classification" else None)
        places, _ = usable_examples(asked, source)
        if submission is None and not any(asked.is_labelled(source.record(place)) for place in places):
            raise UsageError(f"{data}: does not say what is right, write the predictions with --submission FILE")
        result = evaluate_task(asked, answerer, processor, source, **common)
        if submission and is_first_process():
            write_text(submission, asked.submission(result.predictions))
    if not is_first_process():
        return
    result.skipped[:0] = problems
    if as_json:
        num_frames = dials.frames or num_frames or processor.image_processor.num_frames
        record = evaluation_record(
            model, processor, source, data=data, split=split, num_frames=num_frames, budget=dials, dtype=dtype
        )
        print_json({**result.to_dict(), "record": vars(record)})
        return
    if task == "retrieval":
        print_retrieval(result)
    elif task == "pre-training":
        print_pretraining(result)
    else:
        print_task(result)
    print_skipped(result.skipped)
    print_damaged(result.damaged)
    if submission:
        out.print(f"{len(result.predictions)} predictions: {submission}")


def _refuse_others(task: str, options: dict[str, Any]) -> None:
    """Raise `UsageError` for an option that says something of another task than this one."""
    of = {"captions_per_clip": ("retrieval", "pre-training"), "seed": ("pre-training",)}
    of |= dict.fromkeys(("streams", "shortlist", "folds"), ("retrieval",))
    of["submission"] = tuple(name for name in TASKS if name not in ("retrieval", "pre-training"))
    for name, value in options.items():
        if value is None or task in of[name]:
            continue
        if name == "submission":
            raise UsageError(f"submission={value}: {task} has none, its figures are its result")
        raise UsageError(f"{name}={value}: says nothing of task {task}, it is for {' and '.join(of[name])}")
