"""Steps whose loss or gradient is not finite: nothing is learned from them, they are counted, and named in a file.

The file is also the memory of the count: a run that goes on from a checkpoint drops what came after it.
"""

from collections.abc import Sequence
from pathlib import Path

from perceiver_vl.utils.errors import PerceiverVLError
from perceiver_vl.utils.jsonl import append_line, keep_until

FILE = "nonfinite.jsonl"


class NonFiniteSteps:
    """The skipped steps of a run, all counted alike in all processes; `most` of them in a row end it."""

    def __init__(self, output: Path, most: int) -> None:
        self.path, self.most = output / FILE, most
        self._steps: list[int] = []

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._steps)

    def restore(self, steps: list[int]) -> None:
        """Take over those that a run had before, as `skipped_until` says."""
        self._steps = steps

    def skipped_until(self, step: int) -> list[int]:
        """Those of the file up to `step`; later ones are dropped from it."""
        return [entry["step"] for entry in keep_until(self.path, step)]

    def add(self, step: int, what: Sequence[str], files: Sequence[str], learning_rate: float, *, writes: bool) -> None:
        """Count `step` (from 1). what: the objectives that were not finite, or `gradient`; files: of the batch."""
        self._steps.append(step)
        if writes:
            entry = {"step": step, "not_finite": list(what), "learning_rate": learning_rate, "files": list(files)}
            append_line(self.path, entry)

    def check(self, what: Sequence[str], learning_rate: float, norms: dict[str, float], *, weights: bool) -> None:
        """Raise `PerceiverVLError`, with what is known of the cause, after `most` in a row, or at the first one where
        the weights themselves are not finite (`weights`: whether they are). norms: of the last finite gradients.
        """
        last = self._steps[-1]
        row = next((n for n, step in enumerate(reversed(self._steps)) if step != last - n), len(self._steps))
        if weights and row < self.most:
            return
        steps = f"in {row} steps in a row, {last - row + 1} to {last}" if row > 1 else f"in step {last}"
        known = ", ".join(f"{part} {norm:.3g}" for part, norm in norms.items()) or "none logged yet"
        if weights:
            advice = "lower training.learning_rate, add warm-up, leave out fp16 or bf16, look at the files"
        else:
            advice = "the weights are not finite: lower training.learning_rate and start from an earlier checkpoint"
        raise PerceiverVLError(
            f"not finite {steps}: {', '.join(what)}; learning_rate={learning_rate:.3g}, "
            f"gradient norms before: {known}; {advice} (batches in {self.path})"
        )
