"""Muon of the matrices within a network, AdamW of all else, as one optimizer.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; its steps here are as large as
AdamW's would be (Liu et al. 2025, "Muon is Scalable for LLM Training"), so one learning rate suits both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_OUTSIDE = ("classifier", "mlm_head.projection")
"""The last layers, one row a class or word."""
_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of x, x³ and x⁵ in an iteration: chosen for speed at small singular values, which end near 1, not at it."""
_ITERATIONS = 5
_AS_ADAMW = 0.2
"""The root mean square of what a step of AdamW adds, before the learning rate."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and `torch.optim.AdamW` that share groups and state, so that schedules, checkpoints and resumes take them
    for one. State of a matrix: `momentum_buffer`, as that of `torch.optim.Muon`.

    Not that of torch itself, which computes in bfloat16 wherever it runs: of a processor without products of that type
    it took a sixth of the time of a small model's training step.
    """

    def __init__(
        self, matrices: Sequence[Tensor], decayed: Sequence[Tensor], others: Sequence[Tensor], **given: Any
    ) -> None:
        decay, betas, eps = given.pop("weight_decay"), given.pop("betas"), given.pop("eps")
        groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([one for one in groups if one["params"]], betas=betas, eps=eps, **given)
        of_matrices = {"params": list(matrices), "weight_decay": decay, "momentum": _MOMENTUM, **given}
        super().__init__([of_matrices, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.adamw.param_groups, self.adamw.state = self.param_groups[1:], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As that of torch."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
            ahead = matrix.grad.lerp(state["momentum_buffer"], group["momentum"])
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            size = _AS_ADAMW * max(matrix.shape) ** 0.5
            matrix.add_(orthogonalized(ahead).to(matrix.dtype), alpha=-group["lr"] * size)
        self.adamw.step()
        return loss


def orthogonalized(matrix: Tensor) -> Tensor:
    """`(M,N)` → about the nearest matrix whose singular values are all 1 (between 0.7 and 1.2), bfloat16 on a GPU and
    else float32, by Newton-Schulz iterations.
    """
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    first, third, fifth = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def muon_with_adamw(model: nn.Module, **given: Any) -> MuonWithAdamW:
    """Of what learns in a model: Muon of the weights of linear layers that are not its last, AdamW of tables,
    convolutions, norms and biases, of which those of one dimension do not decay.
    """
    learning = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(_OUTSIDE)
    }
    matrices = [value for _, value in learning if id(value) in linear]
    rest = [value for _, value in learning if id(value) not in linear]
    return MuonWithAdamW(
        matrices, [one for one in rest if one.ndim > 1], [one for one in rest if one.ndim < 2], **given
    )
