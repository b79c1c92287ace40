"""Where clips and captions come from: one small interface for folders, single files and the generated world."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.records import Record
from perceiver_vl.media import load_frames

Frames = npt.NDArray[np.uint8]


class ClipSource(Protocol):
    """Clips and what is said of them, by index."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """What is known of clip `index`: its name, its words."""

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Up to `num_frames` frames `(T,H,W,3)`: the middles of equal segments, or (`rng`) a random one of each.

        Raises `MediaError` for a file that cannot be read.
        """


class FolderClips:
    """The records of a folder, decoded when asked for, at `size` (height, width)."""

    def __init__(self, records: Sequence[Record], size: tuple[int, int]) -> None:
        self.records = records
        self.size = size

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        """As the metadata says."""
        return self.records[index]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Decode."""
        path = self.records[index].path
        if rng is not None:
            return load_frames(path, num_frames, sampling="random", rng=rng, size=self.size)
        return load_frames(path, num_frames, size=self.size)


class CachedClips:
    """Another source, whose records and frames are kept in memory once they were asked for: for small data.

    Frames that are sampled at random are new each time, and not kept.
    """

    def __init__(self, source: ClipSource) -> None:
        self.source = source
        self._frames: dict[tuple[int, int], Frames] = {}
        self._records: dict[int, Record] = {}

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """From memory, or from the source."""
        if index not in self._records:
            self._records[index] = self.source.record(index)
        return self._records[index]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """From memory, or from the source."""
        if rng is not None:
            return self.source.frames(index, num_frames, rng)
        key = (index, num_frames)
        if key not in self._frames:
            self._frames[key] = self.source.frames(index, num_frames)
        return self._frames[key]
