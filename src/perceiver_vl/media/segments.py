"""A video in segments: where each begins and ends, from the times at which its frames are shown, and the frames of all,
read in one go in the memory of a few.

Segments follow each other without a gap and begin when a frame is shown, so each frame belongs to one of them, whatever
the rate, the offset or the edit list of the file.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from perceiver_vl.media.decode import Clip, frame_times, stream_clip
from perceiver_vl.media.sampling import Frames, Seconds, sample_indices
from perceiver_vl.utils.errors import UsageError

SCENES = "scenes"
LONGEST_SCENE = 10.0
"""Seconds; a longer one is cut into equal parts."""
SHORTEST_SCENE = 1.0
SHORTEST_SEGMENT, LONGEST_SEGMENT = 0.1, 600.0
_CUT = 27.0  # the change between two frames that is a cut, of 255: that of PySceneDetect's ContentDetector
_THUMBNAIL = (36, 64)
_FRAMES_AT_ONCE = 256


@dataclass(frozen=True)
class Segment:
    """The frames [first, after) of a video, on screen in [start, end), seconds from its first frame."""

    first: int
    after: int
    start: float
    end: float


@dataclass(frozen=True)
class SegmentFrames:
    """A segment with some of its frames `(T,H,W,3)`, and the clip that they were read in, without its frames."""

    segment: Segment
    frames: Frames
    clip: Clip


def check_segments(value: str) -> str:
    """How videos are cut, as it is kept: seconds as a number, or `scenes`. Raises `UsageError` for what is neither."""
    if value == SCENES:
        return value
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_SEGMENT <= seconds <= LONGEST_SEGMENT:
        raise UsageError(
            f"segments={value}: need seconds from {SHORTEST_SEGMENT:g} to {LONGEST_SEGMENT:g}, or {SCENES}"
        )
    return f"{seconds:g}"


def find_segments(path: str | os.PathLike[str], how: str) -> tuple[list[Segment], float]:
    """The segments of a video and its duration in seconds; `how`: as `check_segments` gives it.

    Segment k of S seconds begins with the first frame that is shown at k·S or later; one without any does not exist,
    and the frame on screen belongs to the one before. `scenes`: cut where a frame differs from the one before, which
    decodes them all once. A picture has none. Raises `MediaError` if the file cannot be read.
    """
    times, duration = frame_times(path)
    if duration is None:
        return [], 0.0
    if how == SCENES:
        return _segments(times, duration, _scene_edges(path, times, duration)), float(duration)
    return segments_of_times(times, duration, float(how)), float(duration)


def segments_of_times(times: Seconds, duration: float, seconds: float) -> list[Segment]:
    """The segments of `seconds` of a video whose frames are shown at `times (T,)`."""
    return _segments(times, duration, _edges(times, duration, seconds))


def _segments(times: Seconds, duration: float, edges: Sequence[int]) -> list[Segment]:
    return [
        Segment(first, after, float(times[first]), float(times[after]) if after < len(times) else float(duration))
        for first, after in pairwise([*edges, len(times)])
    ]


def _edges(times: Seconds, duration: float, seconds: float) -> list[int]:
    """The first frames of segments of so many seconds; containers round times to half a millisecond."""
    grid = np.arange(math.ceil(duration / seconds)) * seconds - 5e-4
    return np.unique(np.searchsorted(times, grid)[np.searchsorted(times, grid) < len(times)]).tolist()


def _scene_edges(path: str | os.PathLike[str], times: Seconds, duration: float) -> list[int]:
    cuts = [0]
    for time in _cuts(path, times):
        frame = int(np.searchsorted(times, time))
        if times[frame] - times[cuts[-1]] >= SHORTEST_SCENE:
            cuts.append(frame)
    edges: set[int] = set()
    for first, after in pairwise([*cuts, len(times)]):
        start, end = float(times[first]), float(times[after]) if after < len(times) else duration
        parts = math.ceil((end - start) / LONGEST_SCENE)
        grid = start + np.arange(max(parts, 1)) * (end - start) / max(parts, 1) - 5e-4
        edges.update(np.searchsorted(times, grid[np.searchsorted(times, grid) < after]).tolist())
    return sorted(edges)


def _cuts(path: str | os.PathLike[str], times: Seconds) -> Iterator[float]:
    """When frames are shown that differ from the one before: by the mean change of hue, saturation and value."""
    before: npt.NDArray[np.int16] | None = None
    for clip in stream_clip(path, timestamps=times.tolist(), chunk=_FRAMES_AT_ONCE, size=_THUMBNAIL):
        count, height, width, _ = clip.frames.shape
        rows = Image.fromarray(clip.frames.reshape(count * height, width, 3)).convert("HSV")
        colours = np.asarray(rows, np.int16).reshape(count, height, width, 3)
        chain = colours if before is None else np.concatenate([before, colours])
        changes = np.abs(np.diff(chain, axis=0)).mean((1, 2)) * (180 / 256, 1, 1)  # hue: half degrees, as OpenCV's
        for time, change in zip(clip.timestamps[-len(changes) :], changes.mean(1), strict=False):
            if change >= _CUT:
                yield float(time)
        before = colours[-1:]


def read_segments(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    fps: float,
    most: int,
    *,
    size: tuple[int, int] | None = None,
    chunk: int = 32,
    rng: np.random.Generator | None = None,
) -> Iterator[SegmentFrames]:
    """Each of the `segments`, which follow each other, with about `fps` frames a second, 1 to `most`, evenly spread or
    drawn from `rng`.

    No more than `chunk` frames and those of a segment are held. A segment whose frames are all lost shows the frame
    before, as a player does. Raises `MediaError` when the file cannot be read.
    """
    times, _ = frame_times(path)
    wanted: list[int] = []
    for one in segments:
        wanted += sampled_frames(one, fps, most, rng)
    starts = np.array([one.start for one in segments])
    place, held = 0, list[Frames]()
    last: Frames | None = None
    about: Clip | None = None
    for clip in stream_clip(path, timestamps=times[wanted].tolist(), chunk=chunk, size=size):
        about = replace(clip, frames=clip.frames[:0], timestamps=clip.timestamps[:0])
        for time, frame in zip(clip.timestamps.tolist(), clip.frames, strict=True):
            belongs = max(0, int(np.searchsorted(starts, time + 1e-9, side="right")) - 1)
            while place < belongs:
                yield SegmentFrames(segments[place], _held(held, last, frame), about)
                place, held = place + 1, []
            held.append(frame)
            last = frame
    assert about is not None
    assert last is not None
    while place < len(segments):
        yield SegmentFrames(segments[place], _held(held, last, last), about)
        place, held = place + 1, []


def sampled_frames(segment: Segment, fps: float, most: int, rng: np.random.Generator | None = None) -> list[int]:
    """The numbers of the frames of a segment that are read."""
    count = min(most, max(1, round((segment.end - segment.start) * fps)))
    return [segment.first + place for place in sample_indices(segment.after - segment.first, count, rng)]


def _held(frames: list[Frames], before: Frames | None, after: Frames) -> Frames:
    """Those of a segment; if all are lost the one before, or at the beginning the one after."""
    return np.stack(frames or [after if before is None else before])
