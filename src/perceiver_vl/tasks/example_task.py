"""A task that is answered example by example: what it has to say of itself, and its official metric on a split.

`LabelTask` is one that is answered by the logits of a head. Shapes: B batch, K answers of the head.
"""

import csv
import io
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from perceiver_vl.data.prefetch import medium_of, other_pictures, read_ahead
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_failures
from perceiver_vl.data.sources import VideoDataset, is_damaged
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.language_bridge import class_for
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import VisionBatch, checked_frames, evaluating, vision_batch_of
from perceiver_vl.tasks.metrics import by_kind
from perceiver_vl.tasks.task import Task
from perceiver_vl.tasks.task_result import KindScore, Prediction, TaskResult
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import PerceiverVLError, UsageError


class Scored(NamedTuple):
    """A labelled record, what the model says of it, in words, and what that adds to each metric."""

    record: Record
    said: str
    scores: dict[str, float]


class ExampleTask(Task[TaskResult]):
    """What of evaluating and fine-tuning is not the same for all tasks, a method for each; `evaluate` is the same.

    metrics: what is measured, the benchmark's own first; lower_is_better: for that one. pictures: how many clips or
    pictures an example is about.
    """

    metrics: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[bool] = False
    pictures: ClassVar[int] = 1

    @abstractmethod
    def missing(self, record: Record) -> str | None:
        """What a record lacks to be an example of this task, in words, or None."""

    @abstractmethod
    def is_labelled(self, record: Record) -> bool:
        """Whether a record says what is right."""

    def head(self, records: Iterable[Record]) -> dict[str, Any]:
        """The configuration of the model's head that the training split asks for."""
        return {}

    def words(self, tokenizer: Any) -> dict[str, Any]:
        """What of the configuration the tokenizer says."""
        return {}

    def drawn(self, record: Record, key: tuple[int, int, int]) -> Record:
        """What is learned of a labelled record when it is drawn for `key` = (seed, epoch, index)."""
        return record

    def check_head(self, config: PerceiverVLConfig, records: Sequence[Record]) -> None:
        """Raise `UsageError` where the model's head cannot answer these labelled records."""

    @abstractmethod
    def training_inputs(
        self, records: Sequence[Record], processor: PerceiverVLProcessor, config: PerceiverVLConfig
    ) -> dict[str, Tensor]:
        """What the model reads of B labelled records, and `labels (B,…)`."""

    @abstractmethod
    def answers(
        self,
        model: Any,
        processor: PerceiverVLProcessor,
        records: Sequence[Record],
        vision: VisionBatch,
        budget: ComputeBudget,
    ) -> Sequence[Any]:
        """What the model says of each of B records."""

    @abstractmethod
    def predict(self, record: Record, answer: Any, config: PerceiverVLConfig) -> tuple[str, int, float]:
        """What an answer says of a record: `answer`, `label` and `score` of its `Prediction`."""

    @abstractmethod
    def score(self, record: Record, answer: Any, config: PerceiverVLConfig) -> dict[str, float]:
        """What a labelled record with an answer adds to each metric that is a mean over the examples: to the first over
        all, to others over those that add to it.
        """

    def group_metrics(self, records: Sequence[Record], scores: Sequence[float]) -> dict[str, float]:
        """Metrics that are no such mean, from labelled records and the first score of each."""
        return {}

    def kinds(self, record: Record) -> tuple[str, ...]:
        """The types of question that a record is reported under: the benchmark's, if it has one."""
        return () if record.kind is None else (record.kind,)

    @abstractmethod
    def submission(self, result: TaskResult) -> str:
        """The text of the benchmark's own file."""

    def is_labelled_somewhere(self, source: VideoDataset) -> bool:
        """Whether any example says what is right; raises `UsageError` if there is no example."""
        return any(self.is_labelled(source.record(index)) for index in self.usable_examples(source)[0])

    def usable_examples(self, source: VideoDataset, labelled: bool = False) -> tuple[list[int], list[SkippedSample]]:
        """The places of the records that are examples, `labelled` ones only or all, and what the others lack.

        Raises `UsageError` if there is none.
        """
        indices: list[int] = []
        problems: list[SkippedSample] = []
        for index in range(len(source)):
            record = source.record(index)
            lacks = self.missing(record)
            if lacks is None and labelled and not self.is_labelled(record):
                lacks = "does not say what is right"
            if lacks is None:
                indices.append(index)
            else:
                problems.append(SkippedSample(record.file_name, lacks))
        if not indices:
            first = f", the first: {problems[0].file_name}: {problems[0].reason}" if problems else ""
            raise UsageError(f"task={self.name}: no example of it among {len(source)} records{first}")
        return indices, problems

    def media_sources(
        self, source: VideoDataset, processor: PerceiverVLProcessor, second: VideoDataset | None = None
    ) -> list[VideoDataset]:
        """Where the media of an example come from: `source`, and for pairs the other pictures, those of `second` or of
        the files that the records name.
        """
        if self.pictures == 1:
            return [source]
        size = processor.image_processor.size
        return [source, second or other_pictures(source, (size["height"], size["width"]))]

    @torch.inference_mode()
    def evaluate(
        self,
        model: Any,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        batch_size: int = 32,
        strict: bool = False,
        max_failed_fraction: float = MAX_FAILED_FRACTION,
        progress: bool = False,
        second: VideoDataset | None = None,
        shared: bool = False,
    ) -> TaskResult:
        """Ask `model` every example of `source`, and score its answers by the task's official metric.

        `num_frames`: frames of a clip (None: the processor's); a budget's frames go before it. `second`: the other
        pictures of pairs, by the same places; None: the files that the records name.
        Examples whose files cannot be read are left out, and listed in `skipped`; `strict` raises at the first.
        Without right answers there are no metrics, only predictions.
        `shared`: all processes of the group call this, take a share of the work each, and get the same result.
        Raises `UsageError` for values that cannot work, a split without an example of the task or a head that cannot
        answer it; `PerceiverVLError` if no file or more than the share `max_failed_fraction` of them cannot be read, or
        the model's answers are not numbers.
        """
        if not isinstance(model, kind := class_for(self.model_class, model.config)):
            raise UsageError(f"task={self.name}: needs a {kind.__name__}, not a {type(model).__name__}")
        frames = checked_frames(model, processor, num_frames, budget, batch_size)
        indices, problems = self.usable_examples(source)
        records = {index: source.record(index) for index in indices}
        self.check_head(model.config, [record for record in records.values() if self.is_labelled(record)])
        start = time.perf_counter()
        group = ProcessGroup(shared)
        with evaluating(model), ProgressBars(progress) as bar:
            advance = bar.stage("Asking", len(group.share(indices)))
            media = self.media_sources(source, processor, second)

            def answer_share() -> _Answers:
                answers = _Answers()
                how = frames, batch_size, answers.problems, strict, max_failed_fraction, group
                for batch in read_ahead(media, indices, *how):
                    of_batch = [records[index] for index in batch.indices]
                    vision = vision_batch_of(batch, processor, frames, model.device)
                    said = self.answers(model, processor, of_batch, vision, budget)
                    for index, record, of_one in zip(batch.indices, of_batch, said, strict=True):
                        name, predicted = record.example_id or str(index), self.predict(record, of_one, model.config)
                        answers.predictions[index] = Prediction(name, record.file_name, *predicted)
                        if self.is_labelled(record):
                            answers.scores[index] = self.score(record, of_one, model.config)
                    advance(len(batch.indices))
                answers.damaged = {
                    records[index].file_name for index in answers.predictions if is_damaged(source, index)
                }
                return answers

            answers = _merged(group.of_all(answer_share))
        problems += answers.problems
        clips = len({medium_of(record) for record in records.values()})
        first_problem = answers.problems[0] if answers.problems else None
        check_failures(len(answers.problems), clips, clips, max_failed_fraction, first_problem)
        if not answers.predictions:
            first = f"{problems[0].file_name}: {problems[0].reason}"
            raise PerceiverVLError(f"no example of {len(indices)} could be read, the first: {first}")
        scored = [
            Scored(records[index], answers.predictions[index].answer, answers.scores[index])
            for index in sorted(answers.scores)
        ]
        return TaskResult(
            self.name,
            examples=len(answers.predictions),
            labelled=len(answers.scores),
            left_out=len(source) - len(answers.predictions),
            budget=str(budget),
            num_frames=frames,
            seconds_per_example=(time.perf_counter() - start) / len(answers.predictions),
            metrics=self.metrics_of(scored),
            by_kind=self._by_kind(scored),
            predictions=[answers.predictions[index] for index in sorted(answers.predictions)],
            skipped=problems,
            damaged=sorted(answers.damaged),
        )

    def metrics_of(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The metrics of labelled records; nothing of none."""
        if not scored:
            return {}
        names = dict.fromkeys(name for one in scored for name in one.scores)
        columns = {name: [one.scores[name] for one in scored if name in one.scores] for name in names}
        means = {name: sum(column) / len(column) for name, column in columns.items()}
        return means | self.group_metrics([one.record for one in scored], columns[self.metrics[0]])

    def _by_kind(self, scored: Sequence[Scored]) -> dict[str, KindScore]:
        """The first metric by kind."""
        kinds = by_kind((one.scores[self.metrics[0]], kind) for one in scored for kind in self.kinds(one.record))
        return {kind: KindScore(count, score) for kind, (count, score) in kinds.items()}


class LabelTask(ExampleTask):
    """A task whose model has a head: its answer to an example is logits `(K,)`."""

    @abstractmethod
    def text_inputs(self, records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
        """What the model reads of B records."""

    @abstractmethod
    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        """`labels (B,…)` of B labelled records."""

    @abstractmethod
    def logits(self, model: Any, vision: VisionBatch, text: dict[str, Tensor], budget: ComputeBudget) -> Tensor:
        """What the model answers, `(B,K)`."""

    def training_inputs(
        self, records: Sequence[Record], processor: PerceiverVLProcessor, config: PerceiverVLConfig
    ) -> dict[str, Tensor]:
        """The words of the records and their targets."""
        return {**self.text_inputs(records, processor), "labels": self.targets(records, config)}

    def answers(
        self,
        model: Any,
        processor: PerceiverVLProcessor,
        records: Sequence[Record],
        vision: VisionBatch,
        budget: ComputeBudget,
    ) -> Sequence[Tensor]:
        """The rows of `logits`, on the CPU. Raises `PerceiverVLError` where they are no numbers."""
        text = {key: value.to(model.device) for key, value in self.text_inputs(records, processor).items()}
        logits = self.logits(model, vision, text, budget).float().cpu()
        if not (logits < torch.inf).all():  # minus infinity is the logit of a choice that is not there
            raise PerceiverVLError("the model's answers are not finite numbers: train it again")
        return list(logits)


@dataclass
class _Answers:
    """What came of asking some examples, by their places."""

    predictions: dict[int, Prediction] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    problems: list[SkippedSample] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)


def _merged(parts: Sequence[_Answers]) -> _Answers:
    """Of all processes; a file that two of them could not read counts once."""
    whole = _Answers()
    for part in parts:
        whole.predictions |= part.predictions
        whole.scores |= part.scores
        whole.problems += [problem for problem in part.problems if problem not in whole.problems]
        whole.damaged |= part.damaged
    return whole


def number_or_text(example_id: str) -> int | str:
    """An example's id as the benchmark's files have it: a number where it is one."""
    return int(example_id) if example_id.isdecimal() else example_id


def csv_text(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of two columns as CSV, without a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
