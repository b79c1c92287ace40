"""Linear maps of which there are several, chosen by what is asked rather than by each token: the conditional experts of
Uni-Perceiver-MoE (Zhu et al. 2022), and the experts of a feed-forward part that each token chooses for itself.

Shapes: B batch, L tokens, D width, E experts, R segments of a sequence, A attribute bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHOSEN = 2  # experts at a time


class ScaledLinear(nn.Linear):
    """A linear map whose output is weighed channel by channel: layer scale (Touvron et al. 2021, CaiT)."""

    def __init__(self, in_features: int, out_features: int, initial_scale: float, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.scale = nn.Parameter(torch.full((out_features,), initial_scale))

    def forward(self, x: Tensor) -> Tensor:
        """`(…,in)` → `(…,out)`."""
        return super().forward(x) * self.scale

    def plain(self) -> nn.Linear:
        """The linear map without a scale that gives the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.detach() * self.scale.detach()[:, None])
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach() * self.scale.detach())
        return linear


def scaled_linear(in_features: int, out_features: int, initial_scale: float | None, *, bias: bool = True) -> nn.Linear:
    """A `ScaledLinear`, or a linear map where there is no scale."""
    if initial_scale is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return ScaledLinear(in_features, out_features, initial_scale, bias=bias)


@dataclass(frozen=True)
class Routing:
    """Which experts a sequence goes through: `experts (R,2)` int64 and their `shares (R,2)`, of R = 1 or 2 segments, of
    which the first ends after `first` of all `length` tokens.
    """

    experts: Tensor
    shares: Tensor
    first: int
    length: int

    def lengths(self, tokens: int) -> list[int]:
        """Of the segments of the last so many tokens."""
        if len(self.experts) == 1:
            return [tokens]
        first = max(0, min(tokens, self.first - (self.length - tokens)))
        return [first, tokens - first]


class ExpertLinear(nn.Module):
    """E linear maps; the weights of those that are chosen are summed by their shares, and applied once: one dense map
    for each segment, which costs no more than one expert. `initial_scale`: with a layer scale, that all share.

    Which they are is said before, by `routing`, as blocks hand on nothing but tokens.
    """

    def __init__(
        self, in_features: int, out_features: int, num_experts: int, initial_scale: float | None = None
    ) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features).uniform_(-bound, bound))
        self.scale = None if initial_scale is None else nn.Parameter(torch.full((out_features,), initial_scale))
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`(B,L,in)` → `(B,L,out)`. Raises `ValueError` where nothing was chosen."""
        if self.routing is None:
            raise ValueError("routing=None: say which experts these tokens go through, first")
        shares, chosen = self.routing.shares, self.routing.experts
        weights = (shares[..., None, None] * self.weight[chosen]).sum(1)  # (R,out,in)
        biases = (shares[..., None] * self.bias[chosen]).sum(1)
        parts = x.split(self.routing.lengths(x.shape[1]), dim=1)
        found = torch.cat([F.linear(part, *one) for part, *one in zip(parts, weights, biases, strict=True)], dim=1)
        return found if self.scale is None else found * self.scale


class AttributeGate(nn.Module):
    """Attribute bits → which two experts, and their shares. It never sees a token, so what it chooses is fixed for each
    task and role. `noise`: standard deviation of what is added to the scores in training.
    """

    def __init__(
        self, num_attributes: int, hidden_size: int, num_experts: int, *, activation: bool, noise: float, eps: float
    ) -> None:
        super().__init__()
        self.noise = noise
        self.projection = nn.Linear(num_attributes, hidden_size)
        self.activation = nn.GELU() if activation else nn.Identity()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.scores = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, attributes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`attributes (R,A)` → experts `(R,2)` int64, shares `(R,2)`. `noise (R,E)`: in the place of what is drawn in
        training.
        """
        scores = self.scores(self.norm(self.activation(self.projection(attributes))))
        if noise is None and self.training and self.noise > 0:
            noise = torch.randn_like(scores) * self.noise
        best = (scores if noise is None else scores + noise).softmax(-1).topk(min(CHOSEN, scores.shape[-1]), dim=-1)
        return best.indices, best.values / best.values.sum(-1, keepdim=True)


class TokenExperts(nn.Module):
    """A feed-forward part of E gated ones without biases, of which each token takes the two that its router scores
    highest: `(act(x W1) · x G) W2`, summed by their shares (Mixtral; Jiang et al. 2024).
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, num_experts: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        bounds = hidden_size**-0.5, intermediate_size**-0.5
        wide, narrow = (num_experts, intermediate_size, hidden_size), (num_experts, hidden_size, intermediate_size)
        self.fc1 = nn.Parameter(torch.empty(wide).uniform_(-bounds[0], bounds[0]))
        self.gate = nn.Parameter(torch.empty(wide).uniform_(-bounds[0], bounds[0]))
        self.fc2 = nn.Parameter(torch.empty(narrow).uniform_(-bounds[1], bounds[1]))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """`(…,D)` → `(…,D)`."""
        tokens = x.flatten(0, -2)
        best = self.router(tokens).softmax(-1).topk(min(CHOSEN, len(self.fc1)), dim=-1)
        shares = best.values / best.values.sum(-1, keepdim=True)
        found = torch.zeros_like(tokens)
        for expert in range(len(self.fc1)):
            rows, place = (best.indices == expert).nonzero(as_tuple=True)
            some = tokens[rows]
            hidden = self.activation(some @ self.fc1[expert].T) * (some @ self.gate[expert].T)
            found = found.index_add(0, rows, (hidden @ self.fc2[expert].T) * shares[rows, place][:, None])
        return found.view_as(x)


class DropPath(nn.Module):
    """Leaves a branch of a residual sum out for some examples in training (stochastic depth, Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`(B,…)` → the same, zeros for the share `rate` of examples, the others larger for it."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)
