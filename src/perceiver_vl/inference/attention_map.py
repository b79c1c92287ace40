"""Where a model looked: which patches of a clip its latents attended to, as far as the matching query asked these.

Shapes: T frames, P patches a frame, M inputs, N latents, H heads.
"""

import math

import torch
from torch import Tensor

from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import ClipLike, PerceiverVLProcessor
from perceiver_vl.utils.errors import UsageError


@torch.inference_mode()
def attention_map(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    clip: ClipLike,
    words: str,
    num_frames: int,
    budget: ComputeBudget = FULL_BUDGET,
) -> Tensor:
    """Of a clip and words read together (single-stream): `(T,rows,columns)`, shares of all attention to the clip, which
    sum to 1. The matching query's weights on the latents, times theirs on the patches, averaged over heads and over the
    cross-attentions that ran (one step of attention rollout, Abnar & Zuidema 2020: what the latents tell each other in
    between is left out). Where a model attended is no proof of why it scored.

    Of a tubelet's share each of its frames has an equal part; of two sizes of patches those of the first are shown.
    A token that stands for several patches is seen by these in equal shares. Raises `UsageError` for a model whose
    tokens are no grid, or of which it does not attend to all.
    """
    for name in ("rolled_tokens", "frame_summaries", "text_guided_tokens", "sampled_points", "routed_regions"):
        if value := getattr(model.config, name):
            raise UsageError(
                f"{name}={value}: what this model attends to are not the patches of a frame, no map is made"
            )
    inputs = processor(text=[words], videos=[clip], num_frames=num_frames).to(model.device)
    record = model.perceiver_vl.record(output_attentions=True)
    array = model.perceiver_vl.embed_inputs(**inputs, budget=budget)
    latents = model.perceiver_vl.encode(array, budget, record)
    assert array.vision is not None
    assert record is not None
    assert record.cross_attentions is not None
    most, tokens = min(inputs["frame_mask"].shape[1], budget.frames or num_frames), array.vision.shape[1]
    frames = min(int(inputs["frame_mask"].sum()), most)
    asked = model.decoder.block.weights(model.vtm_query(1), latents)[0].float().mean(0)[0]  # (N,)
    joint = model.config.modality_aggregation == "joint"
    looked = [
        asked[: one.shape[2]] @ one[0].float().mean(0)[: len(asked), :tokens]  # (N,) @ (N,M)
        for one in record.cross_attentions
        if joint or one.shape[-1] == tokens
    ]
    groups, coarse = model.config.groups_of(most), model.config.coarse_patch_size
    behind = 0 if coarse is None else math.prod(side // coarse for side in inputs["pixel_values"].shape[-2:])
    of_tokens = torch.stack(looked).mean(0).reshape(groups, -1)
    if array.vision_places is not None:
        of_tokens = _of_patches(of_tokens, array.vision_places[0])
    rows, columns, before = _grid(model, of_tokens.shape[1] - behind)
    of_groups = of_tokens[:, before : before + rows * columns]
    group = torch.arange(frames, device=of_groups.device) // model.config.tubelet_size
    of_frames = of_groups[group] / group.bincount()[group][:, None]
    shares: Tensor = of_frames / of_frames.sum().clamp_min(1e-12)
    return shares.reshape(frames, rows, columns).cpu()


def _of_patches(of_tokens: Tensor, places: Tensor) -> Tensor:
    """How much tokens `(T,K)` were attended to, some of them merged patches, as shares of the patches in these `places
    (T,P)` → `(T,1+P)`, or `(T,P)` without a class token.
    """
    merged = int(places.max()) + 1
    first, of_merged = of_tokens.split([of_tokens.shape[1] - merged, merged], dim=1)
    sizes = (places[..., None] == torch.arange(merged, device=places.device)).sum(1)
    return torch.cat([first, (of_merged / sizes).gather(1, places)], dim=1)


def _grid(model: PerceiverVLForRetrieval, tokens: int) -> tuple[int, int, int]:
    """Rows, columns, and tokens before these (a class token), of the tokens of a frame."""
    for before in (0, 1):
        side = math.isqrt(tokens - before)
        if side * side == tokens - before and side:
            return side, side, before
    raise UsageError(f"{tokens} tokens a frame: no square grid, where this model looks cannot be shown")
