"""What happens beside the steps: the log, early stopping, trackers by name."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from perceiver_vl import UsageError
from perceiver_vl.training.run import checked_arguments, train
from small_runs import log_of, recipe_of

VALIDATION = {"validation": {"split": "validation", "world": {"clips": 4, "size": 16}}}
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "multi_r1"}


def test_the_log_has_every_line_once_also_after_a_resume(tmp_path: Path) -> None:
    output = tmp_path / "run"
    how = {"eval_strategy": "steps", "eval_steps": 4, "logging_steps": 2, "learning_rate": 0.01}
    recipe = recipe_of(output, data=VALIDATION, training=how)
    train(recipe, progress=False)
    whole = log_of(output)
    assert [(line["step"], "loss" in line, "eval_multi_r1" in line) for line in whole] == [
        (2, True, False),
        (4, True, False),
        (4, False, True),
        (6, True, False),
        (6, False, True),
        (6, False, False),  # the mean loss and speed of the whole run
    ]
    assert all(line["steps"] == 6 for line in whole)
    assert [line["time"] for line in whole] == sorted(line["time"] for line in whole)
    with (output / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the run was killed while it wrote
    shutil.rmtree(output / "checkpoints" / "checkpoint-6")
    train(recipe, resume=True, progress=False)
    again = log_of(output)
    assert again[:3] == whole[:3]
    assert [(line["step"], line.get("loss")) for line in again] == [(line["step"], line.get("loss")) for line in whole]


def test_a_run_without_progress_stops_early_and_would_again_after_a_resume(tmp_path: Path) -> None:
    """At a learning rate of nothing the first evaluation stays the best."""
    output = tmp_path / "run"
    how = EVERY_STEP | {"learning_rate": 0.0, "max_steps": 20, "save_steps": 1}
    for name, patience in (("run", 3), ("other", 1)):
        recipe = recipe_of(tmp_path / name, {"patience": patience}, data=VALIDATION, training=how)
        assert train(recipe, progress=False).steps == 1 + patience
    for left, steps in (("checkpoint-4", 4), ("checkpoint-2", 4)):  # from its last step, and from before it
        for path in (output / "checkpoints").glob("checkpoint-*"):
            if path.name != left and int(path.name[11:]) > int(left[11:]):
                shutil.rmtree(path)
        recipe = recipe_of(output, {"patience": 3}, data=VALIDATION, training=how)
        assert train(recipe, resume=True, progress=False).steps == steps


def test_patience_needs_something_to_wait_for(tmp_path: Path) -> None:
    for training in ({}, {"metric_for_best_model": "multi_r1"}):
        with pytest.raises(UsageError, match=r"^patience=2: needs training.eval_strategy [^\n]+multi_r1[^\n]+$"):
            checked_arguments(recipe_of(tmp_path / "run", {"patience": 2}, data=VALIDATION, training=training))
    with pytest.raises(UsageError, match=r"patience=0: need at least 1$"):
        recipe_of(tmp_path / "run", {"patience": 0})
    checked_arguments(recipe_of(tmp_path / "run", {"patience": 2}, data=VALIDATION, training=EVERY_STEP))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tensorbord", "unknown, choose from [^\n]*tensorboard"),
        ("swanlab", "is not installed"),
        (["a", "b"], "unknown"),
    ],
)
def test_a_tracker_that_cannot_be_is_one_line(tmp_path: Path, asked: Any, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^training.report_to=\w+: {said}[^\n]*$"):
        train(recipe_of(tmp_path / "run", training={"report_to": asked}), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_tracker_goes_by_its_name(tmp_path: Path) -> None:
    train(recipe_of(tmp_path / "run", training={"report_to": "tensorboard", "max_steps": 1}), progress=False)
    assert list((tmp_path / "run").glob("checkpoints/runs/*/events.out.tfevents.*"))
