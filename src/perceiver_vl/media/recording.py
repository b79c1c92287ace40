"""What a file holds that is no picture: a sound, or any other series of numbers."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class Recording:
    """A series as it was recorded: `values (S,…)` float32, S steps in time, `rate` of them a second (None: unknown).

    modality: the name under which its kind is registered (`models.perceiver_vl.modalities`). lost: parts of it could
    not be read, and the rest is used. path: of its file, if it has one. made_for: the modality, with its settings, for
    whose tokenizer `values` were made, if they are no longer as recorded.
    """

    modality: str
    values: npt.NDArray[np.float32]
    rate: int | None = None
    lost: bool = False
    path: Path | None = None
    made_for: object = None

    def __len__(self) -> int:
        return len(self.values)

    def between(self, start: float | None, end: float | None) -> "Recording":
        """Its seconds [start, end). Raises `UsageError` where the rate is unknown, or nothing lies there."""
        if start is None and end is None:
            return self
        if self.rate is None:
            raise UsageError(f"start={start}, end={end}: seconds of a {self.modality} whose rate is unknown")
        first, last = round((start or 0.0) * self.rate), None if end is None else round(end * self.rate)
        if not len(part := self.values[first:last]):
            raise UsageError(f"start={start}, end={end}: beyond its {len(self) / self.rate:g} seconds")
        return replace(self, values=part)
