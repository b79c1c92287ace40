"""A run watched from outside: what it has written is shown, while it is written and after."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from perceiver_vl import UsageError, cli
from perceiver_vl.cli.watch import sparkline
from perceiver_vl.training import train
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.training.reporting.diagnostics import diagnose
from perceiver_vl.training.reporting.monitor import RunReader
from perceiver_vl.utils.jsonl import append_line, keep_until
from tiny import tiny_recipe


def begun(folder: Path, **training: Any) -> Path:
    """The folder of a run that has not taken a step."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(folder, training=training)))
    return folder


def write_log(folder: Path, steps: range, start: float | None = None, each: float = 2.0, **figures: float) -> None:
    """What a run logs of steps that take `each` seconds; `start`: in seconds since 1970, by default in an hour."""
    start = time.time() + 3600 if start is None else start
    for step in steps:
        told = {"loss": 10.0 / step, "loss_vtm": 1.0, "learning_rate": 0.1, "clips_per_second": 2.0, **figures}
        append_line(folder / "log.jsonl", {"step": step, "steps": 50, "time": start + each * step, **told})


def write_checkpoint(folder: Path, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
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


def test_a_run_is_read_from_its_log(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    how = {"eval_strategy": "steps", "eval_steps": 3}
    validation = {"validation": {"split": "validation", "world": {"clips": 4, "size": 16}}}
    file.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run", training=how, data=validation)))
    train(read_recipe(file), progress=False)
    state = RunReader(tmp_path / "run").read()
    assert (state.ended, state.stopped, state.step, state.steps, state.checkpoint) == (True, False, 6, 6, 6)
    assert [line["step"] for line in state.log] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "loss_vtm", "loss_mlm", "learning_rate"} <= line.keys() for line in state.log)
    assert [found["step"] for found in state.validations] == [3, 6]
    assert all(0 <= found["multi_r1"] <= 100 for found in state.validations)
    assert (state.seconds_left, state.skipped, state.nonfinite) == (None, 0, 0)
    assert state.examples_per_second == state.log[-1]["clips_per_second"] > 0
    assert state.steps_per_second is not None
    assert not any(name.startswith("train_") for name in state.health)


def test_what_is_new_is_read_as_it_comes(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", max_steps=50)
    reader = RunReader(folder)
    state = reader.read()
    assert (state.step, state.steps, state.log, state.checkpoint, state.ended) == (0, 50, [], None, False)
    assert state.seconds_left is state.examples_per_second is state.steps_per_second is None

    write_log(folder, range(1, 11), time.time() + 3600)
    state = reader.read()
    assert state.step == 10
    assert (state.steps_per_second, state.seconds_left) == pytest.approx((0.5, 80.0))
    assert state.examples_per_second == 2.0
    write_log(folder, range(11, 13), time.time() + 3600)
    write_checkpoint(folder, 10)
    state = reader.read()
    assert (state.checkpoint, state.step, len(state.log)) == (10, 12, 12)
    (folder / "skipped.jsonl").write_text("{}\n{}\n")
    (folder / "nonfinite.jsonl").write_text("{}\n")
    assert (reader.read().skipped, reader.read().nonfinite) == (2, 1)


def test_a_resumed_run_is_read_from_its_checkpoint_on_and_its_pause_is_no_pace(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    reader = RunReader(folder)
    write_log(folder, range(1, 11), start=1000.0)  # before the recipe was written again
    assert reader.read().step == 10
    keep_until(folder / "log.jsonl", 6)
    write_log(folder, range(7, 9), each=4.0)
    for state in (reader.read(), RunReader(folder).read()):
        assert [line["step"] for line in state.log] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert state.steps_per_second == pytest.approx(0.25)


def test_a_run_that_goes_on_has_not_ended(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    end(folder)
    assert RunReader(folder).read().ended
    later = time.time() + 10
    os.utime(folder / "recipe.yaml", (later, later))
    assert not RunReader(folder).read().ended


def test_half_a_line_and_half_a_checkpoint_are_passed_over(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_log(folder, range(1, 5))
    whole = (folder / "log.jsonl").read_bytes()
    (folder / "log.jsonl").write_bytes(whole[:-10])
    reader = RunReader(folder)
    assert reader.read().step == 3
    with (folder / "log.jsonl").open("ab") as file:
        file.write(whole[-10:])
    assert reader.read().step == 4
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    assert reader.read().checkpoint is None


def test_the_latest_figures_and_what_they_mean_are_told(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_log(folder, range(1, 2), cross_attention_1_entropy=0.999, cross_attention_1_update=1.0)
    write_log(folder, range(2, 4), data_wait=0.5)
    (folder / "nonfinite.jsonl").write_text("{}\n")
    state = RunReader(folder).read()
    assert (state.health["cross_attention_1_entropy"], state.health["data_wait"]) == (0.999, 0.5)
    assert state.diagnostics == diagnose(state.log, 1)
    assert len(state.diagnostics) == 3
    assert state.to_dict()["diagnostics"] == state.diagnostics


def test_silence_is_noticed_but_not_that_of_a_slow_run(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    write_log(folder, range(1, 5))

    def silent_for(seconds: float) -> None:
        for path in folder.rglob("*"):
            os.utime(path, (time.time() - seconds,) * 2)

    assert not RunReader(folder).read().stopped
    silent_for(600)
    state = RunReader(folder).read()
    assert state.stopped
    assert state.silent > 590
    write_log(folder, range(5, 8), each=120.0)
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
    write_log(folder, range(1, 11), latent_similarity=0.99)
    write_checkpoint(folder, 10)
    code, out, _ = watch(capsys, monkeypatch, folder, "--once")
    assert code == 0
    for said in (
        "step 10 of 50 (20%)",
        "2 examples a second, 1 min 20 s left",
        "loss_vtm",
        "last checkpoint: step 10",
        "! the latents collapse",
    ):
        assert said in " ".join(out.split())
    assert "█" in out
    code, out, _ = watch(capsys, monkeypatch, folder, "--once", "--json")
    plain = json.loads(out)
    assert (code, plain["step"], plain["log"][0]["loss"], len(plain["diagnostics"])) == (0, 10, 1.0, 1)
    assert plain["seconds_left"] == pytest.approx(80.0)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_follows_a_run_to_its_end(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "run", max_steps=50)
    still_to_come = [lambda: write_log(folder, range(1, 11)), lambda: None, lambda: end(folder)]
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
