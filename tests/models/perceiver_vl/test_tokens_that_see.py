"""Options that make tokens see more leave the paper's model as it is; all paths are exact with them, or refuse."""

import itertools
from typing import Any

import pytest
import torch

from perceiver_vl import PerceiverVLConfig, PerceiverVLForRetrieval, PerceiverVLModel, UsageError
from perceiver_vl.layers.positions import sincos_positions_2d, sinusoidal_positions
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, partial_match_flops
from perceiver_vl.models.perceiver_vl.warm_start import initialise_from
from tiny import assert_same, differs, gradients, inputs_of, outputs_of, tiny_config, tiny_inputs, tiny_model

STEM: dict[str, Any] = {"patch_stem": "convolutional", "patch_norm": True, "sincos_positions": 0.5}
EVERYTHING: dict[str, Any] = {**STEM, "temporal_kernel": 3, "qk_norm": True}
OFF: dict[str, Any] = {
    "patch_stem": "linear",
    "patch_norm": False,
    "sincos_positions": None,
    "temporal_kernel": 0,
    "qk_norm": False,
}


def test_off_is_how_the_paper_has_it() -> None:
    config = PerceiverVLConfig()
    assert {name: getattr(config, name) for name in OFF} == OFF
    with torch.device("meta"):
        names = PerceiverVLModel(tiny_config()).state_dict().keys()
    assert not any(part in name for name in names for part in ("stem", "mixing", "patch_norm", "q_norm", "k_norm"))


def test_mixing_changes_nothing_before_it_is_trained() -> None:
    plain = tiny_model(PerceiverVLModel).float()
    torch.manual_seed(0)
    mixed = PerceiverVLModel(tiny_config(temporal_kernel=3)).eval()
    lacking = mixed.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert lacking
    assert all("temporal_mixing" in name for name in lacking)
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in tiny_inputs().items()}
    assert torch.equal(outputs_of(plain, inputs)[0], outputs_of(mixed, inputs)[0])


def test_positions_begin_as_sines_of_the_size_said() -> None:
    vision = PerceiverVLModel(tiny_config(sincos_positions=0.5)).embeddings.vision
    assert_same(vision.position_embeddings, 0.5 * sincos_positions_2d(2, 2, 16))
    assert_same(vision.temporal_embeddings, 0.5 * sinusoidal_positions(5, 16))


def test_everything_learns_and_padding_says_nothing() -> None:
    model = tiny_model(PerceiverVLForRetrieval, **EVERYTHING)
    inputs = inputs_of(PerceiverVLForRetrieval, padded=True)
    found = gradients(model, inputs)
    parts = ("stem", "patch_norm", "temporal_mixing", "q_norm", "k_norm", "position_embeddings")
    for part in parts:
        assert any(part in name and value.abs().max() > 0 for name, value in found.items()), part
    before = outputs_of(model, inputs)
    inputs["pixel_values"][1, -1:] += 3  # padding
    for one, other in zip(before, outputs_of(model, inputs), strict=True):
        assert_same(one, other)
    inputs["pixel_values"][1, 0] += 3
    assert differs(before[0], outputs_of(model, inputs)[0])


@pytest.mark.parametrize("aggregation", ["joint", "separate"])
def test_a_cached_clip_answers_as_the_clip(aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, **EVERYTHING, modality_aggregation=aggregation)
    inputs = tiny_inputs()
    cache = model.cache_vision(inputs["pixel_values"], inputs["frame_mask"])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model(**words, vision_cache=cache)[0], model(**inputs)[0])


def test_a_clip_in_chunks_is_the_clip_or_is_refused() -> None:
    pixels = tiny_inputs(frames=5)["pixel_values"]
    chunks = [pixels[:, a:b] for a, b in itertools.pairwise((0, 2, 3, 5))]
    model = tiny_model(PerceiverVLModel, **STEM, qk_norm=True)
    assert_same(model.encode_long(chunks), model(pixel_values=pixels)[0])
    mixing = tiny_model(PerceiverVLModel, temporal_kernel=3)
    with pytest.raises(UsageError, match="temporal_kernel=3: tokens of neighbouring frames are mixed"):
        mixing.encode_long(chunks)


def test_a_frame_sampled_by_the_budget_is_a_neighbour_of_the_one_before() -> None:
    from perceiver_vl import ComputeBudget

    model = tiny_model(PerceiverVLModel, **EVERYTHING)
    pixels = tiny_inputs(frames=4)["pixel_values"]
    sampled = model(pixel_values=pixels, budget=ComputeBudget(frames=2))[0]
    assert_same(sampled, model(pixel_values=pixels[:, [1, 3]])[0])


@pytest.mark.parametrize("changes", [EVERYTHING, {"temporal_kernel": 5}, {"qk_norm": True}, STEM])
def test_costs_are_counted(changes: dict[str, Any]) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(**changes)
    model = PerceiverVLForRetrieval(config).requires_grad_(False).double().eval()
    inputs = tiny_inputs(batch=1, frames=3, words=6)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.perceiver_vl(**inputs)
    assert counter.get_total_flops() == encoder_flops(config, 3, 6)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.partial_match(torch.randn(1, 6, 16).double())
    assert counter.get_total_flops() == partial_match_flops(config, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_stem": "convolutional", "patch_size": 12, "image_size": 24}, "patch_size=12: patch_stem="),
        ({"sincos_positions": 0.0}, "sincos_positions=0.0: need a size above 0"),
        (
            {"sincos_positions": 1.0, "hidden_size": 18, "num_attention_heads": 1},
            "sincos_positions: need a hidden_size",
        ),
        ({"temporal_kernel": 4}, "temporal_kernel=4: need an odd number"),
        ({"temporal_kernel": -1}, "temporal_kernel=-1: need an odd number"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(**changes)


def test_no_vision_source_has_a_stem() -> None:
    model = PerceiverVLModel(tiny_config(patch_stem="convolutional"))
    with pytest.raises(UsageError, match="patch_stem='convolutional': no vision source has one"):
        initialise_from(model, vision="anywhere")
