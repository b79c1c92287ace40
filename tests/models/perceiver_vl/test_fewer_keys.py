"""Options that leave fewer keys to attend to: off nothing changes, on all paths are exact, or refuse by name."""

import itertools
from functools import partial
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
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.token_reduction import (
    even_points,
    merge_tokens,
    roll_over_time,
    route_regions,
    sample_points,
    select_by_text,
    summarise_frames,
)
from perceiver_vl.models.budget import TrainingBudget
from perceiver_vl.models.perceiver_vl.flops import cached_vision_flops, encoder_flops
from perceiver_vl.models.perceiver_vl.question_answering import beside
from tiny import AGGREGATIONS, assert_same, differs, gradients, outputs_of, tiny_config, tiny_inputs, tiny_model

GRID: dict[str, Any] = {"image_size": 32}  # 4 × 4 patches
ALONE: dict[str, dict[str, Any]] = {
    "merging": {"merged_patches": 5},
    "summaries": {"frame_summaries": 2},
    "rolled tokens": {"rolled_tokens": 0.3},
    "rolled channels": {"rolled_channels": 0.3},
    "all rolled, and merged": {"rolled_tokens": 0.5, "rolled_channels": 0.2, "merged_patches": 7},
}
DEPENDING: dict[str, dict[str, Any]] = {
    "by words": {"text_guided_tokens": 9},
    "merged, then by words": {"merged_patches": 6, "text_guided_tokens": 7},
    "points": {"sampled_points": 3},
    "regions": {"routed_regions": 2},
}
OPTIONS = ALONE | DEPENDING
OFF = {
    "rolled_tokens": 0.0,
    "rolled_channels": 0.0,
    "merged_patches": None,
    "frame_summaries": 0,
    "text_guided_tokens": None,
    "sampled_points": 0,
    "routed_regions": 0,
}
WORDS, VISION = ("input_ids", "attention_mask"), ("pixel_values", "frame_mask")


