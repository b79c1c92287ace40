"""Checkpoints of the family's other models → folders that `from_pretrained` loads, told by their weights' names."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor
from transformers import PerceiverTokenizer, PreTrainedConfig, PreTrainedModel

from perceiver_vl.models.dynamic_perceiver import DynamicPerceiverConfig
from perceiver_vl.models.dynamic_perceiver import convert as dynamic_perceiver
from perceiver_vl.models.gcog import GCOGConfig
from perceiver_vl.models.gcog import convert as gcog
from perceiver_vl.models.monoxiver import MonoXiverConfig
from perceiver_vl.models.monoxiver import convert as monoxiver
from perceiver_vl.models.perceiver import IterativePerceiverConfig
from perceiver_vl.models.perceiver import convert as perceiver
from perceiver_vl.models.perceiver_ar import PerceiverARConfig
from perceiver_vl.models.perceiver_ar import convert as perceiver_ar
from perceiver_vl.models.perceiver_io import PerceiverIOConfig
from perceiver_vl.models.perceiver_io import convert as perceiver_io
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig
from perceiver_vl.models.perceiver_tf import convert as perceiver_tf
from perceiver_vl.models.perceiver_vl.convert import fetch, read_checkpoint, save_whole
from perceiver_vl.models.s2t_perceiver import S2TPerceiverConfig
from perceiver_vl.models.s2t_perceiver import convert as s2t_perceiver
from perceiver_vl.models.uni_perceiver import UniPerceiverConfig
from perceiver_vl.models.uni_perceiver import convert as uni_perceiver
from perceiver_vl.utils.console import ProgressBars, quiet
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.utils.text import did_you_mean


@dataclass(frozen=True)
class _Sibling:
    """What people call it; whose weights these names are; weights, the configuration beside them if it `reads_config`,
    and fields → model.
    """

    name: str
    config: type[PreTrainedConfig]
    recognises: Callable[[Collection[str]], bool]
    converted: Callable[..., PreTrainedModel]
    reads_config: bool = False


def _sibling(name: str, config: type[PreTrainedConfig], convert: ModuleType, reads_config: bool = False) -> _Sibling:
    return _Sibling(name, config, convert.recognises, convert.converted, reads_config)


_SIBLINGS = {
    "perceiver_io": _sibling("Perceiver IO", PerceiverIOConfig, perceiver_io, reads_config=True),
    "perceiver": _sibling("Perceiver", IterativePerceiverConfig, perceiver),
    "monoxiver": _sibling("MonoXiver", MonoXiverConfig, monoxiver),
    "dynamic_perceiver": _sibling("Dynamic Perceiver", DynamicPerceiverConfig, dynamic_perceiver),
    "s2t_perceiver": _sibling("S2T Perceiver", S2TPerceiverConfig, s2t_perceiver),
    "uni_perceiver": _sibling("Uni-Perceiver", UniPerceiverConfig, uni_perceiver),
    "perceiver_tf": _sibling("Perceiver TF", PerceiverTFConfig, perceiver_tf),
    "gcog": _sibling("gCOG model", GCOGConfig, gcog),
    "perceiver_ar": _Sibling(  # the last, as it is told by the least
        "Perceiver AR",
        PerceiverARConfig,
        lambda names: perceiver_ar.variant_of(dict.fromkeys(names)) is not None,  # type: ignore[arg-type]
        lambda state, **fields: perceiver_ar.convert_weights(dict(state), **fields),
    ),
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ConvertedSibling:
    """The model that was written to `folder`."""

    folder: Path
    model: str
    parameters: int


def sibling_of(names: Collection[str]) -> str | None:
    """Whose weights have these names, by the name of its folder in `models`; None: of none of them."""
    return next((folder for folder, sibling in _SIBLINGS.items() if sibling.recognises(names)), None)


def read_source(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and the `config.json` beside them, `{}` where there is none, of a file, a folder, or the hub:
    `hf://owner/name`, or a file of it. Raises `UsageError` or `PerceiverVLError`.
    """
    weights = _weights(source)
    config = weights.with_name("config.json")
    if source.startswith("hf://") and _is_repository(source):
        config = fetch(f"{source.rstrip('/')}/config.json")
    if not config.is_file():
        return read_checkpoint(weights), {}
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{config}: not a configuration ({first_line(error)}), get it again") from error
    if not isinstance(told, dict):
        raise UsageError(f"{config}: not a configuration, get it again")
    return read_checkpoint(weights), told


def _weights(source: str) -> Path:
    if source.startswith("hf://") and _is_repository(source):
        missing = PerceiverVLError()
        for name in _WEIGHTS:
            try:
                return fetch(f"{source.rstrip('/')}/{name}")
            except PerceiverVLError as error:
                missing = error
        raise missing
    folder = Path(source)
    if folder.is_dir():
        found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
        if found is None:
            raise UsageError(f"{source}: neither {' nor '.join(_WEIGHTS)} in it, give a folder with weights")
        return found
    return fetch(source)


def _is_repository(source: str) -> bool:
    return source.removeprefix("hf://").rstrip("/").count("/") == 1


def convert_sibling(
    source: str,
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    progress: bool = False,
    **given: Any,
) -> ConvertedSibling:
    """Write `state`, the weights of `source`, as a folder of ours; `given` fields of its configuration come before what
    shapes and `config`, the one beside the weights, tell. Models of bytes come with their tokenizer.

    Raises `UsageError` for weights that are known here of no model, or do not fit; nothing is written then.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty, name a new folder")
    with quiet(), ProgressBars(progress) as bar:
        advance = bar.stage("converting", total=2)
        try:
            model = _converted(state, config, given)
        except PerceiverVLError as error:
            error.args = (f"{source}: ", *error.args)
            raise
        advance(note="writing")
        most = getattr(model.config, "max_position_embeddings", 0)
        is_of_bytes = getattr(model.config, "kind", "") in ("language", "text")
        save_whole(model, PerceiverTokenizer(model_max_length=most) if is_of_bytes else None, folder)
        advance()
    return ConvertedSibling(folder, type(model).__name__, model.num_parameters())


def _converted(state: Mapping[str, Tensor], config: Mapping[str, Any], given: Mapping[str, Any]) -> PreTrainedModel:
    folder = sibling_of(state)
    if folder is None:
        *names, last = (sibling.name for sibling in _SIBLINGS.values())
        raise UsageError(f"weights of no {', '.join(names)} or {last} that is known here, name others")
    sibling = _SIBLINGS[folder]
    known = [field.name for field in fields(sibling.config)]
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{name}={value!r}: unknown, {did_you_mean(name, known, 'see the fields of its class')}")
    try:
        return sibling.converted(state, *([config] if sibling.reads_config else []), **given)
    except StrictDataclassFieldValidationError as error:
        raise UsageError(f"configuration: {' '.join(str(error).split())}; give another value") from error
    except PerceiverVLError:
        raise
    except (LookupError, StopIteration, ArithmeticError, ValueError, RuntimeError) as error:
        # Shapes are read of weights by their names, before it is known that all are there
        lacks = (
            f"weight {error.args[0]}: missing" if isinstance(error, KeyError) else "weights: some missing, or damaged"
        )
        raise UsageError(f"{lacks}, give a whole checkpoint of {sibling.name}") from error
