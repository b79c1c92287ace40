"""Where clips and captions come from: one small interface for folders, single files and the generated world."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.records import Record
from perceiver_vl.media import load_frames

Frames = npt.NDArray[np.uint8]


class ClipSource(Protocol):
    """Clips with captions, by index."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call clip `index` in a report."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Its captions, at least one."""

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

    def name(self, index: int) -> str:
        """The file name within the folder."""
        return self.records[index].file_name

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of the metadata."""
        return self.records[index].texts

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Decode."""
        path = self.records[index].path
        if rng is not None:
            return load_frames(path, num_frames, sampling="random", rng=rng, size=self.size)
        return load_frames(path, num_frames, size=self.size)


class CachedClips:
    """Another source, whose captions and frames are kept in memory once they were asked for: for small data.

    Frames that are sampled at random are new each time, and not kept.
    """

    def __init__(self, source: ClipSource) -> None:
        self.source = source
        self._frames: dict[tuple[int, int], Frames] = {}
        self._captions: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """As the source calls it."""
        return self.source.name(index)

    def captions(self, index: int) -> tuple[str, ...]:
        """The source's captions."""
        if index not in self._captions:
            self._captions[index] = self.source.captions(index)
        return self._captions[index]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """From memory, or from the source."""
        if rng is not None:
            return self.source.frames(index, num_frames, rng)
        key = (index, num_frames)
        if key not in self._frames:
            self._frames[key] = self.source.frames(index, num_frames)
        return self._frames[key]
