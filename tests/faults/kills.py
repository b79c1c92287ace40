"""Kills a training run again and again, goes on with it, and compares its end with that of the run left alone.

Usage: kills.py [--kills 20] [--seed 0] [--processes 1] [--steps 40] [--json]

The run is a real one: the command, a folder of clips, a broken file among them, everything that is drawn at random,
a checkpoint each fourth step, an evaluation each fifth. Every time it is started, SIGKILL comes to all its processes
at a moment drawn from the seed, uniform over the length of the run left alone (from the first file it writes to the end
of its process): in a step, in a checkpoint, in an evaluation, while the end is written. A start that gets to its end
before its moment closes a chain of kills: the final weights, log and metrics must then be those of the run left alone,
bit for bit but for what is measured in seconds. Exit code 0 only if they always are.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROGRAM = Path(sys.executable).with_name("perceiver-vl")
HUNG = 600
"""Seconds after which a run counts as hung."""
MEASURED = {"time", "data_wait", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
MEASURED |= {"clips_per_second", "share_of_peak", "memory_mib", "gpu_memory_mib", "skipped_files"}
"""Columns of the log that are times, speeds, memory, and what was known by then of files that cannot be read."""
PROMISED = "model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "skipped.jsonl"
RECIPE: dict[str, Any] = {
    "model": {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_blocks": 2,
        "self_attentions_per_block": 1,
        "num_latents": 4,
        "image_size": 16,
        "patch_size": 8,
        "max_frames": 4,
        "max_text_length": 24,
        "layer_drop": 0.5,
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.1,
    },
    "objectives": {"vtm": 1, "mlm": 1, "vtc": 1, "mixed_vtm": 1, "hard_negatives": True},
    "tokenizer": {"vocab_size": 200},
    "ema": 0.9,
    "training": {
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "use_cpu": True,
        "seed": 1,
    },
}


@dataclass
class Report:
    """What became of a number of kills.

    survived: kills that a run was followed by which ended as the run left alone. seconds: the length of that run, from
    the first file it writes. in_checkpoint: kills that left a checkpoint half-written. differences: what was not the
    same, a line each.
    """

    processes: int
    seed: int
    seconds: float
    kills: int = 0
    survived: int = 0
    in_checkpoint: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)


class Run:
    """The command `train` in a process group of its own. more: further words; program: what understands them."""

    def __init__(
        self,
        folder: Path,
        processes: int,
        name: str,
        more: Sequence[str] = (),
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        self.output, self._said = folder / name, folder / f"{name}.err"
        first = self.output / "recipe.yaml"
        before = first.stat().st_ino if first.exists() else None
        words = ["train", folder / "recipe.yaml", f"output={self.output}", "--processes", processes]
        words += [*more, *(["--resume"] if before else [])]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*program, *map(str, words)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        patience = time.monotonic() + HUNG
        while self._process.poll() is None and not (first.exists() and first.stat().st_ino != before):
            if time.monotonic() > patience:
                self._kill()
            time.sleep(0.005)
        self.began = time.monotonic()

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL to all processes of the run; whether it was still running by then."""
        try:
            self._process.wait(max(0.0, self.began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill()
            return True
        return False

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def outcome(self) -> tuple[int, list[str]]:
        """Wait for the end, → the exit code, and the lines on standard error."""
        self.kill_after(HUNG)
        return self._process.returncode, self._said.read_text(errors="replace").splitlines()

    def end(self) -> float:
        """Wait for the end, → seconds since the first file was written."""
        code, said = self.outcome()
        if code:
            raise RuntimeError(f"exit code {code}: {' '.join(said)[-2000:]}")
        return time.monotonic() - self.began

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def kill_runs(folder: Path, kills: int, seed: int = 0, processes: int = 1, steps: int = 40) -> Report:
    """Kill `kills` times in all, in as many runs of `steps` as they take; `folder` is filled with what that needs."""
    prepare(folder, processes, steps)
    seconds = Run(folder, processes, "whole").end()
    report, draw, chain = Report(processes, seed, seconds), random.Random(seed), 0
    while report.kills < kills or chain:
        name = f"killed-{report.runs}"
        run = Run(folder, processes, name)
        if report.kills < kills and run.kill_after(draw.uniform(0, seconds)):
            report.kills, chain = report.kills + 1, chain + 1
            report.in_checkpoint += _half_a_checkpoint(run.output)
            continue
        try:
            run.end()
            found = differences(run.output, folder / "whole")
        except RuntimeError as error:
            found = [str(error)]
        report.survived += 0 if found else chain
        report.differences += [f"{name}, killed {chain} times: {line}" for line in found]
        report.runs, chain = report.runs + 1, 0
    return report


def differences(output: Path, whole: Path) -> list[str]:
    """What one run wrote otherwise than another, a line each; what is measured in seconds may differ."""
    found = [name for name in PROMISED if (output / name).read_bytes() != (whole / name).read_bytes()]
    lines, wanted = _log(output), _log(whole)
    if len(lines) != len(wanted):
        found.append(f"log.jsonl: {len(lines)} lines, not {len(wanted)}")
    for line, other in zip(lines, wanted, strict=False):
        found += [
            f"log.jsonl: step {other.get('step')}: {name}={line.get(name)}, not {other.get(name)}"
            for name in sorted(line.keys() | other.keys())
            if line.get(name) != other.get(name)
        ]
    if _metrics(output) != _metrics(whole):
        found.append("metrics.json")
    return found


def _log(output: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def _metrics(output: Path) -> Any:
    return _without_seconds(json.loads((output / "metrics.json").read_text()))


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if not key.startswith("seconds")}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


def _half_a_checkpoint(output: Path) -> bool:
    return (output / "checkpoints" / ".part").exists()


def prepare(folder: Path, processes: int, steps: int) -> None:
    """A small world with a broken clip, and the recipe; batches are shared out among the processes."""
    world = folder / "world"
    words = ["world", world, "--clips", 36, "--held-out", 6, "--size", 16, "--num-frames", 4]
    subprocess.run([PROGRAM, *map(str, words)], stdout=subprocess.DEVNULL, check=True)
    (world / "clips" / "train" / "000002.mp4").write_bytes(b"no video")
    splits = {name: {"folder": str(world), "split": name} for name in ("train", "validation")}
    training = RECIPE["training"] | {"max_steps": steps, "per_device_train_batch_size": 4 // processes}
    augmentation = {"crop": 0.5, "flip": True, "randaugment": [1, 9]}
    data = {**splits, "num_frames": 2, "augmentation": augmentation}
    recipe = {**RECIPE, "output": str(folder / "never"), "data": data, "training": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--steps", type=int, default=40, help="of a run; an epoch has 6")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_runs(Path(folder), given.kills, given.seed, given.processes, given.steps)
    if given.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print(
            f"{report.survived} of {report.kills} kills survived, bit for bit, in {report.runs} runs of "
            f"{report.seconds:.1f} s, processes: {report.processes} (seed {report.seed}); "
            f"{report.in_checkpoint} left half a checkpoint"
        )
        for line in report.differences:
            print(f"  {line}")
    sys.exit(report.survived < report.kills)


if __name__ == "__main__":
    main()
