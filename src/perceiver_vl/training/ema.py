"""An exponential moving average of the weights of a run (EMA): what is validated and kept, beside what learns.

Source: Polyak & Juditsky 1992; the warm-up of the decay is that of TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from perceiver_vl.utils.errors import PerceiverVLError

FILE = "ema.safetensors"
"""The average, in a checkpoint."""


class WeightAverage:
    """The average of a model's parameters over the steps, at first those that it has."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def update(self, model: nn.Module, step: int) -> None:
        """After `step` steps. The decay grows to its full value, so that the start is forgotten in a short run too."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average(list(self._weights.values()), [parameter.detach() for parameter in model.parameters()], step)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Make the average the model's own weights."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self._weights[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """While this lasts the model has the average for its weights; then its own again, bit for bit."""
        own = [parameter.detach().clone() for parameter in model.parameters()]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), own, strict=True):
                    parameter.copy_(value)

    def save(self, folder: Path, *, writes: bool) -> None:
        """Write the average into a checkpoint. Sharded weights are gathered, so that all processes must call this;
        `writes`: this one writes.
        """
        whole = {name: _whole(weight).contiguous() for name, weight in self._weights.items()}
        if writes:
            save_file(whole, folder / FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """Go on from the average of a checkpoint; from the weights of `model` where the run had none so far.

        Raises `PerceiverVLError` for one of another model.
        """
        if not (folder / FILE).is_file():
            self._weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            return
        found = load_file(folder / FILE)
        if {name: weight.shape for name, weight in found.items()} != {n: w.shape for n, w in self._weights.items()}:
            raise PerceiverVLError(f"{folder / FILE}: the average of another model, take it away to start a new one")
        for name, weight in self._weights.items():
            weight.copy_(_like(weight, found[name]))


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, sharded as `weight` is, where that is."""
    value = value.to(weight.device, weight.dtype)
    return distribute_tensor(value, weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else value


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
