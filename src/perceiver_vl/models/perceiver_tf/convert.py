"""Weights of YourMT3+'s `perceiver-tf` encoder → ours. The authors of Perceiver TF published none."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_tf.configuration import PerceiverTFConfig
from perceiver_vl.models.perceiver_tf.modeling import PerceiverTFModel
from perceiver_vl.models.renaming import Rules, count, load, renamed, require

YOURMT3: dict[str, Any] = {"read": "channels", "read_residual": False}
"""What its default configuration does otherwise than the paper: keys are channels, each a vector of frequencies, and
the read throws away what latents held, which decides only where they look."""

_LATENTS = "encoder.latent_array.latents"
_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.(w1|w2|gate)\.weight")
_UNTOLD = ("num_attention_heads", "num_cross_attention_heads", "read", "read_residual")


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names are those of a Perceiver TF."""
    return _LATENTS in names or f"encoder.{_LATENTS}" in names


def converted(state: Mapping[str, Tensor], **fields: Any) -> PerceiverTFModel:
    """The encoder and its front end. `fields` of the configuration: those that no shape tells, and any other.

    Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    if _LATENTS not in state:  # of a whole program, whose encoder this is
        state = {re.sub(r"^encoder\.(?=encoder\.)", "", name): value for name, value in state.items()}
    require(fields, _UNTOLD, PerceiverTFConfig())
    config = PerceiverTFConfig(**(_shapes(state, fields) | fields))
    return load(PerceiverTFModel(config), renamed(_gathered(state), _rules()))


def _rules() -> Rules:
    block = r"encoder\.blocks\.(\d+)\."
    rules: list[tuple[str, str]] = [
        (re.escape(_LATENTS), "latents"),
        (r"encoder\.pos_emb\._pos_emb", "position_table"),
        (r"encoder\.pos_emb\._pos_emb_temporal", "time_table"),
        (r"pre_encoder\.blocks\.(\d+)\.bn(\d)\.(.*)", r"front_end.\1.norm\2.\3"),
        (r"pre_encoder\.blocks\.(\d+)\.(conv\d|shortcut)\.(.*)", r"front_end.\1.\2.\3"),
    ]
    places = [(block + r"spectral_cross_attention\.", r"blocks.\1.read.")]
    for kind in ("local", "temporal"):
        layer, ours = rf"{block}{kind}_transformer\.(\d+)\.", rf"blocks.\1.{kind}_layers.\2."
        places.append((layer + r"attention\.", ours))
        rules += [
            (layer + r"layernorm\.(\w+)", ours + r"norm2.\3"),
            (layer + r"mlp\.dense(\d)\.(\w+)", ours + r"mlp.fc\3.\4"),
            (layer + r"mlp\.gate\.weight", ours + "mlp.router.weight"),
            (layer + r"mlp\.w1", ours + "mlp.fc1"),
            (layer + r"mlp\.w2", ours + "mlp.fc2"),
            (layer + r"mlp\.experts_gate", ours + "mlp.gate"),
        ]
    for theirs, ours in places:
        rules += [
            (theirs + r"self\.(?P<which>query|key|value)\.(?P<kind>\w+)", ours + r"attention.\g<which>.\g<kind>"),
            (theirs + r"output\.dense\.(?P<kind>\w+)", ours + r"attention.out_proj.\g<kind>"),
            (theirs + r"self\.layernorm1\.(?P<kind>\w+)", ours + r"norm1.\g<kind>"),
            (theirs + r"self\.layernorm2\.(?P<kind>\w+)", ours + r"input_norm.\g<kind>"),
        ]
    words = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    return [
        (pattern.replace("(?P<which>query|key|value)", word), ours.replace(r"\g<which>", name))
        for pattern, ours in rules
        for word, name in (words.items() if "(?P<which>" in pattern else [("", "")])
    ]


def _gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the weights of all experts of a layer as one."""
    found: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        if match := _EXPERT.fullmatch(name):
            kind = "experts_gate" if match[3] == "gate" else match[3]
            experts.setdefault(f"{match[1]}.{kind}", {})[int(match[2])] = value
        else:
            found[name] = value
    return found | {name: torch.stack([some[number] for number in sorted(some)]) for name, some in experts.items()}


def _shapes(state: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Any]:
    latents, width = state[_LATENTS].shape
    read, layer = "encoder.blocks.0.spectral_cross_attention.", "encoder.blocks.0.local_transformer.0."
    feature_size = len(state[f"{read}self.layernorm2.weight"])
    times = state.get("encoder.pos_emb._pos_emb_temporal")
    table = state.get("encoder.pos_emb._pos_emb")
    experts = count(state, re.escape(layer) + r"mlp\.experts\.(\d+)\.")
    inner = len(state[f"{layer}mlp.experts.0.w1.weight" if experts else f"{layer}mlp.dense1.weight"])
    blocks = count(state, r"pre_encoder\.blocks\.(\d+)\.")
    told: dict[str, Any] = {
        "num_latents": latents,
        "hidden_size": width,
        "num_blocks": count(state, r"encoder\.blocks\.(\d+)\."),
        "num_local_layers": count(state, r"encoder\.blocks\.0\.local_transformer\.(\d+)\."),
        "num_temporal_layers": count(state, r"encoder\.blocks\.0\.temporal_transformer\.(\d+)\."),
        "attention_size": len(state[f"{read}self.query.weight"]),
        "value_size": len(state[f"{read}self.value.weight"]),
        "feature_size": feature_size,
        "intermediate_ratio": inner // width,
        "feed_forward": "experts" if experts else "mlp",
        "num_experts": experts or 1,
        "norm": "layer" if f"{layer}layernorm.bias" in state else "rms",
        "conv_channels": len(state["pre_encoder.blocks.0.conv1.weight"]),
        "num_conv_blocks": blocks,
        "positions": "alibi" if table is None else "trainable" if times is None else "kdt",
    }
    if table is not None:
        told["max_frames"] = len(table if times is None else times)
    if fields["read"] == "channels":
        told["num_bins"] = feature_size << blocks
    return told
