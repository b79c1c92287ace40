"""Which of the vision tokens the latents attend to, where the configuration says that they are not all of them.

What depends on vision alone happens where tokens become the input array (`reduce_frames`), frame by frame, so that a
clip in chunks is the clip; what depends on words or latents, where these are known (`reduce_by_text`, `later_choice`).
Shapes: B batch, T frames (or tubelets), P tokens of each, M inputs, N latents, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.perceiver import Inputs
from perceiver_vl.layers.token_reduction import (
    PointPredictor,
    merge_tokens,
    merging_flops,
    route_regions,
    sample_points,
    select_by_text,
    selecting_flops,
    summarise_frames,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.utils.errors import UsageError

if TYPE_CHECKING:
    from perceiver_vl.models.perceiver_vl.encoder import InputArray

Choice = Callable[[AttentionBlock, Tensor, Inputs], Inputs]
FEWER_KEYS = (
    *("rolled_tokens", "rolled_channels", "merged_patches", "frame_summaries"),
    *("text_guided_tokens", "sampled_points", "routed_regions", "region_size"),
)


@dataclass(frozen=True)
class ReducedFrames:
    """`tokens (B,M,D)`, `mask (B,M)`: bool, or the logarithms of how many each stands for; `places (B,T,P)` int64:
    which token of its frame each patch is in, where patches were merged.
    """

    tokens: Tensor
    mask: Tensor
    places: Tensor | None = None


def reduce_frames(
    config: PerceiverVLConfig, tokens: Tensor, mask: Tensor, frames: int, number: Tensor | None = None
) -> ReducedFrames:
    """Vision tokens `(B,T·P,D)`, `mask (B,T·P)` bool of `frames` (T) frames → those that there are of them to be read.
    `number (T,)` or `(B,T)` int64: which frame of its clip each is; None: the first and so on.
    """
    if not (config.merged_patches or config.frame_summaries):
        return ReducedFrames(tokens, mask)
    grouped, frame_mask = tokens.unflatten(1, (frames, -1)), mask.unflatten(1, (frames, -1))[:, :, 0]
    if config.frame_summaries:
        number = torch.arange(frames, device=tokens.device) if number is None else number
        return ReducedFrames(*summarise_frames(grouped, frame_mask, number, config.frame_summaries))
    first = int(config.frame_class_token)
    patches = grouped[:, :, first:].flatten(0, 1)
    if patches.shape[1] <= (config.merged_patches or 0):
        return ReducedFrames(tokens, mask)
    merged = merge_tokens(patches, config.merged_patches or 0)
    left = torch.cat([grouped[:, :, :first], merged.tokens.unflatten(0, (-1, frames))], dim=2)
    sizes = torch.cat([torch.ones_like(merged.sizes[:, :first]), merged.sizes], dim=1).unflatten(0, (-1, frames))
    sizes = torch.where(frame_mask[..., None], sizes, 0.0).log()
    return ReducedFrames(left.flatten(1, 2), sizes.flatten(1, 2), merged.places.unflatten(0, (-1, frames)))


def sizes_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """How many tokens each stands for, by a mask of either kind; 0 for padding."""
    return (mask.exp() if mask.is_floating_point() else mask).to(dtype)


def join_masks(masks: list[Tensor]) -> Tensor:
    """Masks `(B,M)` of parts as that of the whole: bool, or logarithms of sizes where any has them."""
    found = next((mask for mask in masks if mask.is_floating_point()), None)
    if found is not None:
        masks = [mask if mask.is_floating_point() else mask.to(found.dtype).log() for mask in masks]
    return torch.cat(masks, dim=1)


# --- By words, and by latents ---------------------------------------------------------------------------------------


def reads_by_text(config: PerceiverVLConfig) -> bool:
    """Whether what is read of a clip depends on the words that are read with it."""
    return config.text_guided_tokens is not None


def reads_by_latents(config: PerceiverVLConfig) -> bool:
    """Whether what is read of a clip after the first cross-attention depends on what the latents have read."""
    return bool(config.sampled_points or config.routed_regions)


def text_guided_counts(config: PerceiverVLConfig) -> tuple[int, int, int]:
    """Of the tokens that words choose: half are kept, a quarter comes back, the rest is merged into what remains."""
    total = config.text_guided_tokens or 0
    return total // 2, total // 4, total - total // 2 - total // 4


def reduce_by_text(config: PerceiverVLConfig, block: AttentionBlock, inputs: "InputArray") -> "InputArray":
    """The same array with the vision tokens that its words choose, by the keys of `block`, the first cross-attention
    to vision: what is looked for alike has like keys, whether it is seen or said.
    """
    if inputs.vision is None or inputs.text is None:
        return inputs
    assert inputs.vision_mask is not None
    assert inputs.text_mask is not None
    keys, text_keys = (
        block.project_keys(tokens, boundary).transpose(1, 2).flatten(2)
        for tokens, boundary in ((inputs.vision, None), (inputs.text, 0))
    )
    sizes = sizes_of(inputs.vision_mask, keys.dtype)
    counts = text_guided_counts(config)
    tokens, mask = select_by_text(inputs.vision, sizes, keys, text_keys, inputs.text_mask, counts)
    return replace(inputs, vision=tokens, vision_mask=mask, vision_places=None)


def later_choice(config: PerceiverVLConfig, predictor: PointPredictor | None, inputs: "InputArray") -> Choice | None:
    """What a cross-attention after the first one reads of the array, given its latents; None: all of it.

    Raises `UsageError` for tokens that are no square grid, or one that regions do not divide.
    """
    if not reads_by_latents(config) or inputs.vision is None:
        return None
    frames, seen = inputs.frames, inputs.vision.shape[1]
    first = int(config.frame_class_token)
    side = isqrt(seen // frames - first) if frames else 0
    if not frames or side * side + first != seen // frames:
        raise UsageError(
            f"{_named(config)}: looks in the square grid of a frame's patches, {seen} tokens are none; leave it out"
        )
    if config.routed_regions and side % config.region_size:
        raise UsageError(f"region_size={config.region_size}: does not divide the {side} rows of these frames' patches")

    def choose(block: AttentionBlock, latents: Tensor, given: Inputs) -> Inputs:
        assert given.tokens is not None
        assert given.mask is not None
        vision, mask = given.tokens[:, :seen], given.mask[:, :seen]
        vision, frame_mask = vision.unflatten(1, (frames, -1)), mask.unflatten(1, (frames, -1))[:, :, 0]
        grid = vision[:, :, first:].unflatten(2, (side, side))  # (B,T,rows,columns,D)
        if predictor is not None:
            points = predictor(latents, grid.mean((2, 3)))
            tokens = sample_points(grid, points).flatten(1, 2)
            is_real = frame_mask.repeat_interleave(points.shape[2], 1)
        else:
            asks = latents.mean(1, keepdim=True)
            tokens, is_real = route_regions(
                grid,
                frame_mask,
                config.region_size,
                config.routed_regions,
                lambda means, real: block.weights(asks, means, real).mean(1)[:, 0],
            )
        tokens = torch.cat([vision[:, :, :first].flatten(1, 2), tokens, given.tokens[:, seen:]], dim=1)
        mask = torch.cat([frame_mask.repeat_interleave(first, 1), is_real, given.mask[:, seen:]], dim=1)
        boundary = None if given.boundary is None else tokens.shape[1] - (given.tokens.shape[1] - seen)
        return Inputs(tokens, mask, boundary=boundary)

    return choose


def _named(config: PerceiverVLConfig) -> str:
    """The option by which latents choose, and its value."""
    name = "sampled_points" if config.sampled_points else "routed_regions"
    return f"{name}={getattr(config, name)}"


def refuse_dropping(config: PerceiverVLConfig) -> None:
    """Raise `UsageError` where tokens cannot be dropped in training (elastic tokens), for frames must be whole."""
    for name in ("frame_summaries", "sampled_points", "routed_regions"):
        if value := getattr(config, name):
            raise UsageError(f"elastic.tokens: {name}={value} needs whole frames, leave one of the two out")


def refuse_without_tokens(config: PerceiverVLConfig, cross_attentions: int, has_text: bool) -> None:
    """Raise `UsageError` where words or latents choose among tokens that are not kept (clips in chunks, an index)."""
    if reads_by_text(config) and has_text:
        raise UsageError(
            f"text_guided_tokens={config.text_guided_tokens}: words choose among all tokens of a clip, which are not "
            "kept here; give the clip whole, of fewer frames, or load the model with text_guided_tokens=None"
        )
    if reads_by_latents(config) and cross_attentions > 1:
        raise UsageError(
            f"{_named(config)}: latents choose among all tokens of a clip, which are not kept here; give the clip "
            "whole, of fewer frames, or a budget of cross_attentions=1"
        )


# --- What it costs --------------------------------------------------------------------------------------------------


def reducing_flops(config: PerceiverVLConfig, frames: int) -> int:
    """Operations of `reduce_frames` on `frames` frames or tubelets."""
    if not config.merged_patches:
        return 0
    patches = config.tokens_per_frame - config.frame_class_token
    return frames * merging_flops(patches, config.merged_patches, config.hidden_size)


def reduced_tokens(config: PerceiverVLConfig, frames: int) -> int:
    """How many tokens `reduce_frames` gives of `frames` frames or tubelets."""
    each = config.tokens_per_frame
    if config.frame_summaries:
        whole = -(-frames // config.frame_summaries)
        return whole * each + frames - whole
    if config.merged_patches:
        each = min(each - config.frame_class_token, config.merged_patches) + config.frame_class_token
    return frames * each


def text_guided(config: PerceiverVLConfig, vision: int, text: int) -> tuple[int, int]:
    """How many of `vision` tokens are read with `text` tokens, and the operations of choosing them."""
    if not reads_by_text(config) or not vision or not text:
        return vision, 0
    width, counts = config.hidden_size, text_guided_counts(config)
    cost = 2 * width * width * (vision + text) + selecting_flops(vision, width, width, counts)
    return min(vision, sum(counts)), cost


def later_tokens(config: PerceiverVLConfig, frames: int, vision: int) -> tuple[int, int]:
    """How many vision tokens a cross-attention after the first reads of `frames` frames or tubelets, which have
    `vision`, and the operations of choosing them.
    """
    width, patches = config.hidden_size, config.grid**2
    if config.sampled_points and frames:
        points = config.sampled_points
        chosen = 2 * frames * (width * width + 2 * points * width + points * patches * width)
        return frames * (points + config.frame_class_token), chosen
    if config.routed_regions and frames:
        regions = patches // config.region_size**2
        chosen = 2 * (width * width * (1 + frames * regions) + frames * regions * width)
        read = min(config.routed_regions, regions) * config.region_size**2
        return frames * (read + config.frame_class_token), chosen
    return vision, 0
