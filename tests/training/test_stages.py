"""Training in stages: what is frozen stays as it was to the last bit, the schedules, resumes, and what is refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from perceiver_vl import PerceiverVLForPreTraining, UsageError
from perceiver_vl.training import train
from perceiver_vl.training.recipe import OF_ENCODERS, PARTS, Recipe, Stage, read_recipe
from perceiver_vl.training.stages import part_of, stage_at
from perceiver_vl.utils.launch import beside_others
from small_runs import training_log_of
from tiny import tiny_config, tiny_recipe

READS_THEN_ALL = [{"steps": 4, "train": ["cross_attentions"]}, {"steps": 4}]
ALL_OBJECTIVES = {"vtm": 1, "mlm": 1, "vtc": 1, "mixed_vtm": 1, "mixed_vtc": 1}
SGD = {"optim": "sgd", "max_grad_norm": 0.0}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "train.md"


def recipe_of(
    output: Path, stages: list[dict[str, Any]], training: dict[str, Any] | None = None, **more: Any
) -> Recipe:
    values = tiny_recipe(output, objectives=more.pop("objectives", ALL_OBJECTIVES))
    del values["training"]["max_steps"]
    values["model"] |= {"layer_drop": 0.0} | more.pop("model", {})
    values["data"] |= more.pop("data", {})
    values["training"] |= training or {}
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values | {"stages": stages} | more))
    return read_recipe(file)


def run(output: Path, stages: list[dict[str, Any]], **changes: Any) -> dict[str, Tensor]:
    train(recipe_of(output, stages, **changes), progress=False)
    return weights(output)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def checkpoint(output: Path, step: int) -> dict[str, Tensor]:
    return weights(output / "checkpoints" / f"checkpoint-{step}")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights before the first step, of every run here whose model is the same."""
    return run(tmp_path_factory.mktemp("start") / "run", [{"steps": 1, "learning_rate": 0.0}])


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def parts_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {part_of(name) for name in moved(before, after)}


def learning_rates(output: Path) -> list[float]:
    return [line["learning_rate"] for line in training_log_of(output)]


# --- The parts ------------------------------------------------------------------------------------------------------


def test_every_parameter_belongs_to_one_part() -> None:
    names = [name for name, _ in PerceiverVLForPreTraining(tiny_config()).named_parameters()]
    assert {part_of(name) for name in names} == set(PARTS) - {"all", *OF_ENCODERS}
    reads = [name for name in names if part_of(name) == "cross_attentions"]
    assert {name.split(".")[3] for name in reads} == {"0", "1", "2"}
    assert all(".cross_attention." in name for name in reads)
    assert {part_of(name) for name in names if name.startswith(("decoder.", "vtm_query", "mlm_queries"))} == {"decoder"}
    assert {part_of(name) for name in names if name.startswith(("vtm_head", "mlm_head", "contrastive"))} == {"heads"}
    assert part_of("perceiver_vl.encoder.norm.weight") == "self_attentions"
    assert part_of("perceiver_vl.encoder.latent_positions") == part_of("perceiver_vl.encoder.latents") == "latents"


def test_the_stage_of_a_step() -> None:
    stages = (Stage(2), Stage(1), Stage(3))
    assert [stage_at(stages, step) for step in range(8)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (2, 0),
        (2, 1),
        (2, 2),
        (2, 3),
        (2, 4),
    ]


# --- What is frozen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_only_the_cross_attentions_move_in_their_stage_and_everything_after_it(
    start: dict[str, Tensor], tmp_path: Path, optimizer: str
) -> None:
    end = run(tmp_path / "run", READS_THEN_ALL, training={"weight_decay": 0.5}, optimizer=optimizer)
    first = checkpoint(tmp_path / "run", 4)
    reads = {name for name in start if part_of(name) == "cross_attentions"}
    assert moved(start, first) <= reads
    assert moved(start, first) >= {name for name in reads if name.endswith(".weight")}
    assert parts_moved(first, end) == set(PARTS) - {"all", *OF_ENCODERS}


def test_each_part_can_be_trained_by_itself(start: dict[str, Tensor], tmp_path: Path) -> None:
    parts = sorted(set(PARTS) - {"all", *OF_ENCODERS})
    run(tmp_path / "run", [{"steps": 1, "train": [part]} for part in parts], training={"save_steps": 1})
    before = start
    for step, part in enumerate(parts, start=1):
        after = checkpoint(tmp_path / "run", step)
        assert parts_moved(before, after) == {part}
        before = after


def test_what_has_momentum_stops_when_it_is_frozen(tmp_path: Path) -> None:
    stages = [{"steps": 2}, {"steps": 2, "train": ["decoder", "heads"]}]
    end = run(tmp_path / "run", stages, training={"weight_decay": 0.5})
    assert parts_moved(checkpoint(tmp_path / "run", 2), end) == {"decoder", "heads"}