def inputs_of_grid(batch: int = 3, frames: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """With padded frames, a padded text, and an image."""
    inputs = tiny_inputs(batch, frames, seed=seed, size=32)
    inputs["frame_mask"][0, -2:], inputs["attention_mask"][1, 3:], inputs["frame_mask"][2, 1:] = 0, 0, 0
    return inputs


def of(inputs: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in names}


# --- Off ------------------------------------------------------------------------------------------------------------


def test_off_is_how_it_was() -> None:
    config = PerceiverVLConfig()
    assert {name: getattr(config, name) for name in OFF} == OFF
    with torch.device("meta"):
        names = PerceiverVLModel(tiny_config()).state_dict().keys()
    assert not any("point" in name for name in names)


@pytest.mark.parametrize(
    "idle",
    [
        {"merged_patches": 16},
        {"frame_summaries": 1},
        {"text_guided_tokens": 1000},
        {"sampled_points": 3},
        {"routed_regions": 1},
    ],
)
def test_what_takes_nothing_away_changes_nothing(idle: dict[str, Any]) -> None:
    plain, option = (tiny_model(PerceiverVLModel, **GRID, **changes) for changes in ({}, idle))
    option.load_state_dict(plain.state_dict(), strict=False)
    inputs = inputs_of_grid()
    budget = ComputeBudget(cross_attentions=1)  # what latents choose is read after the first
    torch.testing.assert_close(
        option(**inputs, budget=budget)[0], plain(**inputs, budget=budget)[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_weights_are_those_of_a_model_without(changes: dict[str, Any]) -> None:
    models = []
    for some in ({}, changes):
        torch.manual_seed(0)
        models.append(PerceiverVLModel(tiny_config(**GRID, **some)).state_dict())
    plain, option = models
    if "sampled_points" in changes:  # the predictor's, which are drawn too
        assert {name.split(".")[0] for name in option.keys() - plain.keys()} == {"point_predictor"}
    else:
        assert all(torch.equal(option[name], value) for name, value in plain.items())
        assert option.keys() == plain.keys()


# --- On -------------------------------------------------------------------------------------------------------------


def naive_vision(model: PerceiverVLModel, inputs: dict[str, Tensor], example: int) -> tuple[Tensor, Tensor]:
    """One example's real frames as tokens and the logarithms of their sizes, by the options of vision alone."""
    config, embed = model.config, model.embeddings
    real = inputs["frame_mask"][example].bool().nonzero()[:, 0]
    frames = embed.vision.project_pixels(inputs["pixel_values"][example, real])  # (T,17,D)
    mask = torch.ones(1, len(real), dtype=torch.bool)
    for share, channels in ((config.rolled_tokens, False), (config.rolled_channels, True)):
        if share:
            rolled = roll_over_time(frames[None, :, 1:], mask, share, channels=channels)[0]
            frames = torch.cat([frames[:, :1], rolled], dim=1)
    if len(real) > 1:
        frames = frames + embed.vision.temporal_embeddings[real][:, None]
    frames = embed.norm(frames + embed.modality_embeddings.weight[0])
    if config.frame_summaries:
        tokens, logs = summarise_frames(frames[None], mask, real, config.frame_summaries)
        return tokens[0], logs[0]
    if config.merged_patches:
        merged = merge_tokens(frames[:, 1:], config.merged_patches)
        tokens = torch.cat([frames[:, :1], merged.tokens], dim=1)
        sizes = torch.cat([torch.ones(len(real), 1).double(), merged.sizes], dim=1)
        return tokens.flatten(0, 1), sizes.flatten().log()
    return frames.flatten(0, 1), torch.zeros(frames.shape[0] * frames.shape[1]).double()


def _attended(block: AttentionBlock, asks: Tensor, means: Tensor, mask: Tensor) -> Tensor:
    return block.weights(asks, means).mean(1)[:, 0]


def naive(model: PerceiverVLModel, inputs: dict[str, Tensor], example: int, with_text: bool = True) -> Tensor:
    """The latents of one example, without padding, block by block."""
    config, encoder = model.config, model.encoder
    vision, sizes = naive_vision(model, inputs, example)
    text = inputs["input_ids"][example][inputs["attention_mask"][example].bool()][None]
    words, _ = model.embeddings.embed_text(text)
    if config.text_guided_tokens and with_text:
        block = encoder.vision_cross_attentions[0].attention
        keys = block.k_proj(vision[None]), block.k_proj(words)
        total = config.text_guided_tokens
        counts = total // 2, total // 4, total - total // 2 - total // 4
        chosen, logs = select_by_text(vision[None], sizes.exp()[None], *keys, torch.ones_like(text).bool(), counts)
        vision, sizes = chosen[0], logs[0]
    latents = encoder.first_latents(config.num_latents)
    seen_once = False
    for number, block in enumerate(encoder.blocks):
        kind = encoder.modalities[number % len(encoder.modalities)]
        parts, masks = [], []
        if kind in ("joint", "vision"):
            tokens, logs = vision, sizes
            if seen_once and (config.sampled_points or config.routed_regions):
                grid = vision.unflatten(0, (-1, 17))
                patches = grid[:, 1:].unflatten(1, (4, 4))
                if config.sampled_points:
                    points = model.point_predictor(latents, patches.mean((1, 2))[None])[0]
                    read = sample_points(patches, points).flatten(0, 1)
                else:
                    weigh = partial(_attended, block.cross_attention, latents.mean(1, keepdim=True))
                    read = route_regions(patches[None], torch.ones(1, len(grid)).bool(), 2, 2, weigh)[0][0]
                tokens = torch.cat([grid[:, 0], read])
                logs = torch.zeros(len(tokens)).double()
            parts.append(tokens)
            masks.append(logs)
            seen_once = True
        if kind in ("joint", "text") and with_text:
            parts.append(words[0])
            masks.append(torch.zeros(words.shape[1]).double())
        if parts:
            latents = block.cross_attention(latents, torch.cat(parts)[None], torch.cat(masks)[None])
        for attention in block.self_attentions:
            latents = attention(latents)
    return encoder.norm(latents)[0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_latents_are_those_of_a_loop_over_examples_without_padding(changes: dict[str, Any], aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, **GRID, **changes, modality_aggregation=aggregation)
    inputs = inputs_of_grid()
    together, alone = model(**inputs)[0], model(**of(inputs, VISION))[0]
    for example in range(3):
        assert_same(together[example], naive(model, inputs, example))
        assert_same(alone[example], naive(model, inputs, example, with_text=False))
    plain = tiny_model(PerceiverVLModel, **GRID, modality_aggregation=aggregation)
    assert differs(together, plain(**inputs)[0])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_padding_says_nothing_and_everything_learns(changes: dict[str, Any], implementation: str) -> None:
    model = tiny_model(PerceiverVLForRetrieval, **GRID, **changes)
    model.set_attn_implementation(implementation)
    inputs = inputs_of_grid()
    before = outputs_of(model, inputs)
    found = gradients(model, inputs)
    for name, value in found.items():
        assert value.isfinite().all(), name
    predictor = {name for name in found if "point_predictor" in name}
    assert bool(predictor) == ("sampled_points" in changes)
    for name in (*predictor, "perceiver_vl.embeddings.vision.patch_projection.weight"):
        assert found[name].abs().max() > 0, name
    inputs["pixel_values"][inputs["frame_mask"] == 0] += 3
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7
    for one, other in zip(before, outputs_of(model, inputs), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", ["all rolled, and merged", "merged, then by words", "points"])
def test_a_saved_model_is_the_same(name: str, tmp_path: Path) -> None:
    model = tiny_model(PerceiverVLForRetrieval, **GRID, **OPTIONS[name])
    model.save_pretrained(tmp_path)
    loaded = PerceiverVLForRetrieval.from_pretrained(tmp_path, dtype=torch.float64).eval()
    inputs = inputs_of_grid()
    assert_same(outputs_of(loaded, inputs)[0], outputs_of(model, inputs)[0])


def test_a_model_that_was_trained_without_merges_when_it_is_asked_to(tmp_path: Path) -> None:
    tiny_model(PerceiverVLModel, **GRID).save_pretrained(tmp_path)
    inputs = inputs_of_grid()
    for changes in (ALONE["merging"], DEPENDING["regions"]):
        loaded = PerceiverVLModel.from_pretrained(tmp_path, dtype=torch.float64, **changes).eval()
        assert_same(loaded(**inputs)[0], tiny_model(PerceiverVLModel, **GRID, **changes)(**inputs)[0])


# --- Caches, chunks, budgets, records -------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_cached_clip_answers_as_the_clip(changes: dict[str, Any], aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, **GRID, **changes, modality_aggregation=aggregation)
    inputs = inputs_of_grid()
    for budget in (ComputeBudget(), ComputeBudget(frames=2, latents=4, cross_attentions=2)):
        cache = model.cache_vision(**of(inputs, VISION), budget=budget)
        assert_same(model(**of(inputs, WORDS), vision_cache=cache)[0], model(**inputs, budget=budget)[0])
        assert_same(model(vision_cache=cache)[0], model(**of(inputs, VISION), budget=budget)[0])
    twice = {name: inputs[name].repeat_interleave(2, 0) for name in inputs}
    twice["input_ids"][1::2] = twice["input_ids"][1::2].flip(1)
    cache = model.cache_vision(**of(inputs, VISION))
    assert_same(model(**of(twice, WORDS), vision_cache=cache)[0], model(**twice)[0])


@pytest.mark.parametrize("changes", [ALONE["merging"], ALONE["summaries"]])
def test_latents_chosen_by_what_they_attended_to_are_chosen_of_a_cache_too(changes: dict[str, Any]) -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, **changes), inputs_of_grid()
    budget = ComputeBudget(latents=3, latent_choice="diverse")
    cache = model.cache_vision(**of(inputs, VISION), budget=budget)
    assert_same(model(**of(inputs, WORDS), vision_cache=cache)[0], model(**inputs, budget=budget)[0])


def test_a_cache_is_not_for_another_setting() -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, merged_patches=5), inputs_of_grid()
    cache = model.cache_vision(**of(inputs, VISION))
    model.config.merged_patches = 6
    with pytest.raises(UsageError, match="vision_cache: made by another model"):
        model(vision_cache=cache)


@pytest.mark.parametrize("changes", [ALONE["merging"], ALONE["summaries"], DEPENDING["by words"]])
def test_a_clip_in_chunks_is_the_clip(changes: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, **changes), inputs_of_grid()
    inputs["frame_mask"][1, 0] = 0  # the first real frame is another one
    chunks = [
        (inputs["pixel_values"][:, a:b], inputs["frame_mask"][:, a:b]) for a, b in itertools.pairwise((0, 2, 3, 5))
    ]
    whole = model(**of(inputs, VISION))[0]
    assert_same(model.encode_long(chunks), whole)
    assert_same(model.encode_long(iter(chunks), spill=tmp_path), whole)
    if "text_guided_tokens" not in changes:
        assert_same(model.encode_long(chunks, **of(inputs, WORDS)), model(**inputs)[0])


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"rolled_tokens": 0.3}, False, "rolled_tokens=0.3: tokens come from neighbouring frames, which chunks cut"),
        ({"rolled_channels": 0.3}, False, "rolled_channels=0.3: tokens come from neighbouring frames"),
        ({"sampled_points": 2}, False, "sampled_points=2: latents choose among all tokens"),
        ({"routed_regions": 2}, False, "routed_regions=2: latents choose among all tokens"),
        ({"text_guided_tokens": 8}, True, "text_guided_tokens=8: words choose among all tokens"),
    ],
)
def test_chunks_that_cannot_be_read_so_are_refused(changes: dict[str, Any], words: bool, message: str) -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, **changes), inputs_of_grid()
    chunks = [inputs["pixel_values"][:, :2], inputs["pixel_values"][:, 2:]]
    with pytest.raises(UsageError, match=message):
        model.encode_long(chunks, **(of(inputs, WORDS) if words else {}))
    if "sampled_points" in changes or "routed_regions" in changes:  # the first cross-attention reads everything
        once = ComputeBudget(cross_attentions=1)
        alone = model(pixel_values=inputs["pixel_values"], budget=once)[0]
        assert_same(model.encode_long(chunks, budget=once), alone)


