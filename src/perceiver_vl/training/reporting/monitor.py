"""What a training run has written so far, read from outside while it goes on."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from perceiver_vl.training.reporting.diagnostics import diagnose
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.utils.jsonl import parsed

SILENT = 60.0
"""Seconds without anything new after which a run may have stopped; ten times what a line takes, if that is longer."""
_RECENT = 20


@dataclass(frozen=True)
class RunState:
    """A run at one moment.

    steps: how many there will be; None where neither the log, the recipe nor a checkpoint says. log: the lines of
    training, each with `step`, `loss`, the losses of the objectives, `learning_rate` and the figures of health.
    validations: those of evaluation, with `step` and metrics without their `eval_`. steps_per_second: lately, with
    evaluations and checkpoints; None while unknown. examples_per_second: of all processes. nonfinite: steps that were
    skipped. diagnostics: what calls for a look, in words. checkpoint: step of the last whole one. silent: seconds since
    anything was written.
    """

    folder: Path
    ended: bool
    step: int
    steps: int | None
    log: list[dict[str, float]]
    validations: list[dict[str, float]]
    steps_per_second: float | None
    examples_per_second: float | None
    skipped: int
    nonfinite: int
    checkpoint: int | None
    silent: float

    @property
    def health(self) -> dict[str, float]:
        """The latest of each figure: some are not in every line."""
        latest: dict[str, float] = {}
        for line in self.log:
            latest |= line
        return latest

    @property
    def diagnostics(self) -> list[str]:
        """What calls for a look, a sentence each."""
        return diagnose(self.log, self.nonfinite)

    @property
    def seconds_left(self) -> float | None:
        """At the present pace; None while that is unknown."""
        if self.ended or self.steps is None or not self.steps_per_second:
            return None
        return max(0, self.steps - self.step) / self.steps_per_second

    @property
    def stopped(self) -> bool:
        """Whether nothing was written for longer than the run's own pace explains."""
        a_line = 0.0
        if self.steps_per_second and len(self.log) > 1:
            a_line = (self.log[-1]["step"] - self.log[-2]["step"]) / self.steps_per_second
        return not self.ended and self.silent > max(SILENT, 10 * a_line)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the last line of the log for the whole of it."""
        plain = asdict(self) | {"folder": str(self.folder), "log": self.log[-1:]}
        plain |= {"health": self.health, "diagnostics": self.diagnostics}
        return plain | {"seconds_left": self.seconds_left, "stopped": self.stopped}


@dataclass
class RunReader:
    """Reads a run again and again, of its log only what is new.

    Raises `UsageError` for a folder that no run has written to.
    """

    folder: Path
    _lines: dict[int, dict[str, float]] = field(default_factory=dict)
    _read: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder}: no such folder, give the output folder of a training run")
        if not (self.folder / "recipe.yaml").is_file():
            raise UsageError(f"{self.folder}: no run in it (no recipe.yaml), give the output folder of a training run")

    def read(self) -> RunState:
        """The run as it is now."""
        self._read_log(self.folder / "log.jsonl")
        lines = sorted(self._lines.items())
        log = [line for _, line in lines if "loss" in line]
        last = _last_checkpoint(self.folder)
        begun = _written(self.folder / "recipe.yaml")
        traces = [self.folder / name for name in ("recipe.yaml", "log.jsonl", "metrics.json")]
        traces += [last / "trainer_state.json"] if last else []
        totals = [int(line["steps"]) for line in log[-1:] if "steps" in line]
        return RunState(
            folder=self.folder,
            ended=_written(self.folder / "metrics.json") >= begun,  # a resume writes the recipe again
            step=max(self._lines, default=0),
            steps=totals[0] if totals else _steps(_training_of(self.folder / "recipe.yaml"), last),
            log=[{name: value for name, value in line.items() if not _is_aside(name)} for line in log],
            validations=[found for step, line in lines if len(found := _metrics(step, line)) > 1],
            steps_per_second=_pace([(line["step"], line["time"]) for line in log if line.get("time", 0) >= begun]),
            examples_per_second=log[-1].get("clips_per_second") if log else None,
            skipped=_count_lines(self.folder / "skipped.jsonl"),
            nonfinite=_count_lines(self.folder / "nonfinite.jsonl"),
            checkpoint=_step_of(last) if last else None,
            silent=max(0.0, time.time() - max(_written(trace) for trace in traces)),
        )

    def _read_log(self, path: Path) -> None:
        """What was added since the last look; all of it where a resume has written it anew."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            which, done = self._read
            found = os.fstat(file.fileno())
            if found.st_ino != which or found.st_size < done:
                self._lines, done = {}, 0
            file.seek(done)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read = found.st_ino, done + len(whole)
        for entry in parsed(whole.decode("utf-8", errors="replace")):
            numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
            self._lines.setdefault(entry["step"], {}).update(numbers)


def _is_aside(name: str) -> bool:
    """Whether a number of a line is no figure of training."""
    return name in ("time", "steps", "total_flos") or name.startswith(("eval_", "train_"))


def _pace(times: list[tuple[float, float]]) -> float | None:
    """Steps a second over the last lines: steps, and seconds since 1970."""
    recent = times[-_RECENT:]
    if len(recent) < 2 or recent[-1][1] <= recent[0][1]:
        return None
    return (recent[-1][0] - recent[0][0]) / (recent[-1][1] - recent[0][1])


def _metrics(step: int, line: dict[str, float]) -> dict[str, float]:
    return {"step": step} | {name[5:]: value for name, value in line.items() if name.startswith("eval_")}


def _training_of(path: Path) -> dict[str, Any]:
    """`training` of a recipe, with the steps of its stages as `max_steps`."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        stages = recipe.get("stages") or ()
        training = dict(recipe.get("training") or {})
        return training | ({"max_steps": sum(stage["steps"] for stage in stages)} if stages else {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise PerceiverVLError(f"{path}: not the recipe of a run ({first_line(error)})") from error


def _steps(training: dict[str, Any], checkpoint: Path | None) -> int | None:
    if checkpoint is None:
        asked = training.get("max_steps", -1)
    else:
        try:
            asked = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["max_steps"]
        except (OSError, ValueError, KeyError):  # deleted or being written this moment
            asked = -1
    return asked if asked > 0 else None


def _last_checkpoint(folder: Path) -> Path | None:
    complete = [path.parent for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _written(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
