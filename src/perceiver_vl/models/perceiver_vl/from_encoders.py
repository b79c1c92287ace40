"""A Perceiver-VL over pretrained encoders, usable at once: what `perceiver-vl init` writes.

A source is a hub name, a folder of transformers, or a folder with an ONNX file and its `encoder.json`.
"""

import hashlib
import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForTextEncoding, PreTrainedModel

from perceiver_vl.models.hub import hub_hint, hub_options
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.convert import save_whole
from perceiver_vl.models.perceiver_vl.encoders import token_side, vision_width
from perceiver_vl.models.perceiver_vl.onnx_encoder import (
    MAX_GRAPH_BYTES,
    OnnxVisionConfig,
    OnnxVisionModel,
    count_flops,
)
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.retrieval import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.tokenizer import load_tokenizer
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.utils.files import user_cache

Source = str | Path
SMALL: dict[str, Any] = {
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_blocks": 2,
    "self_attentions_per_block": 1,
    "num_latents": 16,
    "layer_drop": 0.0,
    "hidden_dropout_prob": 0.1,
}
"""What stands on the encoders unless said otherwise: they have seen the world, so little is left to learn."""
ANCHORS = 2048
QUERIES = 2048
NUM_FRAMES = 8
MAX_TEXT_LENGTH = 77
_OPEN = re.compile(r"apache|mit|bsd|cc0|cc-by-\d|cc-by-sa|unlicense|isc|mpl", re.IGNORECASE)
_SPEC = "encoder.json"


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder as it was loaded. `pixels`: size, mean and standard deviation that it takes, of vision."""

    source: str
    model: PreTrainedModel
    license: str | None
    pixels: dict[str, Any] | None = None


@dataclass(frozen=True)
class Initialised:
    """The model that was written to `folder`; `licenses` of its encoders, None where none is stated."""

    folder: Path
    config: PerceiverVLConfig
    parameters: int
    licenses: dict[str, str | None]

    def warnings(self) -> list[str]:
        """What a user of the encoders should know of their licences."""
        return [
            f"{source}: its licence is not stated here, look it up before you share what you make with it"
            if name is None
            else f"{source}: licence {name}, which is not an open one: read it before you use the model"
            for source, name in self.licenses.items()
            if name is None or not _OPEN.match(name)
        ]


def initialise(
    folder: str | Path,
    *,
    vision: Source | None = None,
    text: Source | None = None,
    dual: Source | None = None,
    num_frames: int = NUM_FRAMES,
    write_card: Callable[[Path], object] | None = None,
    **config: Any,
) -> Initialised:
    """Write a Perceiver-VL over the encoders `vision` and `text`, or over both towers of `dual`, into a new folder.

    Of a dual encoder (CLIP, SigLIP) the model's multi-stream is that of the dual encoder, frames averaged, until it is
    trained. `config`: fields of `PerceiverVLConfig`, over those of `SMALL`.
    Raises `UsageError` for a source of another kind than its place, without a processor, or that cannot be found;
    `folder` is written whole or not at all.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty, name a new folder")
    given = [name for name, source in {"vision": vision, "text": text, "dual": dual}.items() if source is not None]
    if given not in (["vision", "text"], ["dual"]):
        raise UsageError("encoders: give a vision and a text source, or a dual one (--vision and --text, or --dual)")
    with quiet():
        if dual is not None:
            model, processor, licenses = _over_dual(str(dual), num_frames, config)
        else:
            model, processor, licenses = _over_two(str(vision), str(text), num_frames, config)
        save_whole(model, processor, folder, write_card)
    return Initialised(folder, model.config, model.num_parameters(), licenses)


def resolve_model(model: Source, say: Callable[[str], object] = lambda _: None) -> Path:
    """The folder of a Perceiver-VL: `model` itself; or of a dual encoder, a hub name or a folder, one that stands on
    it, made in the user's cache when it is first asked for, which `say` is told.

    Raises `UsageError` for what is neither.
    """
    folder = Path(model)
    config = folder / "config.json"
    if folder.exists() and not config.is_file():
        return folder  # what it lacks is said where it is loaded
    if config.is_file():
        try:
            kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError, RecursionError):
            return folder
        if kind == PerceiverVLConfig.model_type or not _is_dual(kind):
            return folder
    elif str(model).count("/") != 1 or folder.is_absolute() or folder.parent.exists():
        return folder
    name = str(model)
    if folder.exists():  # another one of the same name is not this
        stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
        name = f"{folder.resolve()} {[(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()]}"
    made = user_cache("models") / f"{folder.name}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    if not made.exists():
        result = initialise(made, dual=model)
        for warning in result.warnings():
            say(warning)
        say(f"{model}: a dual encoder; a Perceiver-VL that stands on it is now in {made}")
    return made


