"""Thresholds of confidence: what share leaves, what that costs, which policy a budget buys."""

from collections.abc import Generator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl.models.early_exit import (
    ALWAYS,
    NEVER,
    exit_shares,
    exits_taken,
    leave_when_sure,
    solve_budget,
    solve_thresholds,
)
from perceiver_vl.utils.errors import UsageError


@given(exits=st.integers(1, 6))
def test_shares_are_those_of_all_and_go_from_early_to_late(exits: int) -> None:
    shares = exit_shares(exits)
    assert shares.shape == (33, exits)
    torch.testing.assert_close(shares.sum(1), torch.ones(33))
    assert bool((shares[1:, -1] >= shares[:-1, -1] - 1e-6).all())
    if exits > 1:
        corrected = exit_shares(exits, (0.5,))
        torch.testing.assert_close(corrected.sum(1), torch.ones(33))
        torch.testing.assert_close(corrected[:, 0], 0.5 * shares[:, 0])


@given(exits=st.integers(2, 5), examples=st.integers(1, 60), seed=st.integers(0, 99), row=st.integers(0, 32))
def test_of_the_examples_solved_on_the_shares_leave(exits: int, examples: int, seed: int, row: int) -> None:
    confidences = torch.rand(exits, examples, generator=torch.Generator().manual_seed(seed))
    shares = exit_shares(exits)[row]
    taken = exits_taken(confidences, solve_thresholds(confidences, shares))
    counts = taken.bincount(minlength=exits)
    for number in range(exits - 1):
        assert counts[number] == int((examples * shares[number]).floor())
    assert counts.sum() == examples


def scores() -> tuple[Tensor, Tensor]:
    """Later exits are right more often, and all know when they are."""
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(3, 400, generator=draw) < torch.tensor([0.5, 0.7, 0.9])[:, None]
    return 0.5 * right + 0.5 * torch.rand(3, 400, generator=draw), right


def test_a_budget_buys_the_best_policy_and_more_buys_a_better_one() -> None:
    confidences, right = scores()
    costs, before = (1.0, 2.0, 4.0), 0.0
    for budget in (1.0, 1.4, 2.0, 3.0, 4.0):
        policy = solve_budget(budget, confidences, costs, right)
        assert policy.cost <= budget
        assert policy.accuracy >= before
        taken = exits_taken(confidences, torch.tensor(policy.thresholds))
        assert policy.cost == pytest.approx(torch.tensor(costs)[taken].mean().item())
        assert policy.accuracy == pytest.approx(right.gather(0, taken[None]).float().mean().item())
        before = policy.accuracy
    assert solve_budget(2.0, confidences, costs, right).accuracy > right[1].float().mean() + 0.05
    with pytest.raises(UsageError, match=r"^budget=0\.5: the first exit costs 1 already, give more"):
        solve_budget(0.5, confidences, costs, right)


def test_examples_leave_in_turn_and_those_that_are_gone_are_not_asked_for() -> None:
    logits, asked = 4 * torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)), []

    def turn() -> Generator[Tensor, Tensor | None, None]:
        places = torch.arange(7)
        for exit in logits:
            asked.append(len(places))
            keep = yield exit[places]
            if keep is not None:
                places = places[keep]

    sure = logits.softmax(-1).amax(-1)
    thresholds = [0.9, 0.8, NEVER]
    found, taken = leave_when_sure(turn(), thresholds)
    wanted = [next((exit for exit in (0, 1) if sure[exit, row] >= thresholds[exit]), 2) for row in range(7)]
    assert taken.tolist() == wanted
    assert torch.equal(found, logits[taken, torch.arange(7)])
    assert asked == [7, sum(exit > 0 for exit in wanted), sum(exit > 1 for exit in wanted)]
    asked.clear()
    leave_when_sure(turn(), [ALWAYS, 0.0, 0.0])
    assert asked == [7]