def test_a_stored_first_cross_attention_does_not_know_the_words() -> None:
    once = ComputeBudget(cross_attentions=1)
    inputs = inputs_of_grid()
    plain = tiny_model(PerceiverVLModel, **GRID)
    packed = plain.cache_vision(**of(inputs, VISION), budget=once).first.pack()
    model = tiny_model(PerceiverVLModel, **GRID, text_guided_tokens=8)
    cache = model.cache_from_partial_attention(packed, once)
    assert_same(model(vision_cache=cache)[0], plain(**of(inputs, VISION), budget=once)[0])
    with pytest.raises(UsageError, match="text_guided_tokens=8: words choose among all tokens of a clip"):
        model(**of(inputs, WORDS), vision_cache=cache)


@pytest.mark.parametrize("name", ["frame_summaries", "sampled_points", "routed_regions"])
def test_tokens_are_not_dropped_where_frames_must_be_whole(name: str) -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, **{name: 2}), inputs_of_grid()
    with pytest.raises(UsageError, match=f"elastic.tokens: {name}=2 needs whole frames"):
        model(**inputs, budget=TrainingBudget(token_share=0.5))


def test_merged_tokens_may_be_dropped_in_training() -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, merged_patches=6), inputs_of_grid()
    array = model.embed_inputs(**of(inputs, VISION), budget=TrainingBudget(token_share=0.5))
    assert array.vision.shape[1] == array.vision_mask.shape[1] == 5 * 4
    assert model(**inputs, budget=TrainingBudget(token_share=0.5))[0].isfinite().all()


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_what_was_attended_to_is_told(changes: dict[str, Any]) -> None:
    model, inputs = tiny_model(PerceiverVLModel, **GRID, **changes), inputs_of_grid()
    found = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert_same(found.last_hidden_state, model(**inputs)[0])
    for weights in found.cross_attentions:
        assert_same(weights.sum(-1), torch.ones(weights.shape[:3]).double())
    wanted = {"sampled_points": 5 * (3 + 1) + 6, "routed_regions": 5 * (2 * 4 + 1) + 6}
    for name, number in wanted.items():
        if name in changes:
            assert [weights.shape[-1] for weights in found.cross_attentions] == [5 * 17 + 6, number, number]


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_answers_are_those_of_one_after_another(changes: dict[str, Any]) -> None:
    """Clips that several questions are about, and examples that leave early."""
    model = tiny_model(PerceiverVLForQuestionAnswering, **GRID, **changes, num_labels=3)
    inputs, base = inputs_of_grid(), model.perceiver_vl
    clips, words = base.embed_inputs(**of(inputs, VISION)), base.embed_inputs(**of(inputs, WORDS))
    pairs = beside(clips, torch.arange(3), words)
    wanted = model(**inputs).logits
    assert_same(model.answer_inputs(pairs), wanted)
    turns = base.encode_in_turn(pairs)
    first = next(turns)
    assert_same(first, base(**inputs, budget=ComputeBudget(blocks=1))[0])
    left = turns.send(torch.tensor([0, 2]))
    assert_same(left, base(**inputs, budget=ComputeBudget(blocks=2))[0][[0, 2]])