def _is_dual(kind: str | None) -> bool:
    """Whether a model_type has a configuration of both towers."""
    try:
        towers = AutoConfig.for_model(kind).sub_configs
    except ValueError:
        return False
    return {"vision_config", "text_config"} <= set(towers)


def _over_two(vision: str, text: str, num_frames: int, config: dict[str, Any]) -> Any:
    seeing, reading = load_vision_encoder(vision), load_text_encoder(text)
    tokenizer = load_tokenizer(text)
    width = reading.model.config.hidden_size
    model, processor = _assemble(
        seeing,
        reading.model,
        tokenizer,
        num_frames,
        {"base": "linear", "base_anchors": ANCHORS, "base_queries": QUERIES, "projection_dim": width} | config,
    )
    return model, processor, {vision: seeing.license, text: reading.license}


def _over_dual(source: str, num_frames: int, config: dict[str, Any]) -> Any:
    """Both towers, with projections, scale and bias of their own; held against what the dual encoder itself gives."""
    whole = _load(source, AutoModel)
    towers: list[Any] = [getattr(whole, name, None) for name in ("vision_model", "text_model")]
    if not all(isinstance(tower, PreTrainedModel) for tower in towers):
        raise UsageError(
            f"{source}: model_type={whole.config.model_type!r}, not a dual encoder in the form of CLIP or SigLIP; "
            "name an encoder each with --vision and --text"
        )
    seeing = Encoder(source, towers[0], _license_of(source), _pixels_of(source))
    projections: list[Any] = [getattr(whole, name, None) for name in ("visual_projection", "text_projection")]
    of_base: dict[str, Any] = {
        "base": "dual",
        "encoder_projections": projections[0] is not None,
        "logit_bias": getattr(whole, "logit_bias", None) is not None,
        "knows_search": True,
    }
    tower = towers[0].config
    of_base["projection_dim"] = projections[0].out_features if projections[0] is not None else vision_width(tower)
    model, processor = _assemble(seeing, towers[1], load_tokenizer(source), num_frames, of_base | config)
    base: Any = model.perceiver_vl
    for encoder, projection in zip((base.vision_encoder, base.text_encoder), projections, strict=True):
        if projection is not None:
            encoder.projection.load_state_dict(projection.state_dict())
    with torch.no_grad():
        model.contrastive.logit_scale.copy_(whole.logit_scale.squeeze())
        if model.contrastive.logit_bias is not None:
            model.contrastive.logit_bias.copy_(whole.logit_bias.squeeze())
    _check_same(source, whole, model)
    return model, processor, {source: seeing.license}


def _assemble(
    seeing: Encoder, reading: PreTrainedModel, tokenizer: Any, num_frames: int, config: dict[str, Any]
) -> tuple[PerceiverVLForRetrieval, PerceiverVLProcessor]:
    """A model whose latents are new, over these encoders, and its processor."""
    assert seeing.pixels is not None
    if len(tokenizer) > reading.config.vocab_size:  # a mask token that it did not have
        reading.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    size = seeing.pixels["size"]
    grid, class_token = _probe(seeing, size)
    positions = getattr(reading.config, "max_position_embeddings", MAX_TEXT_LENGTH)
    if reading.config.model_type in _OFFSET_POSITIONS:
        positions -= reading.config.pad_token_id + 1
    longest = min(MAX_TEXT_LENGTH, positions, tokenizer.model_max_length)
    found = {
        "vision_config": deepcopy(seeing.model.config),
        "text_config": deepcopy(reading.config),
        "token_grid": grid,
        "frame_class_token": class_token,
        "image_size": size,
        "patch_size": 1,
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_text_length": longest,
    }
    of_model = PerceiverVLConfig(**(SMALL | found | config))
    if not 1 <= num_frames <= of_model.max_frames:
        raise UsageError(f"num_frames={num_frames}: need 1 to max_frames={of_model.max_frames}")
    if of_model.token_grid is not None and of_model.token_grid > grid:
        raise UsageError(
            f"token_grid={of_model.token_grid}: {seeing.source} gives {grid} rows of tokens, set at most that"
        )
    torch.manual_seed(0)
    model = PerceiverVLForRetrieval(of_model)
    base: Any = model.perceiver_vl
    base.vision_encoder.model = seeing.model.requires_grad_(False)
    base.text_encoder.model = reading.requires_grad_(False)
    tokenizer.model_max_length = of_model.max_text_length
    images = PerceiverVLImageProcessor(
        size={"height": size, "width": size},
        image_mean=seeing.pixels["mean"],
        image_std=seeing.pixels["std"],
        num_frames=num_frames,
    )
    return model.eval(), PerceiverVLProcessor(images, tokenizer)


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # which count positions from behind the padding


