"""What a training run has written so far, read from outside while it goes on.

The TensorBoard files of a run are written at every log, `log.csv` only at evaluations and saves: the first are read
where there are some that can be read, else the second.
"""

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from perceiver_vl.errors import PerceiverVLError, UsageError, first_line

SILENT = 60.0
"""Seconds without anything new after which a run may have stopped; ten times what a line takes, if that is longer."""
_RECENT = 20


@dataclass(frozen=True)
class RunState:
    """A run at one moment.

    steps: how many there will be; None where neither the recipe nor a checkpoint says. log: the lines of training, each
    with `step`, `loss`, the losses of the objectives, `learning_rate`. validations: those of evaluation, with `step`
    and metrics without their `eval_`. steps_per_second: lately, with evaluations and checkpoints; None while unknown.
    examples_per_second: of all processes, which the first checkpoint tells. checkpoint: step of the last whole one.
    silent: seconds since anything was written.
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
    checkpoint: int | None
    silent: float

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
        return plain | {"seconds_left": self.seconds_left, "stopped": self.stopped}


@dataclass
class RunReader:
    """Reads a run again and again, of TensorBoard's files only what is new.

    Raises `UsageError` for a folder that no run has written to.
    """

    folder: Path
    _events: dict[Path, Any] = field(default_factory=dict)
    _log: dict[int, dict[str, float]] = field(default_factory=dict)
    _times: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder}: no such folder, give the output folder of a training run")
        if not (self.folder / "recipe.yaml").is_file():
            raise UsageError(f"{self.folder}: no run in it (no recipe.yaml), give the output folder of a training run")

    def read(self) -> RunState:
        """The run as it is now."""
        files = self._event_files()
        for file in files:
            self._read_events(file)
        lines = self._log or _lines_of_csv(self.folder / "log.csv")
        log = [line for _, line in sorted(lines.items()) if "loss" in line]
        last = _last_checkpoint(self.folder)
        pace = self._pace()
        training = _training_of(self.folder / "recipe.yaml")
        begun = _written(self.folder / "recipe.yaml")
        traces = [self.folder / name for name in ("recipe.yaml", "log.csv", "metrics.json")]
        traces += [*files, *([last / "trainer_state.json"] if last else [])]
        return RunState(
            folder=self.folder,
            ended=_written(self.folder / "metrics.json") >= begun,  # a resume writes the recipe again
            step=max(lines, default=0),
            steps=_steps(training, last),
            log=[{name: value for name, value in line.items() if not name.startswith("eval_")} for line in log],
            validations=[found for step, line in sorted(lines.items()) if len(found := _metrics(step, line)) > 1],
            steps_per_second=pace,
            examples_per_second=None if pace is None or last is None else pace * _examples(training, last),
            skipped=_count_lines(self.folder / "skipped.jsonl"),
            checkpoint=_step_of(last) if last else None,
            silent=max(0.0, time.time() - max(_written(trace) for trace in traces)),
        )

    def _event_files(self) -> list[Path]:
        """In the order in which they were begun, as their names say; none where nothing here can read them."""
        if find_spec("tensorboard") is None:
            return []
        return sorted(self.folder.glob("checkpoints/runs/*/events.out.tfevents.*"), key=lambda path: path.name)

    def _read_events(self, file: Path) -> None:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        new = file not in self._events
        if new:
            self._events[file] = LegacyEventFileLoader(str(file))
        for step, name, value, at in _scalars(self._events[file]):
            if new:  # a run that was resumed goes over what came after its checkpoint again
                self._log = {known: line for known, line in self._log.items() if known < step}
                self._times, new = {}, False
            self._log.setdefault(step, {"step": step})[name] = value
            if name == "loss":
                self._times[step] = at

    def _pace(self) -> float | None:
        """Steps a second over the last lines of this start."""
        recent = sorted(self._times.items())[-_RECENT:]
        if len(recent) < 2 or recent[-1][1] <= recent[0][1]:
            return None
        return (recent[-1][0] - recent[0][0]) / (recent[-1][1] - recent[0][1])


def _scalars(events: Any) -> Iterator[tuple[int, str, float, float]]:
    """What was added to a TensorBoard file: step, name as in `log.csv`, value, and when."""
    for event in events.Load():
        for value in event.summary.value:
            part, _, name = value.tag.partition("/")
            if part in ("train", "eval") and not name.startswith("train_") and value.HasField("simple_value"):
                yield event.step, f"eval_{name}" if part == "eval" else name, value.simple_value, event.wall_time


def _lines_of_csv(path: Path) -> dict[int, dict[str, float]]:
    lines: dict[int, dict[str, float]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                found = {name: float(value) for name, value in row.items() if value and not name.startswith("train_")}
                lines.setdefault(step, {}).update(found)
    return lines


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


def _examples(training: dict[str, Any], checkpoint: Path) -> int:
    """Of a step, in all processes: each of them leaves the state of its generators in a checkpoint."""
    processes = max(1, len(list(checkpoint.glob("rng_state*.pth"))))
    a_process = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    return int(processes * a_process)


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
