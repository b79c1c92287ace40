"""`perceiver-vl evaluate`: a model on a task, by the task's official metric."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceiver_vl.cli.moments import print_moment_evaluation
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
    check_file,
    parse_columns,
    read_budget,
)
from perceiver_vl.cli.show import print_damaged, print_json, print_skipped
from perceiver_vl.models.budget import ComputeBudget, CostLimit, EarlyExitBudget
from perceiver_vl.tasks import EXAMPLE_TASKS, TASKS, load_for, task_of
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import Setting, UsageError
from perceiver_vl.utils.threads import use_threads

if TYPE_CHECKING:
    from perceiver_vl.tasks.early_exit import ExitsTaken

MOMENTS = "moments"
_TASKS_OF_OPTION = {
    "streams": ("retrieval",),
    "shortlist": ("retrieval",),
    "folds": ("retrieval",),
    "captions_per_clip": ("retrieval", "pre-training"),
    "seed": ("pre-training",),
    "beams": ("captioning",),
    "guess_from": ("captioning",),
    "early_exit": ("question-answering", "vqa", "image-classification"),
    "exits_from": ("question-answering", "vqa", "image-classification"),
    "index": (MOMENTS,),
    "segments": (MOMENTS,),
    "segment_fps": (MOMENTS,),
    "corpus": (MOMENTS,),
    "baselines": (MOMENTS,),
    "calibrate": (MOMENTS,),
}
"""What says something of some tasks alone."""


def evaluate(
    model: ModelOption,
    data: Annotated[str, typer.Option(help="Folder of media, or folder or URL of shards.")],
    task: Annotated[str, typer.Option(help=f"One of {', '.join((*TASKS, MOMENTS))}.")] = "retrieval",
    split: SplitOption = None,
    benchmark: BenchmarkOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    submission: Annotated[
        Path | None, typer.Option(help="Write the predictions here, as the benchmark's own server wants them.")
    ] = None,
    streams: Annotated[
        str | None,
        typer.Option(
            help="Retrieval: of multi, mixed, single, cascade, cascade-single (default: multi,mixed,cascade)."
        ),
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
    beams: Annotated[
        int | None, typer.Option(min=1, help="Captioning: captions followed at a time (default: 1, greedy).")
    ] = None,
    guess_from: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Captioning: beside what is said most often of this split, and of the most similar clip in it.",
        ),
    ] = None,
    early_exit: Annotated[
        str | None,
        typer.Option(
            metavar="GFLOPS",
            help="Answers, classes: each example leaves after the block that is sure enough, at this mean cost, as in "
            "3GFLOPs. Thresholds are solved on another split and kept in the model's folder, for ask.",
        ),
    ] = None,
    exits_from: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="With --early-exit: solve thresholds on this split (default: validation)."),
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Moments: keep the index of the videos here (default: a scratch folder).")
    ] = None,
    segments: Annotated[
        str | None, typer.Option(metavar="SECONDS|scenes", help="Moments: as of index (default: 2; DiDeMo: 5).")
    ] = None,
    segment_fps: Annotated[float | None, typer.Option(help="Moments: as of index (default: 1).")] = None,
    corpus: Annotated[
        bool, typer.Option("--corpus", help="Moments: also ask each query of all videos at once.")
    ] = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Moments: beside answers without words or video, and windows of one length."),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Moments: learn how long they are from these annotations first, of other videos there."),
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
    if task not in (*TASKS, MOMENTS):
        raise UsageError(f"task={task}: unknown, choose from {', '.join((*TASKS, MOMENTS))}")
    names = parse_columns(columns)
    ranking = {"streams": streams, "shortlist": shortlist, "folds": folds}
    of_moments: dict[str, Any] = {"index": index, "segments": segments, "segment_fps": segment_fps}
    of_moments |= {"corpus": corpus or None, "baselines": baselines or None, "calibrate": calibrate}
    of_others = {"captions_per_clip": captions_per_clip, "seed": seed, "beams": beams, "guess_from": guess_from}
    of_others |= {"early_exit": early_exit, "exits_from": exits_from}
    how = _options_of(task, {**ranking, **of_others, **of_moments})
    if submission and task != MOMENTS and task not in EXAMPLE_TASKS:
        raise UsageError(f"submission={submission}: {task} has none, its figures are its result")
    check_file("--submission", submission)
    limit = _exit_limit(how, split)
    dials = read_budget(budget, model, device, dtype)
    use_threads(threads)
    if task == MOMENTS:
        unused = {"benchmark": benchmark, "split": split, "columns": columns or None, "num_frames": num_frames}
        for name, value in unused.items():
            if value is not None:
                raise UsageError(f"{name}={value}: says nothing of task moments, leave it out")
        if compiled:
            raise UsageError("compile: says nothing of task moments, leave it out")
        if metadata is None:
            raise UsageError(
                "metadata: name the annotation file of QVHighlights, Charades-STA, ActivityNet Captions, DiDeMo or TVR "
                "with ",
                Setting("metadata", "FILE"),
            )
        how |= {"budget": dials, "batch_size": batch_size, "device": device, "dtype": dtype}
        how |= {"strict": strict, "max_failed_fraction": max_failed_fraction}
        print_moment_evaluation(model, data, metadata, submission, as_json, how)
        return
    from perceiver_vl.data.open import open_dataset
    from perceiver_vl.data.transcode.features import check_features
    from perceiver_vl.tasks.provenance import evaluation_record
    from perceiver_vl.utils.files import write_text
    from perceiver_vl.utils.launch import is_first_process, join_others

    chosen = task_of(task)
    failing: dict[str, Any] = {"strict": strict, "max_failed_fraction": max_failed_fraction}
    how |= {"num_frames": num_frames, "budget": dials, "batch_size": batch_size, **failing}
    if join_others():
        if chosen.in_one_process or limit:
            raise UsageError(f"task={task}: is measured in one process, start it without torchrun")
        how["shared"] = True
    loaded, processor = load_for(task, chosen.model_class, model, device, dtype, compiled)
    size = processor.image_processor.size["height"], processor.image_processor.size["width"]
    frames = dials.frames or num_frames or processor.image_processor.num_frames
    check_features(data, loaded, processor, frames)
    where: dict[str, Any] = {"benchmark": benchmark, "split": split, "metadata": metadata, "columns": names}
    where["modalities"] = processor.modalities
    source, problems = open_dataset(data, size, need=chosen.need, **where, **failing)
    if guess_from is not None:
        how["guess_from"], _ = open_dataset(data, size, need=chosen.need, **(where | {"split": guess_from}), **failing)
    if submission is None and not chosen.is_labelled_somewhere(source):
        raise UsageError(f"{data}: does not say what is right, write the predictions with --submission FILE")
    if limit is not None:
        from perceiver_vl.tasks.early_exit import save_exits, solve_exits

        held_out, _ = open_dataset(
            data, size, need=chosen.need, **(where | {"split": exits_from or "validation"}), **failing
        )
        how["budget"] = dials = replace(dials, frames=frames)
        policy = solve_exits(chosen, loaded, processor, held_out, limit, progress=True, **how)  # type: ignore[arg-type]
        how["budget"] = dials = save_exits(model, limit, dials, policy, exits_from or "validation")
    result = chosen.evaluate(loaded, processor, source, progress=is_first_process(), **how)
    if not is_first_process():
        return
    if submission:
        write_text(submission, chosen.submission(result))
    result.skipped[:0] = problems
    left = _exits_taken(loaded, frames, dials)
    if as_json:
        record = evaluation_record(
            model, processor, source, data=data, split=split, num_frames=frames, budget=dials, dtype=dtype
        )
        told = {} if left is None else {"early_exit": vars(left)}
        print_json({**result.to_dict(), **told, "record": vars(record)})
        return
    result.print()
    if left is not None:
        out.print(str(left))
    print_skipped(result.skipped)
    print_damaged(result.damaged)
    if submission:
        out.print(f"{len(result.predictions)} predictions: {submission}")


def _exit_limit(how: dict[str, Any], split: str | None) -> CostLimit | None:
    """The cost that examples leave early for, taken out of `how`; None: nobody leaves."""
    asked, solved_on = how.pop("early_exit", None), how.pop("exits_from", None)
    if asked is None:
        if solved_on is not None:
            raise UsageError(f"exits_from={solved_on}: solves thresholds, give a cost, too: --early-exit 3GFLOPs")
        return None
    if split is None or (solved_on or "validation") == split:
        scored = "all is scored" if split is None else "is the split that is scored"
        raise UsageError(
            f"exits_from={solved_on or 'validation'}: {scored}, but thresholds are solved on what is not; choose one "
            "with ",
            Setting("split", "test"),
        )
    return CostLimit.parse(asked)


def _exits_taken(model: Any, frames: int, budget: ComputeBudget) -> "ExitsTaken | None":
    if not isinstance(budget, EarlyExitBudget):
        return None
    from perceiver_vl.tasks.early_exit import exits_taken

    return exits_taken(model.config, frames, budget)


def _options_of(task: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; raises `UsageError` for one that says something of another task than this one."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if task not in _TASKS_OF_OPTION[name]:
            raise UsageError(
                f"{name}={value}: says nothing of task {task}, it is for {' and '.join(_TASKS_OF_OPTION[name])}"
            )
    if "streams" in given:
        given["streams"] = [stream.strip() for stream in given["streams"].split(",")]
    return given
