"""The one training loop of these benches: AdamW, warm-up, a cosine down to nothing. It saves nothing: a run is short
enough to be made again.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perceiver_vl.utils.errors import PerceiverVLError


@dataclass(frozen=True)
class Trained:
    """What a run took and came to: its steps, its minutes, and the mean loss of its last tenth."""

    steps: int
    minutes: float
    loss: float


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    steps: int,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    warm_up: float = 0.05,
    most_norm: float = 1.0,
    optimizer: torch.optim.Optimizer | None = None,
    advance: Callable[..., object] = lambda: None,
) -> Trained:
    """Take `steps` steps of AdamW down the loss that `loss_of` gives for each step's number; `model` ends in evaluation
    mode.

    The rate rises for the share `warm_up` of the steps, then falls as a cosine to 0. Gradients are cut to a norm of
    `most_norm`. `optimizer`: in the place of AdamW, with its own rate and decay. `advance`: is told of each step.
    Batches are `loss_of`'s, drawn from the step's number, so that a run comes out the same again. Raises
    `PerceiverVLError` for a loss that is no number.
    """
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps, warm_up))
    model.train()
    start, last = time.monotonic(), []
    for step in range(steps):
        loss = loss_of(step)
        if not math.isfinite(loss.item()):
            raise PerceiverVLError(f"step {step}: the loss is {loss.item()}, the training cannot go on")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), most_norm)
        optimizer.step()
        schedule.step()
        if step >= 0.9 * steps or step == steps - 1:
            last.append(loss.item())
        advance()
    model.eval()
    return Trained(steps, (time.monotonic() - start) / 60, sum(last) / max(1, len(last)))


def _share_of_rate(step: int, steps: int, warm_up: float) -> float:
    rising = max(1, round(warm_up * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
