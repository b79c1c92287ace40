"""The models: masks, images and clips, budgets, the three streams."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl import ComputeBudget, PerceiverVLForRetrieval, PerceiverVLModel, UsageError
from perceiver_vl.models.perceiver_vl.modeling import sample_frames
from perceiver_vl.models.perceiver_vl.pretraining import masked_word_loss
from perceiver_vl.models.perceiver_vl.retrieval import matching_loss
from tiny import AGGREGATIONS, assert_same, differs, tiny_inputs, tiny_model

lengths = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=2, max_size=4)


def ragged(sizes: list[tuple[int, int]]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A batch of examples of (frames, words), padded with rubbish, and the examples one by one."""
    batch = tiny_inputs(len(sizes), frames=5, words=7)
    alone = []
    for row, (frames, words) in enumerate(sizes):
        batch["frame_mask"][row, frames:] = 0
        batch["attention_mask"][row, words:] = 0
        one = {name: value[row : row + 1] for name, value in batch.items()}
        for name, length in (("pixel_values", frames), ("frame_mask", frames), ("input_ids", words)):
            one[name] = one[name][:, :length]
        alone.append(one | {"attention_mask": one["attention_mask"][:, :words]})
    return batch, alone


# --- Masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(sizes=lengths)
def test_a_padded_batch_gives_what_its_examples_give_alone(aggregation: str, sizes: list[tuple[int, int]]) -> None:
    model = tiny_model(modality_aggregation=aggregation)
    batch, alone = ragged(sizes)
    found, latents = model(**batch), model.perceiver_vl(**batch).last_hidden_state
    for row, one in enumerate(alone):
        wanted = model(**one)
        assert_same(latents[row], model.perceiver_vl(**one).last_hidden_state[0])
        assert_same(found.vtm_logits[row], wanted.vtm_logits[0])
        words = one["input_ids"].shape[1]
        assert_same(found.mlm_logits[row, :words], wanted.mlm_logits[0])


@given(sizes=lengths)
def test_the_streams_apart_ignore_padding_too(sizes: list[tuple[int, int]]) -> None:
    model = tiny_model(PerceiverVLForRetrieval)
    batch, alone = ragged(sizes)
    vision = model.get_vision_features(batch["pixel_values"], batch["frame_mask"])
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    for row, one in enumerate(alone):
        assert_same(vision[row], model.get_vision_features(one["pixel_values"])[0])
        assert_same(text[row], model.get_text_features(one["input_ids"])[0])


def test_masks_left_out_mean_that_nothing_is_padded() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs()
    bare = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    assert torch.equal(bare.last_hidden_state, model(**inputs).last_hidden_state)


def test_nothing_to_encode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^nothing to encode: [^\n]+$"):
        tiny_model(PerceiverVLModel)()


# --- An image is a clip of one frame --------------------------------------------------------------------------------


def moved_in_time(model: PerceiverVLModel, inputs: dict[str, Tensor]) -> list[bool]:
    """For each example whether its latents depend on the temporal table."""
    before = model(**inputs).last_hidden_state
    with torch.no_grad():
        model.embeddings.vision.temporal_embeddings += torch.randn(5, 16).double()
    return [differs(*pair) for pair in zip(model(**inputs).last_hidden_state, before, strict=True)]


def test_images_have_no_place_in_time_and_clips_have() -> None:
    model = tiny_model(PerceiverVLModel)
    assert moved_in_time(model, tiny_inputs(frames=1)) == [False, False]
    assert moved_in_time(model, tiny_inputs(frames=2)) == [True, True]


def test_an_image_beside_a_longer_clip_stays_an_image() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs(frames=3)
    inputs["frame_mask"][0, 1:] = 0
    alone = model(inputs["input_ids"][:1], pixel_values=inputs["pixel_values"][:1, :1])
    assert_same(model(**inputs).last_hidden_state[:1], alone.last_hidden_state)
    assert moved_in_time(model, inputs) == [False, True]


