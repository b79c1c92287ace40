"""The authors' checkpoints (mt-upc/fairseq, branch s2t-perceiver) → ours: the encoder; of a whole model the decoder is
left out.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from perceiver_vl.models.renaming import Rules, count, load, renamed, require
from perceiver_vl.models.s2t_perceiver.configuration import S2TPerceiverConfig
from perceiver_vl.models.s2t_perceiver.modeling import S2TPerceiverModel
from perceiver_vl.utils.errors import UsageError

_READ = "cross_attention_layer.attn_layer_norm.weight"


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names have an S2T Perceiver's encoder among them."""
    return _prefix(names) is not None


def converted(state: Mapping[str, Tensor], **fields: Any) -> S2TPerceiverModel:
    """The encoder of `state`. `fields` of the configuration: those that no shape tells (`num_attention_heads`; `stride`
    and `scale_inputs` where they are not as published), and any other.

    Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    prefix = _prefix(state)
    if prefix is None:
        raise UsageError(f"weight {_READ}: missing, give a checkpoint of an S2T Perceiver")
    require(fields, ("num_attention_heads",), S2TPerceiverConfig())
    encoder = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
    config = S2TPerceiverConfig(**(_shapes(encoder) | fields))
    found = renamed(encoder, _RULES)
    found["encoder.latents"] = found["encoder.latents"][:, 0]
    return load(S2TPerceiverModel(config), found)


def _prefix(names: Collection[str]) -> str | None:
    return next((name.removesuffix(_READ) for name in names if name.endswith(_READ)), None)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    for name in ("init_latent", "cross_attention_layer.fc1.weight", "cross_attention_layer.input_layer_norm.weight"):
        if name not in state:
            raise UsageError(f"weight {name}: missing, give a whole checkpoint")
    latents, _, width = state["init_latent"].shape
    told: dict[str, Any] = {
        "num_latents": latents,
        "hidden_size": width,
        "intermediate_size": len(state["cross_attention_layer.fc1.weight"]),
        "num_hidden_layers": count(state, r"self_attention_layers\.(\d+)\."),
        "num_features": len(state["cross_attention_layer.input_layer_norm.weight"]),
        "kernel_sizes": [],
    }
    kernels = sorted(name for name in state if re.fullmatch(r"conv_processor\.conv_layers\.\d+\.weight", name))
    if kernels:
        told["kernel_sizes"] = [state[name].shape[2] for name in kernels]
        told["num_features"] = state[kernels[0]].shape[1]
        told["conv_output_size"] = len(state[kernels[-1]]) // 2
        told["conv_channels"] = len(state[kernels[0]]) if len(kernels) > 1 else S2TPerceiverConfig().conv_channels
    return told


_BLOCKS = [
    (r"cross_attention_layer", "attn", "attn_layer_norm", "encoder.blocks.0.cross_attention"),
    (
        r"self_attention_layers\.(?P<number>\d+)",
        "self_attn",
        "self_attn_layer_norm",
        r"encoder.blocks.0.self_attentions.\g<number>",
    ),
]
_RULES: Rules = [
    (r"init_latent", "encoder.latents"),
    (r"embed_positions\._float_tensor", ""),  # says where the model is, and no more
    (r"conv_processor\.conv_layers\.(.*)", r"input_array.convolutions.\1"),
    (r"final_layer_norm\.(.*)", r"encoder.norm.\1"),
    (r"cross_attention_layer\.input_layer_norm\.(.*)", r"encoder.blocks.0.cross_attention.input_norm.\1"),
    *[
        (rf"{theirs}\.{own}\.(?P<rest>.*)", rf"{ours}.{place}.\g<rest>")
        for theirs, attention, norm, ours in _BLOCKS
        for own, place in (
            (attention, "attention"),
            (norm, "norm1"),
            ("final_layer_norm", "norm2"),
            ("fc1", "mlp.fc1"),
            ("fc2", "mlp.fc2"),
        )
    ],
]
