"""Answers as texts: kept while they hold, any texts at any time, and the folder that knows them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver_vl import PerceiverVLForImageClassification, PerceiverVLForQuestionAnswering, UsageError
from perceiver_vl.models.perceiver_vl.question_answering import label_token_ids
from tiny import assert_same, differs, inputs_of, tiny_config, tiny_model

LABELS = ["red ring", "blue star", "a cross"]
WORDS = dict(zip(("red", "blue", "ring", "star", "a", "cross", "green"), range(6, 13), strict=True))


def tokenizer(texts: list[str]) -> dict[str, Any]:
    return {"input_ids": [[WORDS[word] for word in text.split()] for text in texts]}


def asked(**changes: Any) -> PerceiverVLForQuestionAnswering:
    known = {"answers_as_text": True, "id2label": dict(enumerate(LABELS))}
    ids = label_token_ids(LABELS, tokenizer, 8)
    return tiny_model(PerceiverVLForQuestionAnswering, **known, label_token_ids=ids, **changes)


def question() -> dict[str, Tensor]:
    return inputs_of(PerceiverVLForQuestionAnswering)


def test_logits_are_cosines_with_texts_in_whatever_order_and_company() -> None:
    model = asked()
    wanted = model(**question()).logits
    scale = model.answer_head.logit_scale.exp().clamp(max=100)
    assert wanted.abs().max() <= scale
    model.answer_among([LABELS[2], LABELS[0], "green ring"], tokenizer)
    found = model(**question()).logits
    assert_same(found[:, :2], wanted[:, [2, 0]])
    assert model.config.num_labels == 3
    assert model.config.label2id["green ring"] == 2


def test_directions_are_kept_as_long_as_they_hold() -> None:
    model, calls = asked(), []
    model.perceiver_vl.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = model(**question()).logits
        assert len(calls) == 2  # the labels, and the question
        assert torch.equal(model(**question()).logits, first)
        assert len(calls) == 3
        model.answer_head.projection.weight.mul_(-0.5)
        model.answer_head.projection.weight[0] += 1
        assert differs(model(**question()).logits, first)
        assert len(calls) == 5
    model(**question()).logits.sum().backward()  # with gradients they are made anew
    assert len(calls) == 7


def test_texts_are_trained_through() -> None:
    model = asked().train()
    model(**question(), labels=torch.tensor([0, 2])).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    words = model.get_input_embeddings().weight.grad
    assert words[WORDS["blue"]].abs().max() > 0  # which is in no question


def test_a_folder_knows_the_words_of_its_labels(tmp_path: Path) -> None:
    model = asked()
    model.save_pretrained(tmp_path)
    again = PerceiverVLForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same(again(**question()).logits, model(**question()).logits)


def test_classes_are_texts_too() -> None:
    ids = label_token_ids(LABELS, tokenizer, 2)
    assert [len(row) for row in ids] == [2, 2, 2]
    known = {"answers_as_text": True, "id2label": dict(enumerate(LABELS)), "label_token_ids": ids}
    model = tiny_model(PerceiverVLForImageClassification, **known)
    assert model(**inputs_of(PerceiverVLForImageClassification)).logits.shape == (2, 3)


def test_what_cannot_work_is_refused_in_a_line() -> None:
    with pytest.raises(UsageError, match="label_token_ids: not those of the labels"):
        tiny_model(PerceiverVLForQuestionAnswering, answers_as_text=True)(**question())
    with pytest.raises(UsageError, match="answers_as_text=False: this model knows the answers"):
        tiny_model(PerceiverVLForQuestionAnswering).answer_among(LABELS, tokenizer)
    for labels in (["one"], ["a", "a"], "red"):
        with pytest.raises(UsageError, match="need at least two different texts"):
            asked().answer_among(labels, tokenizer)
    with pytest.raises(UsageError, match="a number is none of some"):
        PerceiverVLForQuestionAnswering(tiny_config(answers_as_text=True, problem_type="regression", num_labels=1))
