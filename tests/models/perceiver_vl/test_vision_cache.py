"""A clip that was cached answers as the clip does, and only for the weights and the budget it was made with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from tiny import AGGREGATIONS, FIGURE_3, assert_same, differs, tiny_inputs, tiny_model

RELEASED = {
    "cross_attention_residual": "normed_queries",
    "latent_position": "none",
    "modality_embedding": False,
    "zero_frames_are_padding": True,
}
budgets = st.fixed_dictionaries(
    {
        "frames": st.none() | st.integers(1, 3),
        "latents": st.none() | st.integers(1, 6),
        "cross_attentions": st.none() | st.integers(1, 3),
    }
)


def padded(clips: int, texts: int, frames: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clips, and texts about each of them: what the cache is made of and asked with, and the same as plain pairs."""
    draw = torch.Generator().manual_seed(seed)
    inputs = tiny_inputs(clips * texts, frames=frames, seed=seed)
    inputs["attention_mask"] = (torch.rand(clips * texts, 6, generator=draw) > 0.3).long()
    for name in ("pixel_values", "frame_mask"):
        inputs[name] = inputs[name][:clips]
    inputs["frame_mask"] = (torch.rand(clips, frames, generator=draw) > 0.3).long()
    inputs["pixel_values"][0, 0] = 0.0  # padding, to the released code
    pairs = {name: v.repeat_interleave(texts, 0) if len(v) == clips else v for name, v in inputs.items()}
    return inputs, pairs


def asked(cached: dict[str, Tensor], cache: VisionCache) -> dict[str, Any]:
    return {"input_ids": cached["input_ids"], "attention_mask": cached["attention_mask"], "vision_cache": cache}


@pytest.mark.parametrize("quirks", [{}, RELEASED])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(
    clips=st.integers(1, 3), texts=st.integers(1, 3), frames=st.integers(1, 4), dials=budgets, seed=st.integers(0, 99)
)
def test_texts_ask_a_cached_clip_as_they_ask_the_clip(
    aggregation: str, quirks: dict[str, Any], clips: int, texts: int, frames: int, dials: dict[str, Any], seed: int
) -> None:
    model = tiny_model(PerceiverVLForRetrieval, modality_aggregation=aggregation, **quirks)
    inputs, pairs = padded(clips, texts, frames, seed)
    budget = ComputeBudget(**dials)
    with torch.inference_mode():
        cache = model.cache_vision(inputs["pixel_values"], inputs["frame_mask"], budget)
        assert len(cache) == clips
        assert_same(model.match_jointly(**asked(inputs, cache)), model.match_jointly(**pairs, budget=budget))
        alone = model.perceiver_vl(vision_cache=cache, budget=budget).last_hidden_state
        assert_same(alone, model.encode_vision(inputs["pixel_values"], inputs["frame_mask"], budget))


def test_a_cached_clip_is_asked_again_and_again() -> None:
    model = tiny_model(PerceiverVLForQuestionAnswering, num_labels=3)
    inputs, base = tiny_inputs(1), model.perceiver_vl
    cache = model.cache_vision(inputs["pixel_values"])
    answers = []
    for seed in range(3):
        question = tiny_inputs(1, seed=seed)["input_ids"]
        answers.append(model.answer_inputs(base.embed_inputs(question, vision_cache=cache)))
        assert_same(answers[-1], model(question, pixel_values=inputs["pixel_values"]).logits)
    assert differs(answers[0], answers[1])


@pytest.mark.parametrize("aggregation", FIGURE_3)
def test_with_one_cross_attention_a_question_costs_the_same_however_long_the_clip(aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation)
    budget, costs = ComputeBudget(cross_attentions=1), []
    for frames in (1, 5):
        inputs = tiny_inputs(frames=frames)
        cache = model.cache_vision(inputs["pixel_values"], budget=budget)
        with FlopCounterMode(display=False) as counter:
            model(**asked(inputs, cache))
        costs.append(counter.get_total_flops())
    assert costs[0] == costs[1] > 0


def test_a_question_projects_no_vision() -> None:
    model = tiny_model(PerceiverVLModel)
    inputs = tiny_inputs(frames=5)
    cache, seen = model.cache_vision(inputs["pixel_values"]), []
    for read in model.encoder.vision_cross_attentions:
        read.attention.k_proj.register_forward_hook(lambda _, __, keys: seen.append(keys.shape[1]))
    model(**asked(inputs, cache))
    assert seen == [6, 6, 6]  # the words, at each cross-attention


@pytest.mark.parametrize("aggregation", FIGURE_3)
def test_a_first_cross_attention_is_stored_and_asked_later(aggregation: str) -> None:
    model = tiny_model(PerceiverVLForRetrieval, modality_aggregation=aggregation)
    inputs, budget = tiny_inputs(), ComputeBudget(latents=5, cross_attentions=1)
    stored = model.cache_vision(inputs["pixel_values"], inputs["frame_mask"], budget).first.pack()
    assert stored.shape == (2, 5, 16 + 4)
    cache = model.cache_from_partial_attention(stored.clone(), budget)
    assert_same(model.match_jointly(**asked(inputs, cache)), model.match_jointly(**inputs, budget=budget))
    with pytest.raises(UsageError, match=r"^budget latents=5: [^\n]+cross_attentions=1$"):
        model.cache_from_partial_attention(stored, ComputeBudget(latents=5))
    with pytest.raises(UsageError, match=r"need \(B, 6, 20\)$"):
        model.cache_from_partial_attention(stored, ComputeBudget(cross_attentions=1))


