"""Multiple choice: which of an example's texts belongs to its clip.

Shapes: B batch, C choices, L text tokens, R choices of all B.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForMultipleChoice
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import VisionBatch
from perceiver_vl.tasks.example_task import LabelTask, number_or_text
from perceiver_vl.tasks.metrics import probabilities
from perceiver_vl.tasks.task_result import TaskResult


class MultipleChoice(LabelTask):
    """TGIF-QA's actions and transitions, and MSRVTT multiple choice.

    Examples: a clip, choices, the right one's place; with a question, or (MSRVTT) the choices are captions.
    Query and head: VTM's, asked of each choice: one logit a match, however many choices there are. Loss: cross-entropy
    over the choices. Metric: accuracy.
    Submission: JSON, `id` and `pred` (the place of the choice, from 0) of each example, as TGIF-QA's code writes it.
    """

    name = "multiple-choice"
    model_class = PerceiverVLForMultipleChoice
    metrics = ("accuracy",)

    def missing(self, record: Record) -> str | None:
        if len(record.choices) < 2:
            return f"{len(record.choices)} choices, need at least two"
        if record.label is not None and not 0 <= record.label < len(record.choices):
            return f"label={record.label}: not the place of one of its {len(record.choices)} choices, 0 to last"
        if record.label is None and record.answers and record.answers[0] not in record.choices:
            return f"answer={record.answers[0]!r}: not among its {len(record.choices)} choices"
        return None

    def is_labelled(self, record: Record) -> bool:
        return label_of(record) is not None

    def text_inputs(self, records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
        return choice_words(records, processor)

    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        return torch.tensor([label_of(record) for record in records])

    def logits(
        self, model: PerceiverVLForMultipleChoice, vision: VisionBatch, text: dict[str, Tensor], budget: ComputeBudget
    ) -> Tensor:
        embed = model.perceiver_vl.embed_inputs
        clips = embed(pixel_values=vision.pixel_values, frame_mask=vision.frame_mask, budget=budget)
        return model.choose(clips, vision.rows, text["input_ids"], text["attention_mask"], text["choice_mask"], budget)

    def predict(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
        score, place = probabilities(logits).max(-1)
        return record.choices[int(place)], int(place), score.item()

    def score(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
        return {"accuracy": 100.0 * (int(logits.argmax()) == label_of(record))}

    def submission(self, result: TaskResult) -> str:
        predictions = [{"id": number_or_text(one.example_id), "pred": one.label} for one in result.predictions]
        return json.dumps(predictions, indent=0)


def label_of(record: Record) -> int | None:
    """The place of the right choice: as the record says, or where the answer stands among the choices."""
    if record.label is None and record.answers:
        return record.choices.index(record.answers[0])
    return record.label


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
