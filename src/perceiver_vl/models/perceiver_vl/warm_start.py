"""Warm starts: the blocks and tables of a ViT, a CLIP or a BERT → ours (paper 4.2).

The names of their tensors are those that transformers gives them in memory. Shapes: P patches, L text tokens, D width,
p pixels a side of a patch.
"""

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, BertModel, CLIPTextModel, CLIPVisionModel, ViTModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from perceiver_vl.layers.positions import resize_positions
from perceiver_vl.models.hub import hub_hint, hub_options
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import self_attentions_by_block
from perceiver_vl.models.perceiver_vl.modeling import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.original_checkpoint import Conversion
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError, first_line

_Role = Literal["vision", "text"]
_Remedy = tuple[str | Setting, ...]
_TOWERS = {  # by model_type; the class of one tower also reads it from a whole CLIP
    "vision": {"vit": ViTModel, "clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel},
    "text": {"bert": BertModel, "clip": CLIPTextModel, "clip_text_model": CLIPTextModel},
}
_LEFT = {
    r"pre_layrnorm": "the input norm is shared with text",
    r"visual_projection|text_projection|logit_scale": "retrieval vectors are made from latents",
    r"pooler": "answers are decoded from latents, not pooled from a class token",
    r"cls_token|class_embedding": "frames have no class token here (frame_class_token=False)",
    r"mask_token": "patches are never masked",
    r"token_type_embeddings": "its first row is in the position table, the others are for further segments",
    r"encoder\.layers?\.|final_layer_norm": "words are only embedded: the one encoder reads both modalities",
    r"": "a head of the source's own task",
}


@dataclass(frozen=True)
class _VisionNames:
    """What a family calls the parts of its vision transformer, those of a layer in the order of `_BLOCK`."""

    layers: str
    block: str
    norm: str
    patch_projection: str
    class_token: str
    positions: str


_BLOCK = "norm1 attention.q_proj attention.k_proj attention.v_proj attention.out_proj norm2 mlp.fc1 mlp.fc2"
_VISION_NAMES = {
    "vit": _VisionNames(
        layers="layers",
        block="layernorm_before attention.q_proj attention.k_proj attention.v_proj attention.o_proj "
        "layernorm_after mlp.fc1 mlp.fc2",
        norm="layernorm",
        patch_projection="embeddings.patch_embeddings.projection",
        class_token="embeddings.cls_token",
        positions="embeddings.position_embeddings",
    ),
    "clip": _VisionNames(
        layers="encoder.layers",
        block="layer_norm1 self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj "
        "layer_norm2 mlp.fc1 mlp.fc2",
        norm="post_layernorm",
        patch_projection="embeddings.patch_embedding",
        class_token="embeddings.class_embedding",
        positions="embeddings.position_embedding.weight",
    ),
}


@dataclass(frozen=True)
class _Source:
    """A pretrained tower: `what` it is in messages, its `family` (vit, clip, bert), and the `prefix` of its names."""

    role: _Role
    what: str
    family: str
    prefix: str
    config: Any
    pixels: tuple[list[float], list[float]]  # mean and standard deviation of the pixels that it expects, by channel
    state: dict[str, Tensor]
    lacking: set[str]  # tensors that its checkpoint does not have, or not in the shape that its configuration says
    others: list[str]  # tensors of its checkpoint that are no part of the tower

    def tensor(self, name: str) -> Tensor:
        """Its tensor of that name; raises `PerceiverVLError` if the checkpoint has none that fits."""
        if name not in self.state or name in self.lacking:
            raise PerceiverVLError(f"{self.what}: no weights that fit {name}, get it again or name another")
        return self.state[name]


@dataclass(frozen=True)
class _Place:
    """Our tensor, theirs, and the value that goes from there to here; `change` says what was done to it."""

    ours: str
    theirs: str
    value: Tensor
    change: str = ""


@torch.no_grad()
def initialise_from(
    model: PerceiverVLPreTrainedModel, *, vision: str | Path | None = None, text: str | Path | None = None
) -> Conversion:
    """Start `model` from pretrained weights (paper 4.2), and say what became of every tensor.

    `vision`: a ViT or a CLIP. Its blocks become the self-attentions of the encoder, in order and bit-equal, its last
    norm the encoder's, and its patch projection, class token and patch positions ours. For another grid of patches the
    positions are resized bilinearly, for another patch size the projection by the pseudo-inverse of the bilinear resize
    (FlexiViT: Beyer et al., 2023, section 3.4); where a source's pixels are normalised otherwise than ours, as CLIP's,
    that is folded into the projection; of tubelets it is that of their central frame. `text`: a BERT or a CLIP. Its
    tables of words and positions become ours, and BERT's segments and norm. Latents, cross-attentions, decoder, heads
    and temporal table stay as they are.

    Each source is a local folder or a hub name; nothing of it is run. `left` also tells where it computes otherwise
    than this model does with its weights, under `hidden_act`, `layer_norm_eps` and `text_layer_norm_eps`. Raises
    `UsageError` for a source that is not found, of another kind or of other sizes, and `PerceiverVLError` for one that
    is damaged; the model is then as it was.
    """
    own = model.state_dict(keep_vars=True)
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    plans: list[tuple[_Source, list[_Place]]] = []
    if vision is not None:
        if model.config.patch_stem != "linear":
            raise UsageError(
                f"patch_stem={model.config.patch_stem!r}: no vision source has one, set it to linear or name none"
            )
        source = _load("vision", vision, model.config)
        plans.append((source, list(_vision_places(source, model.config, base))))
    if text is not None:
        source = _load("text", text, model.config)
        plans.append((source, list(_text_places(source, model.config, base))))
    for source, places in plans:
        for place in places:
            if place.value.shape != own[place.ours].shape:
                shapes = f"{tuple(place.value.shape)}, but the model needs {tuple(own[place.ours].shape)}"
                raise PerceiverVLError(f"{source.what}: {place.theirs} has shape {shapes}, name another")

    result = Conversion()
    for source, places in plans:
        for place in places:
            own[place.ours].copy_(place.value)
            result.loaded[place.ours] = f"{source.family}: {source.prefix}{place.theirs}{place.change}"
        result.left.update(_left(source, {place.theirs for place in places}) | _otherwise(source, model.config))
    filled = {id(own[name]) for name in result.loaded}  # a tied table has two names
    result.fresh.extend(name for name in own if id(own[name]) not in filled)
    return result


def _load(role: _Role, name: str | Path, config: PerceiverVLConfig) -> _Source:
    """The tower that `role` needs, of a folder or a hub model, once its sizes are found to fit."""
    what, kinds = f"{role} {name}", _TOWERS[role]
    try:
        with quiet():
            theirs = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_options(name))
    except Exception as error:  # a file can hold anything, and the hub has errors of its own
        raise UsageError(f"{what}: cannot be loaded ({first_line(error)}), {hub_hint(name)}") from error
    kind = theirs.model_type
    if kind not in kinds:
        raise UsageError(f"{what}: model_type={kind!r}, need one of {', '.join(kinds)}")
    if kind == "clip":
        theirs = theirs.vision_config if role == "vision" else theirs.text_config
    for field, value, needed, remedy in _needs(role, theirs, config):
        if value != needed:
            raise UsageError(f"{what}: {field}={value}, but the model needs {needed}, ", *remedy)
    family = kind.split("_")[0]
    try:
        with quiet():
            tower, found = kinds[kind].from_pretrained(
                name,
                **hub_options(name),
                output_loading_info=True,
                dtype=torch.float32,
                weights_only=True,
                ignore_mismatched_sizes=True,  # `_Source.tensor` refuses them, by name
                attn_implementation="eager",  # never a kernel from the hub that a configuration asks for
                **({} if family == "clip" else {"add_pooling_layer": False}),
            )
    except pickle.UnpicklingError as error:
        reason = "damaged, or more than tensors, which is never run"
        raise PerceiverVLError(f"{what}: cannot be loaded ({reason}), save it as safetensors") from error
    except Exception as error:
        raise PerceiverVLError(f"{what}: cannot be loaded ({first_line(error)}), get it again") from error
    lacking = set(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
    others = [name for name in found["unexpected_keys"] if not name.startswith(("vision_model.", "text_model."))]
    prefix = f"{role}_model." if family == "clip" else ""
    pixels = _pixels(name, family) if role == "vision" else ([], [])
    return _Source(role, what, family, prefix, theirs, pixels, tower.state_dict(), lacking, sorted(others))


def _pixels(name: str | Path, family: str) -> tuple[list[float], list[float]]:
    """How a source normalises pixels: as its image processor says, or as its family's is published."""
    mean, std = (
        (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if family == "clip" else (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    )
    try:
        with quiet():
            own, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):  # most folders that training wrote have none
        own = {}
    return list(own.get("image_mean", mean)), list(own.get("image_std", std))


def _needs(role: _Role, theirs: Any, config: PerceiverVLConfig) -> Iterator[tuple[str, int, int, _Remedy]]:
    """What of a source's configuration must have which value: the field, its value, the one needed, and the remedy."""

    def set_to(name: str, value: int, otherwise: str = "") -> _Remedy:
        return "set ", Setting(name, value), otherwise

    other = " or name another"
    width = theirs.hidden_size
    yield "hidden_size", width, config.hidden_size, set_to("hidden_size", width, other)
    if role == "text":
        words, positions = theirs.vocab_size, theirs.max_position_embeddings
        yield (
            "vocab_size",
            words + _added_words(theirs, config),
            config.vocab_size,
            ("use that source's own tokenizer",),
        )
        enough = max(positions, config.max_text_length)
        yield "max_position_embeddings", positions, enough, set_to("max_text_length", positions)
        segments = getattr(theirs, "type_vocab_size", 0)
        if segments and config.type_vocab_size:
            yield "type_vocab_size", segments, config.type_vocab_size, set_to("type_vocab_size", segments, " or 0")
        return
    heads, inner, depth = theirs.num_attention_heads, theirs.intermediate_size, theirs.num_hidden_layers
    yield "num_attention_heads", heads, config.num_attention_heads, set_to("num_attention_heads", heads, other)
    ratio = ("name another",) if inner % width else set_to("intermediate_ratio", inner // width, other)
    yield "intermediate_size", inner, config.intermediate_size, ratio
    self_attentions = config.num_blocks * config.self_attentions_per_block
    remedy = f"set num_blocks and self_attentions_per_block to numbers whose product is {depth}"
    yield "num_hidden_layers", depth, self_attentions, (remedy,)
    yield "num_channels", theirs.num_channels, 3, ("name a source of colour images",)
    yield "num_channels", 3, config.num_channels, set_to("num_channels", 3)


def _added_words(theirs: Any, config: PerceiverVLConfig) -> int:
    """1 for a CLIP, whose tokenizer has no mask token, where ours has been given one (`processing.load_tokenizer`)."""
    return int(theirs.model_type.startswith("clip") and config.vocab_size == theirs.vocab_size + 1)


def _vision_places(source: _Source, config: PerceiverVLConfig, base: str) -> Iterator[_Place]:
    names, vision = _VISION_NAMES[source.family], f"{base}embeddings.vision"
    depths = self_attentions_by_block(config)
    layers = ((block, number) for block, depth in enumerate(depths) for number in range(depth))
    for layer, (block, number) in enumerate(layers):
        for ours, theirs in zip(_BLOCK.split(), names.block.split(), strict=True):
            place = f"{base}encoder.blocks.{block}.self_attentions.{number}.{ours}"
            yield from _weight_and_bias(source, place, f"{names.layers}.{layer}.{theirs}")
    yield from _weight_and_bias(source, f"{base}encoder.norm", names.norm)

    kernel, bias = _weight_and_bias(source, f"{vision}.patch_projection", names.patch_projection)
    patch, new_patch = _pair(source.config.patch_size), _pair(config.patch_size)
    weight, constant = _for_our_pixels(kernel.value, bias.value, *source.pixels)
    change = "" if weight is kernel.value else ", for pixels in [-1, 1]"
    resized, of_tubelets = _resize_kernel(weight, new_patch), ""
    if (tubelet := config.tubelet_size) > 1:
        resized = _of_central_frame(resized, tubelet)
        of_tubelets = f", of the central one of {tubelet} frames"
    yield replace(kernel, value=resized, change=f"{change}{_resized(patch, new_patch)}{of_tubelets}")
    yield replace(bias, value=constant, change=f"{bias.change}{change}")

    positions = source.tensor(names.positions).flatten(0, -2)  # (1+P,D), the class token's first
    if config.frame_class_token:
        yield _Place(f"{vision}.class_token", names.class_token, source.tensor(names.class_token).flatten())
        yield _Place(f"{vision}.class_position", names.positions, positions[0], "[0]")
    (height, width), new_grid = _pair(source.config.image_size), _pair(config.image_size // config.patch_size)
    grid = height // patch[0], width // patch[1]
    table = resize_positions(positions[1:].double(), grid, new_grid)
    yield _Place(f"{vision}.position_embeddings", names.positions, table, f"[1:]{_resized(grid, new_grid)}")


def _text_places(source: _Source, config: PerceiverVLConfig, base: str) -> Iterator[_Place]:
    text, rows, segment = f"{base}embeddings.text", config.max_text_length, "embeddings.token_type_embeddings.weight"
    if source.family == "clip":
        word, position = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    else:
        word, position = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
        yield from _weight_and_bias(source, f"{text}.norm", "embeddings.LayerNorm")
    words, change = source.tensor(word), ""
    if _added_words(source.config, config):
        words, change = torch.cat([words, words.mean(0, keepdim=True)]), " + their mean for the mask token"
    yield _Place(f"{text}.word_embeddings.weight", word, words, change)
    positions, change = source.tensor(position)[:rows].double(), f"[:{rows}]"
    if source.family == "bert" and config.type_vocab_size:
        yield _Place(f"{text}.segment_embeddings.weight", segment, source.tensor(segment))
    elif source.family == "bert":
        # BERT adds the first segment's row to every word of a lone text, wherever it stands: the same sum
        positions, change = positions + source.tensor(segment)[0], f"{change} + {segment}[0]"
    yield _Place(f"{text}.position_embeddings.weight", position, positions, change)


def _weight_and_bias(source: _Source, ours: str, theirs: str) -> tuple[_Place, _Place]:
    """A layer of theirs; a bias that it does not have is zeros here."""
    weight = _Place(f"{ours}.weight", f"{theirs}.weight", source.tensor(f"{theirs}.weight"))
    name = f"{theirs}.bias"
    if name in source.state:
        return weight, _Place(f"{ours}.bias", name, source.tensor(name))
    return weight, _Place(f"{ours}.bias", name, torch.zeros(len(weight.value)), ", not there: zeros")


def _for_our_pixels(kernel: Tensor, bias: Tensor, mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
    """A projection `(D,3,p,p)` of pixels of that mean and deviation → the same one of ours (mean and deviation 0.5)."""
    if (mean, std) == ([0.5] * 3, [0.5] * 3):
        return kernel, bias
    theirs, scale = kernel.double(), torch.tensor(std, dtype=torch.float64)
    shift = (0.5 - torch.tensor(mean, dtype=torch.float64)) / scale  # where our 0 lies for them
    return theirs * (0.5 / scale)[:, None, None], bias.double() + theirs.sum((2, 3)) @ shift


def _resize_kernel(kernel: Tensor, new_patch: tuple[int, int]) -> Tensor:
    """A patch projection `(D,3,p,p)` for patches of another size: the pseudo-inverse of the resize of a patch.

    It gives for a patch that was enlarged exactly what the old one gave before; for one made smaller, the nearest.
    """
    patch = (kernel.shape[2], kernel.shape[3])
    if patch == new_patch:
        return kernel
    rows, columns = (torch.linalg.pinv(_resize_matrix(*sizes)) for sizes in zip(patch, new_patch, strict=True))
    return rows.T @ kernel.double() @ columns


def _of_central_frame(kernel: Tensor, tubelet: int) -> Tensor:
    """A patch projection `(D,3,p,p)` for tubelets, which begins by seeing their central frame: `(D,tubelet·3,p,p)`
    (ViViT: Arnab et al. 2021, 3.4).
    """
    frames = kernel.new_zeros(len(kernel), tubelet, *kernel.shape[1:])
    frames[:, tubelet // 2] = kernel
    return frames.flatten(1, 2)


def _resize_matrix(old: int, new: int) -> Tensor:
    """The bilinear resize of a line of `old` pixels to `new`, antialiased as that of frames is → `(new,old)`."""
    lines = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(lines, size=(new, old), mode="bilinear", antialias=True)[0, 0]


def _left(source: _Source, used: set[str]) -> dict[str, str]:
    """What of a source has no place here, and why."""
    names = [f"{source.prefix}{name}" for name in source.state if name not in used] + source.others
    return {
        f"{source.family}: {name}": next(why for pattern, why in _LEFT.items() if re.search(pattern, name))
        for name in names
    }


def _otherwise(source: _Source, config: PerceiverVLConfig) -> dict[str, str]:
    """Where a source computes otherwise than the model does with its weights."""
    notes = {}
    if source.role == "vision" and source.config.hidden_act != "gelu":
        notes["hidden_act"] = f"{source.config.hidden_act}: these blocks use the exact GELU"
    eps = "layer_norm_eps" if source.role == "vision" else "text_layer_norm_eps"
    theirs, ours = source.config.layer_norm_eps, getattr(config, eps)
    if theirs != ours and (source.role, source.family) != ("text", "clip"):  # CLIP does not norm its words
        notes[eps] = f"{theirs:g}: this model has {ours:g}"
    return notes


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _resized(old: tuple[int, int], new: tuple[int, int]) -> str:
    return "" if old == new else f", resized from {old[0]}x{old[1]} to {new[0]}x{new[1]}"
