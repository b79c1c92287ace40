"""What a forward costs, from the configuration alone: the formulas of the paper's cost model, O(k·M·N + k·l·N²).

A multiply-add counts as two operations, as the paper counts. Norms, biases, GELU and softmax are left out: below 2 % at
base size. `tests/models/perceiver_vl/test_flops.py` holds these formulas against the operations counted on the built
model.
Shapes: M inputs, N latents, Q queries, D width, k blocks, l self-attentions a block.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from perceiver_vl.layers.attention import absorbing_pays
from perceiver_vl.layers.patch_stem import mixing_flops, split_flops, stem_flops
from perceiver_vl.models.block_flops import block_flops as plain_block_flops
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoders import text_model, vision_width
from perceiver_vl.models.perceiver_vl.fewer_keys import (
    later_tokens,
    reads_by_latents,
    reads_by_text,
    reduced_tokens,
    reducing_flops,
    text_guided,
)
from perceiver_vl.models.perceiver_vl.modalities import make_modalities


def block_flops(config: PerceiverVLConfig, queries: int, inputs: int, *, kinds: int = 1) -> int:
    """One transformer block in which `queries` tokens read `inputs` tokens (self-attention: the same number)."""
    return partial_attention_flops(config, queries, inputs, kinds=kinds) + output_flops(config, queries)


def partial_attention_flops(config: PerceiverVLConfig, queries: int, inputs: int, *, kinds: int = 1) -> int:
    """A block's attention up to what `queries` tokens find in `inputs` tokens (`AttentionBlock.partial_attention`).

    Few queries (the decoder's) are met in the inputs' own space: no keys and values are made; where inputs are of two
    `kinds` that have untied ones, in the space of each.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    if not config.qk_norm and absorbing_pays(queries, inputs, d, 2 * d, heads):
        return 2 * ((1 + 2 * kinds) * d * d * queries + 2 * queries * inputs * d * heads)
    return 2 * (d * d * queries + 2 * d * d * inputs + 2 * queries * inputs * d)


def output_flops(config: PerceiverVLConfig, queries: int) -> int:
    """The rest of the block: attention's way out, and the MLP (`AttentionBlock.from_partial_attention`)."""
    return 2 * (1 + 2 * config.intermediate_ratio) * config.hidden_size**2 * queries


def clip_tokens(config: PerceiverVLConfig, frames: int, modality: str | None = None) -> int:
    """The clip's part of the input array: of `frames` frames of `image_size`, or of so many steps of a `modality`."""
    if modality is not None:
        return make_modalities(config.modalities)[modality].token_count(frames)
    return reduced_tokens(config, config.groups_of(frames))


def embedding_flops(config: PerceiverVLConfig, frames: int, modality: str | None = None) -> int:
    """The patch projections or stem of `frames` frames of `image_size` (words are looked up, which costs nothing here);
    over a pretrained encoder the projection of its tokens; what mixes tokens over time, and what merges them. Of a
    `modality`, the tokenizer, for so many steps.
    """
    if modality is not None:
        return make_modalities(config.modalities)[modality].flops(frames, config.hidden_size)
    d, patch, kernel, size = config.hidden_size, config.patch_size, config.temporal_kernel, config.image_size
    tokens = config.vision_tokens_of(frames)
    total = reducing_flops(config, config.groups_of(frames)) + (mixing_flops(d, kernel, tokens) if kernel else 0)
    if config.vision_config is not None:
        return total + 2 * tokens * vision_width(config.vision_config) * d
    channels, frames = config.num_channels * config.tubelet_size, config.groups_of(frames)
    if config.coarse_patch_size is not None:
        total += frames * _projection_flops(d, config.coarse_patch_size, channels, size)
    stems = {"linear": _projection_flops, "convolutional": stem_flops, "soft_split": split_flops}
    return total + frames * stems[config.patch_stem](d, patch, channels, size)


def _projection_flops(hidden_size: int, patch_size: int, num_channels: int, size: int) -> int:
    """Of the patches of a frame of `size` × `size` pixels."""
    return 2 * (size // patch_size) ** 2 * num_channels * patch_size**2 * hidden_size


def pretrained_flops(config: PerceiverVLConfig, frames: int = 0, text_tokens: int = 0) -> int:
    """The pretrained encoders' part of one example, which `encoder_flops` leaves out: `frames` frames and a text of
    `text_tokens`. Counted on models without weights; an ONNX encoder's are those of its configuration, 0 if unknown.
    """
    text = _text_encoder_flops(config, text_tokens) if text_tokens and config.text_config is not None else 0
    return text + (frames * _vision_encoder_flops(config) if frames and config.vision_config is not None else 0)


def _vision_encoder_flops(config: PerceiverVLConfig) -> int:
    encoder = config.vision_config
    if "onnx" in encoder.model_type:
        return int(encoder.flops or 0)
    return _counted(encoder.to_json_string(), "vision", config.image_size)


def _text_encoder_flops(config: PerceiverVLConfig, tokens: int) -> int:
    if isinstance(side := config.text_config, PerceiverVLConfig):  # the text side of another Perceiver-VL
        return encoder_flops(side, 0, tokens) + pretrained_flops(side, 0, tokens) + pooling_flops(side)
    return _counted(config.text_config.to_json_string(), "text", tokens)


@lru_cache(maxsize=256)
def _counted(encoder: str, side: str, size: int) -> int:
    """Operations of an encoder, its configuration as JSON, on a frame of `size` pixels or a text of `size` tokens."""
    config = AutoConfig.for_model(**json.loads(encoder))
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        if side == "vision":
            AutoModel.from_config(config).eval()(pixel_values=torch.empty(1, 3, size, size))
        else:
            length = config.max_position_embeddings if "siglip" in config.model_type else size
            text_model(config).eval()(input_ids=torch.zeros(1, length, dtype=torch.long))
    return int(counter.get_total_flops())


def _self_attention_flops(config: PerceiverVLConfig, latents: int, budget: ComputeBudget) -> int:
    """All self-attentions of so many latents. Where every other has experts, their two gates read two bits (once for a
    batch, counted for each example).
    """
    number = config.blocks_of(budget) * config.self_attentions_per_block
    gates = 2 * 2 * config.hidden_size * (2 + config.num_experts) if config.num_experts else 0
    return number * block_flops(config, latents, latents) + (number + 1) // 2 * gates


def encoder_flops(
    config: PerceiverVLConfig,
    frames: int = 0,
    text_tokens: int = 0,
    budget: ComputeBudget = FULL_BUDGET,
    modality: str | None = None,
) -> int:
    """Embedding and encoding one example: `frames` frames (0: text alone), or so many steps of a `modality`, and
    `text_tokens` tokens (0: vision alone).
    """
    frames = min(frames, budget.frames or frames)
    first, latents = config.latents_of(budget, text_only=not frames)
    vision_tokens, choosing = text_guided(config, clip_tokens(config, frames, modality), text_tokens)
    later, choosing_later = later_tokens(config, 0 if modality else config.groups_of(frames), vision_tokens)
    parts = _parts(config, vision_tokens, text_tokens)
    kinds = 2 if config.untied_modalities and vision_tokens and text_tokens else 1
    cross_attention, later_cross_attention = (
        sum(block_flops(config, latents, tokens, kinds=kinds) for tokens in read)
        for read in (parts, _parts(config, later, text_tokens))
    )
    later_cross_attentions = config.cross_attentions_of(budget) - 1
    total = (
        embedding_flops(config, frames, modality)
        + choosing
        + cross_attention
        + later_cross_attentions * (later_cross_attention + choosing_later)
        + _self_attention_flops(config, latents, budget)
    )
    if first > latents:
        total += block_flops(config, first, parts[0], kinds=kinds)
        total -= block_flops(config, latents, parts[0], kinds=kinds)
        total += _choosing_flops(config, first, parts[0])
        if (
            config.modality_aggregation == "separate_plus" and not frames
        ):  # half of the self-attentions come before the words
            early = (config.self_attentions_per_block + 1) // 2
            total += early * (block_flops(config, first, first) - block_flops(config, latents, latents))
    return total


def _parts(config: PerceiverVLConfig, vision_tokens: int, text_tokens: int) -> list[int]:
    """How many tokens each cross-attention of a round reads."""
    if config.modality_aggregation == "joint":
        return [vision_tokens + text_tokens]
    in_turn = [vision_tokens, text_tokens]
    return [tokens for tokens in (in_turn[::-1] if config.modality_aggregation == "text_first" else in_turn) if tokens]


def _choosing_flops(config: PerceiverVLConfig, latents: int, inputs: int) -> int:
    """Choosing among `latents` by what they attended to: the weights, written out, and the similarity of all to all."""
    d = config.hidden_size
    return 2 * (d * d * (latents + inputs) + latents * inputs * (d + latents))


def cached_vision_flops(
    config: PerceiverVLConfig,
    frames: int,
    text_tokens: int,
    budget: ComputeBudget = FULL_BUDGET,
    modality: str | None = None,
) -> int:
    """Encoding one text together with a clip that was met before: what `encoder_flops` of both is with `vision_cache`.

    The first cross-attention finds the clip's partial attention there, unless words are read first, the others its keys
    and values. Where words or latents choose what is read, its tokens are there.
    """
    if reads_by_text(config) or reads_by_latents(config):
        seeing = embedding_flops(config, min(frames, budget.frames or frames), modality)
        return encoder_flops(config, frames, text_tokens, budget, modality) - seeing
    d, (first, latents) = config.hidden_size, config.latents_of(budget)
    vision_tokens = clip_tokens(config, min(frames, budget.frames or frames), modality)
    cross_attentions, text_first = config.cross_attentions_of(budget), config.modality_aggregation == "text_first"
    clip = (
        cross_attentions * (2 * d * d * latents + output_flops(config, latents))
        + (cross_attentions - (not text_first)) * 4 * latents * vision_tokens * d
    )
    is_joint = config.modality_aggregation == "joint"
    if is_joint:
        words = 2 * (2 * d * d * text_tokens + 2 * latents * text_tokens * d)
    else:
        words = block_flops(config, latents, text_tokens)
    if first > latents and text_first:
        clip += block_flops(config, first, text_tokens) - block_flops(config, latents, text_tokens)
        clip += _choosing_flops(config, first, text_tokens)
    elif first > latents:
        clip += (first - latents) * (2 * d * d + is_joint * 4 * text_tokens * d)
        clip += output_flops(config, first - latents)
        clip += _choosing_flops(config, first, vision_tokens + is_joint * text_tokens)
    return clip + cross_attentions * words + _self_attention_flops(config, latents, budget)


def caption_flops(
    config: PerceiverVLConfig,
    frames: int,
    text_tokens: int,
    budget: ComputeBudget = FULL_BUDGET,
    said: float | None = None,
) -> float:
    """A clip and a text of `text_tokens` about it, of which `said` (None: all) say which word comes next; nothing is
    kept of an earlier pass. A pretrained vision encoder comes on top (`pretrained_flops`); no text encoder runs.
    """
    d, frames = config.hidden_size, min(frames, budget.frames or frames)
    if config.caption_prefix == "frames":
        prefix, seeing = config.vision_tokens_of(frames), embedding_flops(config, frames)
    else:
        prefix, seeing = config.latents_of(budget)[1], encoder_flops(config, frames, 0, budget)
    width = d if config.text_config is None else _table_width(config.text_config.to_json_string())
    said = text_tokens if said is None else said
    projections = 0 if config.text_config is None else 2 * (text_tokens + said) * width * d
    size = config.intermediate_size
    crossing = plain_block_flops(text_tokens, prefix + text_tokens, d, intermediate_size=size)
    among = plain_block_flops(text_tokens, text_tokens, d, intermediate_size=size)
    layers = config.caption_cross_attentions * crossing + config.caption_layers * among
    return seeing + layers + projections + 2 * said * width * config.vocab_size


@lru_cache(maxsize=256)
def _table_width(encoder: str) -> int:
    """Of the word table of a text encoder, its configuration as JSON."""
    with torch.device("meta"):
        table: Any = text_model(AutoConfig.for_model(**json.loads(encoder))).get_input_embeddings()
    return int(table.embedding_dim)


def matching_flops(config: PerceiverVLConfig, latents: int) -> int:
    """One pair's way through the decoder and the matching head, its query reading `latents` latents."""
    return partial_match_flops(config, latents) + merge_flops(config)


def partial_match_flops(config: PerceiverVLConfig, latents: int) -> int:
    """All that `latents` latents of one side contribute to a mixed-stream match (`partial_match`), made alone."""
    return partial_attention_flops(config, 1, latents)


def merge_flops(config: PerceiverVLConfig) -> int:
    """One pair's mixed-stream logit from the partial attentions of both sides (`merge_matches`)."""
    return output_flops(config, 1) + 2 * config.hidden_size * (config.hidden_size + 1)


def pooling_flops(config: PerceiverVLConfig) -> int:
    """The projection of one pooled example to a multi-stream vector."""
    return 2 * config.hidden_size * (config.projection_dim or config.hidden_size)
