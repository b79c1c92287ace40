"""The Dynamic Perceiver: its exits, its loss, its folder, what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_dynamic_perceiver import PLAIN, SMALL, small_dynamic_perceiver, small_pictures
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification

from perceiver_vl.models.dynamic_perceiver import (
    DynamicPerceiverConfig,
    DynamicPerceiverForImageClassification,
    self_distillation_loss,
)
from perceiver_vl.models.early_exit import ALWAYS, NEVER, solve_thresholds
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, checkpoint

LABELS = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("changes", [{}, PLAIN])
def test_a_folder_gives_the_model_again(changes: dict[str, Any], tmp_path: Path) -> None:
    model = small_dynamic_perceiver(**changes)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is DynamicPerceiverForImageClassification
    for found, wanted in zip(again(small_pictures()).exit_logits, model(small_pictures()).exit_logits, strict=True):
        assert_same(found, wanted)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()


def test_each_example_leaves_where_it_is_sure_and_costs_no_more() -> None:
    """Later stages see a batch of those alone that are still there."""
    model, pictures = small_dynamic_perceiver(), small_pictures(6)
    every = model(pictures).exit_logits
    sure = torch.stack([logits.softmax(-1).amax(-1) for logits in every])
    thresholds = (solve_thresholds(sure, torch.full((4,), 1 / 3)) - 1e-9).tolist()
    batches: list[int] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
    output = model(pictures, thresholds=thresholds)
    taken = [next(exit for exit in range(4) if sure[exit, row] >= thresholds[exit]) for row in range(6)]
    assert output.exits.tolist() == taken
    assert sorted(taken) == [0, 0, 1, 1, 2, 2]
    assert_same(output.logits, torch.stack([every[exit][row] for row, exit in enumerate(taken)]))
    left = [6, 6, sum(exit > 0 for exit in taken), sum(exit > 1 for exit in taken)]
    assert batches == left


def test_nobody_is_computed_further_when_all_have_left() -> None:
    model, stages = small_dynamic_perceiver(), []
    for number, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, number=number: stages.append(number))  # type: ignore[misc]
    assert model(small_pictures(), thresholds=[ALWAYS, NEVER, NEVER, NEVER]).exits.tolist() == [0, 0, 0]
    assert stages == [0, 1]
    assert model(small_pictures(), thresholds=[NEVER] * 4).exits.tolist() == [3, 3, 3]


def test_exits_of_latents_know_features_of_the_stages_before_alone() -> None:
    """So that a stage of the feature branch is left out where its latents answer (3.3)."""
    model, pictures = small_dynamic_perceiver(), small_pictures()
    before = model(pictures).exit_logits
    with torch.no_grad():
        for parameter in model.stages[2].parameters():
            parameter += 1
    after = model(pictures).exit_logits
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False, False, False]


@pytest.mark.parametrize("changes", [{}, PLAIN])
def test_gradients_reach_every_weight_and_checkpointing_changes_none(changes: dict[str, Any]) -> None:
    gradients = []
    for enable in (False, True):
        model = small_dynamic_perceiver(**changes).train()
        checkpoint(model, enable)
        model(small_pictures(), labels=LABELS).loss.backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_same(checkpointed, plain)


def test_the_last_exit_teaches_and_is_not_taught() -> None:
    draw = torch.Generator().manual_seed(0)
    exits = [torch.randn(3, 5, generator=draw).double().requires_grad_() for _ in range(4)]
    loss = self_distillation_loss(exits, LABELS)
    wanted, target = torch.zeros(()).double(), exits[3].softmax(-1)
    for number, logits in enumerate(exits):
        likely = logits.log_softmax(-1)
        truth = -likely[torch.arange(3), LABELS].mean()
        wanted = wanted + (0.5 if number < 2 else 1.0) * truth
        if number < 3:
            wanted = wanted + 0.5 * (target * (target.log() - likely)).sum(1).mean()
    assert_same(loss, wanted)
    loss.backward()
    alone = exits[3].detach().requires_grad_()
    torch.nn.functional.cross_entropy(alone, LABELS).backward()
    assert exits[3].grad is not None
    assert alone.grad is not None
    assert_same(exits[3].grad, alone.grad)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depths": [1, 1, 1]}, "depths=[1, 1, 1]: need four numbers, of 1 or more"),
        ({"latent_depths": [1, 1, 0, 1]}, "latent_depths=[1, 1, 0, 1]: need four numbers, of 1 or more"),
        ({"stem_width": 0}, "stem_width=0: need at least 1"),
        ({"num_latents": 7}, "num_latents=7: halved three times, need at least 8"),
        ({"group_widths": [3, 8, 4, 8]}, "group_widths=[3, 8, 4, 8]: must divide widths=[8, 8, 12, 16] evenly"),
        ({"num_attention_heads": [1, 2, 3, 3]}, "num_attention_heads=[1, 2, 3, 3]: must divide [4, 8, 8, 12] evenly"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        DynamicPerceiverConfig(**(SMALL | changes))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"pixel_values": torch.zeros(3, 1, 32, 32)}, "pixel_values (3, 1, 32, 32): need (batch, 3, H, W)"),
        ({"thresholds": [0.5, 0.5]}, "thresholds: 2, need 4, and a model in evaluation mode"),
    ],
)
def test_inputs_of_another_kind_are_refused_in_a_line(inputs: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_dynamic_perceiver()(**({"pixel_values": small_pictures()} | inputs))