def test_a_tied_word_table_goes_with_the_embeddings(tmp_path: Path) -> None:
    model = {"tie_word_embeddings": True}
    start = run(tmp_path / "start", [{"steps": 1, "learning_rate": 0.0}], model=model)
    table = "perceiver_vl.embeddings.text.word_embeddings.weight"
    heads = run(tmp_path / "heads", [{"steps": 1, "train": ["heads"]}], model=model)
    assert parts_moved(start, heads) == {"heads"}
    assert table in moved(start, run(tmp_path / "embeddings", [{"steps": 1, "train": ["embeddings"]}], model=model))


def test_only_what_learns_counts_in_the_norm_of_the_gradients(start: dict[str, Tensor], tmp_path: Path) -> None:
    """Plain gradient descent at rate 100 along a gradient clipped to a norm of 0.001."""
    how = {
        "optim": "sgd",
        "max_grad_norm": 1e-3,
        "learning_rate": 100.0,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
    }
    end = run(tmp_path / "run", [{"steps": 1, "train": ["heads"]}], training=how)
    step = torch.cat([(end[name] - start[name]).flatten() for name in sorted(start)])
    assert step.norm().item() == pytest.approx(0.1, rel=1e-3)


def test_accumulated_batches_are_one_large_batch_in_every_stage(start: dict[str, Tensor], tmp_path: Path) -> None:
    stages = [{"steps": 1, "train": ["cross_attentions"]}, {"steps": 2}]
    changes: dict[str, Any] = {"objectives": {"vtm": 1, "mlm": 0}}
    one = run(tmp_path / "one", stages, training=SGD | {"per_device_train_batch_size": 8}, **changes)
    how = SGD | {"gradient_accumulation_steps": 2, "save_steps": 1}
    two = run(tmp_path / "two", stages, training=how, **changes)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.0, atol=1e-6)
    assert parts_moved(start, checkpoint(tmp_path / "two", 1)) == {"cross_attentions"}


def test_two_processes_train_the_stages_as_one_on_both_their_batches(start: dict[str, Tensor], tmp_path: Path) -> None:
    """With activations recomputed, which would have the Trainer expect a gradient of everything."""
    stages = [
        {"steps": 2, "train": ["cross_attentions"]},
        {"steps": 1},
        {"steps": 1, "train": ["decoder", "heads"], "learning_rate": 0.5},
    ]
    how: dict[str, Any] = SGD | {"activation_checkpointing": True, "save_steps": 1}
    objectives = {"vtm": 1, "mlm": 0, "vtc": 1}
    recipe = recipe_of(tmp_path / "two", stages, training=how, objectives=objectives)
    with beside_others(2, ["train", str(tmp_path / "two.yaml")]):
        assert train(recipe, progress=False).steps == 4
    two = weights(tmp_path / "two")
    assert parts_moved(start, checkpoint(tmp_path / "two", 2)) == {"cross_attentions"}
    assert parts_moved(checkpoint(tmp_path / "two", 3), two) == {"decoder", "heads"}

    one = run(tmp_path / "one", stages, training=SGD | {"per_device_train_batch_size": 8}, objectives=objectives)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.0, atol=1e-5)


# --- How fast -------------------------------------------------------------------------------------------------------


def test_each_stage_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    stages = [{"steps": 4, "train": ["cross_attentions"]}, {"steps": 5, "learning_rate": 0.02, "warmup_steps": 2}]
    run(tmp_path / "run", stages, training={"learning_rate": 0.1})
    linear = [0.1, 0.075, 0.05, 0.025, 0.0, 0.01, 0.02, 0.02 * 2 / 3, 0.02 / 3]
    assert learning_rates(tmp_path / "run") == pytest.approx(linear, rel=1e-12)
    assert [line["step"] for line in training_log_of(tmp_path / "run")] == list(range(1, 10))


def test_a_schedule_knows_the_learning_rate_of_its_stage(tmp_path: Path) -> None:
    """A floor is a rate, not a share of the rate; the warm-up of the recipe holds in every stage."""
    how = {
        "learning_rate": 0.1,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 0.02},
        "warmup_steps": 1,
    }
    run(
        tmp_path / "run",
        [{"steps": 3, "train": ["cross_attentions"]}, {"steps": 3, "learning_rate": 0.04}],
        training=how,
    )
    cosine = [0.0, 0.1, 0.06, 0.0, 0.04, 0.03]
    assert learning_rates(tmp_path / "run") == pytest.approx(cosine, rel=1e-12)