def test_a_clip_depends_on_the_order_of_its_frames_and_a_set_of_frames_would_not() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs(frames=3)
    backwards = inputs | {"pixel_values": inputs["pixel_values"].flip(1)}
    assert differs(model(**backwards).last_hidden_state, model(**inputs).last_hidden_state)
    with torch.no_grad():
        model.embeddings.vision.temporal_embeddings.zero_()
    assert_same(model(**backwards).last_hidden_state, model(**inputs).last_hidden_state)


# --- Budgets --------------------------------------------------------------------------------------------------------


def test_text_latents_act_on_text_alone() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs()
    words, pixels = inputs["input_ids"], inputs["pixel_values"]
    few = ComputeBudget(text_latents=2)
    assert model.encode_text(words).shape == (2, 4, 16)
    assert model.encode_text(words, budget=few).shape == (2, 2, 16)
    assert model.encode_text(words, budget=ComputeBudget(text_latents=6)).shape == (2, 6, 16)
    assert torch.equal(model.encode_vision(pixels, budget=few), model.encode_vision(pixels))
    assert torch.equal(model.match_jointly(**inputs, budget=few), model.match_jointly(**inputs))


def test_latents_act_on_vision_and_on_pairs_but_not_on_text_alone() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs()
    few = ComputeBudget(latents=2)
    assert model.encode_vision(inputs["pixel_values"], budget=few).shape == (2, 2, 16)
    assert torch.equal(model.encode_text(inputs["input_ids"], budget=few), model.encode_text(inputs["input_ids"]))
    assert differs(model.match_jointly(**inputs, budget=few), model.match_jointly(**inputs))


