"""Weights of the two public implementations with repeated cross-attentions → ours: lucidrains' perceiver-pytorch and
krasserm's perceiver-io. The authors' own code has one alone.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver.configuration import IterativePerceiverConfig
from perceiver_vl.models.perceiver.modeling import IterativePerceiverForClassification
from perceiver_vl.models.renaming import Rules, count, load, renamed, require
from perceiver_vl.utils.errors import UsageError

VARIANTS: dict[str, dict[str, Any]] = {
    "krasserm": {"pooling": "query"},
    "lucidrains": {
        "pooling": "normed_mean",
        "fourier_order": "axis",
        "gated_mlp": True,
        "attention_bias": False,
        "intermediate_ratio": 4,
        "cross_intermediate_ratio": 4,
    },
}
"""What each does otherwise than the paper."""

_UNTOLD = {
    "krasserm": ("num_attention_heads", "num_cross_attention_heads", "num_blocks", "num_cross_attentions"),
    "lucidrains": ("num_attention_heads", "num_cross_attention_heads", "input_shape", "num_bands", "max_resolution"),
}
_LATENTS, _POSITIONS = "0.latent_provider._query", "0.input_adapter.position_encoding.position_encoding"


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names are those of a Perceiver that is known here."""
    return _variant(names) is not None


