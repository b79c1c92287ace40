"""The authors' checkpoint → our models: what their tensors are called, and what their shapes say of the configuration.

Source: the layout of `github.com/zinengtang/Perceiver_VL` at commit 6737f61. Shapes: N latents, D width.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.modeling import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.pretraining import PerceiverVLForPreTraining
from perceiver_vl.models.perceiver_vl.question_answering import (
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
)
from perceiver_vl.models.perceiver_vl.retrieval import PerceiverVLForRetrieval
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError

MODELS: dict[str, type[PerceiverVLPreTrainedModel]] = {
    "pretraining": PerceiverVLForPreTraining,
    "retrieval": PerceiverVLForRetrieval,
    "question-answering": PerceiverVLForQuestionAnswering,
    "image-classification": PerceiverVLForImageClassification,
}
"""What a checkpoint can become, by name."""

WORDS = "text_embeddings.word_embeddings.weight"
LATENTS = "transformer.latents"
"""The checkpoint's word table."""

_ANSWER_HEADS = {"question-answering": "vqa_classifier", "image-classification": "img_classifier"}
_WIDTH_OF_A_HEAD = 64
_LEFT = {
    r"token_type_embeddings\.weight": "the released code never cross_attentions it",
    r"text_embeddings\.position_ids": "a constant",
    r"(matching_score|mlm_score|vqa_classifier|img_classifier)\..*": "a head that this model does not have",
    r"transformer\.(mlm_pos|mlm_type|decoder_block_text|decoder_norm|cls_token_decoder)\b.*": (
        "a decoder, which this model does not have"
    ),
}


@dataclass(frozen=True)
class Conversion:
    """What went where: `loaded` ours ← theirs, `left` theirs → why, `fresh` ours that no tensor was found for."""

    loaded: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)


def released_task(state: dict[str, Tensor]) -> str:
    """The key of `MODELS` that keeps most of a checkpoint's heads."""
    heads = {name.split(".")[0] for name in state}
    for task, head in _ANSWER_HEADS.items():
        if head in heads and not heads & {"matching_score", "mlm_score"}:
            return task
    return "pretraining"


