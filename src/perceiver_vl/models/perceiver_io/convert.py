"""DeepMind's checkpoints in transformers' layout (`deepmind/language-perceiver` and the rest), and lucidrains' second
implementation → ours.
"""

from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_io.configuration import PerceiverIOConfig
from perceiver_vl.models.perceiver_io.modeling import PerceiverIOModel, PerceiverIOPreTrainedModel
from perceiver_vl.models.perceiver_io.tasks import (
    PerceiverIOForImageClassification,
    PerceiverIOForMaskedLM,
    PerceiverIOForMultimodalAutoencoding,
    PerceiverIOForOpticalFlow,
    PerceiverIOForSequenceClassification,
)
from perceiver_vl.models.renaming import Rules, count, load, renamed, require
from perceiver_vl.utils.errors import UsageError

MODELS: dict[str, type[PerceiverIOPreTrainedModel]] = {
    "array": PerceiverIOModel,
    "language": PerceiverIOForMaskedLM,
    "text": PerceiverIOForSequenceClassification,
    "image": PerceiverIOForImageClassification,
    "flow": PerceiverIOForOpticalFlow,
    "multimodal": PerceiverIOForMultimodalAutoencoding,
}
"""By `PerceiverIOConfig.kind`."""

_READ = "encoder.cross_attention.attention.self."
_DECODED = "decoding_cross_attention.attention.self."
_LUCIDRAINS = "cross_attend_blocks.0.fn.to_kv.weight"


def recognises(names: Collection[str]) -> bool:
    """Whether weights of these names are those of a Perceiver IO that is known here."""
    plain = {name.removeprefix("perceiver.") for name in names}
    return _LUCIDRAINS in plain or f"{_READ}query.weight" in plain


def converted(
    state: Mapping[str, Tensor], theirs: Mapping[str, Any] | None = None, **fields: Any
) -> PerceiverIOPreTrainedModel:
    """The model of `state`, of the class that its names say.

    `theirs`: the `config.json` beside it, by transformers' names, for what no shape tells; `fields` of
    `PerceiverIOConfig` come before both. Raises `UsageError` for a field that is needed, or a weight that does not fit.
    """
    plain = {name.removeprefix("perceiver."): weight for name, weight in state.items()}
    if not recognises(plain):
        raise UsageError("weights: of no Perceiver IO that is known here, give one in transformers' layout")
    lucidrains = _LUCIDRAINS in plain
    told = _lucidrains_shapes(plain) if lucidrains else _shapes(plain)
    told |= _config_fields(theirs or {}, told["kind"]) | fields
    untold = ("num_attention_heads", "num_cross_attention_heads", *([] if lucidrains else ["num_blocks"]))
    require(told, untold, PerceiverIOConfig())
    if lucidrains:
        told.setdefault("num_decoder_heads", told["num_cross_attention_heads"])
        layers = told["self_attentions_per_block"]
        alone = {n: w for n, w in plain.items() if not n.startswith("layers.") or int(n.split(".")[1]) < layers}
        plain = _split_keys_values(alone)
    model = MODELS[told["kind"]](PerceiverIOConfig(**told))
    found = renamed(plain, _LUCIDRAINS_RULES if lucidrains else _RULES)
    if told["kind"] == "array":
        found = {name.removeprefix("perceiver."): weight for name, weight in found.items()}
    return load(model, found)


# --- transformers' layout ---------------------------------------------------------------------------------------------


