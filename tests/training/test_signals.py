"""Signals that ask a run to save and leave: the step is finished, the checkpoint whole, the rest as if nothing was."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from safetensors.torch import load_file
from transformers import TrainerCallback

import small_runs
from perceiver_vl.training import train
from perceiver_vl.training.recipe import Recipe, read_recipe
from perceiver_vl.training.signals import SIGNALS, stop_on_signals
from perceiver_vl.utils.errors import PREEMPTED, PreemptedError

HOW: dict[str, Any] = {
    "model": {"layer_drop": 0.5, "hidden_dropout_prob": 0.1},
    "training": {"max_steps": 8, "save_steps": 5, "logging_steps": 2, "learning_rate": 0.01},
}


def recipe_of(output: Path, **changes: Any) -> Recipe:
    return small_runs.recipe_of(output, {"ema": 0.9}, **(HOW | changes))


def assert_ended_alike(output: Path, whole: Path) -> None:
    found, wanted = (load_file(folder / "model.safetensors") for folder in (output, whole))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_step_is_finished_and_saved_and_the_run_goes_on_as_if_nothing_was(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signal(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), number)

    before, output = handlers(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Signal])
        with pytest.raises(PreemptedError, match=rf"^stopped by {number.name} at step 3, which is saved[^\n]+$"):
            train(recipe_of(output), progress=False)
    assert handlers() == before
    assert [path.name for path in output.glob("checkpoints/*")] == ["checkpoint-3"]
    assert not (output / "model.safetensors").exists()
    assert train(recipe_of(output), resume=True, progress=False).steps == 8
    train(recipe_of(tmp_path / "whole"), progress=False)
    assert_ended_alike(output, tmp_path / "whole")


def test_before_the_first_step_there_is_nothing_to_wait_for() -> None:
    before = handlers()
    with pytest.raises(PreemptedError, match=r"^stopped by SIGTERM before the first step[^\n]+$"), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before


def test_a_thread_that_gets_no_signals_trains_without() -> None:
    found: list[Any] = []

    def enter() -> None:
        with stop_on_signals():
            found.extend(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == handlers()


def test_a_worker_heeds_the_second_signal_alone() -> None:
    words = """
import os, signal, sys
from perceiver_vl.training.signals import outlive_a_signal
outlive_a_signal(3)
os.kill(os.getpid(), signal.SIGTERM)
print("alive", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", -signal.SIGTERM)


# --- Real processes -------------------------------------------------------------------------------------------------


def preempted(folder: Path, number: signal.Signals, *words: str, whole_group: bool) -> tuple[int, str, str]:
    """The command on `folder/recipe.yaml`, sent a signal at its first line of the log."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perceiver_vl", "train", str(folder / "run.yaml"), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_a_line(folder / "run" / "log.jsonl", process)
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_a_line(log: Path, process: "subprocess.Popen[str]") -> None:
    while not log.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_a_process_and_its_workers_leave_with_the_code_that_is_promised(tmp_path: Path) -> None:
    """All processes of the run get the signal, as from a machine that is shut down."""
    training = HOW["training"] | {"max_steps": 100_000, "save_steps": 100_000, "dataloader_num_workers": 1}
    recipe_of(tmp_path / "run", training=training)
    code, out, err = preempted(tmp_path, signal.SIGTERM, "--json", whole_group=True)
    assert (code, out) == (PREEMPTED, ""), err
    assert err.startswith("stopped by SIGTERM at step ")
    assert len(err.splitlines()) == 1
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert f"at step {step}, which is saved" in err
    resumed = HOW["training"] | {"max_steps": step + 2, "lr_scheduler_type": "constant"}
    recipe_of(tmp_path / "run", training=resumed)
    assert train(read_recipe(tmp_path / "run.yaml"), resume=True, progress=False).steps == step + 2


def test_two_processes_stop_at_one_step_though_one_alone_is_asked(tmp_path: Path) -> None:
    training = HOW["training"] | {"max_steps": 100_000, "save_steps": 100_000, "per_device_train_batch_size": 2}
    recipe_of(tmp_path / "run", training=training)
    code, _, err = preempted(tmp_path, signal.SIGUSR1, "--processes", "2", whole_group=False)
    assert code == PREEMPTED, err
    assert err.startswith("stopped by SIGUSR1 at step ")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert (checkpoint / "checksums.json").is_file()


def test_torchrun_passes_the_signal_on_and_all_processes_skip_what_one_of_them_could_not_learn_from(
    tmp_path: Path,
) -> None:
    training = HOW["training"] | {"max_steps": 100_000, "save_steps": 2, "save_total_limit": 100}
    training |= {"logging_steps": 4, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}
    recipe_of(tmp_path / "run", objectives={"vtm": 1, "mlm": 0}, training=training)
    script = Path(__file__).parents[1] / "spoilt_processes.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*launcher, script, tmp_path / "run.yaml"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_line(tmp_path / "run" / "log.jsonl", process)
    process.terminate()
    err = process.communicate(timeout=300)[1]
    assert err.count("stopped by SIGTERM at step") == 2, err
    checkpoints = tmp_path / "run" / "checkpoints"
    steps = sorted(int(path.name[11:]) for path in checkpoints.glob("checkpoint-*"))
    assert f"at step {steps[-1]}, which is saved" in err
    (entry,) = [json.loads(line) for line in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()]
    assert (entry["step"], entry["not_finite"], len(entry["files"])) == (3, ["vtm"], 2)
    last = load_file(checkpoints / f"checkpoint-{steps[-1]}" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in last.values())
