"""A model folder on this machine: what must be in it, and its fingerprint. Imports nothing heavy."""

import hashlib
import json
from pathlib import Path
from typing import Any

from perceiver_vl.utils.errors import UsageError, first_line
from perceiver_vl.utils.files import sha256

MODEL_TYPE = "perceiver_vl"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER = ("tokenizer.json",)


def check_model_folder(model_folder: str | Path) -> Path:
    """The folder, if it holds a Perceiver-VL model with weights and processor; otherwise a `UsageError` in one line."""
    folder = Path(model_folder)
    if not folder.is_dir():
        raise UsageError(f"model {folder}: no such folder, give one that save_pretrained wrote")
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"model {folder}: no config.json in it, give a folder that save_pretrained wrote")
    model_type = model_type_of(config)
    if model_type != MODEL_TYPE:
        raise UsageError(f"{config}: model_type={model_type!r}, need a model of type {MODEL_TYPE!r}")
    weight_files(folder)
    for what, names in (("weights", _WEIGHTS), ("processor", _PROCESSOR), ("tokenizer", _TOKENIZER)):
        if not any((folder / name).is_file() for name in names):
            raise UsageError(f"model {folder}: no {what} in it ({' or '.join(names)}), save the {what} there")
    return folder


def model_type_of(config: Path) -> Any:
    """What kind of model a config.json says that it is of (None: it does not); raises `UsageError` for what is none."""
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{config}: not a configuration ({first_line(error)}), save the model again") from error


def model_fingerprint(model_folder: str | Path) -> str:
    """SHA-256 over what the output for a clip depends on: configuration, weights and frame preparation."""
    folder = check_model_folder(model_folder)
    names = {"config.json", *_PROCESSOR, *weight_files(folder)}
    digest = hashlib.sha256()
    for name in sorted(names):
        if (folder / name).is_file():
            digest.update(f"{name} {sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> set[str]:
    """The files that weights are loaded from, below the folder too; those of an index that lie outside are refused."""
    names, index = {path.name for path in folder.glob("*.safetensors")}, folder / _WEIGHTS[1]
    if not index.is_file():
        return names
    try:
        mapped = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{index}: not an index of weights ({first_line(error)}), save the model again") from error
    for name in mapped:
        if not isinstance(name, str) or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{index}: names {name!r}, outside the folder; put the weights into it")
    return names | mapped


def search_warning(base: str, knows_search: bool) -> str | None:
    """What a user of a model's multi-stream must know, in one line; None: it was trained, or stands on a dual encoder.

    The arguments are fields of its configuration.
    """
    if knows_search:
        return None
    if base == "linear":
        return (
            "its two encoders have never met: search will be no better than chance; train it first, with "
            "perceiver-vl train recipes/encoders.yaml initialise.model=MODEL (docs/start-from-weights.md)"
        )
    return (
        "its multi-stream was never trained: search will be no better than chance; train it, or make a model that "
        "knows the world with perceiver-vl init OUT --dual openai/clip-vit-base-patch32"
    )


def warning_of_folder(model_folder: Path) -> str | None:
    """`search_warning` of the model in a folder, which is whole."""
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    return search_warning(config.get("base", "none"), bool(config.get("knows_search", False)))
