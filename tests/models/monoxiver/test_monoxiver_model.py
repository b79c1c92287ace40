"""MonoXiver's head: candidates of many pictures at once, its loss, its folder, what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_monoxiver import SMALL, small_candidates, small_monoxiver
from torch import Tensor
from transformers import AutoConfig, AutoModel

from perceiver_vl.models.monoxiver import MonoXiverConfig, MonoXiverModel
from perceiver_vl.models.monoxiver.modeling import denoising_loss
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, checkpoint, differs

PER_IMAGE = torch.tensor([2, 0, 5])


def parts(output: Any) -> Tensor:
    return torch.cat([output.logits, output.position, output.size], dim=-1)


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_holds_each_weight_once_and_gives_the_model_again(shared: bool, tmp_path: Path) -> None:
    model = small_monoxiver(share_decoder_mlp=shared)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is MonoXiverModel
    assert_same(parts(again(**small_candidates())), parts(model(**small_candidates())))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    assert (again.decoder.block.mlp is again.encoder.blocks[0].cross_attention.mlp) == shared


def test_pictures_at_once_are_pictures_alone() -> None:
    """Candidates compete with those of their picture, whatever else is in the batch."""
    model, inputs = small_monoxiver(), small_candidates()
    together = parts(model(**inputs, per_image=PER_IMAGE))
    for some in (slice(0, 2), slice(2, 7)):
        assert_same(together[some], parts(model(**{name: value[some] for name, value in inputs.items()})))
    assert differs(together, parts(model(**inputs)))


def test_candidates_of_a_picture_come_in_any_order() -> None:
    model, inputs, order = small_monoxiver(), small_candidates(), torch.randperm(7)
    assert_same(parts(model(**{name: value[order] for name, value in inputs.items()})), parts(model(**inputs))[order])


def test_gradients_reach_every_weight_and_checkpointing_changes_none() -> None:
    gradients = []
    labels, corrections = torch.tensor([0, -1, -1, 1, -1, -1, 0]), torch.randn(7, 6).double()
    for enable in (False, True):
        model = small_monoxiver().train()
        checkpoint(model, enable)
        model(**small_candidates(), per_image=PER_IMAGE, labels=labels, corrections=corrections).loss.backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_same(checkpointed, plain)


def test_the_loss_is_that_of_the_paper() -> None:
    """By hand: focal loss over all, L1 over those that are right, 5 for places and 1 for sizes."""
    logits, labels = torch.tensor([[0.0, 2.0], [-1.0, 0.5]]).double(), torch.tensor([1, -1])
    residuals, corrections = torch.tensor([[1.0, 0, 0, 0.5, 0, 0], [9.0] * 6]).double(), torch.zeros(2, 6).double()
    focal = 0.0
    for value, right in zip(logits.flatten(), (0, 1, 0, 0), strict=True):
        p = value.sigmoid()
        focal -= 0.25 * (1 - p) ** 2 * p.log() if right else 0.75 * p**2 * (1 - p).log()
    assert_same(denoising_loss(logits, residuals, labels, corrections), focal + 5 * 1.0 + 0.5)
    nothing = denoising_loss(logits, residuals, torch.tensor([-1, -1]), corrections)
    assert nothing.isfinite()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_latents": 0}, "num_latents=0: need at least 1"),
        ({"num_self_attentions": -1}, "num_self_attentions=-1: need 0 or more"),
        ({"num_attention_heads": 5}, "num_attention_heads=5: must divide hidden_size=12 evenly"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        MonoXiverConfig(**(SMALL | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": torch.zeros(7, 9, 4)}, "points (7, 9, 4): need (candidates, points, 5)"),
        ({"geometry": torch.zeros(6, 29)}, "geometry (6, 29): need (7, 29)"),
        ({"regions": torch.zeros(7, 5, 2, 2)}, "regions (7, 5, 2, 2): need (7, 5, 3, 3)"),
        ({"per_image": torch.tensor([2, 4])}, "per_image: of 6 candidates, there are 7"),
    ],
)
def test_inputs_of_another_kind_are_refused_in_a_line(changes: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_monoxiver()(**(small_candidates() | changes))
