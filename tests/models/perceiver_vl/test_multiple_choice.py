"""Multiple choice: the single stream's matching of each choice, with the clip embedded once."""

import pytest
import torch
from torch import Tensor

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLForMultipleChoice,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    UsageError,
)
from tiny import AGGREGATIONS, assert_same, differs, tiny_inputs, tiny_model


def choice_inputs(batch: int = 2, choices: int = 4) -> dict[str, Tensor]:
    """Clips of which the first is shorter, and choices of which some are."""
    inputs = tiny_inputs(batch)
    words = tiny_inputs(batch * choices, seed=1)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = words[name].view(batch, choices, -1).clone()
    inputs["attention_mask"][:, 1::2, -2:] = 0
    inputs["frame_mask"][0, -1] = 0
    return inputs


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_choice_scores_as_the_single_stream_matches_it(aggregation: str) -> None:
    model = tiny_model(PerceiverVLForMultipleChoice, modality_aggregation=aggregation)
    retriever = tiny_model(PerceiverVLForRetrieval, modality_aggregation=aggregation)
    retriever.load_state_dict(model.state_dict(), strict=False)
    inputs, budget = choice_inputs(), ComputeBudget(frames=2, latents=4, cross_attentions=2)
    for dials in (None, budget):
        logits = model(**inputs, budget=dials).logits
        assert logits.shape == (2, 4)
        for choice in range(4):
            words = {name: inputs[name][:, choice] for name in ("input_ids", "attention_mask")}
            vision = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
            assert_same(logits[:, choice], retriever.match_jointly(**words, **vision, budget=dials))
    assert differs(logits[:, 0], logits[:, 1])


def test_choices_that_are_not_there_are_never_chosen_and_change_nothing() -> None:
    model, inputs = tiny_model(PerceiverVLForMultipleChoice), choice_inputs()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    whole, some = model(**inputs).logits, model(**inputs, choice_mask=mask).logits
    assert_same(some[mask.bool()], whole[mask.bool()])
    assert (some[0, 2:] == -torch.inf).all()
    inputs["input_ids"][0, 2:] = 7
    output = model(**inputs, choice_mask=mask, labels=torch.tensor([1, 3]))
    assert_same(output.logits, some)
    wanted = torch.stack([whole[0, :2].log_softmax(0)[1], whole[1].log_softmax(0)[3]])
    assert_same(output.loss, -wanted.mean())
    output.loss.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    assert model.vtm_query.query.grad is not None


def test_a_clip_is_embedded_once_for_all_its_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_model(PerceiverVLForMultipleChoice), choice_inputs()
    embed, clips = model.perceiver_vl.embeddings.embed_vision, []

    def counted(pixel_values: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        clips.append(len(pixel_values))
        return embed(pixel_values, frame_mask)

    monkeypatch.setattr(model.perceiver_vl.embeddings, "embed_vision", counted)
    model(**inputs)
    assert clips == [2]


def test_pre_training_leaves_a_model_that_chooses() -> None:
    trained = tiny_model(PerceiverVLForPreTraining)
    model = tiny_model(PerceiverVLForMultipleChoice, seed=1)
    assert not model.load_state_dict(trained.state_dict(), strict=False).missing_keys


def test_a_choice_without_a_clip_is_refused() -> None:
    inputs = choice_inputs()
    with pytest.raises(UsageError, match=r"^pixel_values=None: [^\n]+$"):
        tiny_model(PerceiverVLForMultipleChoice)(inputs["input_ids"])