@pytest.mark.parametrize(("frames", "taken"), [(1, [2]), (2, [1, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_a_budget_of_frames_is_the_clip_of_the_sampled_frames(frames: int, taken: list[int]) -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs(frames=5)
    pixels = inputs["pixel_values"]
    found = model.encode_vision(pixels, budget=ComputeBudget(frames=frames))
    assert_same(found, model.encode_vision(pixels[:, taken]))


@given(real=st.integers(1, 6), padding=st.integers(0, 3), frames=st.integers(1, 8))
def test_frames_are_sampled_from_the_middles_of_equal_parts_of_what_is_real(
    real: int, padding: int, frames: int
) -> None:
    clip = torch.arange(real + padding).double()[None, :, None, None, None].expand(1, -1, 3, 2, 2)
    mask = (torch.arange(real + padding) < real)[None]
    sampled, kept = sample_frames(clip, mask, frames)
    taken = sampled[0, :, 0, 0, 0][kept[0]].long().tolist()
    number = min(real, frames)
    assert taken == [(2 * i + 1) * real // (2 * number) for i in range(number)]
    assert sampled.shape[1] == kept.shape[1] == min(real + padding, frames)


@pytest.mark.parametrize("dials", ["frames=6", "latents=7", "text_latents=7", "cross_attentions=4"])
def test_a_budget_beyond_the_model_is_refused_in_one_line(dials: str) -> None:
    with pytest.raises(UsageError, match=rf"^budget {dials}: more than [^\n]+$"):
        tiny_model()(**tiny_inputs(), budget=ComputeBudget.parse(dials))


# --- The three streams ----------------------------------------------------------------------------------------------


def test_the_mixed_stream_from_stored_encodings_is_the_mixed_stream_computed_together() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs(batch=3)
    stored = [
        (model.encode_vision(inputs["pixel_values"][[i]]), model.encode_text(inputs["input_ids"][[i]]))
        for i in range(3)
    ]
    together = model.match(model.encode_vision(inputs["pixel_values"]), model.encode_text(inputs["input_ids"]))
    apart = torch.cat([model.match(vision, text) for vision, text in stored])
    assert together.shape == (3,)
    assert_same(together, apart)


def test_the_mixed_stream_reads_the_latents_of_both_sides() -> None:
    model = tiny_model(PerceiverVLForRetrieval)
    vision, text = torch.randn(2, 6, 16).double(), torch.randn(2, 4, 16).double()
    answers = model.decoder(torch.cat([vision, text], dim=1), model.vtm_query(2))
    assert_same(model.match(vision, text), model.vtm_head(answers[:, 0]))
    assert differs(model.match(vision + 1, text), model.match(vision, text))
    assert differs(model.match(vision, text + 1), model.match(vision, text))


def test_all_pairs_at_once_score_as_pair_by_pair() -> None:
    model = tiny_model(PerceiverVLForRetrieval)
    vision, text = 3 * torch.randn(4, 6, 16).double(), 3 * torch.randn(3, 4, 16).double()
    pairs = [[model.match(vision[[clip]], text[[caption]])[0] for clip in range(4)] for caption in range(3)]
    found = model.match_all(vision, text)
    assert found.shape == (3, 4)
    assert_same(found, torch.stack([torch.stack(row) for row in pairs]))


def test_the_multi_stream_gives_unit_vectors_of_both_sides() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs(batch=4)
    vision = model.get_vision_features(inputs["pixel_values"], inputs["frame_mask"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    for features in (vision, text):
        assert features.shape == (4, 12)
        assert_same(features.norm(dim=1), torch.ones(4).double())
        assert (torch.cdist(features, features) + torch.eye(4)).min() > 1e-3
    assert_same(vision, model.pool_vision(model.encode_vision(inputs["pixel_values"])))
    assert_same(text, model.pool_text(model.encode_text(inputs["input_ids"])))


def test_the_single_stream_is_one_however_it_is_asked() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    logits = model.match_jointly(**inputs)
    assert logits.shape == (2,)
    assert_same(model.match_inputs(model.perceiver_vl.embed_inputs(**inputs)), logits)
    assert_same(model(**inputs).vtm_logits, logits)
    assert_same(super(type(model), model).forward(**inputs).vtm_logits, logits)
    budget = ComputeBudget(frames=2, latents=3, cross_attentions=1)
    array = model.perceiver_vl.embed_inputs(**inputs, budget=budget)
    assert_same(model.match_inputs(array, budget), model.match_jointly(**inputs, budget=budget))


def test_the_temperature_is_bounded_as_clips_is() -> None:
    model = tiny_model(PerceiverVLForRetrieval)
    with torch.no_grad():
        model.contrastive.logit_scale.fill_(1.5)
        assert_same(model.logit_scale, torch.tensor(1.5).double().exp())
        model.contrastive.logit_scale.fill_(20.0)
    assert model.logit_scale == 100.0


# --- Losses ---------------------------------------------------------------------------------------------------------


def test_the_losses_whose_labels_are_given_are_summed() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    vtm_labels = torch.tensor([1, 0])
    mlm_labels = torch.full((2, 6), -100)
    mlm_labels[0, 2], mlm_labels[1, 5] = 9, 11
    output = model(**inputs, mlm_labels=mlm_labels, vtm_labels=vtm_labels)
    probability = output.vtm_logits.sigmoid()
    matching = -(probability[0].log() + (1 - probability[1]).log()) / 2
    scores = output.mlm_logits.log_softmax(-1)
    words = -(scores[0, 2, 9] + scores[1, 5, 11]) / 2
    assert_same(output.loss, matching + words)
    assert_same(model(**inputs, mlm_labels=mlm_labels).loss, words)
    assert model(**inputs).loss is None
    retrieval = tiny_model(PerceiverVLForRetrieval)
    logits = retrieval.match_jointly(**inputs)
    assert_same(retrieval(**inputs, vtm_labels=vtm_labels).loss, matching_loss(logits, vtm_labels))


def test_a_batch_without_a_masked_word_costs_nothing() -> None:
    logits = torch.randn(2, 3, 7, requires_grad=True)
    loss = masked_word_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