def test_what_depends_on_the_words_is_not_stored() -> None:
    model, budget = tiny_model(PerceiverVLModel, modality_aggregation="text_first"), ComputeBudget(cross_attentions=1)
    cache = model.cache_vision(tiny_inputs()["pixel_values"], budget=budget)
    assert cache.first is None
    assert [len(part.keys) for [part] in cache.later] == [2]
    with pytest.raises(UsageError, match=r"^modality_aggregation=text_first: what is found in a clip depends [^\n]+$"):
        model.cache_from_partial_attention(torch.zeros(2, 6, 20), budget)


def test_gradients_reach_a_model_through_its_cache() -> None:
    grads = []
    for cached in (False, True):
        model, inputs = tiny_model(PerceiverVLForRetrieval), tiny_inputs()
        if cached:
            inputs = asked(inputs, model.cache_vision(inputs["pixel_values"], inputs["frame_mask"]))
        model.match_jointly(**inputs).sum().backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert_same(grads[1][name], grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_keeps_the_precision_of_the_model(dtype: torch.dtype) -> None:
    wanted = tiny_model(PerceiverVLModel)(**tiny_inputs()).last_hidden_state
    model, inputs = tiny_model(PerceiverVLModel).to(dtype), tiny_inputs()
    with torch.inference_mode():
        found = model(**asked(inputs, model.cache_vision(inputs["pixel_values"].float()))).last_hidden_state
    assert found.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


# --- Refusals -------------------------------------------------------------------------------------------------------


def change_in_place(model: PerceiverVLModel) -> None:
    with torch.no_grad():
        model.encoder.vision_cross_attentions[1].attention.k_proj.weight[3, 5] += 1e-3


def change_round_autograd(model: PerceiverVLModel) -> None:
    weight = model.embeddings.vision.patch_projection.weight
    weight.data.mul_(1.001)


def load_others(model: PerceiverVLModel) -> None:
    model.load_state_dict(tiny_model(PerceiverVLModel, seed=1).state_dict(), assign=True)


def change_latents(model: PerceiverVLModel) -> None:
    with torch.no_grad():
        model.encoder.latents[0, 0] += 1e-3


def change_precision(model: PerceiverVLModel) -> nn.Module:
    return model.float()


@pytest.mark.parametrize(
    "change", [change_in_place, change_round_autograd, load_others, change_latents, change_precision]
)
def test_a_cache_is_refused_once_the_weights_have_changed(change: Callable[[PerceiverVLModel], Any]) -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs()
    cache = model.cache_vision(inputs["pixel_values"])
    model(**asked(inputs, cache))
    change(model)
    with pytest.raises(UsageError, match=r"^vision_cache: made by another model, [^\n]+ make it again$"):
        model(**asked(inputs, cache))


@pytest.mark.parametrize("changes", [{"modality_aggregation": "separate"}, {"num_attention_heads": 2}, {"seed": 1}])
def test_a_cache_of_another_model_is_refused(changes: dict[str, Any]) -> None:
    inputs = tiny_inputs()
    cache = tiny_model(PerceiverVLModel, **changes).cache_vision(inputs["pixel_values"])
    with pytest.raises(UsageError, match="made by another model"):
        tiny_model(PerceiverVLModel)(**asked(inputs, cache))


def test_a_cache_knows_its_budget() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs()
    budget = ComputeBudget(latents=4, cross_attentions=2)
    cache = model.cache_vision(inputs["pixel_values"], budget=budget)
    wanted = model(**inputs, budget=budget).last_hidden_state
    assert_same(model(**asked(inputs, cache)).last_hidden_state, wanted)
    with_texts = ComputeBudget(latents=4, text_latents=2, cross_attentions=2)
    assert_same(model(**asked(inputs, cache), budget=with_texts).last_hidden_state, wanted)
    for other in (ComputeBudget(latents=5, cross_attentions=2), ComputeBudget(latents=4), ComputeBudget(frames=2)):
        with pytest.raises(UsageError, match=rf"^vision_cache: made at budget {budget}, asked at {other}; [^\n]+$"):
            model(**asked(inputs, cache), budget=other)


def test_a_cache_of_a_budget_that_the_model_does_not_have_is_refused() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs()
    for dials in ({"latents": 7}, {"cross_attentions": 4}):
        with pytest.raises(UsageError, match=r"^budget \w+=\d: more than"):
            model.cache_vision(inputs["pixel_values"], budget=ComputeBudget(**dials))


def test_a_cache_takes_the_place_of_pixels_and_as_many_texts_for_each_clip() -> None:
    model, inputs = tiny_model(PerceiverVLModel), tiny_inputs(3)
    cache = model.cache_vision(inputs["pixel_values"][:2])
    for texts in (1, 3):
        with pytest.raises(UsageError, match=rf"^vision_cache of 2 clips with {texts} texts: [^\n]+$"):
            model(inputs["input_ids"][:texts], vision_cache=cache)
    with pytest.raises(UsageError, match=r"^pixel_values and vision_cache: give one[^\n]+$"):
        model(**inputs, vision_cache=cache)
