"""Objectives that take turns, and a contrast of one way at a time."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perceiver_vl import ComputeBudget, PerceiverVLForPreTraining
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from small_runs import recipe_of, run, training_log_of
from tiny import assert_same, tiny_batch, tiny_model

FULL = ComputeBudget()
TURNS = Objectives({"vtm": 1, "mlm": 2, "vtc": 5}, hard_negatives=True, focal_gamma=0.5, alternate=True)


def turn_of(objectives: Objectives, step: int, seed: int = 0) -> str:
    (name,) = objectives.of_step(step, seed).asked
    return name


def test_each_has_its_share_of_any_steps_in_a_row() -> None:
    for seed in range(3):
        for first in (0, 1000):
            turns = Counter(turn_of(TURNS, step, seed) for step in range(first, first + 80))
            assert turns.keys() == {"vtm", "mlm", "vtc"}
            for name, share in (("vtm", 10), ("mlm", 20), ("vtc", 50)):
                assert abs(turns[name] - share) <= 3
    assert [turn_of(TURNS, step) for step in range(50)] == [turn_of(TURNS, step) for step in range(50)]
    assert [turn_of(TURNS, step) for step in range(50)] != [turn_of(TURNS, step, 1) for step in range(50)]


def test_a_turn_is_one_objective_as_if_it_were_alone() -> None:
    steps = {turn_of(TURNS, step): TURNS.of_step(step, 0) for step in range(20)}
    nothing = {"vtm": 0.0, "mlm": 0.0}
    assert steps["vtm"] == Objectives(nothing | {"vtm": 1.0}, hard_negatives=True)
    assert steps["mlm"] == Objectives(nothing | {"mlm": 1.0})
    assert steps["vtc"] == Objectives(nothing | {"vtc": 1.0}, focal_gamma=0.5)
    module = PreTrainingModule(tiny_model(), TURNS)
    for name, objectives in steps.items():
        loss, losses = module(tiny_batch(), [FULL], objectives=objectives)
        alone, _ = PreTrainingModule(tiny_model(), objectives)(tiny_batch(), [FULL])
        assert losses.keys() == {name}
        assert loss == losses[name] == alone


def test_without_it_a_step_asks_what_the_recipe_does() -> None:
    plain = replace(TURNS, alternate=False)
    assert all(plain.of_step(step, 0) is plain for step in range(5))


def test_a_run_takes_turns_and_resumes_where_it_was(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "objectives": {"vtm": 1, "mlm": 1, "vtc": 2, "alternate": True, "vtc_directions": "alternate"},
        "model": {"layer_drop": 0.5},
        "training": {"learning_rate": 0.01, "max_steps": 8},
    }
    output = tmp_path / "run"
    run(output, **how)
    recipe = recipe_of(output, **how)
    lines = training_log_of(output)
    for line in lines:
        own = {name.removeprefix("loss_") for name in line if name.startswith("loss_")}
        assert own == {turn_of(recipe.objectives, line["step"] - 1, 1)}
    assert len({turn_of(recipe.objectives, line["step"] - 1, 1) for line in lines}) == 3
    kept = load_file(output / "model.safetensors")
    for step in (6, 8):
        shutil.rmtree(output / "checkpoints" / f"checkpoint-{step}")
    run(output, resume=True, **how)
    assert [line["loss"] for line in training_log_of(output)] == [line["loss"] for line in lines]
    assert all(torch.equal(value, kept[name]) for name, value in load_file(output / "model.safetensors").items())
    assert dry_run(recipe).flops_per_example < dry_run(recipe_of(output, **all_at_once(how))).flops_per_example


def all_at_once(how: dict[str, Any]) -> dict[str, Any]:
    return {**how, "objectives": {**how["objectives"], "alternate": False}}


# --- One way at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "moves"), [("text_to_vision", "text"), ("vision_to_text", "vision")])
def test_one_way_asks_one_side_and_holds_the_other_still(direction: Any, moves: str) -> None:
    model: PerceiverVLForPreTraining = tiny_model()
    batch = tiny_batch(5)
    objectives = Objectives({"vtm": 0, "mlm": 0, "vtc": 1}, vtc_directions=direction)
    loss, _ = PreTrainingModule(model, objectives)(batch, [FULL])
    vision = model.get_vision_features(batch.pixel_values, batch.frame_mask)
    text = model.get_text_features(batch.input_ids, batch.attention_mask)
    mine, others = (text, vision.detach()) if moves == "text" else (vision, text.detach())
    wanted = torch.zeros(()).double()
    for row in range(5):
        odds = torch.stack([(model.logit_scale * mine[row] @ one).exp() for one in others])
        wanted = wanted - (odds[row] / odds.sum()).log() / 5
    assert_same(loss, wanted)
    loss.backward()
    projections = {name: getattr(model.contrastive, f"{name}_projection").weight.grad for name in ("vision", "text")}
    for name, gradient in projections.items():
        assert (gradient is not None and bool(gradient.abs().max() > 1e-9)) == (name == moves)


def test_ways_alternate_with_the_steps() -> None:
    both = Objectives({"vtm": 0, "mlm": 0, "vtc": 1}, vtc_directions="alternate")
    found = [both.of_step(step, 0).vtc_directions for step in range(4)]
    assert found == ["text_to_vision", "vision_to_text"] * 2
    assert both.of_step(0, 1).vtc_directions == "vision_to_text"
    halves = []
    for directions in ("text_to_vision", "vision_to_text"):
        one: Any = replace(both, vtc_directions=directions)
        halves.append(PreTrainingModule(tiny_model(), one)(tiny_batch(), [FULL])[0])
    whole = PreTrainingModule(tiny_model(), replace(both, vtc_directions="both"))(tiny_batch(), [FULL])[0]
    assert_same(sum(halves) / 2, whole)
