"""Training at several budgets: what a step draws, what the smaller ones are taught, and runs that do it."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from perceiver_vl import ComputeBudget, PerceiverVLForCaptioning, PerceiverVLForQuestionAnswering, UsageError
from perceiver_vl.models.budget import TrainingBudget
from perceiver_vl.training import train
from perceiver_vl.training.elastic import (
    Elastic,
    ElasticTaskModule,
    budgets_of_step,
    distillation_loss,
    elastic_loss,
)
from perceiver_vl.training.losses.base import ObjectiveOutput
from perceiver_vl.training.objectives import Objectives, PreTrainingModule
from perceiver_vl.training.recipe import Recipe, read_recipe
from small_runs import training_log_of
from tiny import assert_same, differs, tiny_batch, tiny_config, tiny_inputs, tiny_model, tiny_recipe

EVERYTHING = Objectives({"vtm": 1, "mlm": 1, "vtc": 1, "ttc": 0.5, "mixed_vtm": 1, "mixed_vtc": 1}, hard_negatives=True)
ALL_DIALS = Elastic(frames=2, latents=2, text_latents=1, cross_attentions=1, exits=1, tokens=0.5)
FULL = ComputeBudget()


# --- Draws ----------------------------------------------------------------------------------------------------------


def test_a_step_draws_the_same_budgets_whenever_it_comes_and_another_step_others() -> None:
    config = tiny_config()
    steps = [budgets_of_step(ALL_DIALS, config, 4, seed=1, step=step) for step in range(60)]
    assert steps == [budgets_of_step(ALL_DIALS, config, 4, seed=1, step=step) for step in range(60)]
    assert steps != [budgets_of_step(ALL_DIALS, config, 4, seed=2, step=step) for step in range(60)]
    drawn = [step[-1] for step in steps]
    found = {name: {getattr(one, name) for one in drawn} for name in (field.name for field in fields(ComputeBudget))}
    assert found["frames"] == {2, 3, 4}
    assert found["latents"] == {2, 3, 4, 5, 6}
    assert found["text_latents"] == {1, 2, 3, 4}
    assert found["cross_attentions"] == found["blocks"] == {1, 2, 3}
    assert len({one.seed for one in drawn if isinstance(one, TrainingBudget)}) == 60
    assert all(0.5 <= one.token_share <= 1 for one in drawn if isinstance(one, TrainingBudget))


def test_a_step_trains_the_whole_the_smallest_and_one_between() -> None:
    whole, smallest, between = budgets_of_step(ALL_DIALS, tiny_config(), 4, seed=1, step=3)
    assert whole == FULL
    assert isinstance(between, TrainingBudget)
    wanted = TrainingBudget(2, 2, 1, 1, 1, seed=between.seed, token_share=0.5)
    assert smallest == wanted
    assert budgets_of_step(replace(ALL_DIALS, smallest=False), tiny_config(), 4, 1, 3) == [whole, between]


def test_dials_that_are_not_named_are_not_turned() -> None:
    for step in range(20):
        _, *others = budgets_of_step(Elastic(latents=2), tiny_config(), 4, seed=0, step=step)
        for one in others:
            assert isinstance(one, TrainingBudget)
            assert one == TrainingBudget(latents=one.latents, seed=one.seed)
    reads = [
        budgets_of_step(Elastic(cross_attentions=3, exits=1), tiny_config(num_blocks=4), 4, 0, s) for s in range(30)
    ]
    assert {one.cross_attentions for _, smallest, _ in reads for one in [smallest]} == {1}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Elastic(), "elastic: turns no dial"),
        (lambda: Elastic(distill=0.3), "elastic: turns no dial"),
        (lambda: Elastic(latents=0), "elastic.latents=0"),
        (lambda: Elastic(exits=-1), "elastic.exits=-1"),
        (lambda: Elastic(tokens=1.0), "elastic.tokens=1.0"),
        (lambda: Elastic(tokens=0.0), "elastic.tokens=0.0"),
        (lambda: Elastic(latents=2, distill=1.1), "elastic.distill=1.1"),
        (lambda: Elastic(latents=6).check(tiny_config(), 4), "elastic.latents=6: need fewer than the 6"),
        (lambda: Elastic(text_latents=5).check(tiny_config(), 4), "elastic.text_latents=5"),
        (lambda: Elastic(frames=4).check(tiny_config(), 4), "elastic.frames=4"),
        (lambda: Elastic(exits=3).check(tiny_config(), 4), "elastic.exits=3"),
        (lambda: Elastic(cross_attentions=3).check(tiny_config(), 4), "elastic.cross_attentions=3"),
        (lambda: Elastic(tokens=0.5).check(tiny_config(image_size=8), 4), "elastic.tokens=0.5"),
        (lambda: Elastic(tokens=0.5).check(tiny_config(frame_summaries=2), 4), "elastic.tokens: frame_summaries=2"),
    ],
)
def test_dials_that_cannot_be_turned_so_far_are_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(UsageError, match=r"^elastic[^\n]+$") as refused:
        make()
    assert named in str(refused.value)


# --- Losses ---------------------------------------------------------------------------------------------------------


def answered(*logits: Tensor, kind: Any = "classes", loss: float = 0.0) -> ObjectiveOutput:
    return ObjectiveOutput(torch.tensor(loss).double(), logits, kind)


@pytest.mark.parametrize("kind", ["classes", "yes_or_no", "numbers"])
def test_who_says_the_same_misses_nothing_and_the_teacher_learns_nothing(kind: str) -> None:
    torch.manual_seed(0)
    theirs = torch.randn(4, 5).double().requires_grad_()
    mine = theirs.detach().clone().requires_grad_()
    assert_same(distillation_loss(answered(mine, kind=kind), answered(theirs, kind=kind)), torch.zeros(()).double())
    other = (mine + torch.randn(4, 5)).detach().requires_grad_()
    loss = distillation_loss(answered(other, kind=kind), answered(theirs, kind=kind))
    assert loss > 0
    loss.backward()
    assert theirs.grad is None
    assert other.grad is not None
    assert other.grad.abs().max() > 0


def test_what_is_missed_is_the_divergence_by_its_definition() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    p, q = theirs.softmax(1), mine.softmax(1)
    by_hand = (p * (p / q).log()).sum(1).mean()
    assert_same(distillation_loss(answered(mine), answered(theirs)), by_hand)
    both = distillation_loss(answered(mine, theirs.T), answered(theirs, theirs.T))
    assert_same(both, by_hand / 2)
    p, q = theirs.sigmoid(), mine.sigmoid()
    by_hand = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    assert_same(distillation_loss(answered(mine, kind="yes_or_no"), answered(theirs, kind="yes_or_no")), by_hand)
    found = distillation_loss(answered(mine, kind="numbers"), answered(theirs, kind="numbers"))
    assert_same(found, ((mine - theirs) ** 2).mean())


def test_a_choice_that_is_not_there_and_a_batch_without_words_cost_nothing() -> None:
    torch.manual_seed(0)
    mine = torch.randn(2, 3, requires_grad=True)
    absent = torch.tensor([[False, False, True], [False, False, False]])
    theirs = torch.randn(2, 3)
    loss = distillation_loss(
        answered(mine.masked_fill(absent, -torch.inf)), answered(theirs.masked_fill(absent, -torch.inf))
    )
    first = distillation_loss(answered(mine[:1, :2]), answered(theirs[:1, :2]))
    second = distillation_loss(answered(mine[1:]), answered(theirs[1:]))
    assert_same(loss, (first + second) / 2, 1e-5)
    loss.backward()
    assert mine.grad is not None
    assert mine.grad.isfinite().all()
    assert distillation_loss(answered(torch.zeros(0, 7)), answered(torch.zeros(0, 7))) == 0


@pytest.mark.parametrize("distill", [0.0, 0.3, 1.0])
def test_the_loss_of_a_step_is_half_that_of_the_whole_and_half_that_of_the_others(distill: float) -> None:
    small, tiny = ComputeBudget(latents=2), ComputeBudget(latents=1)
    torch.manual_seed(0)
    says = {budget: torch.randn(2, 3).double() for budget in (FULL, small, tiny)}
    losses = {FULL: 1.0, small: 2.0, tiny: 4.0}

    def ask(budget: ComputeBudget) -> dict[str, ObjectiveOutput]:
        return {"a": answered(says[budget], loss=losses[budget]), "b": answered(says[budget], loss=10.0)}

    total, parts = elastic_loss(ask, [FULL, small, tiny], {"a": 1.0, "b": 0.5}, distill)
    own = torch.tensor([7.0, 9.0]).double()
    taught = torch.stack([1.5 * distillation_loss(answered(says[one]), answered(says[FULL])) for one in (small, tiny)])
    assert_same(total, (6.0 + ((1 - distill) * own + distill * taught).mean()) / 2)
    assert parts.keys() == {"a", "b", "smaller", "distill"}
    assert (parts["a"], parts["smaller"]) == (1.0, 8.0)
    assert_same(parts["distill"], taught.mean())


def test_the_whole_model_is_trained_as_without_the_others() -> None:
    model, batch = tiny_model(), tiny_batch()
    budgets = budgets_of_step(ALL_DIALS, model.config, 3, seed=0, step=0)
    module = PreTrainingModule(model, EVERYTHING, 0.5)
    _, parts = module(batch, budgets)
    for name, loss in module(batch, [FULL])[1].items():
        assert torch.equal(parts[name], loss)


def test_a_smaller_budget_judges_the_same_pairs() -> None:
    model, batch = tiny_model(), tiny_batch(6)
    module = PreTrainingModule(model, EVERYTHING, 0.5)
    _, parts = module(batch, [FULL, TrainingBudget(latents=6, seed=3)])
    assert_same(parts["distill"], torch.zeros(()).double())  # the same model, so no answer differs
    _, parts = module(batch, [FULL, TrainingBudget(latents=5, seed=3)])
    assert parts["distill"] > 1e-6


def test_chunks_meet_the_same_latents_frames_and_tokens_in_both_passes() -> None:
    found = []
    for chunk in (None, 2):
        model, batch = tiny_model(layer_drop=0.5).train(), tiny_batch(5)
        model.seed_layer_drop(3)
        budgets = budgets_of_step(ALL_DIALS, model.config, 3, seed=0, step=1)
        total, _ = PreTrainingModule(model, replace(EVERYTHING, chunk=chunk), 0.5)(batch, budgets)
        total.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_same(found[1][name], gradient)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.rand(2, 3).double()),
        ({"num_labels": 1, "problem_type": "regression"}, torch.tensor([2.0, 5.0]).double()),
    ],
)
def test_a_task_is_trained_at_every_budget(changes: dict[str, Any], labels: Tensor) -> None:
    model = tiny_model(PerceiverVLForQuestionAnswering, **changes)
    inputs = {**tiny_inputs(), "labels": labels}
    small = ComputeBudget(blocks=1, latents=2)
    total, parts = ElasticTaskModule(model, 0.25)(inputs, [FULL, small])
    whole, other = model(**inputs), model(**inputs, budget=small)
    kind = {"regression": "numbers", "multi_label_classification": "yes_or_no"}.get(
        model.config.problem_type, "classes"
    )
    taught = distillation_loss(answered(other.logits, kind=kind), answered(whole.logits, kind=kind))
    assert_same(parts["distill"], taught)
    assert_same(total, (whole.loss + 0.75 * other.loss + 0.25 * taught) / 2)


# --- Runs -----------------------------------------------------------------------------------------------------------


def recipe_of(output: Path, **changes: Any) -> Recipe:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_recipe(output, **changes)))
    return read_recipe(file)


RETRIEVAL = {
    "objectives": {"vtm": 1, "mlm": 0, "vtc": 1, "mixed_vtc": 1},
    "elastic": {"frames": 1, "latents": 2, "text_latents": 1, "cross_attentions": 1, "exits": 1, "tokens": 0.5},
}


def test_an_elastic_run_logs_what_is_learned_and_a_resume_changes_nothing(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "run", **RETRIEVAL, model={"layer_drop": 0.3})
    train(recipe, progress=False)
    lines = training_log_of(recipe.output)
    assert len(lines) == 6
    for line in lines:
        whole = sum(line[f"loss_{name}"] for name in ("vtm", "vtc", "mixed_vtc"))
        others = 0.5 * line["loss_smaller"] + 0.5 * line["loss_distill"]
        assert line["loss"] == pytest.approx((whole + others) / 2, abs=1e-3)
    assert read_recipe(recipe.output / "recipe.yaml") == recipe
    wanted = load_file(recipe.output / "model.safetensors")
    for name in ("checkpoint-6", "checkpoint-4"):
        shutil.rmtree(recipe.output / "checkpoints" / name)
    train(recipe, resume=True, progress=False)
    found = load_file(recipe.output / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    plain = recipe_of(tmp_path / "plain", objectives=RETRIEVAL["objectives"], model={"layer_drop": 0.3})
    train(plain, progress=False)
    assert any(differs(tensor, wanted[n]) for n, tensor in load_file(plain.output / "model.safetensors").items())


def test_of_captions_the_words_that_are_to_be_said_are_taught() -> None:
    model = tiny_model(PerceiverVLForCaptioning)
    inputs = tiny_inputs()
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][0, 3:] = -100
    small = ComputeBudget(blocks=1, latents=2)
    total, parts = ElasticTaskModule(model, 0.25)(inputs, [FULL, small])
    whole, other = model(**inputs), model(**inputs, budget=small)
    rows = [torch.cat([one.logits[0, :2], one.logits[1, :5]]) for one in (other, whole)]
    taught = distillation_loss(answered(rows[0]), answered(rows[1]))
    assert_same(parts["distill"], taught)
    assert_same(total, (whole.loss + 0.75 * other.loss + 0.25 * taught) / 2)


@pytest.mark.parametrize(("task", "world"), [("question-answering", "frame"), ("captioning", "captions")])
def test_a_task_can_be_elastic(task: str, world: str, tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path / "run", training={"max_steps": 2}, elastic={"latents": 2, "exits": 1})
    values |= {"task": task}
    del values["objectives"]
    values["data"]["train"]["world"]["task"] = world
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    lines = training_log_of(tmp_path / "run")
    assert all(line["loss_smaller"] > 0 and line["loss_task"] > 0 for line in lines)


def test_a_recipe_without_the_section_comes_nowhere_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path / "run", training={"max_steps": 1})
    assert recipe.elastic is None

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("not elastic")

    monkeypatch.setattr("perceiver_vl.training.objectives.elastic_loss", never)
    monkeypatch.setattr("perceiver_vl.models.perceiver_vl.modeling.drawn_latents", never)
    monkeypatch.setattr("perceiver_vl.models.perceiver_vl.modeling.kept_tokens", never)
    monkeypatch.setattr("perceiver_vl.layers.perceiver.most_diverse", never)
    assert train(recipe, progress=False).steps == 1


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("elastic.latent=2", "latent"),
        ("elastic.latents=few", "few"),
        ("elastic={}", "turns no dial"),
        ("elastic.text_latents=1", "elastic.text_latents=1: nothing here reads text alone"),
        ("elastic=all", "elastic"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(tmp_path: Path, override: str, named: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run")))
    with pytest.raises(UsageError) as refused:
        read_recipe(path, [override])
    assert named in str(refused.value)


def test_a_dial_that_the_model_does_not_have_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "run", elastic={"latents": 4})
    with pytest.raises(UsageError, match=r"^elastic.latents=4: need fewer than the 4 there are"):
        train(recipe, progress=False)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
