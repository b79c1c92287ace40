"""What a task is: which model answers it, what it is shown, what it should say, and how its answers are scored."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor


@dataclass(frozen=True)
class Prediction:
    """What the model says of one example.

    answer: in words; label: its number, of a class or choice; score: its probability, of a count the number before it
    was rounded. example_id: the benchmark's, else the place in the split.
    """

    example_id: str
    file_name: str
    answer: str
    label: int
    score: float


@dataclass(frozen=True)
class VisionBatch:
    """The media of a batch: distinct clips or pictures `pixel_values (V,T,3,H,W)`, `frame_mask (V,T)`, and which of
    them each example is about, `rows (B,)` int64; of pairs, V = 2 times the distinct pairs, and a row counts pairs.
    """

    pixel_values: Tensor
    frame_mask: Tensor
    rows: Tensor


def no_groups(records: Sequence[Record], scores: Sequence[float]) -> dict[str, float]:
    """No metric beyond the means."""
    return {}


@dataclass(frozen=True)
class Task:
    """A task in one row: every step of evaluating and fine-tuning that is not the same for all.

    metrics: what is measured, the benchmark's own first; lower_is_better: for that one.
    pictures: how many clips or pictures an example is about.
    missing: what a record lacks to be an example of this task, in words, or None.
    is_labelled: whether a record says what is right.
    head: configuration of the model's head that the training split asks for.
    words: B records → text inputs of the model. targets: B labelled records → `labels`.
    ask: model, media, words, budget → logits `(B,K)`.
    check_head: raises `UsageError` where the model's head cannot answer these (labelled) records.
    predict: a record and its logits `(K,)` → answer, label and score.
    score: a labelled record and its logits `(K,)` → what it adds to each metric, which is the mean over all examples.
    over_groups: labelled records and the first score of each → metrics that are no such mean.
    kinds: the types of question that a record is reported under.
    submission: predictions → text of the benchmark's file.
    """

    name: str
    model_class: type[PerceiverVLPreTrainedModel]
    metrics: tuple[str, ...]
    missing: Callable[[Record], str | None]
    is_labelled: Callable[[Record], bool]
    head: Callable[[Iterable[Record]], dict[str, Any]]
    words: Callable[[Sequence[Record], PerceiverVLProcessor], dict[str, Tensor]]
    targets: Callable[[Sequence[Record], PerceiverVLConfig], Tensor]
    ask: Callable[[Any, VisionBatch, dict[str, Tensor], ComputeBudget], Tensor]
    check_head: Callable[[PerceiverVLConfig, Sequence[Record]], None]
    predict: Callable[[Record, Tensor, PerceiverVLConfig], tuple[str, int, float]]
    score: Callable[[Record, Tensor, PerceiverVLConfig], dict[str, float]]
    kinds: Callable[[Record], tuple[str, ...]]
    submission: Callable[[Sequence[Prediction]], str]
    over_groups: Callable[[Sequence[Record], Sequence[float]], dict[str, float]] = no_groups
    pictures: int = 1
    lower_is_better: bool = False


def kinds_of(record: Record) -> tuple[str, ...]:
    """The benchmark's type of question, if the record has one."""
    return () if record.kind is None else (record.kind,)


def number_or_text(example_id: str) -> int | str:
    """An example's id as the benchmark's files have it: a number where it is one."""
    return int(example_id) if example_id.isdecimal() else example_id


def csv_text(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of two columns as CSV, without a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
