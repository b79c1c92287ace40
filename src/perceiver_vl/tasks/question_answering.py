"""Open questions about clips and images, answered from a set of answers: VQAv2 (`vqa`), and MSRVTT-QA, MSVD-QA,
TGIF-QA's frame questions and NLVR's statements about one picture, true or false (`question-answering`).

Examples: a clip or image, a question, its answer (VQAv2: ten annotators'). Query: one learned vector.
Head: one logit an answer; VQAv2's 3,129, else the most frequent of training.
Loss: `vqa` binary cross-entropy with each answer's own VQA accuracy as its target; the other cross-entropy, an answer
that the model does not have counting for nothing. Metrics: VQA accuracy, by the type of answer and of question too, as
the official script has it; accuracy, the answer as it is written, by the question's first word.
Submission: VQA's JSON, `question_id` and `answer`; else JSON of `id` and `answer`, as the authors of MSVD-QA write it
(github.com/xudejing/video-question-answering). Shapes: B batch, L text tokens.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.answers import (
    frequent_answers,
    majority_answer,
    normalise_answer,
    soft_scores,
    vqa_vocabulary,
)
from perceiver_vl.data.records import Record
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForQuestionAnswering
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.question_answering import beside
from perceiver_vl.tasks.metrics import probabilities, question_word, vqa_accuracy
from perceiver_vl.tasks.question_types import vqa_question_type
from perceiver_vl.tasks.task import Prediction, Task, VisionBatch, kinds_of, number_or_text
from perceiver_vl.utils.errors import UsageError

MOST_ANSWERS = 1500
"""How many answers a head gets for open questions, the most frequent ones: what ClipBERT gives MSRVTT-QA."""


def question_words(records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
    """→ `input_ids (B,L)`, `attention_mask (B,L)` of the questions."""
    return dict(processor(text=[record.question or "" for record in records]))


def ask_question(
    model: PerceiverVLForQuestionAnswering, seen: VisionBatch, words: dict[str, Tensor], budget: ComputeBudget
) -> Tensor:
    """Logits `(B,num_labels)`; a clip that several questions are about is embedded once."""
    embed = model.perceiver_vl.embed_inputs
    vision = embed(pixel_values=seen.pixel_values, frame_mask=seen.frame_mask, budget=budget)
    text = embed(words["input_ids"], words["attention_mask"])
    return model.answer_inputs(beside(vision, seen.rows, text), budget)


def _missing(record: Record) -> str | None:
    return None if record.question and record.question.strip() else "no question"


def _is_labelled(record: Record) -> bool:
    return bool(record.answers)


def _head(records: Iterable[Record]) -> dict[str, Any]:
    answers = frequent_answers((answer for record in records for answer in record.answers[:1]), MOST_ANSWERS)
    return _labels(answers) | {"problem_type": "single_label_classification"}


def _vqa_head(records: Iterable[Record]) -> dict[str, Any]:
    """VQAv2's label set; of fewer questions than would give one, all answers that most annotators gave."""
    majority = [majority_answer(record.answers) for record in records if record.answers]
    answers = vqa_vocabulary(majority) or vqa_vocabulary(majority, at_least=1)
    return _labels(answers) | {"problem_type": "multi_label_classification"}


def _labels(answers: Sequence[str]) -> dict[str, Any]:
    if not answers:
        raise UsageError("no record has an answer: a model that answers learns from records that do")
    return {"id2label": dict(enumerate(answers)), "label2id": {name: label for label, name in enumerate(answers)}}


def _check_answers(task: str, config: PerceiverVLConfig, answers: set[str]) -> None:
    if config.problem_type == "regression":
        raise UsageError(f"task={task}: the model answers with a number (problem_type=regression), use task counting")
    if config.id2label.get(0) == "LABEL_0":
        raise UsageError(f"task={task}: the model's answers have no names, give them in its config.json as id2label")
    if answers and answers.isdisjoint(config.label2id):
        raise UsageError(
            f"task={task}: none of the {len(answers)} right answers, as {min(answers)!r}, is among the model's "
            f"{config.num_labels}, as {config.id2label[0]!r}; was it trained on other data?"
        )


def _check_head(config: PerceiverVLConfig, records: Sequence[Record]) -> None:
    _check_answers("question-answering", config, {answer for record in records for answer in record.answers})


def _check_vqa_head(config: PerceiverVLConfig, records: Sequence[Record]) -> None:
    for record in records:
        if len(record.answers) < 2:
            raise UsageError(
                f"{record.file_name}: 1 answer to {record.question!r}: task vqa needs those of several annotators, "
                "use task question-answering"
            )
    _check_answers("vqa", config, {normalise_answer(answer) for record in records for answer in record.answers})


def _targets(records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
    """int64 `(B,)`: the first answer that the model has, -100 where it has none."""
    known = [[config.label2id[answer] for answer in record.answers if answer in config.label2id] for record in records]
    return torch.tensor([labels[0] if labels else -100 for labels in known])


def _vqa_targets(records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
    """float `(B,num_labels)`: the VQA accuracy that each answer would have."""
    targets = torch.zeros(len(records), config.num_labels)
    for row, record in enumerate(records):
        for label, score in soft_scores(record.answers, config.label2id).items():
            targets[row, label] = score
    return targets


def _predict(record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
    each_by_itself = config.problem_type == "multi_label_classification"
    label = int(logits.argmax())  # of the logits: a sigmoid rounds large ones to the same 1
    return config.id2label[label], label, probabilities(logits, each_by_itself)[label].item()


def _score(record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
    return {"accuracy": 100.0 * (config.id2label[int(logits.argmax())] in record.answers)}


def _vqa_score(record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
    return {"vqa_accuracy": 100.0 * vqa_accuracy(config.id2label[int(logits.argmax())], record.answers)}


def _kinds(record: Record) -> tuple[str, ...]:
    return kinds_of(record) or (question_word(record.question or ""),)


def _vqa_kinds(record: Record) -> tuple[str, ...]:
    """The type of its answer, and that of its question."""
    return *kinds_of(record), vqa_question_type(record.question or "")


def _submission(predictions: Sequence[Prediction]) -> str:
    return json.dumps([{"id": number_or_text(one.example_id), "answer": one.answer} for one in predictions], indent=0)


def _vqa_submission(predictions: Sequence[Prediction]) -> str:
    return json.dumps([{"question_id": number_or_text(one.example_id), "answer": one.answer} for one in predictions])


QUESTION_ANSWERING = Task(
    name="question-answering",
    model_class=PerceiverVLForQuestionAnswering,
    metrics=("accuracy",),
    missing=_missing,
    is_labelled=_is_labelled,
    head=_head,
    words=question_words,
    targets=_targets,
    ask=ask_question,
    check_head=_check_head,
    predict=_predict,
    score=_score,
    kinds=_kinds,
    submission=_submission,
)

VQA = replace(
    QUESTION_ANSWERING,
    name="vqa",
    metrics=("vqa_accuracy",),
    head=_vqa_head,
    targets=_vqa_targets,
    check_head=_check_vqa_head,
    score=_vqa_score,
    kinds=_vqa_kinds,
    submission=_vqa_submission,
)
