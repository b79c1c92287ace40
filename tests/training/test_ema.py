"""The average of the weights: what it is, that it leaves the weights alone, and what a run does with it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import small_runs
from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.training import train
from perceiver_vl.training.ema import FILE, WeightAverage
from perceiver_vl.training.recipe import Recipe
from small_runs import log_of
from tiny import tiny_recipe


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_average_is_exponential_and_forgets_the_start() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average, wanted = WeightAverage(model, 0.8), weights_of(model)
    for step in range(1, 60):
        moved(model)
        average.update(model, step)
        decay = min(0.8, (1 + step) / (10 + step))
        wanted = {name: decay * wanted[name] + (1 - decay) * value for name, value in weights_of(model).items()}
    average.copy_to(model)
    torch.testing.assert_close(weights_of(model), wanted)


def test_the_weights_come_back_bit_for_bit_whatever_happens_meanwhile() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average, start = WeightAverage(model, 0.9), weights_of(model)
    moved(model)
    now, parameters = weights_of(model), list(model.parameters())

    def fail_meanwhile() -> None:
        with average.in_place_of(model):
            assert same(weights_of(model), start)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_meanwhile()
    assert same(weights_of(model), now)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))


def test_an_average_is_saved_and_gone_on_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    moved(model)
    average.update(model, 1)
    average.save(tmp_path, writes=True)
    other = WeightAverage(nn.Linear(3, 2), 0.9)
    other.load(tmp_path, model)
    for one in (average, other):
        one.update(model, 2)
        one.save(tmp_path / "again", writes=False)
    found = nn.Linear(3, 2)
    with average.in_place_of(model):
        other.copy_to(found)
        assert same(weights_of(found), weights_of(model))
    with pytest.raises(PerceiverVLError, match=rf"^{tmp_path / FILE}: the average of another model[^\n]+$"):
        WeightAverage(nn.Linear(4, 2), 0.9).load(tmp_path, model)
    other.load(tmp_path / "none", model)  # a run that had no average so far
    other.copy_to(found)
    assert same(weights_of(found), weights_of(model))


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_sharded_weights_are_averaged_like_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(3, 2)
    sharded = nn.Linear(3, 2)
    sharded.load_state_dict(whole.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    averages = [WeightAverage(model, 0.9) for model in (whole, sharded)]
    for model, average, name in zip((whole, sharded), averages, ("whole", "sharded"), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        average.update(model, 1)
        (tmp_path / name).mkdir()
        average.save(tmp_path / name, writes=True)
    assert same(load_file(tmp_path / "whole" / FILE), load_file(tmp_path / "sharded" / FILE))
    averages[1].load(tmp_path / "whole", sharded)
    averages[1].copy_to(sharded)
    assert isinstance(sharded.weight, DTensor)
    assert torch.equal(sharded.weight.full_tensor(), load_file(tmp_path / "whole" / FILE)["weight"])


# --- In a run -------------------------------------------------------------------------------------------------------

VALIDATION = {"validation": {"split": "validation", "world": {"clips": 8, "size": 16}}}
HOW: dict[str, Any] = {
    "objectives": {"vtc": 1, "vtm": 1, "mlm": 0},
    "data": VALIDATION,
    "model": {"layer_drop": 0.5},
    "training": {"eval_strategy": "steps", "eval_steps": 2},
}

NO_VALIDATION = tiny_recipe(Path())["data"]
NEVER = tiny_recipe(Path())["training"]


def recipe_of(output: Path, ema: float | None, **changes: Any) -> Recipe:
    return small_runs.recipe_of(output, {"ema": ema} | changes, **HOW)


def test_a_run_keeps_the_average_and_learns_as_it_would_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module, *args: Any, **how: Any) -> Any:
        validated.append(weights_of(model))
        return evaluate_retrieval(model, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("perceiver_vl.training.trainers.evaluate_retrieval", evaluate)
    output = tmp_path / "run"
    train(recipe_of(output, ema=0.5), progress=False)
    checkpoints = [output / "checkpoints" / f"checkpoint-{step}" for step in (2, 4, 6)]
    averages = [load_file(checkpoint / FILE) for checkpoint in checkpoints]
    kept, last = load_file(output / "model.safetensors"), load_file(checkpoints[2] / "model.safetensors")
    assert same(kept, averages[2])
    assert not same(kept, last)
    assert all(same(*pair) for pair in zip(validated, [*averages, kept], strict=True))

    # bit for bit the same after a resume, and the weights that learn are those of a run without an average
    for path in checkpoints[1:]:
        shutil.rmtree(path)
    train(recipe_of(output, ema=0.5), resume=True, progress=False)
    assert same(load_file(output / "model.safetensors"), kept)
    train(recipe_of(tmp_path / "plain", ema=None, data=NO_VALIDATION, training=NEVER), progress=False)
    assert same(load_file(tmp_path / "plain" / "model.safetensors"), last)


def test_the_best_model_is_the_best_average(tmp_path: Path) -> None:
    output = tmp_path / "run"
    how = HOW["training"] | {"load_best_model_at_end": True, "metric_for_best_model": "multi_r1"}
    training = tiny_recipe(output, training=how)["training"]
    train(recipe_of(output, ema=0.5, training=training), progress=False)
    found = {line["step"]: line["eval_multi_r1"] for line in log_of(output) if "eval_multi_r1" in line}
    best = min(step for step in found if found[step] == max(found.values()))
    assert same(
        load_file(output / "model.safetensors"), load_file(output / "checkpoints" / f"checkpoint-{best}" / FILE)
    )


@pytest.mark.parametrize("ema", [0, 1, -0.5, 1.5])
def test_a_decay_that_cannot_be_is_refused(tmp_path: Path, ema: float) -> None:
    with pytest.raises(UsageError, match=r"ema=[^\n]+$"):
        recipe_of(tmp_path / "run", ema=ema)
