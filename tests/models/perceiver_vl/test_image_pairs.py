"""Statements about two pictures: two passes, put together by the head."""

import pytest
import torch
from torch import Tensor

from perceiver_vl import ComputeBudget, PerceiverVLForImagesAndTextClassification, UsageError
from tiny import AGGREGATIONS, assert_same, differs, tiny_inputs, tiny_model

Model = PerceiverVLForImagesAndTextClassification


def pair_inputs(frames: int = 1) -> dict[str, Tensor]:
    inputs, pictures = tiny_inputs(3), tiny_inputs(6, frames=frames, seed=1)
    inputs["attention_mask"][1, -2:] = 0
    for name in ("pixel_values", "frame_mask"):
        inputs[name] = pictures[name].unflatten(0, (3, 2)).clone()
    return inputs


@pytest.mark.parametrize("answers_from", ["query", "mean_latents"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_each_picture_is_read_with_the_text_and_the_head_sees_both(aggregation: str, answers_from: str) -> None:
    model = tiny_model(Model, modality_aggregation=aggregation, answers_from=answers_from)
    inputs, budget = pair_inputs(frames=3), ComputeBudget(frames=2, latents=4, cross_attentions=2)
    found = []
    for place in range(2):
        latents = model.perceiver_vl(
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs["pixel_values"][:, place],
            inputs["frame_mask"][:, place],
            budget,
        ).last_hidden_state
        if answers_from == "query":
            found.append(model.decoder(latents, model.answer_queries[place](3))[:, 0])
        else:
            found.append(latents.mean(1))
    output = model(**inputs, labels=torch.tensor([0, 1, 1]), budget=budget)
    assert output.logits.shape == (3, 2)
    assert_same(output.logits, model.answer_head(torch.stack(found, 1)))
    assert_same(output.loss, -output.logits.log_softmax(1)[range(3), [0, 1, 1]].mean())


def test_left_is_not_right() -> None:
    model, inputs = tiny_model(Model), pair_inputs()
    turned = inputs | {name: inputs[name].flip(1) for name in ("pixel_values", "frame_mask")}
    assert differs(model(**inputs).logits, model(**turned).logits)
    both = inputs | {name: inputs[name][:, :1].expand_as(inputs[name]) for name in ("pixel_values", "frame_mask")}
    assert differs(model(**inputs).logits, model(**both).logits)


def test_every_part_of_the_model_learns() -> None:
    model = tiny_model(Model).train()
    model(**pair_inputs(), labels=torch.tensor([0, 1, 1])).loss.backward()
    idle = {name for name, value in model.named_parameters() if value.grad is None}
    assert all("cross_attention" in name for name in idle)  # what LayerDrop took


@pytest.mark.parametrize("shape", [(2, 1, 3, 16, 16), (2, 3, 1, 3, 16, 16)])
def test_two_pictures_it_must_be(shape: tuple[int, ...]) -> None:
    words = tiny_inputs()
    with pytest.raises(UsageError, match=r"^pixel_values of shape [^\n]+: need two pictures[^\n]+$"):
        tiny_model(Model)(words["input_ids"], pixel_values=torch.zeros(shape).double())
