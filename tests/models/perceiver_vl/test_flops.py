"""The cost formulas, held against the operations counted on built models."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import ComputeBudget, PerceiverVLConfig, PerceiverVLForCaptioning, PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.flops import (
    block_flops,
    cached_vision_flops,
    caption_flops,
    encoder_flops,
    matching_flops,
    merge_flops,
    partial_match_flops,
    pooling_flops,
)
from tiny import AGGREGATIONS, tiny_config, tiny_encoders, tiny_inputs


def built(config: PerceiverVLConfig) -> PerceiverVLForRetrieval:
    return PerceiverVLForRetrieval(config).requires_grad_(False).double().eval()


def counted(call: Any, *args: Any, **kwargs: Any) -> int:
    """Operations of one call; the fused attention of a CPU is not counted, so the plain one runs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*args, **kwargs)
    return counter.get_total_flops()


@settings(max_examples=40)
@given(
    changes=st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([8, 24]),
            "intermediate_ratio": st.integers(1, 4),
            "num_blocks": st.integers(1, 3),
            "self_attentions_per_block": st.integers(2, 3),
            "num_latents": st.integers(4, 7),
            "frame_class_token": st.booleans(),
            "modality_aggregation": st.sampled_from(AGGREGATIONS),
            "layer_drop": st.sampled_from([0.0, 0.5]),
        }
    ),
    frames=st.integers(0, 4),
    words=st.integers(0, 6),
    dials=st.fixed_dictionaries(
        {
            "frames": st.none() | st.integers(1, 5),
            "latents": st.none() | st.integers(1, 4),
            "text_latents": st.none() | st.integers(1, 4),
            "cross_attentions": st.none() | st.just(1),
        }
    ),
)
def test_encoding_costs_what_the_formula_says(
    changes: dict[str, Any], frames: int, words: int, dials: dict[str, int | None]
) -> None:
    if not frames and not words:
        words = 1
    config, budget = tiny_config(**changes), ComputeBudget(**dials)
    inputs = tiny_inputs(batch=1, frames=max(frames, 1), words=max(words, 1))
    if not frames:
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if not words:
        inputs = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    model = built(config).perceiver_vl
    assert counted(model, **inputs, budget=budget) == encoder_flops(config, frames, words, budget)


@pytest.mark.parametrize("prefix", ["latents", "frames"])
@pytest.mark.parametrize("over_encoders", [False, True])
def test_a_caption_costs_what_the_formula_says(prefix: str, over_encoders: bool) -> None:
    changes = tiny_encoders() | {"base": "none"} if over_encoders else {}
    config = tiny_config(caption_prefix=prefix, caption_cross_attentions=2, caption_layers=3, **changes)
    model = PerceiverVLForCaptioning(config).requires_grad_(False).double().eval()
    inputs = tiny_inputs(batch=1, frames=3, words=5)
    budget = ComputeBudget(frames=2, latents=4 if prefix == "latents" else None)
    inputs["pixel_values"] = model.perceiver_vl.encode_frames(inputs["pixel_values"])
    assert counted(model, **inputs, budget=budget) == caption_flops(config, 3, 5, budget)


def test_matching_a_pair_costs_what_the_formula_says() -> None:
    config = tiny_config(num_latents=7, num_text_latents=3)
    model = built(config)
    latents = torch.randn(1, 7, 16).double(), torch.randn(1, 3, 16).double()
    assert counted(model.match, *latents) == matching_flops(config, 10)


@pytest.mark.parametrize("latents", [1, 7, 64])  # met by keys and values, and in their own space
def test_a_summary_costs_what_the_formula_says_and_so_does_matching_two(latents: int) -> None:
    config = tiny_config(num_latents=latents, num_text_latents=1)
    model, clips = built(config), 3
    side = torch.randn(1, latents, 16).double()
    assert counted(model.partial_match, side) == partial_match_flops(config, latents)
    vision, text = model.partial_match(torch.randn(clips, latents, 16).double()), model.partial_match(side)
    assert counted(model.merge_matches, vision, text) == clips * merge_flops(config)
    assert counted(model.match, side, side) == partial_match_flops(config, 2 * latents) + merge_flops(config)


