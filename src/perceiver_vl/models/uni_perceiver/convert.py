"""Weights of the authors' code (fundamentalvision/Uni-Perceiver, v1 and MoE) → ours: whole checkpoints, an encoder
alone, or a head alone.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.renaming import Rules, count, load, renamed, require, split_projections
from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig
from perceiver_vl.models.uni_perceiver.modeling import (
    LikelihoodHead,
    UniPerceiverEncoder,
    UniPerceiverModel,
    UniPerceiverPreTrainedModel,
)

_ENCODER, _HEAD = "fused_encoder.", "loss_prepare."
_PLACES = {
    "self_attn.qkv_proj": "attention.in_proj",
    "self_attn.dense": "attention.out_proj",
    "self_attn.out_proj": "attention.out_proj",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
}
_EXPERT = re.compile(r"(.*)\.experts\.deepspeed_experts\.(\d+)\.(weight|bias)")
_LAYER = r"layers\.(\d+)\."


def _rules() -> Rules:
    ours = r"encoder.layers.\1."
    rules = [
        (_LAYER + r"gamma_1", ours + "block.attention.out_proj.scale"),
        (_LAYER + r"gamma_2", ours + "block.mlp.fc2.scale"),
        (_LAYER + r"(norm[12]\..*)", ours + r"block.\2"),
        (_LAYER + r"self_attn\.in_proj_(weight|bias)", ours + r"block.attention.in_proj_\2"),
        # One decision serves all of the attention, and one the MLP: the gates of the other two maps are not used
        (_LAYER + r"(?:self_attn\.dense|linear2)\.gate\..*", ""),
    ]
    for theirs, name in (("self_attn.qkv_proj", "attention"), ("linear1", "mlp")):
        gate = _LAYER + re.escape(theirs) + r"\.gate\."
        rules += [
            (gate + r"tag_transform\.0\.(.*)", rf"{ours}block.gates.{name}.projection.\2"),
            (gate + r"tag_transform\.[12]\.(.*)", rf"{ours}block.gates.{name}.norm.\2"),
            (gate + r"wg\.weight", f"{ours}block.gates.{name}.scores.weight"),
        ]
    for theirs, place in _PLACES.items():
        end = "_" if place.endswith("in_proj") else "."
        rules.append((_LAYER + re.escape(theirs) + r"\.(weight|bias)", rf"{ours}block.{place}{end}\2"))
    return [
        *rules,
        (r"ln_post\.(.*)", r"head.norm.\1"),
        (r"proj\.(.*)", r"head.projection.\1"),
        (r"logit_scale_(.*)", r"head.log_scales.\1"),
        (r"queue_.*", ""),  # of a memory of former batches
        (r"token_embed\.embeddings\.weight", "embeddings.words.weight"),
        (r"token_embed\.embeddings_pos\.position_embeddings\.weight", "embeddings.text_positions.weight"),
        (r"token_embed\.embeddings_token_type\.weight", "embeddings.text_type"),
        (r"token_embed\.embeddings_token_seg\.weight", ""),  # no task of theirs uses it
        (r"token_embed\.embeddings_norm\.(.*)", r"embeddings.text_norm.\1"),
        (r"video_embed\.embeddings\.(.*)", r"embeddings.patches.\1"),
        (r"video_embed\.embeddings_st_pos\.spatial_pos_embed\.weight", "embeddings.patch_positions.weight"),
        (r"video_embed\.embeddings_st_pos\.temporal_pos_embed\.weight", "embeddings.frame_positions.weight"),
        (r"video_embed\.embeddings_type\.weight", "embeddings.vision_type"),
        (r"video_embed\.embeddings_norm\.(.*)", r"embeddings.vision_norm.\1"),
    ]


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names are those of Uni-Perceiver."""
    return bool({"layers.0.gamma_1", f"{_ENCODER}layers.0.gamma_1", "logit_scale_tqa_retrieve"} & set(names))


def converted(state: Mapping[str, Tensor], **fields: Any) -> UniPerceiverPreTrainedModel:
    """The model, the encoder or the head that `state` is of. `fields` of the configuration: `num_attention_heads`,
    which no shape tells, where there is an encoder, and any other.

    Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    plain = {name.removeprefix(_ENCODER).removeprefix(_HEAD): value for name, value in state.items()}
    has_encoder, whole = "layers.0.gamma_1" in plain, "token_embed.embeddings.weight" in plain
    if has_encoder:
        require(fields, ["num_attention_heads"], UniPerceiverConfig())
    config = UniPerceiverConfig(**(_shapes(plain) | fields))
    ours = _stacked(renamed(_gathered(plain), _rules()))
    for name in ("embeddings.text_type", "embeddings.vision_type"):
        if name in ours:
            ours[name] = ours[name][0]
    if whole:
        return load(UniPerceiverModel(config), ours)
    prefix = "encoder." if has_encoder else "head."
    alone = {name.removeprefix(prefix): value for name, value in ours.items()}
    return load(UniPerceiverEncoder(config), alone) if has_encoder else load(LikelihoodHead(config), alone)


def _gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the weights of all experts of a map as one."""
    found: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = value
        else:
            found[name] = value
    return found | {name: torch.stack([some[number] for number in sorted(some)]) for name, some in experts.items()}


def _stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With queries, keys and values apart, those of experts too, whose number comes first."""
    fused = {name: value for name, value in state.items() if "in_proj_" in name}
    rest = {name: value for name, value in state.items() if name not in fused}
    for name, value in fused.items():
        if value.ndim == (3 if name.endswith("weight") else 2):
            stem, _, kind = name.rpartition("in_proj_")
            parts = zip("qkv", value.chunk(3, dim=1), strict=True)
            rest |= {f"{stem}{part}_proj.{kind}": each.contiguous() for part, each in parts}
        else:
            rest |= split_projections({name: value})
    return rest


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    scales = [name.removeprefix("logit_scale_") for name in state if name.startswith("logit_scale_")]
    told: dict[str, Any] = {"temperatures": scales} if scales else {}
    if "layers.0.gamma_1" not in state:
        width = len(state["ln_post.weight"])
        return told | {"hidden_size": width, "num_attention_heads": 1}
    gate = "layers.0.linear1.gate."
    first = next(state[name] for name in state if re.fullmatch(r"layers\.0\.linear1\.(experts\..*\.0\.)?weight", name))
    told |= {
        "hidden_size": len(state["layers.0.gamma_1"]),
        "num_hidden_layers": count(state, r"layers\.(\d+)\."),
        "intermediate_size": len(first),
        "num_experts": count(state, r"layers\.0\.linear1\.experts\.deepspeed_experts\.(\d+)\."),
    }
    if told["num_experts"]:
        told["num_attributes"] = state[f"{gate}tag_transform.0.weight"].shape[1]
        told["gate_activation"] = f"{gate}tag_transform.2.weight" in state
    if "token_embed.embeddings.weight" not in state:
        return told
    patches = state["video_embed.embeddings.weight"]
    places = len(state["video_embed.embeddings_st_pos.spatial_pos_embed.weight"])
    return told | {
        "vocab_size": len(state["token_embed.embeddings.weight"]),
        "begin_token_id": len(state["token_embed.embeddings.weight"]) - 1,
        "max_position_embeddings": len(state["token_embed.embeddings_pos.position_embeddings.weight"]),
        "num_channels": patches.shape[1],
        "patch_size": patches.shape[2],
        "image_size": patches.shape[2] * round(places**0.5),
        "max_frames": len(state["video_embed.embeddings_st_pos.temporal_pos_embed.weight"]),
    }
