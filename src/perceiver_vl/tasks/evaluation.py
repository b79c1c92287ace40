"""A task's official metric on a split: read, ask, score; and the predictions, for splits without answers."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.prefetch import ReadBatch, medium_of, other_pictures, read_ahead
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_failures
from perceiver_vl.data.sources import VideoDataset, is_damaged
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.metrics import by_kind
from perceiver_vl.tasks.task import Prediction, Task, VisionBatch
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import PerceiverVLError, UsageError


@dataclass(frozen=True)
class KindScore:
    """The task's first metric on the examples of one kind."""

    examples: int
    score: float


@dataclass
class TaskResult:
    """What a model scores on a split.

    metrics: by name, shares in per cent, over the `labelled` of the `examples` that could be read; empty where none is.
    left_out: examples that were not asked, their files or what they lack in `skipped`: the official scripts would count
    each as wrong, or refuse the submission. damaged: files that lacked frames and were used all the same.
    predictions: of every example that was asked, in the order of the split.
    """

    task: str
    examples: int
    labelled: int
    left_out: int
    budget: str
    num_frames: int
    seconds_per_example: float
    metrics: dict[str, float] = field(default_factory=dict)
    by_kind: dict[str, KindScore] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list, repr=False)
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def metric(self, name: str) -> float:
        """One metric; raises `UsageError` for one that was not measured."""
        if name not in self.metrics:
            measured = ", ".join(self.metrics) or "nothing, for no example says what is right"
            raise UsageError(f"metric={name}: {self.task} measured {measured}")
        return self.metrics[name]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the predictions go into the submission file."""
        return {name: value for name, value in asdict(self).items() if name != "predictions"}


def usable_examples(task: Task, source: VideoDataset, labelled: bool = False) -> tuple[list[int], list[SkippedSample]]:
    """The places of the records that are examples of the task, `labelled` ones only or all, and what the others lack.

    Raises `UsageError` if there is none.
    """
    indices: list[int] = []
    problems: list[SkippedSample] = []
    for index in range(len(source)):
        record = source.record(index)
        lacks = task.missing(record)
        if lacks is None and labelled and not task.is_labelled(record):
            lacks = "does not say what is right"
        if lacks is None:
            indices.append(index)
        else:
            problems.append(SkippedSample(record.file_name, lacks))
    if not indices:
        first = f", the first: {problems[0].file_name}: {problems[0].reason}" if problems else ""
        raise UsageError(f"task={task.name}: no example of it among {len(source)} records{first}")
    return indices, problems


@torch.inference_mode()
def evaluate_task(
    task: Task,
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    *,
    second: VideoDataset | None = None,
    num_frames: int | None = None,
    budget: ComputeBudget = FULL_BUDGET,
    batch_size: int = 32,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    progress: bool = False,
    shared: bool = False,
) -> TaskResult:
    """Ask `model` every example of `source`, and score what it says by the task's official metric.

    `second`: the other pictures of pairs, by the same places; None: the files that the records name.
    `num_frames`: frames of a clip (None: the processor's); a budget's frames go before it.
    Examples whose files cannot be read are left out, and listed in `skipped`; `strict` raises at the first.
    Without right answers there are no metrics, only predictions.
    `shared`: all processes of the group call this, take a share of the work each, and get the same result.
    Raises `UsageError` for values that cannot work, a split without an example of the task or a head that cannot answer
    it; `PerceiverVLError` if no file or more than the share `max_failed_fraction` of them cannot be read, or the
    model's answers are not numbers.
    """
    if not isinstance(model, task.model_class):
        raise UsageError(f"task={task.name}: needs a {task.model_class.__name__}, not a {type(model).__name__}")
    frames = checked_frames(model, processor, num_frames, budget, batch_size)
    indices, problems = usable_examples(task, source)
    records = {index: source.record(index) for index in indices}
    task.check_head(model.config, [record for record in records.values() if task.is_labelled(record)])
    start = time.perf_counter()
    was_training = model.training
    group = ProcessGroup(shared)
    try:
        model.eval()
        with ProgressBars(progress) as bar:
            advance = bar.stage("Asking", len(group.share(indices)))
            sources = sources_of(task, processor, source, second)

            def ask() -> _Asked:
                asked = _Asked()
                reading = frames, batch_size, asked.problems, strict, max_failed_fraction, group
                for batch in read_ahead(sources, indices, *reading):
                    seen = vision_batch_of(batch, processor, frames, model.device)
                    logits = _ask(task, model, processor, seen, [records[index] for index in batch.indices], budget)
                    for index, of_one in zip(batch.indices, logits, strict=True):
                        asked.predictions[index] = _prediction(task, index, records[index], of_one, model.config)
                        if task.is_labelled(records[index]):
                            asked.scores[index] = task.score(records[index], of_one, model.config)
                    advance(len(batch.indices))
                asked.damaged = {records[i].file_name for i in asked.predictions if is_damaged(source, i)}
                return asked

            asked = _together(group.of_all(ask))
    finally:
        model.train(was_training)
    problems += asked.problems
    media = len({medium_of(record) for record in records.values()})
    check_failures(
        len(asked.problems), media, media, max_failed_fraction, asked.problems[0] if asked.problems else None
    )
    predictions, scores = asked.predictions, asked.scores
    if not predictions:
        first = f"{problems[0].file_name}: {problems[0].reason}"
        raise PerceiverVLError(f"no example of {len(indices)} could be read, the first: {first}")
    metrics, kinds = _measure(task, [(records[index], scores[index]) for index in sorted(scores)])
    return TaskResult(
        task.name,
        examples=len(predictions),
        labelled=len(scores),
        left_out=len(source) - len(predictions),
        budget=str(budget),
        num_frames=frames,
        seconds_per_example=(time.perf_counter() - start) / len(predictions),
        metrics=metrics,
        by_kind=kinds,
        predictions=[predictions[index] for index in sorted(predictions)],
        skipped=problems,
        damaged=sorted(asked.damaged),
    )


@dataclass
class _Asked:
    """What came of asking some examples, by their places."""

    predictions: dict[int, Prediction] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    problems: list[SkippedSample] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)


def _together(parts: Sequence[_Asked]) -> _Asked:
    """Of all processes; a file that two of them could not read counts once."""
    whole = _Asked()
    for part in parts:
        whole.predictions |= part.predictions
        whole.scores |= part.scores
        whole.problems += [problem for problem in part.problems if problem not in whole.problems]
        whole.damaged |= part.damaged
    return whole


def checked_frames(
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    num_frames: int | None,
    budget: ComputeBudget,
    batch_size: int,
) -> int:
    """The number of frames of a clip; raises `UsageError` for values that cannot work."""
    model.config.check_budget(budget)
    frames: int = budget.frames or num_frames or processor.image_processor.num_frames
    if not 1 <= frames <= model.config.max_frames:
        raise UsageError(f"num_frames={frames}: need 1 to {model.config.max_frames}, the model's max_frames")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: need at least 1")
    return frames


def sources_of(
    task: Task, processor: PerceiverVLProcessor, source: VideoDataset, second: VideoDataset | None
) -> list[VideoDataset]:
    """Where the media of an example come from: `source`, and for pairs the other pictures."""
    if task.pictures == 1:
        return [source]
    size = processor.image_processor.size
    return [source, second or other_pictures(source, (size["height"], size["width"]))]


def vision_batch_of(
    batch: ReadBatch, processor: PerceiverVLProcessor, num_frames: int, device: torch.device
) -> VisionBatch:
    """The media of a batch as the model takes them."""
    clips = [frames for medium in batch.media for frames in medium]
    inputs = processor(videos=clips, num_frames=num_frames).to(device)
    return VisionBatch(inputs["pixel_values"], inputs["frame_mask"], torch.tensor(batch.rows, device=device))


def _ask(
    task: Task,
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    seen: VisionBatch,
    records: Sequence[Record],
    budget: ComputeBudget,
) -> Tensor:
    """Logits `(B,K)` of a batch, on the CPU."""
    words = {name: value.to(model.device) for name, value in task.words(records, processor).items()}
    logits = task.ask(model, seen, words, budget).float().cpu()
    if not (logits < torch.inf).all():  # minus infinity is the logit of a choice that is not there
        raise PerceiverVLError("the model's answers are not finite numbers: train it again")
    return logits


def _prediction(task: Task, index: int, record: Record, logits: Tensor, config: PerceiverVLConfig) -> Prediction:
    answer, label, score = task.predict(record, logits, config)
    return Prediction(record.example_id or str(index), record.file_name, answer, label, score)


def _measure(
    task: Task, scored: Sequence[tuple[Record, dict[str, float]]]
) -> tuple[dict[str, float], dict[str, KindScore]]:
    """The metrics of labelled examples and their scores, and the first metric by kind; nothing of none."""
    if not scored:
        return {}, {}
    records = [record for record, _ in scored]
    columns = {name: [scores[name] for _, scores in scored] for name in scored[0][1]}
    first = columns[task.metrics[0]]
    metrics = {name: sum(column) / len(column) for name, column in columns.items()}
    kinds = by_kind((score, kind) for record, score in zip(records, first, strict=True) for kind in task.kinds(record))
    by_name = {kind: KindScore(count, score) for kind, (count, score) in kinds.items()}
    return metrics | task.over_groups(records, first), by_name
