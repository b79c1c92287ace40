"""Statements about two pictures: true or false (NLVR2).

Examples: two pictures, a statement, its truth. Query: one learned vector a picture, in two passes. Head: two
logits, of false and true, from both passes. Loss: cross-entropy.
Metrics: accuracy, and consistency: the share of statements that are judged right of every pair that they are said of
(github.com/lil-lab/nlvr, nlvr2/eval/metrics.py). Submission: CSV, `identifier,True` or `identifier,False` a line.
Shapes: B batch, V distinct pairs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForImagesAndTextClassification
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.metrics import nlvr2_consistency, probabilities
from perceiver_vl.tasks.task import Prediction, Task, VisionBatch, csv_text, kinds_of
from perceiver_vl.utils.errors import UsageError

_TRUTH = {"false": 0, "true": 1}


def _statement(record: Record) -> str:
    return record.texts[0] if record.texts else record.question or ""


def _right(record: Record) -> int | None:
    if record.label is None and record.answers:
        return _TRUTH.get(record.answers[0].strip().lower())
    return record.label


def _missing(record: Record) -> str | None:
    if record.second_file_name is None:
        return "no second picture"
    if not _statement(record).strip():
        return "no statement"
    if record.label not in (None, 0, 1):
        return f"label={record.label}: need 1 for true or 0 for false"
    if record.label is None and record.answers and _right(record) is None:
        return f"answer={record.answers[0]!r}: need true or false"
    return None


def _is_labelled(record: Record) -> bool:
    return _right(record) is not None


def _words(records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
    return dict(processor(text=[_statement(record) for record in records]))


def _ask(
    model: PerceiverVLForImagesAndTextClassification, seen: VisionBatch, words: dict[str, Tensor], budget: ComputeBudget
) -> Tensor:
    pixel_values, frame_mask = (
        value.unflatten(0, (-1, 2))[seen.rows] for value in (seen.pixel_values, seen.frame_mask)
    )
    logits: Tensor = model(**words, pixel_values=pixel_values, frame_mask=frame_mask, budget=budget).logits
    return logits


def _head(records: Iterable[Record]) -> dict[str, Any]:
    return {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}


def _check_head(config: PerceiverVLConfig, records: Sequence[Record]) -> None:
    if config.num_labels != 2:
        raise UsageError(f"task=pairs: the model has {config.num_labels} answers, need two: false and true")


def _targets(records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
    return torch.tensor([_right(record) for record in records])


def _predict(record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
    score, label = probabilities(logits).max(-1)
    return str(bool(label)), int(label), score.item()


def _score(record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
    return {"accuracy": 100.0 * (int(logits.argmax()) == _right(record))}


def _consistency(records: Sequence[Record], scores: Sequence[float]) -> dict[str, float]:
    """By NLVR2's identifiers; another set has no such groups."""
    identifiers = [record.example_id or "" for record in records]
    if not all(identifier.count("-") == 3 for identifier in identifiers):
        return {}
    return {"consistency": nlvr2_consistency(identifiers, [score > 0 for score in scores])}


def _submission(predictions: Sequence[Prediction]) -> str:
    return csv_text([(one.example_id, one.answer) for one in predictions])


PAIRS = Task(
    name="nlvr2",
    model_class=PerceiverVLForImagesAndTextClassification,
    metrics=("accuracy", "consistency"),
    missing=_missing,
    is_labelled=_is_labelled,
    head=_head,
    words=_words,
    targets=_targets,
    ask=_ask,
    check_head=_check_head,
    predict=_predict,
    score=_score,
    over_groups=_consistency,
    kinds=kinds_of,
    submission=_submission,
    pictures=2,
)
