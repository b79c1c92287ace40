"""A run watched from outside: what it has written is shown, while it is written and after."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from perceiver_vl import UsageError, cli
from perceiver_vl.cli.watch import sparkline
from perceiver_vl.recipe import read_recipe
from perceiver_vl.training import train
from perceiver_vl.watching import RunReader
from tiny import tiny_recipe


def begun(folder: Path, **training: Any) -> Path:
    """The folder of a run that has not taken a step."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(folder, training=training)))
    return folder


def write_events(folder: Path, steps: range, start: float = 1000.0, each: float = 2.0) -> None:
    """What TensorBoard is told of steps that take `each` seconds."""
    with SummaryWriter(str(folder / "checkpoints" / "runs" / f"start-{start:.0f}")) as writer:
        for step in steps:
            for name, value in {"loss": 10.0 / step, "loss_vtm": 1.0, "learning_rate": 0.1}.items():
                writer.add_scalar(f"train/{name}", value, step, walltime=start + each * step)
    for path in folder.glob(f"checkpoints/runs/start-{start:.0f}/*"):  # they are named by the clock
        path.rename(path.with_name(f"events.out.tfevents.{start:.0f}.here.1.0"))


def write_checkpoint(folder: Path, step: int, processes: int = 1) -> None:
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for number in range(processes):
        (checkpoint / f"rng_state_{number}.pth").touch()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"max_steps": 50}))


def end(folder: Path) -> None:
    (folder / "metrics.json").write_text("{}")


def watch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["perceiver-vl", "watch", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    return int(stop.value.code or 0), told.out, told.err


# --- Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report_to", [["tensorboard"], []])
def test_a_run_says_the_same_by_tensorboard_and_by_its_log(tmp_path: Path, report_to: list[str]) -> None:
    file = tmp_path / "recipe.yaml"
    how = {"eval_strategy": "steps", "eval_steps": 3, "report_to": report_to}
    validation = {"validation": {"split": "validation", "world": {"clips": 4, "size": 16}}}
    file.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run", training=how, data=validation)))
    train(read_recipe(file), progress=False)
    assert bool(list(tmp_path.glob("run/checkpoints/runs/*"))) == bool(report_to)
    state = RunReader(tmp_path / "run").read()
    assert (state.ended, state.stopped, state.step, state.steps, state.checkpoint) == (True, False, 6, 6, 6)
    assert [line["step"] for line in state.log] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "loss_vtm", "loss_mlm", "learning_rate"} <= line.keys() for line in state.log)
    assert [found["step"] for found in state.validations] == [3, 6]
    assert all(0 <= found["multi_r1"] <= 100 for found in state.validations)
    assert (state.seconds_left, state.skipped) == (None, 0)
    assert (state.examples_per_second is not None) == bool(report_to)


def test_what_is_new_is_read_as_it_comes(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", max_steps=50, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    reader = RunReader(folder)
    state = reader.read()
    assert (state.step, state.steps, state.log, state.checkpoint, state.ended) == (0, 50, [], None, False)
    assert state.seconds_left is state.examples_per_second is state.steps_per_second is None

    write_events(folder, range(1, 11))
    state = reader.read()
    assert (state.step, state.steps_per_second, state.seconds_left) == (10, 0.5, 80.0)
    assert state.examples_per_second is None
    write_checkpoint(folder, 10, processes=2)
    state = reader.read()
    assert (state.checkpoint, state.examples_per_second) == (10, 0.5 * 2 * 4 * 3)
    (folder / "skipped.jsonl").write_text("{}\n{}\n")
    assert reader.read().skipped == 2


def test_a_resumed_run_is_read_from_its_checkpoint_on_and_its_pause_is_no_pace(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    reader = RunReader(folder)
    write_events(folder, range(1, 11))
    assert reader.read().step == 10
    write_events(folder, range(7, 9), start=5000.0, each=4.0)
    for state in (reader.read(), RunReader(folder).read()):
        assert [line["step"] for line in state.log] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert state.steps_per_second == 0.25


def test_a_run_that_goes_on_has_not_ended(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    end(folder)
    assert RunReader(folder).read().ended
    later = time.time() + 10
    os.utime(folder / "recipe.yaml", (later, later))
    assert not RunReader(folder).read().ended


def test_half_a_record_and_half_a_checkpoint_are_passed_over(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_events(folder, range(1, 5))
    (file,) = folder.glob("checkpoints/runs/*/*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    reader = RunReader(folder)
    assert reader.read().step == 4
    assert "learning_rate" not in reader.read().log[-1]
    file.write_bytes(whole)
    assert "learning_rate" in reader.read().log[-1]
    (folder / "checkpoints" / "checkpoint-4").mkdir()
    assert reader.read().checkpoint is None


def test_silence_is_noticed_but_not_that_of_a_slow_run(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_events(folder, range(1, 5))

    def silent_for(seconds: float) -> None:
        for path in folder.rglob("*"):
            os.utime(path, (time.time() - seconds,) * 2)

    assert not RunReader(folder).read().stopped
    silent_for(600)
    state = RunReader(folder).read()
    assert state.stopped
    assert state.silent > 590
    write_events(folder, range(5, 8), start=5000.0, each=120.0)
    silent_for(600)
    assert not RunReader(folder).read().stopped
    end(folder)
    assert not RunReader(folder).read().stopped


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "no run in it"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UsageError, match=rf"^{folder}: {said}[^\n]+$"):
            RunReader(folder)


# --- The command ----------------------------------------------------------------------------------------------------


def test_once_shows_how_the_run_is_doing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "run", max_steps=50)
    write_events(folder, range(1, 11))
    write_checkpoint(folder, 10)
    code, out, _ = watch(capsys, monkeypatch, folder, "--once")
    assert code == 0
    for said in ("step 10 of 50 (20%)", "2 examples a second, 1 min 20 s left", "loss_vtm", "last checkpoint: step 10"):
        assert said in " ".join(out.split())
    assert "█" in out
    code, out, _ = watch(capsys, monkeypatch, folder, "--once", "--json")
    plain = json.loads(out)
    assert (code, plain["step"], plain["seconds_left"], plain["log"][0]["loss"]) == (0, 10, 80.0, 1.0)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_follows_a_run_to_its_end(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "run", max_steps=50)
    still_to_come = [lambda: write_events(folder, range(1, 11)), lambda: None, lambda: end(folder)]
    monkeypatch.setattr("time.sleep", lambda seconds: still_to_come.pop(0)())
    code, out, err = watch(capsys, monkeypatch, folder, *(["--json"] if as_json else []))
    assert (code, err, still_to_come) == (0, "", [])
    if as_json:
        lines = [json.loads(line) for line in out.splitlines()]
        assert [(line["step"], line["ended"]) for line in lines] == [(0, False), (10, False), (10, True)]
    else:
        assert "step 10 of 50 (20%), ended" in " ".join(out.split())


def test_the_command_says_in_one_line_that_a_folder_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = watch(capsys, monkeypatch, tmp_path)
    assert (code, out) == (2, "")
    assert "no run in it" in err
    assert len(err.splitlines()) == 1


def test_a_sparkline_shows_the_course_of_any_values() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([3.0]) == "▁"
    assert sparkline([0.0, float("nan"), float("inf"), 1.0]) == "▁  █"
    assert len(line := sparkline([float(value) for value in range(1000)])) == 40
    assert sorted(line) == list(line)
