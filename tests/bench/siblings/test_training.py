"""The one training loop of the siblings' benches."""

import pytest
import torch
from torch import Tensor, nn

from perceiver_vl.bench.siblings.training import train
from perceiver_vl.utils.errors import PerceiverVLError


def line() -> tuple[nn.Linear, Tensor, Tensor]:
    """A model, and points of a line for it to find."""
    torch.manual_seed(0)
    model, x = nn.Linear(1, 1), torch.linspace(-1, 1, 16)[:, None]
    return model, x, 3 * x - 1


def test_it_learns_what_there_is_to_learn() -> None:
    model, x, y = line()
    steps: list[int] = []

    def loss_of(step: int) -> Tensor:
        assert model.training
        steps.append(step)
        return (model(x) - y).square().mean()

    before, told = loss_of(-1).item(), []
    trained = train(model, loss_of, 200, learning_rate=0.1, weight_decay=0.0, advance=lambda: told.append(1))
    assert steps == list(range(-1, 200))
    assert (trained.steps, len(told), model.training) == (200, 200, False)
    assert trained.loss < 1e-4 * before
    torch.testing.assert_close(model.weight.item(), 3.0, atol=1e-2, rtol=0)


def test_the_same_seed_gives_the_same_model() -> None:
    found = []
    for _ in range(2):
        model, x, y = line()
        train(model, lambda _, model=model, x=x, y=y: (model(x) - y).square().mean(), 5)  # type: ignore[misc]
        found.append(model.weight.detach())
    assert torch.equal(*found)


def test_a_loss_that_is_no_number_ends_it() -> None:
    model, x, _ = line()
    with pytest.raises(PerceiverVLError, match="step 0: the loss is nan"):
        train(model, lambda _: (model(x) * torch.nan).sum(), 3)
