"""Statements about two pictures: true or false (NLVR2). Shapes: B batch, V distinct pairs."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForImagesAndTextClassification
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import VisionBatch
from perceiver_vl.tasks.example_task import LabelTask, csv_text
from perceiver_vl.tasks.metrics import nlvr2_consistency, probabilities
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.utils.errors import UsageError


class NLVR2(LabelTask):
    """NLVR2: is a statement about two pictures true?

    Examples: two pictures, a statement, its truth. Query: one learned vector a picture, in two passes. Head: two
    logits, of false and true, from both passes. Loss: cross-entropy.
    Metrics: accuracy, and consistency: the share of statements that are judged right of every pair that they are said
    of (github.com/lil-lab/nlvr, nlvr2/eval/metrics.py). Submission: CSV, `identifier,True` or `identifier,False` a
    line.
    """

    name = "nlvr2"
    model_class = PerceiverVLForImagesAndTextClassification
    metrics = ("accuracy", "consistency")
    pictures = 2

    def missing(self, record: Record) -> str | None:
        if record.second_file_name is None:
            return "no second picture"
        if not statement_of(record).strip():
            return "no statement"
        if record.label not in (None, 0, 1):
            return f"label={record.label}: need 1 for true or 0 for false"
        if record.label is None and record.answers and label_of(record) is None:
            return f"answer={record.answers[0]!r}: need true or false"
        return None

    def is_labelled(self, record: Record) -> bool:
        return label_of(record) is not None

    def head(self, records: Iterable[Record]) -> dict[str, Any]:
        return {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}

    def check_head(self, config: PerceiverVLConfig, records: Sequence[Record]) -> None:
        if config.num_labels != 2:
            raise UsageError(f"task=nlvr2: the model has {config.num_labels} answers, need two: false and true")

    def text_inputs(self, records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
        return dict(processor(text=[statement_of(record) for record in records]))

    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        return torch.tensor([label_of(record) for record in records])

    def logits(
        self,
        model: PerceiverVLForImagesAndTextClassification,
        vision: VisionBatch,
        text: dict[str, Tensor],
        budget: ComputeBudget,
    ) -> Tensor:
        pixel_values, frame_mask = (
            value.unflatten(0, (-1, 2))[vision.rows] for value in (vision.pixel_values, vision.frame_mask)
        )
        logits: Tensor = model(**text, pixel_values=pixel_values, frame_mask=frame_mask, budget=budget).logits
        return logits

    def predict(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
        score, label = probabilities(logits).max(-1)
        return str(bool(label)), int(label), score.item()

    def score(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
        return {"accuracy": 100.0 * (int(logits.argmax()) == label_of(record))}

    def group_metrics(self, records: Sequence[Record], scores: Sequence[float]) -> dict[str, float]:
        """Consistency, by NLVR2's identifiers; another set has no such groups."""
        identifiers = [record.example_id or "" for record in records]
        if not all(identifier.count("-") == 3 for identifier in identifiers):
            return {}
        return {"consistency": nlvr2_consistency(identifiers, [score > 0 for score in scores])}

    def submission(self, result: TaskResult) -> str:
        return csv_text([(one.example_id, one.answer) for one in result.predictions])


def statement_of(record: Record) -> str:
    """What is said of the pictures."""
    return record.texts[0] if record.texts else record.question or ""


def label_of(record: Record) -> int | None:
    """1 if the statement is true, 0 if it is false: as the record says, or by its answer in words; None if neither."""
    if record.label is None and record.answers:
        return {"false": 0, "true": 1}.get(record.answers[0].strip().lower())
    return record.label
