"""Where clips and captions come from: one small interface for folders, single files and the generated world."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.folder import Record
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
    """The records of a folder, decoded when asked for, at `size` (height, width).

    `cache` keeps what was decoded (uniform sampling only) in memory: for small data that is read many times.
    """

    def __init__(self, records: Sequence[Record], size: tuple[int, int], cache: bool = False) -> None:
        self.records = records
        self.size = size
        self._cache: dict[tuple[int, int], Frames] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """The file name within the folder."""
        return self.records[index].file_name

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of the metadata."""
        return self.records[index].texts

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Decode, or take from the cache."""
        path = self.records[index].path
        if rng is not None:
            return load_frames(path, num_frames, sampling="random", rng=rng, size=self.size)
        if self._cache is None:
            return load_frames(path, num_frames, size=self.size)
        key = (index, num_frames)
        if key not in self._cache:
            self._cache[key] = load_frames(path, num_frames, size=self.size)
        return self._cache[key]
