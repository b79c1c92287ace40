"""Counting: how often something happens in a clip (TGIF-QA repetition count), answered with a number.

Examples: a clip, a question, a count. Query: one learned vector. Head: one label, `problem_type="regression"`: a
number rather than ordered classes, for the benchmark scores its squared error. Loss: mean squared error.
Metric: the mean squared difference of the number, rounded and clipped to 1..10, to the count: lower is better
(github.com/YunseokJANG/tgif-qa, count_base.py); and how many counts are right.
Submission: JSON as that code writes it, `id` and `pred` of each question. Shapes: B batch.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.perceiver_vl import PerceiverVLForQuestionAnswering
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks.metrics import counting_error, rounded_count
from perceiver_vl.tasks.question_answering import ask_question, question_words
from perceiver_vl.tasks.task import Prediction, Task, kinds_of, number_or_text
from perceiver_vl.utils.errors import UsageError


def _count(record: Record) -> int | None:
    """The right count: the answer if it is a whole number, else None."""
    text = record.answers[0].strip() if record.answers else ""
    return int(text) if text.isdecimal() else None


def _missing(record: Record) -> str | None:
    if not record.question:
        return "no question"
    if record.answers and _count(record) is None:
        return f"answer={record.answers[0]!r}: a count is a whole number"
    return None


def _is_labelled(record: Record) -> bool:
    return _count(record) is not None


def _head(records: Iterable[Record]) -> dict[str, Any]:
    return {"num_labels": 1, "problem_type": "regression"}


def _check_head(config: PerceiverVLConfig, records: Sequence[Record]) -> None:
    if config.problem_type != "regression" or config.num_labels != 1:
        raise UsageError(
            f"task=counting: the model has {config.num_labels} answers and problem_type={config.problem_type}, "
            "need one that was trained to count (1, regression)"
        )


def _targets(records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
    return torch.tensor([float(_right(record)) for record in records])


def _right(record: Record) -> int:
    count = _count(record)
    assert count is not None, "only labelled records have targets"
    return count


def _predict(record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
    count = rounded_count(logits.item())
    return str(count), count, logits.item()


def _score(record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
    error = counting_error(logits.item(), _right(record))
    return {"mean_squared_error": error, "accuracy": 100.0 * (error == 0)}


def _submission(predictions: Sequence[Prediction]) -> str:
    return json.dumps([{"id": number_or_text(one.example_id), "pred": one.label} for one in predictions], indent=0)


COUNTING = Task(
    name="counting",
    model_class=PerceiverVLForQuestionAnswering,
    metrics=("mean_squared_error", "accuracy"),
    lower_is_better=True,
    missing=_missing,
    is_labelled=_is_labelled,
    head=_head,
    words=question_words,
    targets=_targets,
    ask=ask_question,
    check_head=_check_head,
    predict=_predict,
    score=_score,
    kinds=kinds_of,
    submission=_submission,
)
