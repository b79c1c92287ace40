"""AdamW for several tasks that take turns: each counts as much as it is meant to, whatever the size of its gradients
and however often its turn comes (Task-Balanced Gradient Normalisation, Uni-Perceiver v2, Li et al. 2023, 3.4).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class TaskBalancedAdamW(Optimizer):
    """The gradient of a step, of one task, is brought to the norm `weights[task]` (1 if not given); moments take it,
    and its square, over the share of steps that are the task's, so that their expectation is that of all tasks at once.

        optimizer = TaskBalancedAdamW(model.parameters(), shares={"words": 0.75, "pictures": 0.25})
        optimizer.task = "words"  # before each step
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        shares: Mapping[str, float],
        *,
        weights: Mapping[str, float] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.shares, self.weights = dict(shares), dict(weights or {})
        self.task = next(iter(self.shares))
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Of the task that is set."""
        loss = None if closure is None else closure()
        parameters = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one.grad) for one in parameters]))
        factor = self.weights.get(self.task, 1.0) / norm.clamp(min=1e-12)
        share, self.steps = self.shares[self.task], self.steps + 1
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                mean, square = state["mean"].mul_(first), state["square"].mul_(second)
                if parameter.grad is not None:
                    gradient = parameter.grad * factor
                    mean.add_(gradient, alpha=(1 - first) / share)
                    square.addcmul_(gradient, gradient, value=(1 - second) / share)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                unbiased = mean / (1 - first**self.steps), square / (1 - second**self.steps)
                parameter.sub_(group["lr"] * unbiased[0] / (unbiased[1].sqrt() + group["eps"]))
        return loss
