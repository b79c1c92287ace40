"""Weights of ours as the authors of siblings name and lay them out, to convert them back."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.dynamic_perceiver import DynamicPerceiverConfig, DynamicPerceiverForImageClassification
from perceiver_vl.models.monoxiver import MonoXiverConfig, MonoXiverModel
from perceiver_vl.models.s2t_perceiver import S2TPerceiverConfig, S2TPerceiverModel

Names = list[tuple[str, str | Callable[[re.Match[str]], str]]]

_MONOXIVER_HEADS = {"class_head": "cls", "position_head": "xyz", "size_head": "dim"}


def _monoxiver_block(ours: str, attention: str, norm: str, mlp: str) -> Names:
    number = r"\1" if "(" in ours else ""
    end = f"_{number}" if number else ""
    kind = r"\2" if number else r"\1"
    return [
        (rf"{ours}\.attention\.(.*)", rf"{attention}{end}.attn.{kind}"),
        (rf"{ours}\.norm1\.(.*)", rf"{norm}{end}.{kind}"),
        (rf"{ours}\.mlp\.fc1\.(.*)", rf"{mlp}{end}.layers.0.0.{kind}"),
        (rf"{ours}\.mlp\.fc2\.(.*)", rf"{mlp}{end}.layers.1.{kind}"),
        (rf"{ours}\.norm2\.(.*)", rf"{mlp}_norm{end}.{kind}"),
    ]


def monoxiver_state(**changes: Any) -> tuple[MonoXiverModel, dict[str, Tensor]]:
    """Of a model of other sizes than the released one."""
    sizes: dict[str, Any] = {
        "point_size": 5,
        "region_size": 2,
        "num_latents": 3,
        "hidden_size": 12,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "num_self_attentions": 2,
        "num_class_layers": 1,
        "num_box_layers": 3,
        "num_labels": 4,
    }
    torch.manual_seed(0)
    model = MonoXiverModel(MonoXiverConfig(**(sizes | changes))).eval()
    layers = {"class_head": model.config.num_class_layers}
    heads: Names = []
    for ours, theirs in _MONOXIVER_HEADS.items():
        last, final = 3 * layers.get(ours, model.config.num_box_layers), "fc_cls" if theirs == "cls" else theirs
        heads += [(rf"{ours}\.{last}\.(.*)", rf"{final}.\1"), (rf"{ours}\.(.*)", rf"{theirs}_fc.\1")]
    names = [
        *heads,
        (r"point_embedding\.(.*)", r"corner_feat_embedding.\1"),
        (r"geometry_embedding\.(.*)", r"geometric_embedding.\1"),
        (r"region_embedding\.(.*)", r"img_embed.\1"),
        *_monoxiver_block(r"encoder\.blocks\.0\.cross_attention", "geo_mhca", "geo_ca_norm", "geo_ca_ffn"),
        *_monoxiver_block(r"encoder\.blocks\.0\.self_attentions\.(\d+)", "geo_mhsa", "geo_sa_norm", "geo_sa_ffn"),
        *_monoxiver_block(r"decoder\.block", "decode_mhca", "decode_ca_norm", "decode_ca_ffn"),
        *_monoxiver_block(r"competition", "attention", "attention_norm", "ffn"),
    ]
    state = _renamed(model.state_dict(), names)
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return model, state


def s2t_perceiver_state(**changes: Any) -> tuple[S2TPerceiverModel, dict[str, Tensor]]:
    """Of a model of other sizes than the paper's."""
    sizes: dict[str, Any] = {
        "num_features": 7,
        "kernel_sizes": [3, 5, 3],
        "conv_channels": 8,
        "conv_output_size": 10,
        "num_latents": 6,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    torch.manual_seed(0)
    model = S2TPerceiverModel(S2TPerceiverConfig(**(sizes | changes))).eval()
    block = r"encoder\.blocks\.0\."
    names: Names = [(r"encoder\.latents", "init_latent"), (r"encoder\.norm\.(.*)", r"final_layer_norm.\1")]
    names += [(r"input_array\.convolutions\.(.*)", r"conv_processor.conv_layers.\1")]
    for ours, theirs, attention in (
        (rf"{block}cross_attention", "cross_attention_layer", "attn"),
        (rf"{block}self_attentions\.(\d+)", r"self_attention_layers.\1", "self_attn"),
    ):
        kind = r"\2" if "(" in ours else r"\1"
        inside = {"attention": attention, "norm1": f"{attention}_layer_norm", "norm2": "final_layer_norm"}
        inside |= {"input_norm": "input_layer_norm", r"mlp\.fc1": "fc1", r"mlp\.fc2": "fc2"}
        names += [(rf"{ours}\.{own}\.(.*)", f"{theirs}.{name}.{kind}") for own, name in inside.items()]
    state = _renamed(model.state_dict(), names)
    state["init_latent"] = state["init_latent"][:, None]
    return model, state | {"embed_positions._float_tensor": torch.zeros(1)}


def dynamic_perceiver_state(**changes: Any) -> tuple[DynamicPerceiverForImageClassification, dict[str, Tensor]]:
    """Of a model of other sizes than the released ones."""
    sizes: dict[str, Any] = {
        "stem_width": 8,
        "depths": [1, 2, 1, 1],
        "widths": [8, 16, 24, 40],
        "group_widths": [4, 8, 8, 8],
        "num_latents": 24,
        "latent_depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 4, 3],
        "intermediate_ratio": 3,
        "pooled_size": 5,
        "num_labels": 6,
    }
    torch.manual_seed(0)
    model = DynamicPerceiverForImageClassification(DynamicPerceiverConfig(**(sizes | changes))).eval()

    def up(start: str, end: str, by: int) -> Callable[[re.Match[str]], str]:
        return lambda match: start + str(int(match[1]) + by) + match.expand(end)

    def bottleneck(inside: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"cnn_body.block{int(m[1]) + 1}.block{int(m[1]) + 1}-{m[2]}." + m.expand(inside)

    inside = r"(attention\.[qkv]_proj|attention\.out_proj|attention\.key_positions|norm1|input_norm|norm2|mlp\.fc\d)"

    def own(part: str, kind: str) -> str:
        names = {"norm1": f"{kind}_attn.{'q_' if kind == 'cross' else ''}norm", "norm2": "mlp.layernorm"}
        names |= {"input_norm": "cross_attn.kv_norm", "attention.out_proj": f"{kind}_attn.attention.o_proj"}
        names |= {"attention.key_positions": "cross_attn.attention.relative_position_bias"}
        return names.get(part, part if part.startswith("mlp") else f"{kind}_attn.{part}")

    names: Names = [
        (r"latents", "latent"),
        (r"stem\.convolution\.(\w+)", r"cnn_stem.0.\1"),
        (r"stem\.norm\.(\w+)", r"cnn_stem.1.\1"),
        (r"stages\.(\d)\.(\d)\.([abc])\.convolution\.(\w+)", bottleneck(r"f.\3.0.\4")),
        (r"stages\.(\d)\.(\d)\.([abc])\.norm\.(\w+)", bottleneck(r"f.\3.1.\4")),
        (r"stages\.(\d)\.(\d)\.projection\.convolution\.(\w+)", bottleneck(r"proj.0.\3")),
        (r"stages\.(\d)\.(\d)\.projection\.norm\.(\w+)", bottleneck(r"proj.1.\3")),
        (r"stages\.(\d)\.(\d)\.squeeze\.(\w+)", bottleneck(r"f.se.fc1.\3")),
        (r"stages\.(\d)\.(\d)\.excite\.(\w+)", bottleneck(r"f.se.fc2.\3")),
        (r"reads\.(\d)\.convolution\.(\w+)", up("dwc", r"_x2z.\2", 1)),
        (rf"reads\.(\d)\.block\.{inside}(.*)",
         lambda m: f"cross_att{int(m[1]) + 1}_x2z.{own(m[2], 'cross')}{m[3]}"),
        (rf"writes\.(\d)\.block\.{inside}(.*)",
         lambda m: f"cross_att{int(m[1]) + 2}_z2x.{own(m[2], 'cross')}{m[3]}"),
        (rf"last_write\.block\.{inside}(.*)", lambda m: f"last_cross_att_z2x.{own(m[1], 'cross')}{m[2]}"),
        (rf"latent_stages\.(\d)\.(\d)\.{inside}(.*)",
         lambda m: f"self_att{int(m[1]) + 1}.{m[2]}.{own(m[3], 'self')}{m[4]}"),
        (r"mixers\.(\d)\.token_norm\.(\w+)", r"token_mixer.\1.0.\2"),
        (r"mixers\.(\d)\.tokens\.(\w+)", r"token_mixer.\1.1.\2"),
        (r"mixers\.(\d)\.channel_norm\.(\w+)", r"token_expander.\1.0.\2"),
        (r"mixers\.(\d)\.channels\.(\w+)", r"token_expander.\1.1.\2"),
        (r"transfers\.(\d)\.projection\.(\w+)", up("isc", r".0.\2", 3)),
        (r"transfers\.(\d)\.norm\.(\w+)", up("isc", r".1.\2", 3)),
        (r"classifiers\.0\.(\w+)", r"early_classifier3.\1"),
        (r"classifiers\.1\.(\w+)", r"classifier_att.\1"),
        (r"classifiers\.2\.(\w+)", r"classifier_cnn.\1"),
        (r"classifiers\.3\.(.*)", r"classifier_merge.\1"),
    ]  # fmt: skip
    state = _renamed(model.state_dict(), names)
    return model, {name: value[None] if "position_bias" in name else value for name, value in state.items()}


def _renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for ours, weight in state.items():
        pattern, replacement = next((rule for rule in names if re.fullmatch(rule[0], ours)), ("", ""))
        assert pattern, ours
        match = re.fullmatch(pattern, ours)
        assert match is not None
        theirs = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        assert theirs not in found, theirs
        found[theirs] = weight.clone()
    return found
