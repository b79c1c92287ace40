"""Files that cannot be read: how many are too many for a job to go on, and the list of them beside its results."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError
from perceiver_vl.utils.jsonl import write_lines

FEWEST_TRIED = 20
"""Of fewer clips than these a share says nothing, and nothing is stopped."""
MAX_FAILED_FRACTION = 0.1
"""The share that a job passes over unless it is told otherwise."""


def check_share(most: float, name: str = "max_failed_fraction") -> None:
    """Raise `UsageError` where `most` is no share."""
    if not 0 <= most <= 1:
        raise UsageError(f"{name}={most:g}: a share, 0 (none) to 1 (never stop)")


def check_failures(broken: int, tried: int, total: int, most: float, first: SkippedSample | None) -> None:
    """Raise `PerceiverVLError` where more than the share `most` of the clips cannot be read.

    broken, tried, total: clips that failed, of those that were tried, of all. Before all were tried, the share must lie
    three standard errors above `most`: a job of which a few per cent are broken shall not stop for a bad beginning.
    """
    doubt = 0.0 if tried >= total else 3 * (most * (1 - most) * tried) ** 0.5
    if first is None or tried < FEWEST_TRIED or broken <= most * tried + doubt:
        return
    raise PerceiverVLError(
        f"{broken} of {tried} clips cannot be read, more than max_failed_fraction={most:g}: mend them, or allow any "
        "number with ",
        Setting("max_failed_fraction", 1),
        f"; one of them: {first}",
    )


def check_listed(problems: list[SkippedSample], usable: int, most: float) -> None:
    """The same for what a list names and cannot be used, before anything is decoded."""
    listed = len(problems) + usable
    check_failures(len(problems), listed, listed, most, problems[0] if problems else None)


class ReadTracker:
    """What one process has tried to read in training: how many different clips, and what was wrong with some."""

    def __init__(self, clips: int) -> None:
        self.problems: set[SkippedSample] = set()
        self.damaged: set[str] = set()
        self._tried, self._failed = np.zeros(clips, bool), np.zeros(clips, bool)

    def add(self, batch: dict[str, Any]) -> None:
        """Take what the collator says of reading out of a batch."""
        self.problems.update(batch.pop("problems"))
        self.damaged.update(batch.pop("damaged"))
        self._tried[batch.pop("tried")] = True
        self._failed[batch.pop("failed")] = True

    def counts(self) -> tuple[int, int]:
        """Different clips that failed, and that were tried."""
        return int(self._failed.sum()), int(self._tried.sum())


def write_skipped(path: Path, samples: Iterable[SkippedSample]) -> None:
    """Write one JSON object a line, `file_name` and `reason`."""
    write_lines(path, map(asdict, samples))


def read_skipped(path: Path) -> list[SkippedSample]:
    """What `write_skipped` wrote; nothing where there is no file. Raises `ValueError` for a damaged one."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [SkippedSample(**json.loads(line)) for line in lines if line]
