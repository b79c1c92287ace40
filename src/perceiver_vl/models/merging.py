"""Weight averages of models of one configuration that were trained apart: one model, at the cost of one.

Sources: model soups (Wortsman et al. 2022); UnIVAL (Shukor et al. 2023), whose models of several tasks are
interpolated; Aya Vision (Dash et al. 2025). All of them begin with the same weights: averages of others are of no use.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from perceiver_vl.models.folder import check_model_folder
from perceiver_vl.models.perceiver_vl.convert import new_folder
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line

_INDEX = "model.safetensors.index.json"
_COMPARED = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json")
_COPIED = (
    *_COMPARED,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "merges.txt",
    _INDEX,
)
_OF_NO_MODEL = ("transformers_version", "_name_or_path")
_MOST_SHOWN = 60


@dataclass(frozen=True)
class Merged:
    """The model that was written to `folder`, of these models by their shares, which sum to 1. averaged: how many of
    its `tensors` differed among them.
    """

    folder: Path
    shares: dict[str, float]
    tensors: int
    averaged: int


def merge(
    folders: Sequence[str | Path],
    output: str | Path,
    weights: Sequence[float] | None = None,
    *,
    write_card: Callable[[Path], object] | None = None,
    progress: bool = False,
) -> Merged:
    """Write the average of the models in `folders` into the folder `output`, new or empty, whole or not at all.

    `weights`: of each model, 0 or more; None: alike. Sums are taken in float32 or, where that is what a model has, in
    float64; tensors that are the same in all models stay what they are, bit for bit. One tensor of each is in memory at
    a time. `write_card`: writes the model card of the finished folder; None: it has none.
    Raises `UsageError` for models whose configurations, tokenizers or weights are not alike, naming the first
    difference, `PerceiverVLError` for damaged ones.
    """
    shares, output = shares_of(folders, weights), Path(output)
    paths = [check_model_folder(folder) for folder in folders]
    for other in paths[1:]:
        _check_alike(paths[0], other)
    check_free(output)
    with new_folder(output) as beside:
        tensors, averaged = _write_average(paths, [*shares.values()], beside, progress)
        for name in _COPIED:
            if (paths[0] / name).is_file():
                shutil.copyfile(paths[0] / name, beside / name)
        if write_card is not None:
            write_card(beside)
    return Merged(output, shares, tensors, averaged)


def check_free(output: Path) -> None:
    """Raise `UsageError` where a model would be written over something."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "is not empty" if output.is_dir() else "is a file"
        raise UsageError(f"{output}: {what}, name a new folder")


def shares_of(folders: Sequence[str | Path], weights: Sequence[float] | None = None) -> dict[str, float]:
    """The share of each model in an average, by the last part of its name, with a number where several have the same.

    Raises `UsageError` for weights that cannot be.
    """
    if len(folders) < 2:
        raise UsageError("merge: need at least two models")
    weights = [1.0] * len(folders) if weights is None else weights
    said = ",".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(folders):
        raise UsageError(f"weights={said}: need {len(folders)}, one of each model")
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < inf:
        raise UsageError(f"weights={said}: need numbers of 0 or more, not all 0, of a finite sum")
    names = [Path(folder).resolve().name for folder in folders]
    numbered = [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names, 1)]
    return {name: weight / sum(weights) for name, weight in zip(numbered, weights, strict=True)}


def _check_alike(first: Path, other: Path) -> None:
    """Refuse two models that are not of one configuration and tokenizer."""
    for name in _COMPARED:
        one, two = (_settings(folder / name) for folder in (first, other))
        if difference := _difference(one, two):
            raise UsageError(
                f"{other}: {name} differs from that of {first}: {difference}; only models of one configuration and "
                "tokenizer have an average"
            )


