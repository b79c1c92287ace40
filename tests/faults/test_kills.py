"""What a run survives: being killed, a disk that is full, clips that vanish. `make faults` kills far more often."""

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers.trainer
import yaml
from index_kills import kill_again_and_again
from kills import differences, kill_runs
from transformers import TrainerCallback

from perceiver_vl import PerceiverVLError, cli
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.training import train
from perceiver_vl.training.checkpoints import damage
from perceiver_vl.training.recipe import Recipe, read_recipe
from tiny import tiny_recipe

SEED = 29
"""Draws moments in the middle of a run, so that few starts end before theirs."""


def recipe_of(output: Path, **changes: Any) -> Recipe:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_recipe(output, **changes)))
    return read_recipe(file)


def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_been_left_alone(tmp_path: Path) -> None:
    report = kill_runs(tmp_path, kills=2, seed=SEED)
    assert report.differences == []
    assert (report.survived, report.kills) == (2, 2)


def test_what_differs_between_two_runs_is_noticed(tmp_path: Path) -> None:
    """That the comparison of the kills compares."""
    train(recipe_of(tmp_path / "one"), progress=False)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert differences(tmp_path / "two", tmp_path / "one") == []
    weights, log, metrics = (tmp_path / "two" / name for name in ("model.safetensors", "log.jsonl", "metrics.json"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    log.write_text("\n".join(log.read_text().splitlines()[:-1]))
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"steps": 7}))
    found = " ".join(differences(tmp_path / "two", tmp_path / "one"))
    assert all(name in found for name in ("model.safetensors", "log.jsonl", "metrics.json"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_after_a_full_disk_nothing_is_half_written_and_the_run_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second checkpoint is written there is no room for the whole of one of its files."""
    wide = {"model": {"hidden_size": 32}}
    train(recipe_of(tmp_path / "whole", **wide), progress=False)
    room = (tmp_path / "whole" / "checkpoints" / "checkpoint-4" / name).stat().st_size - 10_000

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))

    with monkeypatch.context() as patch:
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, FullDisk])
        try:
            with pytest.raises(PerceiverVLError, match=r"^[^\n]+$") as told:
                train(recipe_of(tmp_path / "run", **wide), progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(told.value).startswith(f"{tmp_path / 'run'}: cannot be written (")
    assert "a checkpoint takes about" in str(told.value)
    assert "checkpoint-2 is whole, go on from it with resume=True" in str(told.value)
    assert damage(tmp_path / "run" / "checkpoints" / "checkpoint-2") is None
    assert not (tmp_path / "run" / "checkpoints" / ".part").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not list(tmp_path.rglob("*.part"))
    assert train(recipe_of(tmp_path / "run", **wide), resume=True, progress=False).steps == 6
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_clips_that_vanish_while_a_run_reads_them_are_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_world(tmp_path / "world", clips=14, num_frames=2, size=16, held_out=1)
    gone = [f"clips/train/{number:06d}.mp4" for number in (2, 5)]

    class Vanish(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:  # the end of an epoch
                for name in gone:
                    (tmp_path / "world" / name).unlink()

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Vanish])
    data = {"train": {"folder": str(tmp_path / "world"), "split": "train"}}
    result = train(recipe_of(tmp_path / "run", data=data), progress=False)
    assert (result.steps, [problem.file_name for problem in result.skipped]) == (6, gone)
    assert all("no such file" in problem.reason for problem in result.skipped)
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux")
def test_a_folder_that_takes_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_of(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["perceiver-vl", "train", str(tmp_path / "run.yaml"), "output=/proc/run"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    assert stop.value.code == 1
    assert told.err.startswith("error: /proc/run: ")
    assert len(told.err.splitlines()) == 1


def test_an_index_that_is_killed_at_random_moments_is_whole_and_ends_like_one_that_was_left_alone(
    tmp_path: Path,
) -> None:
    report = kill_again_and_again(tmp_path, kills=3, seed=1, clips=16)
    assert report.differences == []
    assert (report.survived, report.kills) == (3, 3)
