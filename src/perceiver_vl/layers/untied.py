"""Weights that inputs of two kinds do not share, in the one attention over both.

Mixture-of-Transformers (Liang et al. 2024, "Mixture-of-Transformers: A Sparse and Scalable Architecture for Multi-Modal
Foundation Models") and MM-DiT (Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis") untie them per modality and keep one softmax. Shapes: B batch, M inputs, C their width, H heads, d width of
a head.
"""

import torch
from torch import Tensor, nn


class TwinLinear(nn.Linear):
    """A linear map that begins as another one, `of`, does; it draws nothing."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__(of.in_features, of.out_features, bias=of.bias is not None)
        self._of = (of,)  # no part of this one
        self.load_state_dict(of.state_dict())

    def reset_parameters(self) -> None:
        """To what the other one has, which comes after."""

    @property
    def of(self) -> nn.Module:
        """The other one."""
        return self._of[0]


class TwinNorm(nn.LayerNorm):
    """A layer norm that begins as another one, `of`, does."""

    def __init__(self, of: nn.LayerNorm) -> None:
        super().__init__(of.normalized_shape, eps=of.eps)
        self._of = (of,)
        self.load_state_dict(of.state_dict())

    @property
    def of(self) -> nn.Module:
        """The other one."""
        return self._of[0]


class UntiedKeysValues(nn.Module):
    """What an attention makes keys and values of inputs of the second kind with; that of the first are its own."""

    def __init__(self, k_proj: nn.Linear, v_proj: nn.Linear, k_norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.k_proj, self.v_proj = TwinLinear(k_proj), TwinLinear(v_proj)
        self.k_norm = None if k_norm is None else TwinNorm(k_norm)


def apart(x: Tensor, boundary: int, first: nn.Module, second: nn.Module, dim: int = 1) -> Tensor:
    """`x`, before `boundary` through `first`, from there on through `second`; the boundary lies in dimension `dim`."""
    length = x.shape[dim]
    parts = first(x.narrow(dim, 0, boundary)), second(x.narrow(dim, boundary, length - boundary))
    return torch.cat(parts, dim)
