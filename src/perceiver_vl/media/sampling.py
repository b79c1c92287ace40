"""Which frames of a clip to take, from their number and their times alone."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from perceiver_vl.media.source import MAX_FRAMES, MAX_PICTURE_PIXELS
from perceiver_vl.utils.errors import MediaError, UsageError

Frames = npt.NDArray[np.uint8]
"""A frame (H, W, 3) or several (T, H, W, 3), RGB."""
Indices = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]


class DecodedFrame(NamedTuple):
    """The frame (H, W, 3) that was `wanted`, an index, and is shown from `seconds` on; or not that, but a stand-in."""

    wanted: int
    seconds: float
    frame: Frames
    exact: bool = True


def told_time(text: str) -> datetime:
    """The ISO 8601 time that a file says of itself, in UTC; one without a zone counts as UTC.

    Raises `ValueError` for what is no time, or one before there were such files: how some write that they do not know.
    """
    time = datetime.fromisoformat(text.strip())
    if time.year <= 1970:
        raise ValueError(f"{text}: not a time of recording")
    return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)


class Timeline(Protocol):
    """Frames in the order in which they are shown, and when."""

    @property
    def name(self) -> Path: ...

    @property
    def count(self) -> int: ...

    @property
    def times(self) -> Seconds:
        """(count,) seconds from the first frame, increasing; or fewer, where the rest cannot be decoded."""

    @property
    def duration(self) -> float | None:
        """Seconds from the first frame to the end of the last; None where nothing tells, as for a picture."""

    @property
    def rounding(self) -> float:
        """How much earlier than stored, in seconds, a frame may have been meant: containers round times."""


def sample_indices(total: int, num_frames: int, rng: np.random.Generator | None = None) -> list[int]:
    """Indices of the frames to take from `total`: one from each of `num_frames` equal segments.

    The middle of the segment, or with `rng` any frame of it. All frames once if there are no more than `num_frames`.
    """
    if total <= num_frames:
        return list(range(total))
    edges = [i * total // num_frames for i in range(num_frames + 1)]
    segments = itertools.pairwise(edges)
    if rng is None:
        return [(first + after) // 2 for first, after in segments]
    return [int(rng.integers(first, after)) for first, after in segments]


@dataclass(frozen=True)
class Request:
    """The arguments of `load_clip`: one of a number of frames (random with `rng`), a rate, and instants.

    Raises `UsageError` for what cannot work, whatever the file.
    """

    num_frames: int | None = None
    fps: float | None = None
    timestamps: Sequence[float] | None = None
    rng: np.random.Generator | None = None
    size: tuple[int, int] | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        size = self.size
        if size is not None and (len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_PICTURE_PIXELS):
            raise UsageError(f"size={size}: need (height, width) of at least 1 and at most {MAX_PICTURE_PIXELS} pixels")
        given = [name for name in ("num_frames", "fps", "timestamps") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "no frames asked for"
            raise UsageError(f"{what}: give one of num_frames, fps and timestamps")
        if self.num_frames is not None and self.num_frames < 1:
            raise UsageError(f"num_frames={self.num_frames}: need at least one frame")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(f"fps={self.fps}: need more than 0 frames a second")
        if self.rng is not None and self.num_frames is None:
            raise UsageError("rng: random frames need num_frames")
        self._check_times()

    def _check_times(self) -> None:
        for name, seconds in (("start", self.start), ("end", self.end)):
            if seconds is None:
                continue
            if self.timestamps is not None:
                raise UsageError(f"{name}={seconds}: timestamps already say when")
            if not 0 <= seconds < math.inf:
                raise UsageError(f"{name}={seconds}: need seconds from the first frame on, 0 or more")
        if self.end is not None and self.end <= (self.start or 0):
            raise UsageError(f"end={self.end}: the interval is empty, it starts at {self.start or 0}")
        if self.timestamps is not None:
            if len(self.timestamps) == 0:
                raise UsageError("timestamps=[]: need at least one")
            wrong = [time for time in self.timestamps if not 0 <= time < math.inf]
            if wrong:
                raise UsageError(f"timestamps: {wrong[0]} is not seconds from the first frame on, 0 or more")

    def indices(self, clip: Timeline) -> Indices:
        """The frames of `clip` to take, in the order asked for; raises `MediaError` where it has no such time."""
        if self.timestamps is not None:
            return _on_screen(clip, np.asarray(self.timestamps, np.float64))
        if self.fps is not None:
            return _on_screen(clip, self._instants(clip, self.fps))
        first, after = self._interval(clip)
        assert self.num_frames is not None
        return np.asarray(sample_indices(after - first, self.num_frames, self.rng), np.int64) + first

    def _interval(self, clip: Timeline) -> tuple[int, int]:
        """The frames on screen at any time in [start, end), as indices: the first, and the one after the last."""
        if self.start is None and self.end is None:
            return 0, clip.count
        first = 0 if self.start is None else int(_on_screen(clip, np.array([self.start]))[0])
        if self.end is None:
            return first, clip.count
        return first, max(first + 1, int(np.searchsorted(clip.times, self.end - clip.rounding)))

    def _instants(self, clip: Timeline, fps: float) -> Seconds:
        start = self.start or 0.0
        ends = [end for end in (self.end, clip.duration) if end is not None]
        length = min(ends) - start if ends else 0.0
        count = max(1.0, math.ceil((length - clip.rounding) * fps))
        if count > MAX_FRAMES:
            raise MediaError(clip.name, f"fps={fps} asks for {count:.0f} frames, more than the {MAX_FRAMES} allowed")
        return start + np.arange(int(count)) / fps


def _on_screen(clip: Timeline, instants: Seconds) -> Indices:
    """The frame that is shown at each instant: the last that began by then, to within the container's rounding."""
    beyond = instants >= (math.inf if clip.duration is None else clip.duration)
    if beyond.any():
        raise MediaError(
            clip.name, f"nothing is shown at {instants[beyond][0]:.3f} s: it ends after {clip.duration:.3f} s"
        )
    return np.maximum(np.searchsorted(clip.times, instants + clip.rounding, side="right") - 1, 0)
