"""The authors' checkpoints over RegNet-Y (LeapLabTHU/Dynamic_Perceiver) → ours."""

from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from perceiver_vl.models.dynamic_perceiver.configuration import DynamicPerceiverConfig
from perceiver_vl.models.dynamic_perceiver.modeling import DynamicPerceiverForImageClassification
from perceiver_vl.models.renaming import Rules, count, load, renamed, require
from perceiver_vl.utils.errors import UsageError

_POSITIONS = "cross_att1_x2z.cross_attn.attention.relative_position_bias"
_STAGES = range(1, 5)


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names are those of a Dynamic Perceiver."""
    return "latent" in names and _POSITIONS in names


def converted(state: Mapping[str, Tensor], **fields: Any) -> DynamicPerceiverForImageClassification:
    """The model of `state`. `fields` of the configuration: those that no shape tells (`num_attention_heads`; `se_ratio`
    where it is not 0.25), and any other.

    Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    if not recognises(state):
        raise UsageError(f"weight {_POSITIONS}: missing, give a checkpoint of a Dynamic Perceiver")
    require(fields, ("num_attention_heads",), DynamicPerceiverConfig())
    config = DynamicPerceiverConfig(**(_shapes(state) | fields))
    found = renamed(state, RULES)
    for stage in range(4):
        name = f"reads.{stage}.block.attention.key_positions"
        if name in found:
            found[name] = found[name][0]
    return load(DynamicPerceiverForImageClassification(config), found)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = [f"cnn_body.block{stage}.block{stage}-0.f.b.0.weight" for stage in _STAGES]
    for name in (*first, "cnn_stem.0.weight", "self_att1.0.mlp.fc1.weight", "classifier_cnn.weight"):
        if name not in state:
            raise UsageError(f"weight {name}: missing, give a checkpoint over RegNet-Y")
    stem = state["cnn_stem.0.weight"].shape
    latents, width = state["latent"].shape
    return {
        "num_channels": stem[1],
        "stem_width": stem[0],
        "depths": [count(state, rf"cnn_body\.block{stage}\.block{stage}-(\d+)\.") for stage in _STAGES],
        "widths": [len(state[name]) for name in first],
        "group_widths": [state[name].shape[1] for name in first],
        "num_latents": latents,
        "latent_depths": [count(state, rf"self_att{stage}\.(\d+)\.") for stage in _STAGES],
        "intermediate_ratio": len(state["self_att1.0.mlp.fc1.weight"]) // width,
        "pooled_size": isqrt(state[_POSITIONS].shape[1]),
        "depthwise_convolutions": "dwc1_x2z.weight" in state,
        "write_features": "cross_att2_z2x.mlp.fc1.weight" in state,
        "last_write": "last_cross_att_z2x.mlp.fc1.weight" in state,
        "transfer_knowledge": "isc3.0.weight" in state,
        "num_labels": len(state["classifier_cnn.weight"]),
    }


def _normed(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(rf"{theirs}\.0\.(?P<kind>\w+)", rf"{ours}.convolution.\g<kind>"),
            (rf"{theirs}\.1\.(?P<kind>\w+)", rf"{ours}.norm.\g<kind>")]  # fmt: skip


def _block(theirs: str, ours: str) -> list[tuple[str, str]]:
    inside = {
        r"(?:cross|self)_attn\.attention\.o_proj": "attention.out_proj",
        r"(?:cross|self)_attn\.attention\.(?P<which>[qkv]_proj)": r"attention.\g<which>",
        r"cross_attn\.q_norm": "norm1",
        r"self_attn\.norm": "norm1",
        r"cross_attn\.kv_norm": "input_norm",
        r"mlp\.layernorm": "norm2",
        r"mlp\.(?P<layer>fc\d)": r"mlp.\g<layer>",
    }
    return [(rf"{theirs}\.{name}\.(?P<kind>weight|bias)", rf"{ours}.{own}.\g<kind>") for name, own in inside.items()]


def _stage(stage: int) -> list[tuple[str, str]]:
    """Rules of what a stage has, ours counted from 0."""
    own, before = stage - 1, stage - 2
    bottleneck = rf"cnn_body\.block{stage}\.block{stage}-(?P<number>\d+)"
    block = rf"stages.{own}.\g<number>"
    return [
        *(rule for part in "abc" for rule in _normed(rf"{bottleneck}\.f\.{part}", f"{block}.{part}")),
        *_normed(rf"{bottleneck}\.proj", f"{block}.projection"),
        (rf"{bottleneck}\.f\.se\.fc1\.(?P<kind>\w+)", rf"{block}.squeeze.\g<kind>"),
        (rf"{bottleneck}\.f\.se\.fc2\.(?P<kind>\w+)", rf"{block}.excite.\g<kind>"),
        (rf"cross_att{stage}_x2z\.cross_attn\.attention\.relative_position_bias",
         f"reads.{own}.block.attention.key_positions"),
        *_block(rf"cross_att{stage}_x2z", f"reads.{own}.block"),
        *_block(rf"cross_att{stage}_z2x", f"writes.{before}.block"),
        (rf"dwc{stage}_x2z\.(?P<kind>\w+)", rf"reads.{own}.convolution.\g<kind>"),
        *_block(rf"self_att{stage}\.(?P<number>\d+)", rf"latent_stages.{own}.\g<number>"),
        (rf"token_mixer\.{own}\.0\.(?P<kind>\w+)", rf"mixers.{own}.token_norm.\g<kind>"),
        (rf"token_mixer\.{own}\.1\.(?P<kind>\w+)", rf"mixers.{own}.tokens.\g<kind>"),
        (rf"token_expander\.{own}\.0\.(?P<kind>\w+)", rf"mixers.{own}.channel_norm.\g<kind>"),
        (rf"token_expander\.{own}\.1\.(?P<kind>\w+)", rf"mixers.{own}.channels.\g<kind>"),
    ]  # fmt: skip


RULES: Rules = [
    (r"latent", "latents"),
    *_normed("cnn_stem", "stem"),
    *(rule for stage in _STAGES for rule in _stage(stage)),
    *_block("last_cross_att_z2x", "last_write.block"),
    *((rf"isc{stage}\.0\.(\w+)", rf"transfers.{stage - 3}.projection.\1") for stage in (3, 4)),
    *((rf"isc{stage}\.1\.(\w+)", rf"transfers.{stage - 3}.norm.\1") for stage in (3, 4)),
    (r"early_classifier3\.(\w+)", r"classifiers.0.\1"),
    (r"classifier_att\.(\w+)", r"classifiers.1.\1"),
    (r"classifier_cnn\.(\w+)", r"classifiers.2.\1"),
    (r"classifier_merge\.(.*)", r"classifiers.3.\1"),
]
"""From the reference's names to ours."""