@settings(max_examples=30)
@given(
    aggregation=st.sampled_from(AGGREGATIONS),
    latents=st.integers(1, 7),
    blocks=st.integers(1, 3),
    frames=st.integers(1, 4),
    words=st.integers(1, 6),
    dials=st.fixed_dictionaries(
        {
            "frames": st.none() | st.integers(1, 5),
            "latents": st.none() | st.just(1),
            "cross_attentions": st.none() | st.just(1),
        }
    ),
)
def test_asking_of_a_clip_that_was_met_costs_what_the_formula_says(
    aggregation: str, latents: int, blocks: int, frames: int, words: int, dials: dict[str, int | None]
) -> None:
    config = tiny_config(modality_aggregation=aggregation, num_latents=latents, num_text_latents=1, num_blocks=blocks)
    model, budget = built(config).perceiver_vl, ComputeBudget(**dials)
    inputs = tiny_inputs(batch=1, frames=frames, words=words)
    cache = model.cache_vision(inputs["pixel_values"], inputs["frame_mask"], budget)
    cost = counted(model, inputs["input_ids"], inputs["attention_mask"], vision_cache=cache)
    assert cost == cached_vision_flops(config, frames, words, budget)


def test_asking_again_costs_less_than_meeting_the_clip_again() -> None:
    config = PerceiverVLConfig()
    for frames in (1, 8, 64):
        again, afresh = cached_vision_flops(config, frames, 40), encoder_flops(config, frames, 40)
        assert again < afresh
    assert again < 0.5 * afresh


def test_pooling_costs_what_the_formula_says() -> None:
    config = tiny_config()
    model, latents = built(config), torch.randn(1, 6, 16).double()
    assert counted(model.pool_vision, latents) == counted(model.pool_text, latents) == pooling_flops(config)


def test_a_whole_pair_in_the_single_stream_is_the_sum_of_its_parts() -> None:
    config = tiny_config()
    expected = encoder_flops(config, 3, 6) + matching_flops(config, 6)
    assert counted(built(config).match_jointly, **tiny_inputs(batch=1)) == expected


def test_the_base_size_costs_what_the_paper_prints() -> None:
    config = PerceiverVLConfig()
    image = encoder_flops(config, frames=1, text_tokens=40)
    small = encoder_flops(config, frames=1, text_tokens=40, budget=ComputeBudget(latents=64))
    clip = encoder_flops(config, frames=8, text_tokens=40)
    assert 0.95 * 30.5e9 < image <= 30.5e9
    assert 0.9 * 17.0e9 < small <= 17.0e9
    assert 0.95 * 43.9e9 < clip <= 43.9e9


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_cost_is_a_straight_line_over_frames(aggregation: str) -> None:
    config = PerceiverVLConfig(modality_aggregation=aggregation)
    costs = [encoder_flops(config, frames, text_tokens=40) for frames in (1, 2, 3, 32, 64)]
    per_frame = costs[1] - costs[0]
    assert costs == [costs[0] + per_frame * (frames - 1) for frames in (1, 2, 3, 32, 64)]
    assert costs[-1] < 64 * costs[0] / 4  # the latents' own work does not grow


def test_the_cost_on_the_built_model_is_a_straight_line_over_inputs() -> None:
    config = tiny_config(max_frames=12)
    model = built(config).perceiver_vl
    costs = [counted(model, **tiny_inputs(batch=1, frames=frames)) for frames in (2, 4, 6, 12)]
    assert costs[1] - costs[0] == costs[2] - costs[1] == (costs[3] - costs[2]) / 3


def test_a_block_counts_a_multiply_add_as_two() -> None:
    config = PerceiverVLConfig()
    d, n, m = 768, 128, 185
    assert block_flops(config, n, m) == 2 * (2 * d * d * n + 2 * d * d * m + 2 * n * m * d + 8 * d * d * n)


def test_few_queries_pay_nothing_for_keys_and_values() -> None:
    config = PerceiverVLConfig()
    d, heads, r = 768, 12, 4
    assert block_flops(config, 1, 256) == 2 * (4 * d * d + 2 * heads * 256 * d + 2 * r * d * d)
    assert block_flops(config, 64, 256) == 2 * (2 * d * d * (64 + 256) + 2 * 64 * 256 * d + 2 * r * d * d * 64)
    assert matching_flops(config, 256) < 0.1 * 2 * (2 * d * d * 256)