# --- Cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["joint", "text_first"])
@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_costs_are_counted(changes: dict[str, Any], aggregation: str) -> None:
    config = tiny_config(**GRID, **changes, modality_aggregation=aggregation, num_latents=7)
    model = PerceiverVLModel(config).requires_grad_(False).double().eval()

    def counted(**given: Any) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**given)
        return int(counter.get_total_flops())

    inputs, budget = tiny_inputs(1, 3, size=32), ComputeBudget(frames=2, latents=4, cross_attentions=2)
    assert counted(**inputs) == encoder_flops(config, 3, 6)
    assert counted(**of(inputs, VISION), budget=budget) == encoder_flops(config, 3, 0, budget)
    cache = model.cache_vision(**of(inputs, VISION), budget=budget)
    again = counted(**of(inputs, WORDS), vision_cache=cache)
    assert again == cached_vision_flops(config, 3, 6, budget)


def test_fewer_keys_cost_less_at_base_size() -> None:
    whole = encoder_flops(PerceiverVLConfig(), 8, 40)
    for changes in (
        {"merged_patches": 36},
        {"frame_summaries": 4},
        {"text_guided_tokens": 128},
        {"sampled_points": 16},
        {"routed_regions": 4},
    ):
        assert encoder_flops(PerceiverVLConfig(**changes), 8, 40) < 0.9 * whole, changes


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rolled_tokens": 1.5}, "rolled_tokens=1.5: need 0 to 1"),
        ({"rolled_channels": -0.5}, "rolled_channels=-0.5: need 0 to 1"),
        ({"merged_patches": 0}, "merged_patches=0: need 1 to 1000000, or None"),
        ({"frame_summaries": -1}, "frame_summaries=-1: need 0 to"),
        ({"text_guided_tokens": 3}, "text_guided_tokens=3: need 4 to 1000000, or None"),
        ({"sampled_points": -1}, "sampled_points=-1: need 0 to"),
        ({"routed_regions": -1}, "routed_regions=-1: need 0 to"),
        ({"region_size": 0}, "region_size=0: need 1 to"),
        ({"merged_patches": 4, "sampled_points": 2}, "merged_patches=4, sampled_points=2: choose one, or"),
        ({"text_guided_tokens": 4, "frame_summaries": 2}, "frame_summaries=2, text_guided_tokens=4: choose one"),
        ({"merged_patches": 4, "caption_prefix": "frames"}, "merged_patches=4: captions of caption_prefix='frames'"),
        ({"sampled_points": 2, "num_blocks": 1}, "sampled_points=2: of patches on one grid, after a first"),
        ({"routed_regions": 2, "image_size": 24}, "region_size=2: must divide the 3 rows"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(**changes)


def test_frames_that_have_no_grid_for_it_are_refused() -> None:
    model = tiny_model(PerceiverVLModel, **GRID, routed_regions=2)
    with pytest.raises(UsageError, match="region_size=2: does not divide the 3 rows of these frames' patches"):
        model(pixel_values=torch.randn(1, 2, 3, 24, 24).double())
    with pytest.raises(UsageError, match="routed_regions=2: looks in the square grid of a frame's patches"):
        model(pixel_values=torch.randn(1, 2, 3, 32, 16).double())


def test_captions_are_said_of_fewer_keys() -> None:
    for changes in OPTIONS.values():
        model = tiny_model(PerceiverVLForCaptioning, **GRID, **changes)
        inputs = inputs_of_grid()
        assert model(**inputs).logits.isfinite().all()
        cache = model.cache_vision(**of(inputs, VISION))
        assert_same(model(**of(inputs, WORDS), vision_cache=cache).logits, model(**inputs).logits)


def test_points_begin_evenly_whatever_the_latents_say(tmp_path: Path) -> None:
    model = PerceiverVLModel(tiny_config(**GRID, sampled_points=3))
    fc2 = model.point_predictor.fc2  # type: ignore[union-attr]
    torch.testing.assert_close(fc2.bias.sigmoid().unflatten(0, (-1, 2)), even_points(3))
    assert not fc2.weight.any()
    with torch.no_grad():
        fc2.weight.fill_(0.5)
        fc2.bias.fill_(0.25)
    model.save_pretrained(tmp_path)
    loaded = PerceiverVLModel.from_pretrained(tmp_path)  # what was learned is not begun anew
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