def _settings(file: Path) -> Any:
    """What a JSON file says, less what is of no model; None where there is none."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not JSON ({first_line(error)}), save the model again") from error
    if isinstance(found, dict):
        return {key: value for key, value in found.items() if key not in _OF_NO_MODEL}
    return found


def _difference(one: Any, two: Any, where: str = "") -> str | None:
    """The first difference of two plain values, in words; None: there is none."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(key for key in two if key not in one)]:
            place = f"{where}.{key}" if where else key
            if key not in one or key not in two:
                return f"{place} is in {'the latter' if key in one else 'the former'} alone"
            if found := _difference(one[key], two[key], place):
                return found
        return None
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return next((found for at, pair in pairs if (found := _difference(*pair, f"{where}[{at}]"))), None)
    if one == two:
        return None
    return f"{where or 'it'} is {_shown(two)}, not {_shown(one)}"


def _shown(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _write_average(folders: Sequence[Path], shares: Sequence[float], output: Path, progress: bool) -> tuple[int, int]:
    """Write the weight files of the first folder with the averages of all → how many tensors, how many averaged."""
    tensors, averaged = 0, 0
    with ExitStack() as stack:
        opened = [_open_weights(folder, stack) for folder in folders]
        for folder, own in zip(folders[1:], opened[1:], strict=True):
            if other := sorted(own.keys() ^ opened[0].keys()):
                raise UsageError(f"{folder}: {other[0]} is not in both it and {folders[0]}, merge models of one kind")
        bars = stack.enter_context(ProgressBars(progress))
        advance = bars.stage("Merging", len(opened[0]))
        for name in sorted(_files_of(folders[0])):
            with (folders[0] / name).open("rb") as source, (output / name).open("wb") as file:
                # The names, types and places of an average are those of the first: its head is theirs
                length = source.read(8)
                file.write(length + source.read(int.from_bytes(length, "little")))
                with safe_open(folders[0] / name, "pt") as weights:
                    names = weights.offset_keys()
                for tensor in names:
                    values = [own[tensor].get_tensor(tensor) for own in opened]
                    average = _average(tensor, values, shares, folders)
                    file.write(average.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
                    tensors, averaged = tensors + 1, averaged + (average is not values[0])
                    advance()
    return tensors, averaged


def _files_of(folder: Path) -> set[str]:
    """The files that a model's weights are in; others may lie beside them."""
    index = folder / _INDEX
    if not index.is_file():
        return {"model.safetensors"}
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())  # inside: the folder is checked


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Which open file each tensor of a model is in."""
    found: dict[str, Any] = {}
    for name in _files_of(folder):
        try:
            weights = stack.enter_context(safe_open(folder / name, "pt"))
        except (OSError, SafetensorError) as error:
            raise PerceiverVLError(f"{folder / name}: cannot be read ({first_line(error)}), save it again") from error
        found |= dict.fromkeys(weights.keys(), weights)
    return found


def _average(name: str, values: Sequence[Tensor], shares: Sequence[float], folders: Sequence[Path]) -> Tensor:
    """The first of these, itself, where they are all the same."""
    first = values[0]
    for folder, other in zip(folders, values, strict=True):
        if other.shape != first.shape or other.dtype != first.dtype:
            kinds = [f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (other, first)]
            raise UsageError(f"{folder}: {name} is {kinds[0]}, in {folders[0]} {kinds[1]}, merge models of one kind")
    if all(torch.equal(first, other) for other in values[1:]):
        return first
    if not first.is_floating_point():
        raise UsageError(f"{name}: of {first.dtype}, which has no average, and is not the same in all models")
    exact = torch.promote_types(first.dtype, torch.float32)
    total = torch.zeros_like(first, dtype=exact)
    for folder, value, share in zip(folders, values, shares, strict=True):
        if share:  # what has no part in it may be anything
            if not value.isfinite().all():
                raise PerceiverVLError(f"{folder}: {name} has values that are no numbers, train it again")
            total.add_(value.to(exact), alpha=share)
    return total.to(first.dtype)
