"""Counting: how often something happens in a clip (TGIF-QA), answered with a number. Shapes: B batch."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks.example_task import number_or_text
from perceiver_vl.tasks.metrics import counting_error, rounded_count
from perceiver_vl.tasks.question_answering import QuestionTask
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.utils.errors import UsageError


class Counting(QuestionTask):
    """TGIF-QA's repetition count.

    Examples: a clip, a question, a count. Query: one learned vector. Head: one label, `problem_type="regression"`: a
    number rather than ordered classes, for the benchmark scores its squared error. Loss: mean squared error.
    Metric: the mean squared difference of the number, rounded and clipped to 1..10, to the count: lower is better
    (github.com/YunseokJANG/tgif-qa, count_base.py); and how many counts are right.
    Submission: JSON as that code writes it, `id` and `pred` of each question.
    """

    name = "counting"
    metrics = ("mean_squared_error", "accuracy")
    lower_is_better = True

    def missing(self, record: Record) -> str | None:
        if not record.question:
            return "no question"
        if record.answers and count_of(record) is None:
            return f"answer={record.answers[0]!r}: a count is a whole number"
        return None

    def is_labelled(self, record: Record) -> bool:
        return count_of(record) is not None

    def head(self, records: Iterable[Record]) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def check_head(self, config: PerceiverVLConfig, records: Sequence[Record]) -> None:
        if config.problem_type != "regression" or config.num_labels != 1:
            raise UsageError(
                f"task=counting: the model has {config.num_labels} answers and problem_type={config.problem_type}, "
                "need one that was trained to count (1, regression)"
            )

    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        return torch.tensor([count_of(record) for record in records], dtype=torch.float)

    def predict(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
        count = rounded_count(logits.item())
        return str(count), count, logits.item()

    def score(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
        count = count_of(record)
        assert count is not None, "only labelled records are scored"
        error = counting_error(logits.item(), count)
        return {"mean_squared_error": error, "accuracy": 100.0 * (error == 0)}

    def submission(self, result: TaskResult) -> str:
        predictions = [{"id": number_or_text(one.example_id), "pred": one.label} for one in result.predictions]
        return json.dumps(predictions, indent=0)


def count_of(record: Record) -> int | None:
    """The right count: the answer if it is a whole number, else None."""
    text = record.answers[0].strip() if record.answers else ""
    return int(text) if text.isdecimal() else None
