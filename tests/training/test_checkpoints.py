"""Checkpoints: whole or not there, verified before they are used, and one run at a time in a folder."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerCallback

import small_runs
from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.training.checkpoints import CHECKSUMS, checkpoint_of, damage, only_run_in, seal, told_in_one_line
from small_runs import run
from tiny import tiny_recipe

MEASURED = {"time", "steps", "data_wait", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
MEASURED |= {"clips_per_second", "share_of_peak", "memory_mib", "gpu_memory_mib"}
BY_BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 8}
VALIDATION = {"validation": {"split": "validation", "world": {"clips": 10, "size": 16}}}


def checkpoints_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("*checkpoint-*"))


def log_of(output: Path) -> list[dict[str, Any]]:
    """The lines of the log, without what is measured in seconds, and how many steps there should be."""
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in small_runs.log_of(output)]


def assert_same_weights(output: Path, other: Path) -> None:
    one, two = (load_file(folder / "model.safetensors") for folder in (output, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def unfinished(whole: Path, output: Path, *left: int) -> Path:
    """A copy of a run as if it had been killed, with the checkpoints of these steps."""
    shutil.copytree(whole, output)
    for path in output.glob("*.*"):
        path.unlink()
    for path in (output / "checkpoints").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) not in left:
            shutil.rmtree(path)
    return output


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def at_step(step: int, function: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all runs of this test call a function at the end of a step."""

    class AtStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                function()

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, AtStep])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of six steps, left alone; not to be changed."""
    output = tmp_path_factory.mktemp("checkpoints") / "run"
    run(output)
    return output


# --- Sealed folders -------------------------------------------------------------------------------------------------


@given(
    content=st.dictionaries(st.sampled_from(["a", "b.pt", "in/c", "in/deep/d"]), st.binary(max_size=40), min_size=1),
    place=st.integers(0, 400),
    how=st.sampled_from(["flip", "truncate", "lengthen", "remove"]),
    data=st.data(),
)
def test_whatever_happens_to_a_file_of_a_sealed_folder_is_noticed_and_named(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes], place: int, how: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    for name, some in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(some)
    assert CHECKSUMS in str(damage(folder))
    seal(folder)
    assert damage(folder) is None
    (folder / "another").write_bytes(b"that nobody wrote down")
    assert damage(folder) is None

    name = data.draw(st.sampled_from(sorted(content)))
    file, before = folder / name, content[name]
    if how == "remove":
        file.unlink()
    elif how == "lengthen" or not before:
        file.write_bytes(before + b"x")
    elif how == "truncate":
        file.write_bytes(before[: place % len(before)])
    else:
        file.write_bytes(bytes(b ^ (number == place % len(before)) for number, b in enumerate(before)))
    assert str(damage(folder)).startswith(f"{name} ")


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": {"bytes": 1}}', "\xff"])
def test_checksums_that_are_none_are_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / CHECKSUMS).write_bytes(text.encode("latin1"))
    assert "cannot be read" in str(damage(tmp_path))


def test_checksums_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    seal(tmp_path)
    listed = json.loads((tmp_path / CHECKSUMS).read_text())
    for name in ("../secret", str(tmp_path / "secret")):
        (tmp_path / "in" / CHECKSUMS).write_text(json.dumps({name: listed["secret"]}))
        assert damage(tmp_path / "in") == f"{name} is missing"


# --- What a run leaves, and goes on from ----------------------------------------------------------------------------


def test_the_checkpoints_of_a_run_are_sealed_and_hold_nothing_that_is_not_needed(whole: Path) -> None:
    assert checkpoints_of(whole) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for name in checkpoints_of(whole):
        folder = whole / "checkpoints" / name
        listed = json.loads((folder / CHECKSUMS).read_text())
        assert damage(folder) is None
        assert set(listed) | {CHECKSUMS} == {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(listed)
    assert not [*whole.rglob("training_args.bin"), *whole.rglob(".part"), *whole.rglob("*.part")]


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("model.safetensors", flip_a_bit, "is not what was written"),
        ("optimizer.pt", lambda file: os.truncate(file, 100), "has 100 bytes, not the"),
        ("trainer_state.json", Path.unlink, "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    name: str,
    spoil: Callable[[Path], object],
    reason: str,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = unfinished(whole, tmp_path / "run", 2, 4)
    spoil(output / "checkpoints" / "checkpoint-4" / name)
    (output / "checkpoints" / ".part" / "checkpoint-6").mkdir(parents=True)
    assert run(output, resume=True).steps == 6
    (told,) = capsys.readouterr().err.splitlines()
    assert all(words in told for words in ("checkpoint-4: damaged", name, reason, "going on from checkpoint-2"))
    assert_same_weights(output, whole)
    assert log_of(output) == log_of(whole)
    assert checkpoints_of(output) == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "damaged-checkpoint-4"]
    assert damage(output / "checkpoints" / "checkpoint-4") is None
    assert not (output / "checkpoints" / ".part").exists()


def test_no_whole_checkpoint_is_one_line_and_nothing_is_lost(whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "run", 2, 4)
    for name in checkpoints_of(output):
        flip_a_bit(output / "checkpoints" / name / "optimizer.pt")
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+none of 2 checkpoints is whole \(checkpoint-4: opt[^\n]+$"):
        run(output, resume=True)
    assert checkpoints_of(output) == ["checkpoint-2", "checkpoint-4"]


def test_a_run_with_nothing_to_go_on_from_begins_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".part" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / ".part").mkdir()
    assert checkpoint_of(tmp_path, resume=True) is None
    assert not list(tmp_path.rglob(".part"))


def test_a_checkpoint_of_the_model_alone_is_refused(whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "run", 2)
    (output / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
    seal(output / "checkpoints" / "checkpoint-2")
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+checkpoint-2: holds no optimiser[^\n]+$"):
        run(output, resume=True)


def test_the_log_does_not_show_where_a_run_was_interrupted(tmp_path: Path) -> None:
    """Between two of its lines, and after the last step."""
    how = {"training": {"logging_steps": 3, "max_steps": 9}, "objectives": {"vtm": 1, "mlm": 1}}
    result = run(tmp_path / "whole", **how)
    for left in (4, 8, 9):
        output = unfinished(tmp_path / "whole", tmp_path / str(left), left)
        resumed = run(output, resume=True, **how)
        assert log_of(output) == log_of(tmp_path / "whole")
        assert "train_loss" in log_of(output)[-1]
        assert resumed.seconds > 0
        if left == 9:
            assert resumed.seconds >= 0.5 * result.seconds  # that of the steps, though none was taken


def test_the_last_and_the_best_are_kept_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"

    def turn_the_clock_back() -> None:
        for number, path in enumerate(sorted((output / "checkpoints").glob("checkpoint-*"))):
            os.utime(path, (1e9 - 1e5 * number,) * 2)

    for step in range(3, 9):
        at_step(step, turn_the_clock_back, monkeypatch)
    how = {"objectives": {"vtc": 1}, "data": VALIDATION}
    training = {**BY_BEST, "metric_for_best_model": "multi_r1", "save_total_limit": 2}
    run(output, **how, training=training)
    state = json.loads((output / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    best = f"checkpoint-{state['best_global_step']}"
    assert best != "checkpoint-8"
    assert checkpoints_of(output) == sorted([best, "checkpoint-8"])
    assert_same_weights(output, output / "checkpoints" / best)

    moved = output.rename(tmp_path / "moved")  # where the paths in the checkpoint are not
    for name in ("model.safetensors", "metrics.json"):
        (moved / name).unlink()
    run(moved, resume=True, **how, training=training)
    assert_same_weights(moved, moved / "checkpoints" / best)

    flip_a_bit(moved / "checkpoints" / best / "model.safetensors")
    with pytest.raises(PerceiverVLError, match=rf"^[^\n]+{best}: the best model is damaged \(model.safe[^\n]+$"):
        run(moved, resume=True, **how, training=training)
    run(moved, resume=True, **how, training=training | {"load_best_model_at_end": False})
    assert_same_weights(moved, moved / "checkpoints" / "checkpoint-8")
    assert capsys.readouterr().err == ""


# --- One run a folder -----------------------------------------------------------------------------------------------

_HOLD = """
import os, sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
if not os.fork():
    time.sleep(60)  # as a data worker that outlives the run for a moment
