"""Videos of one to ten minutes in which things come, do something, and go, at known times: where is what is said?

Events overlap, some happen twice, and last from 1 to 20 s. Written as video files with their annotations in the form of
QVHighlights, which `evaluate --task moments` reads.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.synthetic.captions import caption
from perceiver_vl.data.synthetic.collection import check_index, check_world
from perceiver_vl.data.synthetic.render import paint
from perceiver_vl.data.synthetic.scene import (
    SPLITS,
    Background,
    Floats,
    Pose,
    SceneObject,
    draw_background,
    draw_scene,
    generator,
)
from perceiver_vl.data.synthetic.writing import claim_folder, write_frames
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.jsonl import write_lines

SHORTEST_VIDEO, LONGEST_VIDEO = 60.0, 600.0
SHORTEST_EVENT, LONGEST_EVENT = 1.0, 20.0
FRAMES_PER_SECOND = 4
_SECONDS_AN_EVENT = 15.0
_PERIOD = (2.0, 4.0)  # seconds of a motion, which is done again and again while the thing is there
_REPEATED = 0.25
_EVENTS_STREAM, _SCENES = 7, 64  # of chance; events that a video may have at most
_FRAMES_AT_ONCE = 8
MANIFEST = "moments.json"
VERSION = 1


@dataclass(frozen=True)
class Event:
    """A thing that is there in each of the `windows`, in seconds, doing what the `query` says."""

    thing: SceneObject
    windows: tuple[tuple[float, float], ...]
    period: float
    query: str

    def is_seen(self, times: Floats) -> bool:
        """At any of some seconds."""
        return any(bool(((times >= start) & (times < end)).any()) for start, end in self.windows)


@dataclass(frozen=True)
class EventVideo:
    """A video of `seconds`, on one background, and all that happens."""

    seconds: float
    background: Background
    events: tuple[Event, ...]
    noise: int


@dataclass(frozen=True)
class _Present:
    """A thing as it is drawn: as its events say, by the seconds of the video."""

    event: Event

    @property
    def colour(self) -> str:
        return self.event.thing.colour

    @property
    def shape(self) -> str:
        return self.event.thing.shape

    def pose(self, times: Floats) -> Pose:
        """At seconds `times` (T,): hidden but in its windows."""
        there = np.zeros(len(times))
        progress = np.zeros(len(times))
        for start, end in self.event.windows:
            inside = (times >= start) & (times < end)
            there[inside] = 1
            progress[inside] = (times[inside] - start) / self.event.period % 1
        pose = self.event.thing.pose(progress)
        return pose._replace(opacity=pose.opacity * there)


@dataclass(frozen=True)
class MomentsWorld:
    """`videos` of one split, each depending on (seed, split, index) alone; of `seconds`, or of one to ten minutes.

    What is said in one split is said in no other, and no two events of a video have the same description.
    Raises `UsageError` for values that cannot be.
    """

    split: str = "train"
    videos: int = 8
    seed: int = 0
    seconds: float | None = None
    size: int = 64

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise UsageError(f"clips={self.videos}: need at least 1 video")
        check_world(self, SPLITS)
        if self.seconds is not None and not SHORTEST_VIDEO <= self.seconds <= LONGEST_VIDEO:
            raise UsageError(
                f"seconds={self.seconds:g}: videos of moments last {SHORTEST_VIDEO:g} to {LONGEST_VIDEO:g} s"
            )

    @property
    def clips(self) -> int:
        """The number of videos."""
        return self.videos

    def __len__(self) -> int:
        return self.videos

    def video(self, index: int) -> EventVideo:
        """What happens in video `index`."""
        rng = generator(self.seed, self.split, check_index(self, index), _EVENTS_STREAM)
        seconds = self.seconds or float(np.exp(rng.uniform(math.log(SHORTEST_VIDEO), math.log(LONGEST_VIDEO))))
        count = max(2, round(seconds / _SECONDS_AN_EVENT))
        events: dict[Any, Event] = {}
        for draw in range(_SCENES):
            scene = draw_scene(self.seed + 1, self.split, index * _SCENES + draw, singles=1.0)
            if len(events) < count and scene.key not in events:
                windows = _windows(rng, seconds)
                events[scene.key] = Event(scene.objects[0], windows, rng.uniform(*_PERIOD), caption(scene, rng))
        return EventVideo(seconds, draw_background(rng), tuple(events.values()), int(rng.integers(2**31)))

    def stream(self, index: int) -> Iterator[Frames]:
        """The frames (size, size, 3) of a video, `FRAMES_PER_SECOND` of them."""
        video = self.video(index)
        total = round(video.seconds * FRAMES_PER_SECOND)
        for first in range(0, total, _FRAMES_AT_ONCE):
            yield from self.frames(video, np.arange(first, min(total, first + _FRAMES_AT_ONCE)))

    def frames(self, video: EventVideo, numbers: npt.NDArray[np.int64]) -> Frames:
        """Some frames of a video by their numbers, in order: `(T, size, size, 3)`."""
        times = numbers / FRAMES_PER_SECOND
        things = [_Present(event) for event in video.events if event.is_seen(times)]
        noises = [video.noise + 7919 * number for number in numbers.tolist()]
        return paint(video.background, things, noises, times, self.size)

    def name(self, index: int) -> str:
        """Of a video, without its ending."""
        return f"{self.split}_{index:06d}"

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """A row for each event, as those of QVHighlights."""
        video = self.video(index)
        return [
            {
                "qid": index * _SCENES + place,
                "query": event.query,
                "vid": self.name(index),
                "duration": round(video.seconds * FRAMES_PER_SECOND) / FRAMES_PER_SECOND,
                "relevant_windows": [[round(start, 3), round(end, 3)] for start, end in event.windows],
            }
            for place, event in enumerate(video.events)
        ]


def _windows(rng: np.random.Generator, seconds: float) -> tuple[tuple[float, float], ...]:
    """One window, or two that do not touch, of lengths that are short as often as long."""
    length = float(np.exp(rng.uniform(math.log(SHORTEST_EVENT), math.log(LONGEST_EVENT))))
    count = 2 if rng.random() < _REPEATED and seconds > 6 * length else 1
    shares = [(place * seconds / count, (place + 1) * seconds / count) for place in range(count)]
    starts = [rng.uniform(first, last - 1.2 * length) for first, last in shares]
    return tuple((start, start + length) for start in starts)


def write_moments_world(
    out: Path,
    videos: int,
    seed: int = 0,
    *,
    held_out: int | None = None,
    seconds: float | None = None,
    size: int = 64,
    progress: bool = False,
) -> dict[str, int]:
    """Write `videos/SPLIT_000000.mp4` and, a file a split, `moments_SPLIT.jsonl`; how many videos each split has.

    Validation and test get `held_out` videos each (an eighth of all unless given), training the rest. The same
    arguments give the same bytes; called again it writes what is missing. Raises `UsageError` for values that cannot
    be, and for a folder that holds something else.
    """
    held_out = max(1, videos // 8) if held_out is None else held_out
    if videos < len(SPLITS) or not 1 <= held_out <= (videos - 1) // 2:
        raise UsageError(f"clips={videos}, held_out={held_out}: need videos in each of {', '.join(SPLITS)}")
    if size % 2:
        raise UsageError(f"size={size}: video needs an even number of pixels, take {size + 1}")
    counts = dict.fromkeys(SPLITS, held_out) | {"train": videos - 2 * held_out}
    worlds = [MomentsWorld(split, count, seed, seconds, size) for split, count in counts.items()]
    arguments = {"version": VERSION, "worlds": [asdict(world) for world in worlds]}
    claim_folder(out, MANIFEST, arguments)
    with ProgressBars(progress) as bar:
        advance = bar.stage("Writing videos", videos)
        for world in worlds:
            rows: list[dict[str, Any]] = []
            for index in range(len(world)):
                path = out / "videos" / f"{world.name(index)}.mp4"
                if not path.exists():
                    write_frames(path, world.stream(index), FRAMES_PER_SECOND)
                rows += world.annotations(index)
                advance()
            write_lines(out / f"moments_{world.split}.jsonl", rows)
    return counts
