"""Training in several processes of this machine, as `perceiver-vl train --processes` does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from perceiver_vl import UsageError
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.training.run import checked_arguments, train
from perceiver_vl.training.sharding import sharding_arguments
from perceiver_vl.utils.launch import beside_others, is_first_process
from tiny import tiny_recipe


def run(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perceiver_vl", "train", str(recipe), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run")), encoding="utf-8")
    return path


def test_two_processes_write_one_run(recipe: Path) -> None:
    done = run(recipe, "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(done.stdout)
    output = Path(written["output"])
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8"))["steps"] == written["steps"]
    assert (output / "model.safetensors").is_file()
    assert "Warning" not in done.stderr


# --- Other numbers of processes -------------------------------------------------------------------------------------

DATA = {"train": {"world": {"clips": 23, "size": 16}}, "num_frames": 2}
HOW = {"optim": "sgd", "max_grad_norm": 0.0, "dataloader_drop_last": False, "per_device_train_batch_size": 8}
WHAT: dict[str, Any] = {
    "data": DATA,  # batches of 8, 8 and 7
    "objectives": {"vtm": 1, "mlm": 1, "vtc": 1, "mixed_vtc": 1, "hard_negatives": True},
    "model": {"layer_drop": 0.5, "num_blocks": 2},
}


def written(path: Path, output: Path, **how: Any) -> Path:
    path.write_text(yaml.safe_dump(tiny_recipe(output, **WHAT, training=HOW | how)), encoding="utf-8")
    return path


def interrupted(output: Path, place: Path) -> None:
    """A copy of a run, as it was after its second checkpoint."""
    shutil.copytree(output, place)
    shutil.rmtree(place / "checkpoints" / "checkpoint-6")
    (place / "metrics.json").unlink()


def assert_equal(left: Path, right: Path) -> None:
    found, wanted = (load_file(folder / "model.safetensors") for folder in (left, right))
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0.0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, two epochs, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    train(read_recipe(written(folder / "recipe.yaml", folder / "run")), progress=False)
    return folder / "run"


def test_a_run_in_two_processes_is_that_in_one_and_goes_on_in_one(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path / "recipe.yaml", tmp_path / "two", per_device_train_batch_size=4)
    done = run(recipe, "--processes", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(tmp_path / "two", whole)

    interrupted(tmp_path / "two", tmp_path / "one")
    train(read_recipe(recipe, [f"output={tmp_path / 'one'}"]), resume=True, progress=False)
    assert "in 1 process instead of 2: batches of 8 examples as before, 8 a process" in capsys.readouterr().err
    assert_equal(tmp_path / "one", whole)


def test_a_run_in_one_process_goes_on_in_three(whole: Path, tmp_path: Path) -> None:
    """Whose batches of 8 are 2, 3 and 3 to a process."""
    interrupted(whole, tmp_path / "three")
    recipe = written(tmp_path / "recipe.yaml", tmp_path / "three")
    done = run(recipe, "--processes", "3", "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "in 3 processes instead of 1: batches of 8 examples as before, 3 a process" in " ".join(done.stderr.split())
    assert_equal(tmp_path / "three", whole)
    assert not list((tmp_path / "three" / "checkpoints" / "checkpoint-6").glob("rng_state.pth"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.per_device_train_batch_size=4", "4 examples a batch in 1 process, but the run has 8"),
        ("training.gradient_accumulation_steps=2", "the run accumulates 1"),
    ],
)
def test_a_run_keeps_its_batch(whole: Path, tmp_path: Path, override: str, told: str) -> None:
    interrupted(whole, tmp_path / "run")
    recipe = read_recipe(written(tmp_path / "recipe.yaml", tmp_path / "run"), [override])
    with pytest.raises(UsageError, match=rf"^training\.[^\n]+{told}[^\n]+$"):
        train(recipe, resume=True, progress=False)


@pytest.mark.parametrize(
    ("training", "processes", "told"),
    [
        ({"fsdp": True}, "2", r"training\.fsdp=True: needs GPUs"),
        ({"fsdp": "full_shard", "use_cpu": True}, "1", r"training\.fsdp=full_shard: needs GPUs"),
        ({"fsdp": "offload"}, "2", r"training\.fsdp=offload: need true"),
        ({"auto_find_batch_size": True}, "1", r"training\.auto_find_batch_size=true"),
    ],
)
def test_what_the_trainer_would_quietly_do_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], processes: str, told: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    recipe = read_recipe(written(tmp_path / "recipe.yaml", tmp_path / "run", **training))
    with pytest.raises(UsageError, match=rf"^{told}[^\n]+$"):
        checked_arguments(recipe)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, None),
        ({"reshard_after_forward": False}, None),
        ({"version": 1}, "training.fsdp_config.version=1"),
        ({"min_num_params": 1000}, "training.fsdp_config.min_num_params=1000"),
    ],
)
def test_sharding_on_gpus_is_passed_on_to_the_trainer(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], told: str | None
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    given = {"fsdp": True, "fsdp_config": config, "max_steps": 3}
    if told:
        with pytest.raises(UsageError, match=told):
            sharding_arguments(given)
        return
    wanted = {"fsdp": True, "fsdp_config": {**config, "transformer_layer_cls_to_wrap": ["LatentBlock"]}}
    assert sharding_arguments(given) == wanted
    assert given == {"max_steps": 3}


def test_evaluate_shares_the_work_of_processes_that_torchrun_starts(whole: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "world", clips=9, size=16)
    words = ["perceiver_vl", "evaluate", "--model", str(whole), "--data", str(tmp_path / "world"), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    found = []
    for run in ([], ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]):
        command = [sys.executable, "-m", *run, *words, "--batch-size", "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads(done.stdout, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if "seconds" not in k})
        found.append(told)
    assert found[0] == found[1]
    assert found[0]["clips"] == 9


# --- Processes that this one starts ---------------------------------------------------------------------------------


def test_a_mistake_is_told_once(recipe: Path) -> None:
    done = run(recipe, "model.num_heads=3", "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "num_heads" in done.stderr


def test_one_process_is_left_alone() -> None:
    before = dict(os.environ)
    with beside_others(1, ["train"]):
        assert dict(os.environ) == before
    assert is_first_process()


def test_no_process_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="processes=0"), beside_others(0, ["train"]):
        pass
