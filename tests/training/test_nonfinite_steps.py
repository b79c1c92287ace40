"""Steps whose loss or gradient is not finite: passed over, counted, named, and the end of a run if they do not stop."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.training import train
from perceiver_vl.training.losses.base import EncodedBatch, ObjectiveOutput
from perceiver_vl.training.losses.mlm import MLM
from perceiver_vl.training.nonfinite_steps import FILE, NonFiniteSteps
from perceiver_vl.training.recipe import Recipe, read_recipe
from small_runs import training_log_of
from tiny import tiny_recipe


def recipe_of(output: Path, top: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_recipe(output, **changes) | (top or {})))
    return read_recipe(file)


def spoil(monkeypatch: pytest.MonkeyPatch, at: set[int], how: Callable[[Tensor], Tensor]) -> None:
    """Make the MLM loss of the batches at these steps (from 1) something else."""
    calls, forward = 0, MLM.forward

    def spoilt(self: MLM, batch: EncodedBatch) -> ObjectiveOutput:
        nonlocal calls
        calls += 1
        found = forward(self, batch)
        return replace(found, loss=how(found.loss)) if calls in at else found

    monkeypatch.setattr(MLM, "forward", spoilt)


def named_in(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / FILE).read_text().splitlines()]


class _NoGradient(torch.autograd.Function):
    """A loss that is fine and a gradient that is not."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


@pytest.mark.parametrize(
    ("how", "what"),
    [(lambda loss: loss * float("nan"), "mlm"), (_NoGradient.apply, "gradient")],
    ids=["loss", "gradient"],
)
def test_nothing_is_learned_from_such_a_step_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any, what: str
) -> None:
    training = {"max_steps": 4, "save_steps": 1, "learning_rate": 0.01, "lr_scheduler_type": "constant"}
    spoil(monkeypatch, {3}, how)
    output = tmp_path / "run"
    assert train(recipe_of(output, training=training), progress=False).steps == 4
    weights = {
        step: load_file(output / "checkpoints" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3, 4)
    }
    assert all(torch.equal(tensor, weights[3][name]) for name, tensor in weights[2].items())
    assert all(tensor.isfinite().all() for tensor in weights[4].values())
    assert any(not torch.equal(tensor, weights[4][name]) for name, tensor in weights[3].items())
    state = torch.load(output / "checkpoints" / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert all(one["exp_avg"].isfinite().all() for one in state.values())
    assert max(one["step"] for one in state.values()) == 3  # LayerDrop leaves fewer to some reads

    (entry,) = named_in(output)
    assert (entry["step"], entry["not_finite"], entry["learning_rate"]) == (3, [what], 0.01)
    assert len(entry["files"]) == 4
    assert [line["nonfinite_steps"] for line in training_log_of(output)] == [0, 0, 1, 1]
    assert all(line["loss"] < 100 for line in training_log_of(output))

    # the count is that of the step that is resumed from, and so are the names
    for step in (2, 3, 4):
        shutil.rmtree(output / "checkpoints" / f"checkpoint-{step}")
    monkeypatch.undo()
    train(recipe_of(output, training=training), resume=True, progress=False)
    assert [line["nonfinite_steps"] for line in training_log_of(output)] == [0, 0, 0, 0]
    assert named_in(output) == []


def test_the_files_are_those_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {1, 2, 3, 4, 5, 6}, lambda loss: loss * float("inf"))
    train(recipe_of(tmp_path / "run", {"max_nonfinite": 7}), progress=False)
    seen = [name for entry in named_in(tmp_path / "run") for name in entry["files"]]
    assert len(seen) == len(set(seen)) == 24  # one epoch, each clip once


def test_a_few_in_a_row_end_the_run_with_a_diagnosis_and_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 4, 5, 6}, lambda loss: loss * float("nan"))
    output = tmp_path / "run"
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+$") as ended:
        train(recipe_of(output, {"max_nonfinite": 3}, training={"max_steps": 9}), progress=False)
    said = str(ended.value)
    assert said.startswith("not finite in 3 steps in a row, 4 to 6: mlm; learning_rate=0.0")
    for part in ("cross_attentions", "heads", "lower training.learning_rate", str(output / FILE)):
        assert part in said
    assert [entry["step"] for entry in named_in(output)] == [2, 4, 5, 6]
    last = load_file(output / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in last.values())
    monkeypatch.undo()
    assert train(recipe_of(output, training={"max_steps": 9}), resume=True, progress=False).steps == 9
    assert [entry["step"] for entry in named_in(output)] == [2, 4]


def test_weights_that_are_not_finite_end_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Overflow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].perceiver_vl.encoder.latents.data += float("inf")

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Overflow])
    with pytest.raises(PerceiverVLError, match=r"^not finite in step 3: [^\n]+the weights are not finite[^\n]+$"):
        train(recipe_of(tmp_path / "run"), progress=False)


def test_the_count_is_taken_up_from_the_file(tmp_path: Path) -> None:
    before = NonFiniteSteps(tmp_path, 3)
    for step in (2, 5, 6, 8):
        before.add(step, ["vtm"], ["clip.mp4"], 0.1, writes=True)
    after = NonFiniteSteps(tmp_path, 3)
    after.restore(after.skipped_until(6))
    assert after.count == 3
    after.check(["vtm"], 0.1, {}, weights=True)
    after.add(7, ["vtm"], [], 0.1, writes=False)
    with pytest.raises(PerceiverVLError, match=r"^not finite in 3 steps in a row, 5 to 7: vtm; [^\n]+$"):
        after.check(["vtm"], 0.1, {}, weights=True)
    after.add(9, ["vtm"], [], 0.1, writes=False)
    after.check(["vtm"], 0.1, {}, weights=True)


def test_a_number_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_nonfinite=0: need at least 1$"):
        recipe_of(tmp_path / "run", {"max_nonfinite": 0})