def test_one_stage_of_everything_is_a_run_without_stages(tmp_path: Path) -> None:
    how = {"lr_scheduler_type": "cosine", "warmup_steps": 2}
    staged = run(tmp_path / "staged", [{"steps": 6}], training=how)
    plain = run(tmp_path / "plain", [], training=how | {"max_steps": 6})
    assert not moved(staged, plain)
    assert learning_rates(tmp_path / "staged") == learning_rates(tmp_path / "plain")


# --- The same run again ---------------------------------------------------------------------------------------------


def test_a_run_stopped_in_any_stage_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """In the first stage, at its very end, in the second, in a third where something is frozen again."""
    stages = [
        *READS_THEN_ALL,
        {"steps": 4, "train": ["self_attentions", "heads"], "learning_rate": 0.01, "warmup_steps": 1},
    ]
    changes: dict[str, Any] = {"model": {"layer_drop": 0.5, "hidden_dropout_prob": 0.1}}
    changes["training"] = {"weight_decay": 0.1}
    whole = run(tmp_path / "whole", stages, **changes)
    for step in (2, 4, 6, 10):
        output = tmp_path / f"stopped-{step}"
        recipe = recipe_of(output, stages, **changes)
        left = f"checkpoints/checkpoint-{step}"
        shutil.copytree(tmp_path / "whole" / left, output / left)
        assert train(recipe, resume=True, progress=False).steps == 12
        assert not moved(whole, weights(output))
        for column in ("step", "loss", "learning_rate", "grad_norm"):
            assert [line[column] for line in training_log_of(output)] == [
                line[column] for line in training_log_of(tmp_path / "whole")
            ]


# --- The recipe -----------------------------------------------------------------------------------------------------


def test_stages_come_out_of_a_file_and_go_back_into_one(tmp_path: Path) -> None:
    stages = [
        {"steps": 1, "train": ["cross_attentions", "latents"]},
        {"steps": 2, "learning_rate": 1e-3, "warmup_steps": 1},
    ]
    recipe = recipe_of(tmp_path / "run", stages)
    assert recipe.stages == (
        Stage(1, ("cross_attentions", "latents")),
        Stage(2, ("all",), learning_rate=1e-3, warmup_steps=1),
    )
    train(recipe, progress=False)
    assert read_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    changed = read_recipe(tmp_path / "run.yaml", ["stages=[{steps: 3, train: [heads]}]"])
    assert changed.stages == (Stage(3, ("heads",)),)


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": "many"}, "many"),
        ({"train": ["cross_attentions"]}, "steps"),
        ({"steps": 2, "step": 2}, "step"),
        ({"steps": 2, "train": ["reeds"]}, "'reeds', choose from cross_attentions"),
        ({"steps": 2, "train": []}, "train=[]"),
        ({"steps": 2, "learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"steps": 2, "warmup_steps": -1}, "warmup_steps=-1"),
        ({"steps": 2, "warmup_steps": 3}, "warmup_steps=3"),
    ],
)
def test_a_stage_that_cannot_be_meant_is_refused(tmp_path: Path, stage: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        recipe_of(tmp_path / "run", [{"steps": 1}, stage])
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": {"max_steps": 10}}, "training.max_steps=10"),
        ({"training": {"num_train_epochs": 2}}, "training.num_train_epochs=2"),
        (
            {
                "data": {"validation": {"split": "validation", "world": {"clips": 5, "size": 16}}},
                "training": {
                    "lr_scheduler_type": "reduce_lr_on_plateau",
                    "eval_strategy": "steps",
                    "metric_for_best_model": "multi_r1",
                },
            },
            "lr_scheduler_type=reduce_lr_on_plateau: not a function",
        ),
        ({"training": {"lr_scheduler_type": "cosine_with_min_lr"}}, "lr_scheduler_type=cosine_with_min_lr"),
        ({"training": {"lr_scheduler_type": "constant"}}, "a constant learning rate has no warm-up"),
        ({"training": {"warmup_steps": 3}}, "training.warmup_steps=3"),
        ({"training": {"learning_rate": 0.0}}, "training.learning_rate"),
        ({"objectives": {"vtm": 0, "mlm": 0, "vtc": 1}}, "train=[decoder]"),
    ],
)
def test_stages_that_do_not_fit_the_recipe_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    stages = [{"steps": 2, "train": ["decoder"]}, {"steps": 4, "learning_rate": 0.1, "warmup_steps": 1}]
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        run(tmp_path / "run", stages, **changes)
    assert named in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_stages_of_the_page_are_stages(tmp_path: Path) -> None:
    snippets = re.findall(r"^```yaml\n(stages:.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 1
    recipe = recipe_of(tmp_path / "run", yaml.safe_load(snippets[0])["stages"])
    assert [stage.train for stage in recipe.stages] == [("cross_attentions",), ("all",)]
