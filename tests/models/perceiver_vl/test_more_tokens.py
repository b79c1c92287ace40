"""Soft splits, two sizes of patches and tubelets in a whole model: all paths are exact with them, or refuse."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLConfig,
    PerceiverVLForCaptioning,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.layers.token_selection import kept_tokens
from perceiver_vl.models.budget import TrainingBudget
from perceiver_vl.models.perceiver_vl.embeddings import VisionEmbeddings
from perceiver_vl.models.perceiver_vl.flops import cached_vision_flops, caption_flops, encoder_flops
from perceiver_vl.models.perceiver_vl.warm_start import initialise_from
from tiny import (
    AGGREGATIONS,
    assert_same,
    differs,
    gradients,
    inputs_of,
    outputs_of,
    tiny_config,
    tiny_encoders,
    tiny_inputs,
    tiny_model,
)

SPLITS: dict[str, Any] = {"patch_stem": "soft_split"}
COARSE: dict[str, Any] = {"coarse_patch_size": 16}
TUBELETS: dict[str, Any] = {"tubelet_size": 2}
EVERYTHING: dict[str, Any] = {
    **SPLITS,
    "coarse_patch_size": 4,
    **TUBELETS,
    "patch_norm": True,
    "sincos_positions": 0.5,
    "temporal_kernel": 3,
}
SWITCHES = pytest.mark.parametrize("changes", [SPLITS, COARSE, TUBELETS, {"tubelet_size": 5}, EVERYTHING])


def test_off_is_how_the_paper_has_it() -> None:
    config = PerceiverVLConfig()
    assert (config.patch_stem, config.coarse_patch_size, config.tubelet_size) == ("linear", None, 1)
    assert config.tokens_per_frame == 145
    assert config.vision_tokens_of(7) == 7 * 145
    with torch.device("meta"):
        names = PerceiverVLModel(tiny_config()).state_dict().keys()
    assert not any(part in name for name in names for part in ("stem", "coarse", "tubelet"))


def test_soft_splits_begin_with_as_much_as_comes_in() -> None:
    torch.manual_seed(0)
    stem = PerceiverVLModel(tiny_config(hidden_size=64, **SPLITS)).embeddings.vision.stem
    for split in stem.splits:
        assert split.weight.std().item() == pytest.approx(split.weight[0].numel() ** -0.5, rel=0.05)


def embedded(model: PerceiverVLModel, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = model.embeddings.embed_vision(pixels, mask)
    return found


def by_hand(vision: VisionEmbeddings, clip: Tensor, mask: Tensor) -> Tensor:
    """The tokens of one clip `(T,3,H,W)`, a patch at a time, before what modalities and the norm do."""
    real = [place for place, value in enumerate(mask.tolist()) if value]
    size, tokens = vision.tubelet_size, []
    for group, start in enumerate(range(0, len(clip), size)):
        seen = []
        for place in range(start, start + size):
            before = [one for one in real if one <= min(place, len(clip) - 1)]
            seen.append(clip[before[-1] if before else real[0]])
        time = vision.temporal_embeddings[group] * (len(real) > 1)
        tokens.append(vision.class_token + vision.class_position + time)
        parts = [(vision.patch_size, vision.patch_projection, vision.position_embeddings)]
        if vision.coarse is not None:
            parts.append((vision.coarse.patch_size, vision.coarse.projection, vision.coarse.position_embeddings))
        for patch, projection, table in parts:
            side = clip.shape[-1] // patch
            for row, column in itertools.product(range(side), repeat=2):
                cut = torch.cat(seen)[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                content = (projection.weight * cut).sum((1, 2, 3)) + projection.bias
                tokens.append(content + table[row * side + column] + time)
    return torch.stack(tokens)


@pytest.mark.parametrize("changes", [COARSE, TUBELETS, {**TUBELETS, "coarse_patch_size": 4}, {"tubelet_size": 3}])
def test_tokens_are_those_cut_out_by_hand(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    pixels = tiny_inputs(batch=3, frames=5)["pixel_values"]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    tokens, token_mask = embedded(model, pixels, mask)
    groups, each = model.config.groups_of(5), model.config.tokens_per_frame
    assert tokens.shape[1] == groups * each == model.config.vision_tokens_of(5)
    for clip in range(3):
        wanted = by_hand(model.embeddings.vision, pixels[clip], mask[clip])
        wanted = model.embeddings.norm(wanted + model.embeddings.modality_embeddings.weight[0])
        size = model.config.tubelet_size
        real = torch.tensor([bool(mask[clip, start : start + size].any()) for start in range(0, 5, size)])
        assert torch.equal(token_mask[clip], real.repeat_interleave(each))
        assert_same(tokens[clip][token_mask[clip]], wanted[token_mask[clip]])


@SWITCHES
def test_everything_learns_and_padding_says_nothing(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLForRetrieval, **changes)
    inputs = inputs_of(PerceiverVLForRetrieval, padded=True)
    found = gradients(model, inputs)
    vision = {name for name, _ in model.named_parameters() if "embeddings.vision" in name}
    silent = {name for name in vision if name not in found or not found[name].abs().max() > 0}
    assert not silent
    before = outputs_of(model, inputs)
    inputs["pixel_values"][1, -1:] += 3  # padding
    for one, other in zip(before, outputs_of(model, inputs), strict=True):
        assert_same(one, other)
    inputs["pixel_values"][1, 1] += torch.randn(3, 16, 16).double()
    assert differs(before[0], outputs_of(model, inputs)[0])


@SWITCHES
def test_a_longer_padding_changes_nothing(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    pixels = tiny_inputs(frames=3)["pixel_values"]
    longer = torch.cat([pixels, torch.randn(2, 2, 3, 16, 16).double()], 1)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    if "temporal_kernel" not in changes:
        assert_same(model(pixel_values=longer, frame_mask=mask)[0], model(pixel_values=pixels)[0])
    one = torch.tensor([[1, 0, 0]] * 2)
    assert_same(model(pixel_values=pixels, frame_mask=one)[0], model(pixel_values=pixels[:, :1])[0])


@SWITCHES
def test_saved_is_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    model.save_pretrained(tmp_path)
    loaded = PerceiverVLModel.from_pretrained(tmp_path).eval()
    assert {name: getattr(loaded.config, name) for name in changes} == changes
    assert_same(loaded(**tiny_inputs())[0], model(**tiny_inputs())[0])


@SWITCHES
@pytest.mark.parametrize("aggregation", ["joint", "text_first"])
def test_a_cached_clip_answers_as_the_clip(changes: dict[str, Any], aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, **changes, modality_aggregation=aggregation)
    inputs = tiny_inputs()
    cache = model.cache_vision(inputs["pixel_values"], inputs["frame_mask"])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model(**words, vision_cache=cache)[0], model(**inputs)[0])


@pytest.mark.parametrize("changes", [SPLITS, COARSE, {**SPLITS, "coarse_patch_size": 4}])
def test_a_clip_in_chunks_is_the_clip(changes: dict[str, Any]) -> None:
    pixels = tiny_inputs(frames=5)["pixel_values"]
    chunks = [pixels[:, a:b] for a, b in itertools.pairwise((0, 2, 3, 5))]
    model = tiny_model(PerceiverVLModel, **changes)
    assert_same(model.encode_long(chunks), model(pixel_values=pixels)[0])


def test_tubelets_are_not_cut_by_chunks() -> None:
    pixels = tiny_inputs(frames=5)["pixel_values"]
    with pytest.raises(UsageError, match="tubelet_size=2: a token sees several frames, which chunks cut apart"):
        tiny_model(PerceiverVLModel, **TUBELETS).encode_long([pixels])


@SWITCHES
def test_a_budget_of_frames_is_those_frames(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    pixels = tiny_inputs(frames=4)["pixel_values"]
    sampled = model(pixel_values=pixels, budget=ComputeBudget(frames=2))[0]
    assert_same(sampled, model(pixel_values=pixels[:, [1, 3]])[0])


@SWITCHES
def test_dropped_tokens_are_of_each_frame_or_tubelet(changes: dict[str, Any]) -> None:
    model = tiny_model(PerceiverVLModel, **changes)
    pixels = tiny_inputs(frames=5)["pixel_values"]
    groups, each = model.config.groups_of(5), model.config.tokens_per_frame
    everything = model.embed_inputs(pixel_values=pixels)
    some = model.embed_inputs(pixel_values=pixels, budget=TrainingBudget(token_share=0.5, seed=3))
    kept = kept_tokens(groups, each, 0.5, 3, True)
    assert len(kept) == groups * (1 + round(0.5 * (each - 1)))
    assert torch.equal(some.vision, everything.vision[:, kept])
    assert torch.equal(some.vision_mask, everything.vision_mask[:, kept])


def counted(call: Any, *args: Any, **kwargs: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*args, **kwargs)
    return counter.get_total_flops()


@SWITCHES
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_costs_are_counted(changes: dict[str, Any], frames: int) -> None:
    config = tiny_config(**changes)
    model = PerceiverVLModel(config).requires_grad_(False).double().eval()
    inputs = tiny_inputs(batch=1, frames=frames, words=6)
    budget = ComputeBudget(frames=3)
    assert counted(model, **inputs) == encoder_flops(config, frames, 6)
    assert counted(model, **inputs, budget=budget) == encoder_flops(config, frames, 6, budget)
    cache = model.cache_vision(inputs["pixel_values"])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert counted(model, **words, vision_cache=cache) == cached_vision_flops(config, frames, 6)


@pytest.mark.parametrize("changes", [COARSE, TUBELETS])
def test_captions_over_frames_are_counted(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes, caption_prefix="frames", bos_token_id=1, eos_token_id=2)
    model = PerceiverVLForCaptioning(config).requires_grad_(False).double().eval()
    assert counted(model, **tiny_inputs(batch=1, frames=3, words=6)) == caption_flops(config, 3, 6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_takes_them(aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, **EVERYTHING, modality_aggregation=aggregation)
    assert model(**tiny_inputs(frames=3))[0].shape == (2, 6, 16)


def test_frames_of_another_size_have_tokens_of_both_sizes() -> None:
    model = tiny_model(PerceiverVLModel, **COARSE)
    tokens, _ = embedded(model, tiny_inputs(size=48)["pixel_values"], torch.ones(2, 3))
    assert tokens.shape[1] == 3 * (1 + 36 + 9)
    with pytest.raises(UsageError, match="frames of 24x24 pixels: need multiples of coarse_patch_size=16"):
        embedded(model, tiny_inputs(size=24)["pixel_values"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coarse_patch_size": 8}, "coarse_patch_size=8: must divide image_size=16 evenly, and be another"),
        ({"coarse_patch_size": 5}, "coarse_patch_size=5: must divide image_size=16 evenly"),
        ({"coarse_patch_size": 0}, "coarse_patch_size=0: must divide"),
        ({"tubelet_size": 0}, "tubelet_size=0: need 1 to max_frames=5 frames"),
        ({"tubelet_size": 6}, "tubelet_size=6: need 1 to max_frames=5 frames"),
        ({**tiny_encoders(), "tubelet_size": 2}, "coarse_patch_size, tubelet_size: of patches"),
        ({"masked_patches": True, "tubelet_size": 2}, "masked_patches=True: with coarse_patch_size or tubelet_size"),
        ({"masked_patches": True, **SPLITS}, "masked_patches=True: with patch_stem='soft_split'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(**changes)


def test_no_vision_source_has_soft_splits() -> None:
    with pytest.raises(UsageError, match="patch_stem='soft_split': no vision source has one"):
        initialise_from(PerceiverVLModel(tiny_config(**SPLITS)), vision="anywhere")
