"""Arguments of the Trainer: each works, or is refused by name before anything is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from perceiver_vl import UsageError
from perceiver_vl.training.arguments import IDLE
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.training.run import checked_arguments

RECIPE = """
output: run
data: {train: {world: {clips: 16, size: 32}}, validation: {world: {clips: 4, size: 32}}, num_frames: 2}
objectives: {vtc: 1, vtm: 0, mlm: 0}
training: {max_steps: 4, per_device_train_batch_size: 4, use_cpu: true, report_to: none}
"""


def asked(tmp_path: Path, *overrides: str) -> TrainingArguments:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return checked_arguments(read_recipe(tmp_path / "recipe.yaml", overrides))


def other_value(name: str) -> Any:
    """One that is not the default."""
    default = next(one.default for one in dataclasses.fields(TrainingArguments) if one.name == name)
    return {True: "false", False: "true"}.get(default, "3") if isinstance(default, bool) else "3"


@pytest.mark.parametrize("name", IDLE)
def test_an_argument_that_would_change_nothing_is_refused_with_what_to_do_instead(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"^training\.{name}=[^\n]+: has no effect here, leave it out \([^\n]+\)$"):
        asked(tmp_path, f"training.{name}={other_value(name)}")


def test_what_has_its_default_value_is_not_refused(tmp_path: Path) -> None:
    asked(tmp_path, "training.label_smoothing_factor=0.0", "training.do_train=false", "training.hub_token=null")
    assert set(IDLE) <= {one.name for one in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_every_optimizer_can_be_made_or_is_one_line(tmp_path: Path, name: str) -> None:
    try:
        assert asked(tmp_path, f"training.optim={name}").optim.value == name
    except UsageError as error:
        said = str(error)
    else:
        return
    assert said.startswith(f"training.optim={name}: ")
    assert "\n" not in said


@pytest.mark.parametrize("name", [one.value for one in SchedulerType])
def test_every_schedule_can_be_made_or_is_one_line(tmp_path: Path, name: str) -> None:
    try:
        assert asked(tmp_path, f"training.lr_scheduler_type={name}").lr_scheduler_type.value == name
    except UsageError as error:
        said = str(error)
    else:
        return
    assert "lr_scheduler_type" in said
    assert name in said
    assert "\n" not in said


def test_a_schedule_with_what_it_needs(tmp_path: Path) -> None:
    kwargs = "training.lr_scheduler_kwargs={min_lr_rate: 0.1}"
    asked(tmp_path, "training.lr_scheduler_type=cosine_with_min_lr", kwargs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.fp16=true", "fp16=true: float16 needs a GPU"),
        (
            "training.save_strategy=best",
            "save_strategy=best: needs training.eval_strategy and training.metric_for_best",
        ),
    ],
)
def test_values_that_cannot_be_had(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(tmp_path, override)
