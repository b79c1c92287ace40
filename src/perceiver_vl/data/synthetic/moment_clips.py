"""The events of `MomentsWorld` as records in memory: a video is drawn where it is looked at, not written."""

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.moments import FRAMES_PER_SECOND, EventVideo, MomentsWorld
from perceiver_vl.media.sampling import Frames, sample_indices
from perceiver_vl.media.segments import Segment, sampled_frames, segments_of_times


class MomentClips:
    """A record for each window of each event of a world's videos: what is said of it, its start and its end."""

    def __init__(self, world: MomentsWorld) -> None:
        self.world = world

    @cached_property
    def _records(self) -> list[tuple[int, Record]]:
        """Each with the place of its video."""
        return [
            (
                video,
                Record(
                    f"videos/{self.world.name(video)}.mp4",
                    Path(f"videos/{self.world.name(video)}.mp4"),
                    (event.query,),
                    self.world.split,
                    start=start,
                    end=end,
                ),
            )
            for video in range(len(self.world))
            for event in _video(self.world, video).events
            for start, end in event.windows
        ]

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        """What is said of a window, and when it is."""
        return self._records[index][1]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Of the window, `(T, size, size, 3)`."""
        video, record = self._records[index]
        first = math.ceil((record.start or 0.0) * FRAMES_PER_SECOND)
        count = max(1, math.ceil((record.end or 0.0) * FRAMES_PER_SECOND) - first)
        return self._painted(video, first + np.array(sample_indices(count, num_frames, rng)))

    def segments(self, index: int, seconds: float) -> list[Segment]:
        """As the file that is written of the video would be cut."""
        count = round(_video(self.world, self._records[index][0]).seconds * FRAMES_PER_SECOND)
        return segments_of_times(np.arange(count) / FRAMES_PER_SECOND, count / FRAMES_PER_SECOND, seconds)

    def segment_frames(
        self, index: int, segments: Sequence[Segment], fps: float, most: int, rng: np.random.Generator | None = None
    ) -> list[Frames]:
        """Of each segment `(T, size, size, 3)`."""
        wanted = [sampled_frames(one, fps, most, rng) for one in segments]
        frames = self._painted(self._records[index][0], np.concatenate(wanted))
        return np.split(frames, np.cumsum([len(one) for one in wanted])[:-1])

    def _painted(self, video: int, numbers: npt.NDArray[np.int64]) -> Frames:
        return self.world.frames(_video(self.world, video), numbers)


@lru_cache(maxsize=4096)
def _video(world: MomentsWorld, index: int) -> EventVideo:
    return world.video(index)