def _kind(names: Collection[str]) -> dict[str, Any]:
    """What it is for, by the names of its weights, and what the published models of this kind have in common."""
    image = {"kind": "image", "decoder_residual": True}
    for name, kind in (
        ("input_preprocessor.padding.audio", {"kind": "multimodal"}),
        ("input_preprocessor.conv_after_patches.weight", {"kind": "flow"}),
        ("embedding_decoder.bias", {"kind": "language"}),
        ("input_preprocessor.embeddings.weight", {"kind": "text", "decoder_residual": True}),
        ("input_preprocessor.convnet_1x1.weight", image | {"image_positions": "learned"}),
        ("input_preprocessor.convnet.conv.weight", image | {"image_positions": "conv", "max_resolution": [56, 56]}),
        ("decoder.decoder.final_layer.weight", image | {"max_resolution": [224, 224]}),
    ):
        if name in names:
            return kind
    raise UsageError("weights: a Perceiver IO without a decoder that is known here, give one of the published kinds")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the weights of transformers' layout tell of the configuration."""
    told = _kind(state)
    inner = "decoder." if told["kind"] == "language" else "decoder.decoder."
    for name in (
        "embeddings.latents",
        f"{inner}{_DECODED}layernorm1.weight",
        "encoder.self_attends.0.mlp.dense1.weight",
    ):
        if name not in state:
            raise UsageError(f"weight {name}: missing, give a whole checkpoint")
    latents, width = state["embeddings.latents"].shape
    inputs = len(state[f"{_READ}layernorm2.weight"])
    queries = len(state[f"{inner}{_DECODED}layernorm1.weight"])
    told |= {
        "num_latents": latents,
        "hidden_size": width,
        "self_attentions_per_block": count(state, r"encoder\.self_attends\.(\d+)\."),
        "qk_size": len(state["encoder.self_attends.0.attention.self.query.weight"]),
        "v_size": len(state["encoder.self_attends.0.attention.self.value.weight"]),
        "cross_qk_size": len(state[f"{_READ}query.weight"]),
        "cross_v_size": len(state[f"{_READ}value.weight"]),
        "intermediate_ratio": len(state["encoder.self_attends.0.mlp.dense1.weight"]) // width,
        "cross_intermediate_ratio": len(state["encoder.cross_attention.mlp.dense1.weight"]) // width,
        "query_size": queries,
        "decoder_qk_size": len(state[f"{inner}{_DECODED}query.weight"]),
        "decoder_v_size": len(state[f"{inner}{_DECODED}value.weight"]),
    }
    kind, before = told["kind"], "input_preprocessor."
    if f"{inner}final_layer.weight" in state:
        told["output_size"] = len(state[f"{inner}final_layer.weight"])
    if kind in ("text", "image"):
        told["num_labels"] = told["output_size"]
    if kind in ("language", "text"):
        words, places = state[f"{before}embeddings.weight"], state[f"{before}position_embeddings.weight"]
        told |= {"vocab_size": len(words), "embedding_size": inputs, "max_position_embeddings": len(places)}
    elif kind == "flow":
        projection = state[f"{before}conv_after_patches.weight"]
        told |= {"num_channels": projection.shape[1] // 2, "pixel_channels": len(projection)}
        told |= {"num_bands": (inputs - len(projection) - 2) // 4}
    elif kind == "multimodal":
        told |= _multimodal_shapes(state, inputs, queries)
    elif told.get("image_positions") == "learned":
        places = state[f"{before}position_embeddings.position_embeddings"]
        told |= {"pixel_channels": places.shape[1], "image_size": [isqrt(len(places))] * 2}
        told |= {"num_channels": state[f"{before}convnet_1x1.weight"].shape[1]}
    elif told.get("image_positions") == "conv":
        pixels, channels = state[f"{before}convnet.conv.weight"].shape[:2]
        told |= {"pixel_channels": pixels, "num_channels": channels, "num_bands": (inputs - pixels - 2) // 4}
    else:
        told |= {"num_bands": (inputs - 3 - 2) // 4}
    return told


def _multimodal_shapes(state: Mapping[str, Tensor], inputs: int, queries: int) -> dict[str, Any]:
    heads = {
        name: len(state[f"output_postprocessor.modalities.{name}.classifier.weight"]) for name in ("audio", "label")
    }
    audio, image = (inputs - state[f"input_preprocessor.padding.{name}"].shape[1] for name in ("audio", "image"))
    positions = queries - state["decoder.padding.image"].shape[1]
    return {
        "samples_per_patch": heads["audio"],
        "num_labels": heads["label"],
        "audio_bands": (audio - heads["audio"] - 1) // 2,
        "num_bands": (positions // 3 - 1) // 2,
        "video_patch_size": isqrt((image - positions) // 3),
        "label_query_size": queries - state["decoder.padding.label"].shape[1],
    }


def _config_fields(theirs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What transformers' configuration tells beyond the shapes, by our names."""
    same = {"num_blocks": "num_blocks", "num_self_attention_heads": "num_attention_heads"}
    same |= {"num_cross_attention_heads": "num_cross_attention_heads", "use_query_residual": "query_residual"}
    same |= {"id2label": "id2label", "label2id": "label2id", "num_frames": "num_frames"}
    found = {ours: theirs[name] for name, ours in same.items() if theirs.get(name) is not None}
    if kind == "flow" and "train_size" in theirs:
        found["image_size"] = list(theirs["train_size"])
    elif kind in ("image", "multimodal") and "image_size" in theirs:
        size = theirs["image_size"]
        found["image_size"] = [size] * 2 if isinstance(size, int) else list(size)
    if kind == "multimodal" and "audio_samples_per_frame" in theirs:
        found["audio_samples"] = theirs.get("num_frames", 16) * theirs["audio_samples_per_frame"]
    return found


def _layer(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Names of a layer of transformers' class, of patterns and replacements of where it stands."""
    inside = {
        r"attention\.self\.layernorm1": "norm1",
        r"attention\.self\.layernorm2": "input_norm",
        r"attention\.self\.query": "attention.q_proj",
        r"attention\.self\.key": "attention.k_proj",
        r"attention\.self\.value": "attention.v_proj",
        r"attention\.output\.dense": "attention.out_proj",
        r"layernorm": "norm2",
        r"mlp\.dense1": "mlp.fc1",
        r"mlp\.dense2": "mlp.fc2",
    }
    return [(rf"{theirs}\.{name}\.(?P<kind>\w+)", rf"{ours}.{own}.\g<kind>") for name, own in inside.items()]


_RULES: Rules = [
    (r"embeddings\.latents", "perceiver.encoder.latents"),
    *_layer(r"encoder\.cross_attention", "perceiver.encoder.blocks.0.cross_attention"),
    *_layer(r"encoder\.self_attends\.(?P<number>\d+)", r"perceiver.encoder.blocks.0.self_attentions.\g<number>"),
    *_layer(r"decoder(?:\.decoder)?\.decoding_cross_attention", "perceiver.decoder.block"),
    (r"decoder(?:\.decoder)?\.final_layer\.(\w+)", r"perceiver.output.\1"),
    (r"decoder(?:\.decoder)?\.output_position_encodings\.position_embeddings", "perceiver.decoder.queries"),
    (r"embedding_decoder\.bias", "bias"),
    (r"input_preprocessor\.embeddings\.weight", "embeddings.word_embeddings.weight"),
    (r"input_preprocessor\.position_embeddings\.weight", "embeddings.position_embeddings.weight"),
    (r"input_preprocessor\.position_embeddings\.position_embeddings", "embeddings.position_embeddings"),
    (r"input_preprocessor\.positions_projection\.(\w+)", r"embeddings.position_projection.\1"),
    (r"input_preprocessor\.convnet_1x1\.(\w+)", r"embeddings.convolution.\1"),
    (r"input_preprocessor\.convnet\.conv\.(\w+)", r"embeddings.convolution.\1"),
    (r"input_preprocessor\.convnet\.batchnorm\.(\w+)", r"embeddings.batch_norm.\1"),
    (r"input_preprocessor\.conv_after_patches\.(\w+)", r"embeddings.projection.\1"),
    (r"input_preprocessor\.(padding|mask)\.(\w+)", r"embeddings.\1.\2"),
    (r"decoder\.padding\.(\w+)", r"queries.padding.\1"),
    (r"decoder\.modalities\.label\.decoder\.output_position_encodings\.position_embeddings", "queries.label"),
    (r"output_postprocessor\.modalities\.(\w+)\.classifier\.(\w+)", r"heads.\1.\2"),
]


# --- lucidrains -------------------------------------------------------------------------------------------------------


def _lucidrains_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    depth, (latents, width) = count(state, r"layers\.(\d+)\."), state["latents"].shape
    first = [name for name in state if name.startswith("layers.0.")]
    later = [[state[name.replace("layers.0", f"layers.{layer}", 1)] for name in first] for layer in range(1, depth)]
    tied = bool(later) and all(torch.equal(a, state[name]) for one in later for a, name in zip(one, first, strict=True))
    own, cross, asked = (
        len(state[f"{name}.fn.to_q.weight"]) for name in ("layers.0.0", "cross_attend_blocks.0", "decoder_cross_attn")
    )
    return {
        "kind": "array",
        "num_channels": state[_LUCIDRAINS].shape[1],
        "num_latents": latents,
        "hidden_size": width,
        "num_blocks": depth if tied else 1,
        "self_attentions_per_block": 1 if tied else depth,
        "qk_size": own,
        "cross_qk_size": cross,
        "decoder_qk_size": asked,
        "intermediate_ratio": 4,
        "cross_intermediate_ratio": 4,
        "decoder_intermediate_ratio": 4 if "decoder_ff.norm.weight" in state else 0,
        "query_size": state["decoder_cross_attn.fn.to_q.weight"].shape[1],
        "output_size": len(state["to_logits.weight"]) if "to_logits.weight" in state else 0,
        "gated_mlp": True,
        "attention_bias": False,
    }


def _lucidrains_layer(attention: str, mlp: str, ours: str) -> list[tuple[str, str]]:
    attention_names = {"norm": "norm1", "norm_context": "input_norm", r"fn\.to_out": "attention.out_proj"}
    attention_names |= {rf"fn\.to_{name}": f"attention.{name}_proj" for name in "qkv"}
    mlp_names = {"norm": "norm2", r"fn\.net\.0": "mlp.fc1", r"fn\.net\.2": "mlp.fc2"}
    return [
        (rf"{place}\.{name}\.(?P<kind>\w+)", rf"{ours}.{own}.\g<kind>")
        for place, names in ((attention, attention_names), (mlp, mlp_names))
        for name, own in names.items()
    ]


_LUCIDRAINS_RULES: Rules = [
    ("latents", "perceiver.encoder.latents"),
    *_lucidrains_layer(
        r"cross_attend_blocks\.0", r"cross_attend_blocks\.1", "perceiver.encoder.blocks.0.cross_attention"
    ),
    *_lucidrains_layer(
        r"layers\.(?P<number>\d+)\.0",
        r"layers\.(?P<number>\d+)\.1",
        r"perceiver.encoder.blocks.0.self_attentions.\g<number>",
    ),
    *_lucidrains_layer("decoder_cross_attn", "decoder_ff", "perceiver.decoder.block"),
    (r"to_logits\.(\w+)", r"perceiver.output.\1"),
]


def _split_keys_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values, which are rows of one weight, apart."""
    split = {name: tensor for name, tensor in state.items() if ".to_kv." not in name}
    for name in state.keys() - split.keys():
        split[name.replace("to_kv", "to_k")], split[name.replace("to_kv", "to_v")] = state[name].chunk(2)
    return split
