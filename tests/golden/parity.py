"""Values that reference code computed, of one sibling: the folder `$PARITY_DIR/NAME`, or else `shared/parity/NAME`
beside the project. Its README gives their meaning; sizes are whatever its manifest says.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PARITY_DIR = Path(os.environ.get("PARITY_DIR", Path(__file__).resolve().parents[3] / "shared" / "parity"))
DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 2e-5, "f64": 1e-9}


def each_of(values: Sequence[Any], folder: Path) -> Sequence[Any]:
    """For `parametrize`: skipped where the folder is not there, and only there."""
    if not folder.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no folder {folder}"))]
    assert values, f"{folder}: has nothing to compare with"
    return values


@dataclass(frozen=True)
class Parity:
    """The folder of one sibling."""

    name: str

    @property
    def folder(self) -> Path:
        return PARITY_DIR / self.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def cases(self) -> list[str]:
        """Names of all, none where there is no folder."""
        return sorted(self.manifest["cases"]) if self.folder.exists() else []

    def every_case(self, function: Any) -> Any:
        """Run a test with each; it is skipped where the folder is not there."""
        return pytest.mark.parametrize("case", each_of(self.cases, self.folder))(function)

    def config(self, case: str) -> dict[str, Any]:
        """What the reference's model was built with."""
        return self.manifest["weights"][self.manifest["cases"][case]["weights"]]["config"]

    def weights(self, case: str) -> dict[str, Tensor]:
        return load_file(self.folder / self.manifest["cases"][case]["weights"])

    def tensors(self, case: str, kind: str) -> dict[str, Tensor]:
        """Those whose names begin with `kind.`, without it."""
        stored = load_file(self.folder / self.manifest["cases"][case]["file"])
        return {name.removeprefix(f"{kind}."): value for name, value in stored.items() if name.startswith(f"{kind}.")}


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each value; every wanted one must have been found, in its shape."""
    assert wanted
    largest = {}
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        largest[name] = (found[name] - value).abs().max().item()
    return largest


def gradient_differences(
    model: nn.Module,
    shaped: Callable[[dict[str, Tensor]], nn.Module],
    weights: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    unlearned: str | None = None,
) -> dict[str, float]:
    """How far the gradients of `model` are from those that are `stored`. A gradient has the shape of its weight, so
    `shaped`, the conversion of `weights`, converts gradients too; those that are not stored go through it as NaN, and
    all that is stored is compared, where it lies in a weight of which not all is, too. `unlearned`: how the names of
    weights end that have no gradient there, and go through as they are.
    """
    assert stored
    unknown = {
        name: torch.full_like(weight, torch.nan)
        if weight.is_floating_point() and not (unlearned and name.endswith(unlearned))  # counts have none
        else weight
        for name, weight in weights.items()
    }
    theirs = dict(shaped(unknown | dict(stored)).named_parameters())
    found, compared = {}, 0
    for name, weight in model.named_parameters():
        wanted = theirs[name]
        own = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if (known := ~wanted.isnan()).any():
            found[name] = (own - wanted)[known].abs().max().item()
            compared += int(known.sum())
    given = sum(one.numel() for one in stored.values())  # more where ours shares a weight that is there twice
    assert compared >= min(given, sum(one.numel() for one in model.parameters()))
    return found


def check_values_and_gradients(
    parity: Parity,
    case: str,
    model_of: Callable[[str, dict[str, Tensor]], nn.Module],
    run: Callable[[str, nn.Module], dict[str, Tensor]],
    unlearned: str | None = None,
    unchosen: str | None = None,
) -> None:
    """What `run` finds with the reference's weights is what is stored, in both precisions, and so are the gradients of
    its loss, if these are stored. `unlearned`: of `gradient_differences`. `unchosen`:
    what the names of experts hold, of which those that nothing chose have no gradient there, zeros here. Where `run`
    gives `terms`, the sum of the sizes of all that the loss is a sum of, its rounding in float32 is measured by that.
    """
    weights = parity.weights(case)
    for precision, dtype in DTYPES.items():
        model = model_of(case, weights).to(dtype)
        found = run(case, model)
        stored, exact = parity.tensors(case, f"out.{precision}"), parity.tensors(case, "out.f64")
        largest, allowed = differences(found, stored), dict.fromkeys(stored, TOLERANCE[precision])
        if precision == "f32":
            # Nobody need be nearer to the reference than its own rounding is to what is exact, nor to it than to that.
            known = {name: value for name, value in exact.items() if name in stored}
            for name, value in differences(found, known).items():
                largest[name] = min(largest[name], value)
            for name, value in differences(stored, known).items():
                allowed[name] = max(allowed[name], value)
        if precision == "f32" and "terms" in found:
            largest["loss"] /= max(1.0, found["terms"].item())
        assert all(largest[name] <= allowed[name] for name in largest), (precision, largest, allowed)
    if not (stored := parity.tensors(case, "grad.f64")):
        return
    found["loss"].backward()
    if unchosen is not None and any(unchosen in name for name in stored):
        stored |= {name: 0 * weight for name, weight in weights.items() if unchosen in name and name not in stored}
    largest = gradient_differences(model, lambda state: model_of(case, state).double(), weights, stored, unlearned)
    assert max(largest.values()) <= 1e-9, largest
