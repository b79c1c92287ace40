"""Muon of matrices and AdamW of the rest are one optimizer: each does what it does alone, and resumes go on."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from perceiver_vl.training.muon import muon_with_adamw, orthogonalized
from small_runs import run

GIVEN: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.inside = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.inside(self.table(words)).relu()))


def learn(model: Small, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    words = torch.arange(5)
    for _ in range(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(words), words % 3).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_each_does_what_it_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # in which torch's Muon computes
    torch.manual_seed(0)
    one = Small()
    other = copy.deepcopy(one)
    learn(one, [muon_with_adamw(one, **GIVEN)], 4)
    adam: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8}
    learn(
        other,
        [
            torch.optim.Muon([other.inside.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([other.table.weight, other.classifier.weight], weight_decay=0.1, **adam),
            torch.optim.AdamW(
                [other.inside.bias, other.classifier.bias, *other.norm.parameters()], weight_decay=0.0, **adam
            ),
        ],
        4,
    )
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (24, 7), (5, 32)])
def test_every_direction_is_made_as_large_as_the_others(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(matrix).double()
    sizes = left.T @ found @ right.T
    assert ((sizes.diagonal() > 0.6) & (sizes.diagonal() < 1.3)).all()
    assert (sizes - sizes.diagonal().diag()).abs().max() < 1e-4


def test_a_rate_that_is_scheduled_and_a_state_that_is_loaded_reach_both() -> None:
    torch.manual_seed(0)
    one = Small()
    optimizer = muon_with_adamw(one, **GIVEN)
    learn(one, [optimizer], 3)
    other = copy.deepcopy(one)
    resumed = muon_with_adamw(other, **GIVEN)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, resumed):
        for group in each.param_groups:
            group["lr"] = 0.003
    learn(one, [optimizer], 3)
    learn(other, [resumed], 3)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    still = copy.deepcopy(one)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    learn(one, [optimizer], 1)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), still.parameters(), strict=True))


def test_a_recipe_may_ask_for_it(tmp_path: Path) -> None:
    name = "perceiver_vl.encoder.blocks.0.cross_attention.mlp.fc1.weight"
    found = []
    for optimizer in ("muon", "adamw"):
        run(tmp_path / optimizer, top={"optimizer": optimizer}, training={"max_steps": 2})
        found.append(load_file(tmp_path / optimizer / "model.safetensors")[name])
    assert (found[0] - found[1]).abs().max() > 1e-5
