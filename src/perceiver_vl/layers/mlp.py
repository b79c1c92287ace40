"""The feed-forward part of every transformer block."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.experts import scaled_linear


class MLP(nn.Module):
    """Linear, activation (exact GELU), linear. `gated`: the first gives twice as much, and the activation of its second
    half weighs its first (Shazeer 2020, GEGLU). `layer_scale`: as of `Attention`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool = True,
        gated: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, (1 + gated) * intermediate_size, bias=bias)
        self.fc2 = scaled_linear(intermediate_size, hidden_size, layer_scale, bias=bias)
        self.activation, self.gated = activation, gated

    def forward(self, x: Tensor) -> Tensor:
        """`(…,D)` → `(…,D)`."""
        if self.gated:
            values, gates = self.fc1(x).chunk(2, dim=-1)
            return self.fc2(values * self.activation(gates))
        return self.fc2(self.activation(self.fc1(x)))
