"""Leaving a model early, where it is sure enough: thresholds of confidence that keep a mean cost, and the loop that
lets examples go. Any model that can answer on the way can use both.

Source: Dynamic Perceiver (Han et al. 2023), 3.3, and its released code; the search is that of MSDNet (Huang et al.
2018). Shapes: E exits, n examples, K classes.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.utils.errors import UsageError

ExitsInTurn = Generator[Tensor, Tensor | None, None]
"""Yields the logits `(B,K)` of one exit after the other, each computed when it is asked for. What is sent to it: the
places, int64, of the examples of the batch that go on; the others leave the batch.
"""
NEVER, ALWAYS = 1e8, -1e8
_RATIOS = [step / 20 for step in range(4, 21)] + [20 / step for step in range(20, 4, -1)]


@dataclass(frozen=True)
class ExitPolicy:
    """An example leaves at the first exit whose confidence is at least its threshold. cost, accuracy: mean of the
    held-out examples that the thresholds were solved on.
    """

    thresholds: tuple[float, ...]
    cost: float
    accuracy: float


def exit_shares(exits: int, corrections: Sequence[float] = ()) -> Tensor:
    """What share of examples leaves at each exit, for a family of 33 budgets from low to high → `(33,E)`.

    From each exit to the next the share changes by one ratio, 0.2 to 4. `corrections`: what the shares of the first
    exits are multiplied by, the rest being scaled to what remains (the released code: 0.85, 1, 0.5).
    """
    ratios = torch.tensor(_RATIOS)[:, None]
    shares = ratios ** torch.arange(1, exits + 1)
    shares = shares / shares.sum(1, keepdim=True)
    for number, factor in enumerate(corrections):
        shares[:, number] *= factor
        later = shares[:, number + 1 :]
        later *= (1 - shares[:, : number + 1].sum(1, keepdim=True)) / later.sum(1, keepdim=True)
    return shares


def solve_thresholds(confidences: Tensor, shares: Tensor) -> Tensor:
    """Thresholds `(E,)`, float64, by which of held-out examples with `confidences (E,n)` the `shares (E,)` leave.

    Exits choose in turn among the examples that are still there: the most confident leave. An exit that has none to let
    go has a threshold that nothing reaches; the last one takes all.
    """
    exits, examples = confidences.shape
    gone = torch.zeros(examples, dtype=torch.bool)
    thresholds = torch.full((exits,), NEVER, dtype=torch.float64)
    thresholds[-1] = ALWAYS
    for number in range(exits - 1):
        left = confidences[number][~gone].sort(descending=True).values
        leaving = math.floor(examples * shares[number])
        if 0 < leaving <= len(left):
            thresholds[number] = left[leaving - 1].double()
            gone |= confidences[number] >= left[leaving - 1]
    return thresholds


def exits_taken(confidences: Tensor, thresholds: Tensor) -> Tensor:
    """At which exit each example leaves: `confidences (E,n)` → int64 `(n,)`."""
    return (confidences >= thresholds[:, None].to(confidences)).int().argmax(0)


def solve_budget(budget: float, confidences: Tensor, costs: Sequence[float], right: Tensor) -> ExitPolicy:
    """The policy that is right most often of those whose mean cost on held-out examples is at most `budget`.

    `confidences (E,n)`; `costs`: of an example that leaves at each exit, in any unit; `right (E,n)` bool: where an exit
    answers rightly. Tried are the 33 budgets of `exit_shares`, and each exit alone. Raises `UsageError` for a budget
    below the first exit's cost.
    """
    exits = len(costs)
    whole = torch.tensor(costs, dtype=torch.float64)
    solved = [solve_thresholds(confidences, shares) for shares in exit_shares(exits)]
    alone = torch.full((exits, exits), NEVER, dtype=torch.float64)
    solved += list(alone.fill_diagonal_(ALWAYS))
    policies = []
    for thresholds in solved:
        taken = exits_taken(confidences, thresholds)
        accuracy = right.gather(0, taken[None]).double().mean().item()
        policies.append(ExitPolicy(tuple(thresholds.tolist()), whole[taken].mean().item(), accuracy))
    affordable = [policy for policy in policies if policy.cost <= budget]
    if not affordable:
        raise UsageError(f"budget={budget:g}: the first exit costs {costs[0]:g} already, give more")
    return max(affordable, key=lambda policy: (policy.accuracy, -policy.cost))


@torch.no_grad()
def leave_when_sure(turn: ExitsInTurn, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Let each example go at the first exit whose largest probability is at least its threshold, at the last one in any
    case → logits `(B,K)`, and the exits that were taken, int64 `(B,)`. What has gone is computed no further.
    """
    logits = next(turn)
    found, taken = torch.empty_like(logits), torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    places = torch.arange(len(logits), device=logits.device)
    for number, threshold in enumerate(thresholds):
        sure = logits.softmax(-1).amax(-1) >= threshold
        if number == len(thresholds) - 1:
            sure = torch.ones_like(sure)
        found[places[sure]], taken[places[sure]] = logits[sure], number
        places, on = places[~sure], (~sure).nonzero()[:, 0]
        if not len(places):
            break
        logits = turn.send(on)
    turn.close()
    return found, taken
