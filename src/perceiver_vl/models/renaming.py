"""Weights of other code under our names: what the conversions of all siblings have in common."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from perceiver_vl.utils.errors import Setting, UsageError

Rules = Sequence[tuple[str, str]]
"""Patterns of whole names, and what they become; the first that fits counts."""

_Model = TypeVar("_Model", bound=PreTrainedModel)


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """`state` with its names rewritten by `rules`; an empty name: it is left out. Raises `UsageError` for a name
    that no rule fits.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, name):
                if ours := match.expand(replacement):
                    found[ours] = tensor
                break
        else:
            raise UsageError(f"weight {name}: not known here, give a checkpoint of a variant that is")
    return found


def load(model: _Model, state: Mapping[str, Tensor]) -> _Model:
    """`model` with `state`, which is named as its own, in its type and in evaluation mode; weights that are shared need
    one name.

    Raises `UsageError` that names a weight that is missing, too many, or of another shape.
    """
    own, complete = model.state_dict(), dict(state)
    groups: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(weight), []).append(name)
    for names in groups.values():
        given = next((complete[name] for name in names if name in complete), None)
        if given is not None:
            complete |= {name: given for name in names if name not in complete}
    check(own, complete)
    model.to(reduce(torch.promote_types, (weight.dtype for weight in complete.values() if weight.is_floating_point())))
    model.load_state_dict(complete)
    return model.eval()


def check(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise `UsageError` for the first weight that is not in both, or not of one shape."""
    for what, names in (("missing", own.keys() - given.keys()), ("too many", given.keys() - own.keys())):
        for name in sorted(names):
            raise UsageError(f"weight {name}: {what}, give a checkpoint of this variant")
    for name, weight in own.items():
        if weight.shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)}, not {tuple(weight.shape)}"
            raise UsageError(f"weight {name}: of shape {shapes}, give a configuration that fits the checkpoint")


def require(told: Collection[str], names: Iterable[str], defaults: PreTrainedConfig) -> None:
    """Raise `UsageError` for the first field of `names` that is not told; `defaults` has a value that it might have."""
    for name in names:
        if name not in told:
            likely = Setting(name, getattr(defaults, name), in_recipe=True)
            raise UsageError(f"{name}: no shape of these weights tells it, say what it is, as in ", likely)


def split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`in_proj_weight` and `in_proj_bias` of torch's `MultiheadAttention` as those of `q_proj`, `k_proj`, `v_proj`."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, fused, kind = name.rpartition("in_proj_")
        if fused:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            found |= {f"{stem}{part}_proj.{kind}": each.contiguous() for part, each in parts}
        else:
            found[name] = tensor
    return found


def count(names: Iterable[str], pattern: str) -> int:
    """How many numbers `pattern`'s first group takes in names that begin with it, from 0 up."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
