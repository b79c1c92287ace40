"""Heads that answer: what their losses are, and that a clip's embedding can be shared."""

import pytest
import torch

from perceiver_vl import ComputeBudget, PerceiverVLForImageClassification, PerceiverVLForQuestionAnswering
from perceiver_vl.models.perceiver_vl.question_answering import answer_loss, beside
from tiny import assert_same, differs, tiny_inputs, tiny_model


def test_one_right_answer_is_cross_entropy_over_those_that_have_one() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    wanted = torch.tensor([1 + torch.e**-2.0, 2.0]).double().log().mean()
    assert_same(answer_loss(logits, torch.tensor([0, 1, -100])), wanted, 1e-6)
    nothing = answer_loss(logits.requires_grad_(), torch.tensor([-100, -100, -100]))
    assert nothing == 0
    nothing.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_soft_scores_are_binary_cross_entropy_summed_over_the_answers() -> None:
    logits, scores = torch.zeros(2, 3).double(), torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0]])
    log2 = torch.tensor(2.0).double().log()
    assert_same(answer_loss(logits, scores), 3 * log2)  # a logit of 0 costs log 2, whatever the score
    logits[0, 1] = 1.0
    wanted = 0.3 * (1 + torch.tensor(-1.0).exp()).log() + 0.7 * (1 + torch.tensor(1.0).exp()).log()
    assert_same(answer_loss(logits, scores), (5 * log2 + wanted) / 2, 1e-6)


@pytest.mark.parametrize("answers_from", ["query", "mean_latents"])
def test_a_count_is_a_number_and_its_loss_the_squared_error(answers_from: str) -> None:
    model = tiny_model(
        PerceiverVLForQuestionAnswering, num_labels=1, problem_type="regression", answers_from=answers_from
    )
    output = model(**tiny_inputs(), labels=torch.tensor([3.0, 7.0]))
    assert output.logits.shape == (2, 1)
    assert_same(output.loss, (output.logits[:, 0] - torch.tensor([3.0, 7.0])).square().mean())
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.answer_head.parameters())


def test_labels_of_each_kind_go_through_the_models_to_the_loss() -> None:
    inputs, soft = tiny_inputs(), torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    model = tiny_model(PerceiverVLForQuestionAnswering, num_labels=4)
    for labels in (torch.tensor([3, -100]), soft):
        output = model(**inputs, labels=labels)
        assert_same(output.loss, answer_loss(output.logits, labels))
    classes = tiny_model(PerceiverVLForImageClassification, num_labels=4)
    vision = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    output = classes(**vision, labels=torch.tensor([0, 2]))
    assert_same(output.loss, answer_loss(output.logits, torch.tensor([0, 2])))


def test_questions_share_the_embedding_of_their_clip() -> None:
    model, clips, questions = tiny_model(PerceiverVLForQuestionAnswering), tiny_inputs(batch=2), tiny_inputs(batch=5)
    rows, budget = torch.tensor([1, 0, 1, 1, 0]), ComputeBudget(frames=2, latents=4, cross_attentions=2)
    clips["frame_mask"][1, -1] = 0
    embed = model.perceiver_vl.embed_inputs
    vision = embed(pixel_values=clips["pixel_values"], frame_mask=clips["frame_mask"], budget=budget)
    text = embed(questions["input_ids"], questions["attention_mask"])
    together = model.answer_inputs(beside(vision, rows, text), budget)
    alone = model(
        questions["input_ids"],
        questions["attention_mask"],
        clips["pixel_values"][rows],
        clips["frame_mask"][rows],
        budget=budget,
    ).logits
    assert_same(together, alone)
    assert differs(alone[0], alone[1])
