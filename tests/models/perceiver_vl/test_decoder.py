"""Queries read the latents: each on its own, and never told which word they stand for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import PerceiverVLForPreTraining
from tiny import MASK_TOKEN, assert_same, differs, tiny_inputs, tiny_model

MASKED = torch.tensor([[False, True, False, True, False, False], [True, False, False, False, False, True]])


def masked_inputs() -> dict[str, torch.Tensor]:
    inputs = tiny_inputs()
    inputs["input_ids"] = inputs["input_ids"].masked_fill(MASKED, MASK_TOKEN)
    return inputs


@given(cut=st.integers(1, 4))
def test_queries_asked_together_are_answered_as_apart(cut: int) -> None:
    model = tiny_model()
    latents, queries = torch.randn(2, 6, 16).double(), torch.randn(2, 5, 16).double()
    apart = [model.decoder(latents, queries[:, :cut]), model.decoder(latents, queries[:, cut:])]
    assert_same(model.decoder(latents, queries), torch.cat(apart, dim=1))


def test_matching_and_masked_words_asked_in_one_call_are_answered_as_apart() -> None:
    model, inputs = tiny_model(), masked_inputs()
    together = model(**inputs)
    latents = model.perceiver_vl(**inputs).last_hidden_state
    assert_same(together.vtm_logits, model.match_jointly(**inputs))
    assert_same(together.mlm_logits, model.mlm_head(model.decode_masked_words(latents, MASKED)))


def test_every_latent_is_read() -> None:
    model = tiny_model()
    latents, queries = torch.randn(1, 6, 16).double(), torch.randn(1, 1, 16).double()
    for number in range(6):
        changed = latents.clone()
        changed[:, number] += 1.0
        assert differs(model.decoder(changed, queries), model.decoder(latents, queries))


def test_masked_words_are_asked_for_by_position_and_mask_alone() -> None:
    model = tiny_model()
    queries = model.mlm_queries(MASKED)
    assert queries.shape == (2, 6, 16)
    assert differs(queries[0, 1], queries[0, 3])  # two masked positions
    assert differs(queries[0, 0], queries[1, 0])  # one position, masked and not
    assert torch.equal(queries[0, 2], queries[1, 2])  # whatever words stand there


def test_the_decoder_knows_no_words() -> None:
    """With the latents fixed, changing every row of the word table changes no prediction."""
    model, latents = tiny_model(), torch.randn(2, 6, 16).double()
    before = model.mlm_head(model.decode_masked_words(latents, MASKED))
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    assert torch.equal(model.mlm_head(model.decode_masked_words(latents, MASKED)), before)


def test_the_words_to_be_predicted_do_not_leak_into_their_prediction() -> None:
    """The labels say which positions are masked, and nothing else."""
    model, inputs = tiny_model(), masked_inputs()
    logits = []
    for word in (7, 23):
        labels = torch.full_like(inputs["input_ids"], -100).masked_fill(MASKED, word)
        logits.append(model(**inputs, mlm_labels=labels).mlm_logits)
    assert torch.equal(*logits)
    elsewhere = torch.full_like(inputs["input_ids"], -100).masked_fill(MASKED.roll(1, dims=1), 7)
    assert differs(model(**inputs, mlm_labels=elsewhere).mlm_logits, logits[0])


def test_without_labels_the_masked_positions_are_those_of_the_mask_token() -> None:
    model, inputs = tiny_model(PerceiverVLForPreTraining), masked_inputs()
    labels = torch.full_like(inputs["input_ids"], -100).masked_fill(MASKED, 7)
    assert torch.equal(model(**inputs).mlm_logits, model(**inputs, mlm_labels=labels).mlm_logits)
