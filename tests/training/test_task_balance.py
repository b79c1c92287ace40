"""Gradients of tasks that take turns."""

import pytest
import torch
from torch import nn

from perceiver_vl.training.task_balance import TaskBalancedAdamW


def moved(size: float, shares: dict[str, float], turns: list[str]) -> torch.Tensor:
    """Where two numbers get to: task a pulls at the first with gradients of `size`, task b at the second with 1."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = TaskBalancedAdamW([weight], shares, lr=0.01, weight_decay=0.0)
    for task in turns:
        weight.grad = torch.tensor([size, 0.0]) if task == "a" else torch.tensor([0.0, 1.0])
        optimizer.task = task
        optimizer.step()
    return weight.detach()


def test_a_task_moves_as_far_whatever_the_size_of_its_gradients() -> None:
    shares = {"a": 0.5, "b": 0.5}
    small, large = (moved(size, shares, ["a", "b"] * 50) for size in (1e-3, 1e3))
    assert torch.allclose(small, large)
    assert small[0].item() == pytest.approx(small[1].item(), rel=0.1)


def test_moments_expect_what_all_tasks_at_once_would_give() -> None:
    """Half of the steps at twice the gradient is the gradient."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = TaskBalancedAdamW([weight], {"a": 0.5, "b": 0.5}, lr=0.0, betas=(0.999, 0.999))
    for step in range(2000):
        optimizer.task = "ab"[step % 2]
        weight.grad = torch.ones(1) if optimizer.task == "a" else torch.zeros(1)
        optimizer.step()
    state = optimizer.state[weight]
    correction = 1 - 0.999**2000
    assert state["mean"].item() / correction == pytest.approx(1.0, abs=0.02)
    assert state["square"].item() / correction == pytest.approx(1.0, abs=0.02)


def test_one_task_alone_is_adamw_on_normed_gradients() -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    balanced = TaskBalancedAdamW([ours], {"a": 1.0}, lr=0.1, weight_decay=0.1)
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        gradient = 7 * torch.randn(3, generator=draw)
        ours.grad, theirs.grad = gradient.clone(), gradient / gradient.norm()
        balanced.step()
        plain.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_weights_say_which_task_counts_more() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = TaskBalancedAdamW([weight], {"a": 0.5, "b": 0.5}, weights={"a": 3.0}, lr=0.0)
    for task, gradient in (("a", [5.0, 0.0]), ("b", [0.0, 5.0])):
        optimizer.task, weight.grad = task, torch.tensor(gradient)
        optimizer.step()
    mean = optimizer.state[weight]["mean"]
    assert mean[0].item() / 0.9 == pytest.approx(3 * mean[1].item())