def released_config(state: dict[str, Tensor], task: str, **given: Any) -> PerceiverVLConfig:
    """The configuration that a checkpoint's shapes tell, with the departures of the released code.

    `given`: fields that no shape tells (`num_attention_heads`, by default one for every 64 of the width), or that are
    to be others. Raises `PerceiverVLError` if this is not a checkpoint of Perceiver-VL.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise PerceiverVLError(f"no tensor {name}: not a Perceiver-VL checkpoint of the authors' code")
        return tuple(state[name].shape)

    num_latents, hidden_size = shape(LATENTS)[-2:]
    _, channels, patch_size, _ = shape("transformer.patch_embed.proj.weight")
    grid = math.isqrt(shape("transformer.pos_embed")[1] - 1)
    depth, cross_attentions = _count(state, "transformer.blocks"), _count(state, "transformer.crossatt_blocks_visual")
    if not cross_attentions or depth % cross_attentions:
        raise PerceiverVLError(
            f"{cross_attentions} cross-attentions and {depth} self-attentions: cannot be spread evenly, not a "
            "checkpoint that can be held"
        )
    if hidden_size % _WIDTH_OF_A_HEAD and "num_attention_heads" not in given:
        raise UsageError(
            f"width {hidden_size}: not a multiple of {_WIDTH_OF_A_HEAD}, say how many heads it has with ",
            Setting("num_attention_heads", "N"),
        )
    told: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_attention_heads": hidden_size // _WIDTH_OF_A_HEAD,
        "intermediate_ratio": shape("transformer.blocks.0.mlp.fc1.weight")[0] // hidden_size,
        "num_blocks": cross_attentions,
        "self_attentions_per_block": depth // cross_attentions,
        "num_latents": num_latents,
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
    }
    if WORDS in state:
        told["vocab_size"] = shape(WORDS)[0]
        told["max_text_length"] = shape("text_embeddings.position_embeddings.weight")[0]
        told["type_vocab_size"] = shape("text_embeddings.token_type_embeddings.weight")[0]
    if "transformer.temporal_embed" in state:
        told["max_frames"] = shape("transformer.temporal_embed")[1]
    if task in _ANSWER_HEADS and f"{_ANSWER_HEADS[task]}.4.weight" in state:
        told["num_labels"] = shape(f"{_ANSWER_HEADS[task]}.4.weight")[0]
    return PerceiverVLConfig.as_released(**(told | given))


@torch.no_grad()
def load_released(model: PerceiverVLPreTrainedModel, state: dict[str, Tensor]) -> Conversion:
    """Copy a checkpoint of the authors' code into `model`, and say what was done with every tensor.

    Raises `PerceiverVLError` for a tensor of another shape than its place, or one that should have a place and has
    none.
    """
    own = model.state_dict(keep_vars=True)
    result = Conversion()
    used = set()
    for name, theirs, part in _places(model):
        if name not in own or theirs not in state:
            continue
        value = part(state[theirs])
        if value.shape != own[name].shape:
            raise PerceiverVLError(
                f"{theirs} of shape {tuple(state[theirs].shape)}: does not fit {name} of shape {tuple(own[name].shape)}"
            )
        own[name].copy_(value)
        result.loaded[name] = theirs
        used.add(theirs)
    result.fresh.extend(name for name in own if name not in result.loaded)
    for theirs in state.keys() - used:
        why = next((why for pattern, why in _LEFT.items() if re.fullmatch(pattern, theirs)), None)
        if why is None and theirs.startswith(("transformer.", "text_embeddings.")):
            raise PerceiverVLError(f"{theirs}: has no place in this model, so it would not compute the same")
        result.left[theirs] = why or "not a part of Perceiver-VL"
    return result


def _places(model: PerceiverVLPreTrainedModel) -> list[tuple[str, str, Callable[[Tensor], Tensor]]]:
    """Our tensor, theirs, and the part of theirs that it is."""
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    encoder, vision, text = f"{base}encoder", f"{base}embeddings.vision", f"{base}embeddings.text"
    places: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
        (f"{encoder}.latents", "transformer.latents", lambda t: t.reshape(t.shape[-2:])),
        (f"{vision}.class_token", "transformer.cls_token", lambda t: t[0, 0]),
        (f"{vision}.class_position", "transformer.pos_embed", lambda t: t[0, 0]),
        (f"{vision}.position_embeddings", "transformer.pos_embed", lambda t: t[0, 1:]),
        (f"{vision}.temporal_embeddings", "transformer.temporal_embed", lambda t: t[0]),
        ("vtm_query.query", "transformer.cls_token_decoder", lambda t: t[0, 0]),
        ("vtm_head.classifier.weight", "matching_score.fc.weight", lambda t: t[1:]),  # the first logit is not used
        ("vtm_head.classifier.bias", "matching_score.fc.bias", lambda t: t[1:]),
    ]
    whole = {
        f"{vision}.patch_projection": "transformer.patch_embed.proj",
        f"{text}.word_embeddings": "text_embeddings.word_embeddings",
        f"{text}.position_embeddings": "text_embeddings.position_embeddings",
        f"{text}.segment_embeddings": "text_embeddings.token_type_embeddings",
        f"{text}.norm": "text_embeddings.LayerNorm",
        f"{base}embeddings.norm": "transformer.co_norm",
        f"{encoder}.norm": "transformer.norm",
        "decoder.norm": "transformer.decoder_norm",
        "mlm_queries.position_embeddings": "transformer.mlm_pos",
        "mlm_queries.mask_embeddings": "transformer.mlm_type",
        "vtm_head.dense": "matching_score.pooler.dense",
        "mlm_head.dense": "mlm_score.transform.dense",
        "mlm_head.norm": "mlm_score.transform.LayerNorm",
        "mlm_head.projection": "mlm_score.decoder",
    }
    places.append(("mlm_head.bias", "mlm_score.bias", _all))
    answers = "img_classifier" if isinstance(model, PerceiverVLForImageClassification) else "vqa_classifier"
    for part, number in (("dense", "0.dense"), ("expand", "1"), ("norm", "2"), ("classifier", "4")):
        whole[f"answer_head.{part}"] = f"{answers}.{number}"

    length = model.config.self_attentions_per_block
    for block in range(model.config.num_blocks):
        whole |= _block(f"{encoder}.blocks.{block}.cross_attention", f"transformer.crossatt_blocks_visual.{block}")
        for layer in range(length):
            ours, theirs = (
                f"{encoder}.blocks.{block}.self_attentions.{layer}",
                f"transformer.blocks.{block * length + layer}",
            )
            whole |= _block(ours, theirs)
            for third, projection in enumerate("qkv"):
                for kind in ("weight", "bias"):
                    place = f"{ours}.attention.{projection}_proj.{kind}"
                    places.append((place, f"{theirs}.attn.qkv.{kind}", _third(third)))
    whole |= _block("decoder.block", "transformer.decoder_block_text.0")
    for ours, theirs in whole.items():
        places += [(f"{ours}.{kind}", f"{theirs}.{kind}", _all) for kind in ("weight", "bias")]
    return places


def _block(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.norm1": f"{theirs}.norm1",
        f"{ours}.norm2": f"{theirs}.norm2",
        f"{ours}.attention.q_proj": f"{theirs}.attn.q",
        f"{ours}.attention.k_proj": f"{theirs}.attn.k",
        f"{ours}.attention.v_proj": f"{theirs}.attn.v",
        f"{ours}.attention.out_proj": f"{theirs}.attn.proj",
        f"{ours}.mlp.fc1": f"{theirs}.mlp.fc1",
        f"{ours}.mlp.fc2": f"{theirs}.mlp.fc2",
    }


def _all(tensor: Tensor) -> Tensor:
    return tensor


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{prefix}.")})


def _third(number: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.chunk(3)[number]
