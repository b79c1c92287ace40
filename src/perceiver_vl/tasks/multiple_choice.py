"""Multiple choice: which of an example's texts belongs to its clip (TGIF-QA action and transition; MSRVTT multiple
choice).

Examples: a clip, choices, the right one's place; with a question, or (MSRVTT) the choices are captions.
Query and head: VTM's, asked of each choice. Loss: cross-entropy over the choices. Metric: accuracy.
Submission: JSON, `id` and `pred` (the place of the choice, from 0) of each example, as TGIF-QA's code writes it.
Shapes: B batch, C choices, L text tokens, R choices of all B.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForMultipleChoice
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.metrics import probabilities
from perceiver_vl.tasks.task import Prediction, Task, VisionBatch, kinds_of, number_or_text


def _missing(record: Record) -> str | None:
    if len(record.choices) < 2:
        return f"{len(record.choices)} choices, need at least two"
    if record.label is not None and not 0 <= record.label < len(record.choices):
        return f"label={record.label}: not the place of one of its {len(record.choices)} choices, 0 to last"
    if record.label is None and record.answers and record.answers[0] not in record.choices:
        return f"answer={record.answers[0]!r}: not among its {len(record.choices)} choices"
    return None


def _right(record: Record) -> int | None:
    """The place of the right choice: as the record says, or where the answer stands among the choices."""
    if record.label is None and record.answers:
        return record.choices.index(record.answers[0])
    return record.label


def _is_labelled(record: Record) -> bool:
    return _right(record) is not None


def choice_words(records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
    """→ `input_ids (B,C,L)`, `attention_mask (B,C,L)`, `choice_mask (B,C)`: 1 where an example has so many choices.

    A question and a choice are the two parts of one text, cut where the longer one is too long, so that what tells the
    choices apart stays. Without questions the choices are read as captions are.
    """
    choices = [choice for record in records for choice in record.choices]
    if any(record.question for record in records):
        questions = [record.question or "" for record in records for _ in record.choices]
        longest = min(processor.tokenizer.model_max_length, _UNLIMITED)
        words: Any = processor.tokenizer(
            questions,
            choices,
            padding=True,
            truncation="longest_first",
            max_length=longest,
            return_attention_mask=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
    else:
        words = processor(text=choices)
    counts = torch.tensor([len(record.choices) for record in records])
    real = torch.arange(int(counts.max())) < counts[:, None]  # (B,C)
    filler = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0}
    spread = {"choice_mask": real.long()}
    for name, value in filler.items():
        spread[name] = torch.full((*real.shape, words[name].shape[1]), value)
        spread[name][real] = words[name]
    return spread


_UNLIMITED = 1 << 20
"""Tokens that no text has: what a tokenizer without a limit says is too much for its own counter."""


def _ask(
    model: PerceiverVLForMultipleChoice, seen: VisionBatch, words: dict[str, Tensor], budget: ComputeBudget
) -> Tensor:
    vision = model.perceiver_vl.embed_inputs(pixel_values=seen.pixel_values, frame_mask=seen.frame_mask, budget=budget)
    return model.choose(vision, seen.rows, **words, budget=budget)


def _head(records: Iterable[Record]) -> dict[str, Any]:
    return {}


def _check_head(config: PerceiverVLConfig, records: Sequence[Record]) -> None:
    return None  # a match has one logit, whatever the choices


def _targets(records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
    return torch.tensor([_right(record) for record in records])


def _predict(record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
    score, place = probabilities(logits).max(-1)
    return record.choices[int(place)], int(place), score.item()


def _score(record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
    return {"accuracy": 100.0 * (int(logits.argmax()) == _right(record))}


def _submission(predictions: Sequence[Prediction]) -> str:
    return json.dumps([{"id": number_or_text(one.example_id), "pred": one.label} for one in predictions], indent=0)


MULTIPLE_CHOICE = Task(
    name="multiple-choice",
    model_class=PerceiverVLForMultipleChoice,
    metrics=("accuracy",),
    missing=_missing,
    is_labelled=_is_labelled,
    head=_head,
    words=choice_words,
    targets=_targets,
    ask=_ask,
    check_head=_check_head,
    predict=_predict,
    score=_score,
    kinds=kinds_of,
    submission=_submission,
)