@torch.no_grad()
def _probe(seeing: Encoder, size: int) -> tuple[int, bool]:
    """Rows of the token grid of a frame, and whether there is a class token: by looking at one."""
    try:
        hidden = seeing.model.eval()(pixel_values=torch.zeros(1, 3, size, size)).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"vision={seeing.source}: does not take one frame of {size}x{size} pixels ({first_line(error)}), name "
            "another vision model"
        ) from error
    if hidden.ndim == 4:
        return min(hidden.shape[-2:]), False
    side = token_side(seeing.model.config, hidden.shape[1], size)
    return side, hidden.shape[1] > side**2


@torch.no_grad()
def _check_same(source: str, whole: Any, model: PerceiverVLForRetrieval) -> None:
    """Refuse a dual encoder whose embeddings are made in another way than CLIP's and SigLIP's."""
    config = model.config
    pixels = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    length = getattr(whole.config.text_config, "max_position_embeddings", MAX_TEXT_LENGTH)
    words = torch.full((1, length), config.pad_token_id or 0)
    last = min(whole.config.text_config.eos_token_id or 7, whole.config.text_config.vocab_size - 1)
    words[0, :3] = torch.tensor([5, 6, last])
    mask = (torch.arange(length) < 3).long()[None]
    siglip = "siglip" in config.text_config.model_type
    theirs_text = whole.get_text_features(input_ids=words, attention_mask=None if siglip else mask)
    theirs = [whole.get_image_features(pixel_values=pixels), theirs_text]
    kept = min(length, config.max_text_length)
    ours = [
        model.get_vision_features(pixels[:, None]),
        model.get_text_features(words[:, :kept], mask[:, :kept]),
    ]
    for side, one, own in zip(("picture", "text"), theirs, ours, strict=True):
        vector = nn.functional.normalize(getattr(one, "pooler_output", one), dim=-1)
        if vector.shape != own.shape or not torch.allclose(vector, own, atol=1e-4):
            raise UsageError(
                f"{source}: model_type={whole.config.model_type!r}, its vector of a {side} is not made as CLIP's or "
                "SigLIP's; name an encoder each with --vision and --text"
            )


def load_vision_encoder(source: Source) -> Encoder:
    """A vision model of transformers, the vision tower of a dual encoder, or an ONNX file with its `encoder.json`."""
    if (Path(source) / _SPEC).is_file():
        return _load_onnx(Path(source))
    model = _load(str(source), AutoModel)
    model = getattr(model, "vision_model", model) if hasattr(model.config, "vision_config") else model
    if model.main_input_name != "pixel_values":
        raise UsageError(
            f"vision={source}: model_type={model.config.model_type!r} takes no pictures, name a vision model"
        )
    return Encoder(str(source), model, _license_of(source), _pixels_of(str(source)))


def load_text_encoder(source: Source) -> Encoder:
    """A text model of transformers, or the text tower of a dual encoder."""
    model = _load(str(source), AutoModel)
    model = getattr(model, "text_model", model) if hasattr(model.config, "text_config") else model
    if model.main_input_name != "input_ids" or not hasattr(model.config, "hidden_size"):
        raise UsageError(f"text={source}: model_type={model.config.model_type!r} takes no text, name a text model")
    return Encoder(str(source), model, _license_of(source))