def converted(state: Mapping[str, Tensor], **fields: Any) -> IterativePerceiverForClassification:
    """The model of `state`. `fields` of the configuration: those that no shape tells, and any other.

    Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    variant = _variant(state)
    if variant is None:
        raise UsageError("weights: of no Perceiver that is known here, give lucidrains' or krasserm's")
    require(fields, _UNTOLD[variant], IterativePerceiverConfig())
    told = _lucidrains_shapes(state) if variant == "lucidrains" else _krasserm_shapes(state)
    config = IterativePerceiverConfig(**(VARIANTS[variant] | told | fields))
    rules = _lucidrains_rules(config) if variant == "lucidrains" else _krasserm_rules(config)
    split = _split_keys_values(state) if variant == "lucidrains" else state
    return load(IterativePerceiverForClassification(config), renamed(split, rules))


def _variant(names: Collection[str]) -> str | None:
    if {"latents", "layers.0.0.norm_context.weight", "layers.0.2.0.0.norm.weight"} <= set(names):
        return "lucidrains"
    return "krasserm" if {_LATENTS, _POSITIONS} <= set(names) else None


# --- krasserm ---------------------------------------------------------------------------------------------------------


def _krasserm_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    positions, (latents, width) = state[_POSITIONS], state[_LATENTS].shape
    axes = 2  # its classifier is of images
    decoder = "1.cross_attn.0.module." if "1.cross_attn.0.module.q_norm.weight" in state else "1.cross_attn.0."
    return {
        "input_shape": [len(positions[:, axis].unique()) for axis in range(axes)],
        "num_bands": (positions.shape[1] // axes - 1) // 2,
        "num_channels": len(state["0.cross_attn_1.0.module.kv_norm.weight"]) - positions.shape[1],
        "num_latents": latents,
        "hidden_size": width,
        "self_attentions_per_block": count(state, r"0\.self_attn_1\.(\d+)\."),
        "share_cross_attentions": "all_but_first" if any(".cross_attn_n." in name for name in state) else "all",
        "share_self_attentions": "all_but_first" if any(".self_attn_n." in name for name in state) else "all",
        "cross_attention_size": len(state["0.cross_attn_1.0.module.attention.k_proj.weight"]),
        "cross_value_size": len(state["0.cross_attn_1.0.module.attention.v_proj.weight"]),
        "attention_size": len(state["0.self_attn_1.0.0.module.attention.k_proj.weight"]),
        "intermediate_ratio": len(state["0.self_attn_1.0.1.module.1.weight"]) // width,
        "cross_intermediate_ratio": len(state["0.cross_attn_1.1.module.1.weight"]) // width,
        "query_size": state["1.output_query_provider._query"].shape[1],
        "query_residual": decoder.endswith("module."),
        "query_intermediate_ratio": len(state["1.cross_attn.1.module.1.weight"])
        // len(state["1.cross_attn.1.module.0.weight"]),
        "num_labels": len(state["1.output_adapter.linear.weight"]),
    }


def _krasserm_rules(config: IterativePerceiverConfig) -> Rules:
    encoder = "perceiver.encoder."
    own_block = "1" if config.num_blocks > 1 else "0"
    rules = [(_LATENTS.replace(".", r"\."), f"{encoder}latents"), (_POSITIONS.replace(".", r"\."), "")]
    rules += [
        (r"1\.output_query_provider\._query", "decoder.queries"),
        (r"1\.output_adapter\.linear\.(.*)", r"classifier.\1"),
    ]
    places = [
        (r"0\.cross_attn_1", f"{encoder}blocks.0.cross_attention"),
        (r"0\.cross_attn_n", f"{encoder}blocks.{own_block}.cross_attention"),
        (r"0\.self_attn_1\.(?P<number>\d+)", encoder + r"blocks.0.self_attentions.\g<number>"),
        (r"0\.self_attn_n\.(?P<number>\d+)", encoder + rf"blocks.{own_block}.self_attentions.\g<number>"),
        (r"1\.cross_attn", "decoder.block"),
    ]
    for theirs, ours in places:
        rules += [
            (theirs + r"\.0(?:\.module)?\.attention\.o_proj\.(?P<kind>\w+)", ours + r".attention.out_proj.\g<kind>"),
            (
                theirs + r"\.0(?:\.module)?\.attention\.(?P<which>\w_proj)\.(?P<kind>\w+)",
                ours + r".attention.\g<which>.\g<kind>",
            ),
            (theirs + r"\.0(?:\.module)?\.(?:q_)?norm\.(?P<kind>\w+)", ours + r".norm1.\g<kind>"),
            (theirs + r"\.0(?:\.module)?\.kv_norm\.(?P<kind>\w+)", ours + r".input_norm.\g<kind>"),
            (theirs + r"\.1\.module\.0\.(?P<kind>\w+)", ours + r".norm2.\g<kind>"),
            (theirs + r"\.1\.module\.1\.(?P<kind>\w+)", ours + r".mlp.fc1.\g<kind>"),
            (theirs + r"\.1\.module\.3\.(?P<kind>\w+)", ours + r".mlp.fc2.\g<kind>"),
        ]
    return rules


# --- lucidrains -------------------------------------------------------------------------------------------------------


def _lucidrains_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    depth, (latents, width) = count(state, r"layers\.(\d+)\."), state["latents"].shape
    later = [{name: state[f"layers.{layer}.{name}"] for name in _of_layer(state, 0)} for layer in range(1, depth)]
    tied = len(later) > 1 and all(torch.equal(one[name], later[0][name]) for one in later[1:] for name in later[0])
    sharing = "all_but_first" if tied else "none"
    return {
        "num_latents": latents,
        "hidden_size": width,
        "num_blocks": depth,
        "num_cross_attentions": depth,
        "self_attentions_per_block": count(state, r"layers\.0\.2\.(\d+)\."),
        "share_cross_attentions": sharing,
        "share_self_attentions": sharing,
        "cross_attention_size": len(state["layers.0.0.fn.to_q.weight"]),
        "attention_size": len(state["layers.0.2.0.0.fn.to_q.weight"]),
        "num_labels": len(state["to_logits.2.weight"]),
    }


def _of_layer(state: Mapping[str, Tensor], layer: int) -> list[str]:
    start = f"layers.{layer}."
    return [name.removeprefix(start) for name in state if name.startswith(start)]


def _lucidrains_rules(config: IterativePerceiverConfig) -> Rules:
    block = r"perceiver.encoder.blocks.\1."
    places = [
        (r"layers\.(\d+)\.0", r"layers\.(\d+)\.1", block + "cross_attention."),
        (r"layers\.(\d+)\.2\.(\d+)\.0", r"layers\.(\d+)\.2\.(\d+)\.1", block + r"self_attentions.\2."),
    ]
    rules = [
        ("latents", "perceiver.encoder.latents"),
        (r"to_logits\.1\.(\w+)", r"norm.\1"),
        (r"to_logits\.2\.(\w+)", r"classifier.\1"),
    ]
    for attention, mlp, ours in places:
        rules += [
            (attention + r"\.norm\.(?P<kind>\w+)", ours + r"norm1.\g<kind>"),
            (attention + r"\.norm_context\.(?P<kind>\w+)", ours + r"input_norm.\g<kind>"),
            (attention + r"\.fn\.to_(?P<which>[qkv])\.(?P<kind>\w+)", ours + r"attention.\g<which>_proj.\g<kind>"),
            (attention + r"\.fn\.to_out\.(?P<kind>\w+)", ours + r"attention.out_proj.\g<kind>"),
            (mlp + r"\.norm\.(?P<kind>\w+)", ours + r"norm2.\g<kind>"),
            (mlp + r"\.fn\.net\.0\.(?P<kind>\w+)", ours + r"mlp.fc1.\g<kind>"),
            (mlp + r"\.fn\.net\.2\.(?P<kind>\w+)", ours + r"mlp.fc2.\g<kind>"),
        ]
    return rules


def _split_keys_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values, which are rows of one weight, apart."""
    split = {name: tensor for name, tensor in state.items() if ".to_kv." not in name}
    for name in state.keys() - split.keys():
        split[name.replace("to_kv", "to_k")], split[name.replace("to_kv", "to_v")] = state[name].chunk(2)
    return split
