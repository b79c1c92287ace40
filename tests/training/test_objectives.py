"""What follows from an objective's class: its inputs are made, what cannot work is refused, and a new one needs no more
than its class and its line in the table.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from perceiver_vl import PerceiverVLForPreTraining, UsageError
from perceiver_vl.models.budget import FULL_BUDGET
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.losses import OBJECTIVES
from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.training.run import examples_of
from perceiver_vl.training.setup import prepare_start
from small_runs import recipe_of, run, training_log_of
from tiny import assert_same, tiny_batch, tiny_model

NOTHING = {"vtm": 0.0, "mlm": 0.0}


class Distance(Objective):
    """Vision and text of a pair are to have the same vector: a loss of one pair, with another caption."""

    encodings = ("features",)
    needs_other_captions = True
    compares_pairs = False

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Numbers `(B,1)`."""
        assert batch.inputs.other_input_ids is not None
        others = batch.model.get_text_features(batch.inputs.other_input_ids, batch.inputs.other_attention_mask)
        distances = (batch.vision["features"] - (batch.text["features"] + others) / 2).norm(dim=1, keepdim=True)
        rows = batch.global_batch.mean_of(batch.global_batch.total)
        return ObjectiveOutput(distances.sum() / rows, (distances,), "numbers", rows)

    def flops(self, batch: BatchFlops) -> float:
        """The other captions."""
        return batch.examples * batch.text


@pytest.fixture
def distance(monkeypatch: pytest.MonkeyPatch) -> str:
    """One class, one line of the table."""
    monkeypatch.setitem(OBJECTIVES, "distance", Distance())
    return "distance"


def test_a_new_objective_is_trained_by_its_name(distance: str, tmp_path: Path) -> None:
    objectives = {**NOTHING, "vtc": 1, distance: 0.5, "chunk": 2}
    result = run(tmp_path / "run", objectives=objectives, training={"max_steps": 2})
    assert result.steps == 2
    for line in training_log_of(tmp_path / "run"):
        assert line["loss_distance"] > 0
        assert line["loss"] == pytest.approx(line["loss_vtc"] + 0.5 * line["loss_distance"], abs=1e-3)
        assert line["share_of_peak"] > 0
    recipe = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe.objectives.weights[distance] == 0.5
    assert f"`{distance}=0.5`" in (tmp_path / "run" / "README.md").read_text()
    assert dry_run(recipe).flops_per_example > 0
    for folder in ("run", "run/checkpoints/checkpoint-2"):  # the keys of a model, whatever it was trained for
        PerceiverVLForPreTraining.from_pretrained(tmp_path / folder)


def test_the_worked_example_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (name, made) = re.findall(r'"(\w+)": (\w+)\(\)', page)[0]
    parts: dict[str, Any] = {}
    exec(code, parts)
    monkeypatch.setitem(OBJECTIVES, name, parts[made]())
    run(tmp_path / "run", objectives={**NOTHING, name: 1}, training={"max_steps": 2})
    assert all(
        line["loss"] == pytest.approx(line[f"loss_{name}"], abs=1e-3) for line in training_log_of(tmp_path / "run")
    )
    model, batch = tiny_model(), tiny_batch(3)
    vision = model.get_vision_features(batch.pixel_values, batch.frame_mask)
    text = model.get_text_features(batch.input_ids, batch.attention_mask)
    signs = 2 * torch.eye(3) - 1
    by_hand = -F.logsigmoid(signs * (model.logit_scale * text @ vision.T - 10)).sum() / 3
    _, losses = PreTrainingModule(model, Objectives({**NOTHING, name: 1.0}))(batch, [FULL_BUDGET])
    assert_same(losses[name], by_hand)


def test_a_new_objective_has_the_budgets_of_an_elastic_recipe(distance: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"elastic": {"latents": 2, "text_latents": 1}, "training": {"max_steps": 2}}
    run(tmp_path / "run", objectives={**NOTHING, distance: 1}, **how)
    assert all(
        {"loss_distance", "loss_smaller", "loss_distill"} <= line.keys() for line in training_log_of(tmp_path / "run")
    )


def test_a_new_objective_says_what_it_needs(distance: str, tmp_path: Path) -> None:
    alone = {**NOTHING, distance: 1}
    one_pair = {"objectives": alone, "training": {"per_device_train_batch_size": 1, "max_steps": 1}}
    assert run(tmp_path / "one", **one_pair).steps == 1
    decoder = {"stages": [{"steps": 1, "train": ["decoder"]}], "training": {}}
    with pytest.raises(UsageError, match="no objective asks the decoder"):
        recipe_of(tmp_path / "run", decoder, objectives=alone)
    everyone = "as vtc, ttc, mixed_vtm, mixed_vtc, momentum, structure, moments and distance do"
    with pytest.raises(UsageError, match=everyone):
        recipe_of(tmp_path / "run", elastic={"text_latents": 1})


def test_its_name_is_none_without_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+objectives.distance: unknown key[^\n]*$"):
        recipe_of(tmp_path / "run", objectives={"distance": 1})


def test_a_new_objectives_loss_is_its_own(distance: str) -> None:
    model, batch = tiny_model(), tiny_batch()
    vision = model.get_vision_features(batch.pixel_values, batch.frame_mask)
    text = model.get_text_features(batch.input_ids, batch.attention_mask)
    assert batch.other_input_ids is not None
    others = model.get_text_features(batch.other_input_ids, batch.other_attention_mask)
    _, losses = PreTrainingModule(model, Objectives({**NOTHING, distance: 1.0}))(batch, [FULL_BUDGET])
    assert losses.keys() == {distance}
    assert_same(losses[distance], F.pairwise_distance(vision, (text + others) / 2, eps=0).mean())


# --- What the batch has ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objectives", "wanted"),
    [
        ({"vtc": 1}, set()),
        ({"vtm": 1}, set()),
        ({"mlm": 1}, {"masked_input_ids", "mlm_labels"}),
        ({"ttc": 1}, {"other_input_ids", "other_attention_mask"}),
        ({"mixed_vtm": 1, "hard_negatives": True}, {"negative_draws"}),
        ({"mpm": 1}, {"patch_draws"}),
        ({"momentum": 1}, set()),
    ],
)
def test_a_batch_has_what_the_objectives_need_and_no_more(
    objectives: dict[str, Any], wanted: set[str], tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path / "run", objectives={**NOTHING, **objectives})
    start = prepare_start(recipe, None, 4, 1)
    examples, collate = examples_of(recipe, start, 1)
    batch = collate(examples.__getitems__([0, 1, 2, 3]))
    pairs = {"input_ids", "attention_mask", "pixel_values", "frame_mask"}
    read = {"examples", "problems", "tried", "failed", "damaged"}
    assert batch.keys() == pairs | read | wanted


def test_a_batch_may_lack_what_no_objective_needs() -> None:
    lean = replace(tiny_batch(), masked_input_ids=None, mlm_labels=None, other_input_ids=None, negative_draws=None)
    objectives = Objectives({"vtm": 1, "mlm": 0, "vtc": 1, "mixed_vtm": 1, "mixed_vtc": 1})
    module = PreTrainingModule(tiny_model(), objectives)
    (loss, _), (whole, _) = module(lean, [FULL_BUDGET]), module(tiny_batch(), [FULL_BUDGET])
    assert loss == whole