print(flush=True)
time.sleep(60)
"""


@contextmanager
def held(lock: Path) -> Iterator[Callable[[], None]]:
    """While another process holds the lock; what it gives kills that process, but not the one that it has begun."""
    words = [sys.executable, "-c", _HOLD, str(lock)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    assert other.stdout is not None

    def kill() -> None:
        other.kill()
        other.wait()

    try:
        assert other.stdout.readline() == b"\n"
        yield kill
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
        other.stdout.close()


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "run", 4)
    with held(output / ".lock") as kill:
        for resume in (True, False):
            with pytest.raises(UsageError, match=r"^output=[^\n]+another run is writing it[^\n]+$"):
                run(output, resume=resume)
        assert checkpoints_of(output) == ["checkpoint-4"]
        kill()
        run(output, resume=True)
    assert_same_weights(output, whole)


def test_a_folder_that_was_made_in_vain_is_removed(tmp_path: Path) -> None:
    with only_run_in(tmp_path / "runs" / "one"):
        assert (tmp_path / "runs" / "one").is_dir()
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with only_run_in(tmp_path / "there"), only_run_in(tmp_path / "kept"):
        (tmp_path / "kept" / "something").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "kept"}


# --- What ends a run from outside -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_folder_that_takes_no_more_is_one_line_with_the_checkpoint_that_is_safe(
    number: int, whole: Path, tmp_path: Path
) -> None:
    output = unfinished(whole, tmp_path / "run", 4)
    with (
        pytest.raises(PerceiverVLError, match=r"^[^\n]+$") as told,
        told_in_one_line(output),
    ):
        raise OSError(number, os.strerror(number), str(output / "log.jsonl"))
    said = str(told.value)
    assert said.startswith(f"{output}: cannot be written ({os.strerror(number)}); ")
    assert "MB are free there" in said
    assert "checkpoint-4 is whole, go on from it with resume=True" in said


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    elsewhere = (FileNotFoundError(2, "no", "elsewhere"), OSError(28, "no", "/elsewhere"), ConnectionResetError("no"))
    for error in (*elsewhere, EOFError("no"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as told, told_in_one_line(tmp_path):
            raise error
        assert told.value is error


WORKERS = {"training": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 1}}


def run_whose_worker_is_killed(output: Path) -> None:
    def kill() -> None:
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        at_step(3, kill, patch)
        with pytest.raises(PerceiverVLError, match=r"^a data worker was killed[^\n]+checkpoint-2 is whole[^\n]+$"):
            run(output, **WORKERS)


def test_a_data_worker_that_is_killed_is_one_line_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    # In a process of its own: torch's handler of SIGCHLD raises wherever that process is, and where it is just forking,
    # logging's lock is never let go. All its other threads would wait for it.
    code = "import sys, pathlib, test_checkpoints as tests; tests.run_whose_worker_is_killed(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=environment, check=True, timeout=300)
    assert damage(tmp_path / "run" / "checkpoints" / "checkpoint-2") is None
    run(tmp_path / "run", resume=True, **WORKERS)
    assert_same_weights(tmp_path / "run", whole)


def put_and_die(queue: Any) -> None:
    queue.put(torch.ones(3))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a tensor needs no word of who made it")
def test_a_data_worker_that_is_gone_when_a_tensor_is_taken_from_it_is_one_line(tmp_path: Path) -> None:
    processes = torch.multiprocessing.get_context("spawn")
    queue = processes.SimpleQueue()
    worker = processes.Process(target=put_and_die, args=(queue,))
    worker.start()
    worker.join()
    with pytest.raises(PerceiverVLError, match=r"^a data worker was killed[^\n]+$"), told_in_one_line(tmp_path):
        queue.get()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the other process in /proc")
def test_a_process_that_is_killed_is_one_line_and_the_other_ends(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(tiny_recipe(tmp_path / "run", training={"max_steps": 5000, "save_total_limit": 1}))
    )
    words = [sys.executable, "-m", "perceiver_vl", "train", str(recipe), "--processes", "2"]
    first = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        patience = time.monotonic() + 300
        while (
            first.poll() is None
            and time.monotonic() < patience
            and not list(tmp_path.glob("run/checkpoints/checkpoint-*"))
        ):
            time.sleep(0.05)
        listed = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        others = [int(one) for one in listed if b"perceiver" in Path(f"/proc/{one}/cmdline").read_bytes()]
        os.kill(others[0], signal.SIGKILL)
        _, told = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 1
    assert told.startswith("error: process 1 of 2 was ended by SIGKILL; checkpoint-")
    assert len(told.splitlines()) == 1
    (newest,) = (path for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*") if path.name in told)
    assert damage(newest) is None
