"""The authors' checkpoints (Xianpeng919/monoxiver, whose attentions are mmcv's) → ours: the head; the detector that it
stands on is left out.
"""

from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from perceiver_vl.models.monoxiver.configuration import MonoXiverConfig
from perceiver_vl.models.monoxiver.modeling import MonoXiverModel
from perceiver_vl.models.renaming import Rules, count, load, renamed, require
from perceiver_vl.utils.errors import UsageError

_READ = "geo_mhca.attn.in_proj_weight"


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names have MonoXiver's head among them."""
    return _prefix(names) is not None


def converted(state: Mapping[str, Tensor], **fields: Any) -> MonoXiverModel:
    """The head of `state`. `fields` of the configuration: those that no shape tells, and any other.

    Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    prefix = _prefix(state)
    if prefix is None:
        raise UsageError(f"weight {_READ}: missing, give a checkpoint of MonoXiver")
    require(fields, ("num_attention_heads",), MonoXiverConfig())
    head = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
    config = MonoXiverConfig(**(_shapes(head) | fields))
    return load(MonoXiverModel(config), renamed(_split_projections(head), _rules(config)))


def _prefix(names: Collection[str]) -> str | None:
    return next((name.removesuffix(_READ) for name in names if name.endswith(_READ)), None)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    needed = ("corner_feat_embedding.0", "geometric_embedding.0", "img_embed.0", "geo_ca_ffn.layers.0.0", "fc_cls")
    for name in needed:
        if f"{name}.weight" not in state:
            raise UsageError(f"weight {name}.weight: missing, give a whole checkpoint")
    points, geometry, regions, mlp, classes = (state[f"{name}.weight"].shape for name in needed)
    return {
        "point_size": points[1],
        "geometry_size": geometry[1],
        "region_size": isqrt(regions[1] // points[1]),
        "num_latents": geometry[0] // points[0],
        "hidden_size": points[0],
        "intermediate_size": mlp[0],
        "num_self_attentions": count(state, r"geo_mhsa_(\d+)\."),
        "num_class_layers": count(state, r"cls_fc\.(\d+)\.") // 2,
        "num_box_layers": count(state, r"xyz_fc\.(\d+)\.") // 2,
        "num_labels": classes[0],
    }


def _block(attention: str, norm: str, mlp: str, ours: str) -> list[tuple[str, str]]:
    """Names of an attention with its norm, of an MLP and its norm (`mlp` and `mlp`_norm), in a block of ours."""
    number = r"(?:_(?P<number>\d+))?" if "self_attentions" in ours else ""
    return [
        (rf"{attention}{number}\.attn\.(?P<rest>.*)", rf"{ours}attention.\g<rest>"),
        (rf"{norm}{number}\.(?P<kind>\w+)", rf"{ours}norm1.\g<kind>"),
        (rf"{mlp}{number}\.layers\.0\.0\.(?P<kind>\w+)", rf"{ours}mlp.fc1.\g<kind>"),
        (rf"{mlp}{number}\.layers\.1\.(?P<kind>\w+)", rf"{ours}mlp.fc2.\g<kind>"),
        (rf"{mlp}_norm{number}\.(?P<kind>\w+)", rf"{ours}norm2.\g<kind>"),
    ]


def _rules(config: MonoXiverConfig) -> Rules:
    unused = [(r"decode_ca_ffn\.layers\..*", "")] if config.share_decoder_mlp else []  # in every checkpoint
    branches = {"cls": ("class_head", config.num_class_layers), "xyz": ("position_head", config.num_box_layers)}
    branches["dim"] = ("size_head", config.num_box_layers)
    rules = [
        (r"corner_feat_embedding\.(.*)", r"point_embedding.\1"),
        (r"geometric_embedding\.(.*)", r"geometry_embedding.\1"),
        (r"img_embed\.(.*)", r"region_embedding.\1"),
    ]
    for theirs, (ours, layers) in branches.items():
        rules += [(rf"{theirs}_fc\.(.*)", rf"{ours}.\1"), (rf"(?:fc_)?{theirs}\.(\w+)", rf"{ours}.{3 * layers}.\1")]
    return [
        *unused,
        *rules,
        *_block("geo_mhca", "geo_ca_norm", "geo_ca_ffn", "encoder.blocks.0.cross_attention."),
        *_block("geo_mhsa", "geo_sa_norm", "geo_sa_ffn", r"encoder.blocks.0.self_attentions.\g<number>."),
        *_block("decode_mhca", "decode_ca_norm", "decode_ca_ffn", "decoder.block."),
        *_block("attention", "attention_norm", "ffn", "competition."),
    ]


def _split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections of queries, keys and values, which are rows of one weight, apart."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        before, found, kind = name.partition("in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True) if found else ()
        split |= {f"{before}{part}_proj.{kind}": rows for part, rows in parts} if found else {name: tensor}
    return split