def _load(source: str, kind: Any) -> PreTrainedModel:
    options = {"trust_remote_code": False, **hub_options(source)}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if getattr(config, "is_encoder_decoder", False):
            kind = AutoModelForTextEncoding
        model: PreTrainedModel = kind.from_pretrained(source, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise UsageError(f"encoder {source}: cannot be loaded ({first_line(error)}), {hub_hint(source)}") from error
    return model.eval()


def _pixels_of(source: str) -> dict[str, Any]:
    """Size, mean and standard deviation of the pictures that an encoder was trained on."""
    try:
        images = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **hub_options(source))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UsageError(
            f"vision={source}: no image processor ({first_line(error)}), save the encoder's preprocessor_config.json "
            "beside its weights"
        ) from error
    size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
    side = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    if not side:
        raise UsageError(f"vision={source}: its image processor says no size ({dict(size)}), set one there")
    return {"size": int(side), "mean": list(images.image_mean), "std": list(images.image_std)}


def _load_onnx(folder: Path) -> Encoder:
    """The ONNX encoder of a folder. Raises `UsageError` where file and `encoder.json` do not fit each other."""
    spec = _read_spec(folder / _SPEC)
    file = folder / spec["file"]
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise UsageError(f"{folder / _SPEC}: file={spec['file']!r}: not a file in this folder, put it there")
    if file.stat().st_size > MAX_GRAPH_BYTES:
        raise UsageError(f"{file}: more than {MAX_GRAPH_BYTES} bytes, name a smaller encoder")
    graph = file.read_bytes()
    config = OnnxVisionConfig(
        graph_bytes=len(graph),
        input_name=spec["input"],
        tokens_name=spec["tokens"],
        embedding_name=spec.get("embedding"),
        embedding_size=spec.get("embedding_width"),
        image_size=spec["image_size"],
        hidden_size=spec["width"],
        grid_size=spec["grid"][0],
        flops=spec.get("flops"),
    )
    model = OnnxVisionModel(config).eval()
    model.graph.copy_(torch.from_numpy(np.frombuffer(graph, np.uint8).copy()))
    try:
        model(torch.zeros(1, 3, config.image_size, config.image_size))
    except PerceiverVLError as error:
        raise type(error)(f"{folder}: {error}") from error
    if config.flops is None:
        config.flops = count_flops(graph, config.input_name, config.image_size)
    mean, std = spec["normalisation"]
    return Encoder(str(folder), model, spec.get("license"), {"size": config.image_size, "mean": mean, "std": std})


def _read_spec(path: Path) -> dict[str, Any]:
    """An `encoder.json`, its normalisation as mean and standard deviation of pixels in 0..1, each of three colours."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}), write it as JSON") from error
    kinds = {"file": str, "input": str, "tokens": str, "image_size": int, "width": int, "grid": list}
    for name, kind in kinds.items():
        if not isinstance(spec, dict) or not isinstance(spec.get(name), kind):
            raise UsageError(
                f"{path}: {name} is missing or not of type {kind.__name__}, see docs/start-from-weights.md"
            )
    if spec["grid"] != [spec["grid"][0]] * 2 or not isinstance(spec["grid"][0], int):
        raise UsageError(f"{path}: grid={spec['grid']}: need as many rows as columns, as in [9, 9]")
    if spec.get("resample", "bicubic") != "bicubic":
        raise UsageError(f"{path}: resample={spec['resample']!r}: frames are resized bicubic, give an encoder of that")
    formula = re.fullmatch(r"\(pixel\s*-\s*([\d.]+)\)\s*/\s*([\d.]+)", str(spec.get("rescale", "")))
    mean, std = spec.get("image_mean"), spec.get("image_std")
    if formula:
        mean, std = ([float(number) / 255] * 3 for number in formula.groups())
    if not (_three_numbers(mean) and _three_numbers(std) and all(std)):
        raise UsageError(
            f'{path}: no normalisation, give "rescale": "(pixel - 127) / 128", or image_mean and image_std'
        )
    return {**spec, "normalisation": (mean, std)}


def _three_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)


def _license_of(source: Source) -> str | None:
    """The licence that a folder's or hub model's card states."""
    from huggingface_hub import ModelCard

    try:
        card = Path(source, "README.md")
        if Path(source).is_dir() and not card.is_file():
            return None
        data = ModelCard.load(card if card.is_file() else str(source), ignore_metadata_errors=True).data
    except Exception:  # the card is not what the model hangs on; the hub has its own errors
        return None
    name = getattr(data, "license", None)
    return str(name) if name else None
