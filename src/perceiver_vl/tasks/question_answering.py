"""Open questions about clips and images, answered from a set of answers. Shapes: B batch, L text tokens."""

import json
from collections.abc import Iterable, Sequence
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
from perceiver_vl.tasks.evaluation import VisionBatch
from perceiver_vl.tasks.example_task import LabelTask, number_or_text
from perceiver_vl.tasks.metrics import probabilities, question_word, vqa_accuracy
from perceiver_vl.tasks.question_types import vqa_question_type
from perceiver_vl.tasks.task_result import TaskResult
from perceiver_vl.utils.errors import Setting, UsageError

MOST_ANSWERS = 1500
"""How many answers a head gets for open questions, the most frequent ones: what ClipBERT gives MSRVTT-QA."""


class QuestionTask(LabelTask):
    """A question about a clip or image; query: one learned vector."""

    model_class = PerceiverVLForQuestionAnswering

    def text_inputs(self, records: Sequence[Record], processor: PerceiverVLProcessor) -> dict[str, Tensor]:
        """→ `input_ids (B,L)`, `attention_mask (B,L)` of the questions."""
        return dict(processor(text=[record.question or "" for record in records]))

    def logits(
        self,
        model: PerceiverVLForQuestionAnswering,
        vision: VisionBatch,
        text: dict[str, Tensor],
        budget: ComputeBudget,
    ) -> Tensor:
        """Logits `(B,num_labels)`; a clip that several questions are about is embedded once."""
        embed = model.perceiver_vl.embed_inputs
        clips = embed(pixel_values=vision.pixel_values, frame_mask=vision.frame_mask, budget=budget)
        questions = embed(text["input_ids"], text["attention_mask"])
        return model.answer_inputs(beside(clips, vision.rows, questions), budget)


class QuestionAnswering(QuestionTask):
    """MSRVTT-QA, MSVD-QA, TGIF-QA's frame questions and NLVR's statements about one picture, true or false.

    Examples: a clip or image, a question, its answer. Head: one logit an answer, of the most frequent ones of training.
    Loss: cross-entropy, an answer that the model does not have counting for nothing. Metric: accuracy, the answer as it
    is written, by the question's first word; where records have choices, `accuracy_of_choices` too: the likeliest of
    these is right. Submission: JSON of `id` and `answer`, as the authors of MSVD-QA write it
    (github.com/xudejing/video-question-answering).
    """

    name = "question-answering"
    metrics = ("accuracy",)

    def missing(self, record: Record) -> str | None:
        return None if record.question and record.question.strip() else "no question"

    def is_labelled(self, record: Record) -> bool:
        return bool(record.answers)

    def head(self, records: Iterable[Record]) -> dict[str, Any]:
        said = (majority_answer(record.answers) for record in records if record.answers)
        answers = frequent_answers(said, MOST_ANSWERS)
        return _head_of(answers, "single_label_classification")

    def check_head(self, config: PerceiverVLConfig, records: Sequence[Record]) -> None:
        self._check_answers(config, {answer for record in records for answer in record.answers})

    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        """int64 `(B,)`: of the answers that the model has the one that most said, or the first of these; -100 where it
        has none.
        """
        known = [[one for one in record.answers if one in config.label2id] for record in records]
        return torch.tensor([config.label2id[majority_answer(answers)] if answers else -100 for answers in known])

    def predict(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> tuple[str, int, float]:
        each_by_itself = config.problem_type == "multi_label_classification"
        label = int(logits.argmax())  # of the logits: a sigmoid rounds large ones to the same 1
        return config.id2label[label], label, probabilities(logits, each_by_itself)[label].item()

    def score(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
        scores = {"accuracy": 100.0 * (config.id2label[int(logits.argmax())] in record.answers)}
        if record.choices:
            choices = [config.label2id[one] for one in record.choices if one in config.label2id]
            best = max(choices, key=lambda label: float(logits[label]), default=None)
            scores["accuracy_of_choices"] = 100.0 * (best is not None and config.id2label[best] in record.answers)
        return scores

    def kinds(self, record: Record) -> tuple[str, ...]:
        """The benchmark's type of question, else the question's first word."""
        return super().kinds(record) or (question_word(record.question or ""),)

    def submission(self, result: TaskResult) -> str:
        predictions = [{"id": number_or_text(one.example_id), "answer": one.answer} for one in result.predictions]
        return json.dumps(predictions, indent=0)

    def _check_answers(self, config: PerceiverVLConfig, answers: set[str]) -> None:
        wrong = f"task={self.name}: the model"
        if config.problem_type == "regression":
            counting = Setting("task", "counting")
            raise UsageError(f"{wrong} answers with a number (problem_type=regression), use ", counting)
        if config.id2label.get(0) == "LABEL_0":
            raise UsageError(f"{wrong}'s answers have no names, give them in its config.json as id2label")
        if answers and answers.isdisjoint(config.label2id):
            raise UsageError(
                f"task={self.name}: none of the {len(answers)} right answers, as {min(answers)!r}, is among the "
                f"model's {config.num_labels}, as {config.id2label[0]!r}; was it trained on other data?"
            )


class VQA(QuestionAnswering):
    """VQAv2.

    Examples: an image, a question, the answers of ten annotators. Head: one logit an answer, VQAv2's 3,129.
    Loss: binary cross-entropy with each answer's own VQA accuracy as its target. Metric: VQA accuracy, by the type of
    answer and of question too, as the official script has it. Submission: JSON of `question_id` and `answer`.
    """

    name = "vqa"
    metrics = ("vqa_accuracy",)

    def head(self, records: Iterable[Record]) -> dict[str, Any]:
        """VQAv2's label set; of fewer questions than would give one, all answers that most annotators gave."""
        majority = [majority_answer(record.answers) for record in records if record.answers]
        answers = vqa_vocabulary(majority) or vqa_vocabulary(majority, at_least=1)
        return _head_of(answers, "multi_label_classification")

    def check_head(self, config: PerceiverVLConfig, records: Sequence[Record]) -> None:
        for record in records:
            if len(record.answers) < 2:
                raise UsageError(
                    f"{record.file_name}: 1 answer to {record.question!r}: task vqa needs those of several annotators, "
                    "use ",
                    Setting("task", "question-answering"),
                )
        self._check_answers(config, {normalise_answer(answer) for record in records for answer in record.answers})

    def targets(self, records: Sequence[Record], config: PerceiverVLConfig) -> Tensor:
        """float `(B,num_labels)`: the VQA accuracy that each answer would have."""
        targets = torch.zeros(len(records), config.num_labels)
        for row, record in enumerate(records):
            for label, score in soft_scores(record.answers, config.label2id).items():
                targets[row, label] = score
        return targets

    def score(self, record: Record, logits: Tensor, config: PerceiverVLConfig) -> dict[str, float]:
        return {"vqa_accuracy": 100.0 * vqa_accuracy(config.id2label[int(logits.argmax())], record.answers)}

    def kinds(self, record: Record) -> tuple[str, ...]:
        """The type of its answer, and that of its question."""
        return *LabelTask.kinds(self, record), vqa_question_type(record.question or "")

    def submission(self, result: TaskResult) -> str:
        return json.dumps(
            [{"question_id": number_or_text(one.example_id), "answer": one.answer} for one in result.predictions]
        )


def _head_of(answers: Sequence[str], problem_type: str) -> dict[str, Any]:
    if not answers:
        raise UsageError("no record has an answer: a model that answers learns from records that do")
    label2id = {answer: label for label, answer in enumerate(answers)}
    return {"id2label": dict(enumerate(answers)), "label2id": label2id, "problem_type": problem_type}
