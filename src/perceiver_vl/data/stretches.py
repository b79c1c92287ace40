"""Stretches of video about captioned moments, as training examples: segments in a row, cut and read as an index does.

Every draw comes from (seed, epoch, index), as of `data.batching`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from perceiver_vl.data.batching import DrawnExamples, ReadStatistics, drawn_captions, read_statistics
from perceiver_vl.data.records import Record
from perceiver_vl.data.transforms import augment
from perceiver_vl.media.sampling import Frames
from perceiver_vl.media.segments import LONGEST_SEGMENT, SHORTEST_SEGMENT, Segment
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError

_FRAME_DRAWS, _AUGMENTATION_DRAWS, _STRETCH_DRAWS = 2, 3, 6
Times = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Stretch:
    """How videos are cut for the objective `moments`: into segments of `seconds`, of which `segments` in a row are an
    example, somewhere about its moment.

    merge: the probability with which two neighbours are one segment; so the lengths differ, and stretches reach
    further.
    """

    segments: int = 16
    seconds: float = 2.0
    merge: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.segments <= 32:
            raise UsageError(f"data.stretch.segments={self.segments}: need 2 to 32, every window of them is scored")
        if not SHORTEST_SEGMENT <= self.seconds <= LONGEST_SEGMENT:
            raise UsageError(
                f"data.stretch.seconds={self.seconds:g}: need {SHORTEST_SEGMENT:g} to {LONGEST_SEGMENT:g} s"
            )
        if not 0 <= self.merge < 1:
            raise UsageError(f"data.stretch.merge={self.merge:g}: a probability, 0 to below 1")


@dataclass(frozen=True)
class StretchFrames:
    """The frames `(T,H,W,3)` of each of some segments, where each begins and the last ends, in seconds, and when the
    moment is shown that they are about.
    """

    frames: list[Frames]
    edges: tuple[float, ...]
    moments: Times


@dataclass(frozen=True)
class StretchExample(ReadStatistics):
    """A stretch with a caption of its moment."""

    stretch: StretchFrames
    text: str


class StretchExamples(DrawnExamples[StretchExample]):
    """Stretches about the moments of a source's records. A moment is shown wherever a record of the same video says the
    same.
    """

    def __init__(self, stretch: Stretch, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stretch = stretch
        times: dict[tuple[object, ...], Times] = {}
        for place in range(len(self.source)):
            record = self.source.record(place)
            if record.start is not None and record.end is not None:
                said = record.path, record.texts
                times[said] = (*times.get(said, ()), (record.start, record.end))
        self.times = times

    def _media(self, place: int, key: tuple[int, int, int]) -> tuple[StretchFrames]:  # type: ignore[override]
        """The stretch that is drawn for `key`."""
        source: Any = self.source
        record = source.record(place)
        cut = source.segments(place, self.stretch.seconds)
        if not cut or record.start >= cut[-1].end:
            length = f"{cut[-1].end:g} s" if cut else "no time"
            raise MediaError(record.path, f"lasts {length}, a moment begins at {record.start:g} s")
        moments = self.times[record.path, record.texts]
        some = drawn_stretch(
            cut, (record.start, record.end), self.stretch, np.random.default_rng([*key, _STRETCH_DRAWS])
        )
        rng = np.random.default_rng([*key, _FRAME_DRAWS]) if self.sampling == "random" else None
        fps = self.num_frames / self.stretch.seconds
        frames = source.segment_frames(place, some, fps, self.num_frames, rng)
        if self.augmentation is not None:  # all segments alike
            rng = np.random.default_rng([*key, _AUGMENTATION_DRAWS])
            changed = augment(np.concatenate(frames), record.texts, self.augmentation, self.size, rng)
            frames = np.split(changed, [*accumulate(len(one) for one in frames)][:-1])
        return (StretchFrames(frames, (some[0].start, *(one.end for one in some)), moments),)

    def _example(
        self, record: Record, media: tuple[Any, ...], key: tuple[int, int, int], reading: ReadStatistics
    ) -> StretchExample:
        return StretchExample(media[0], drawn_captions(record.texts, key)[0], **vars(reading))


def drawn_stretch(
    segments: Sequence[Segment], moment: tuple[float, float], how: Stretch, rng: np.random.Generator
) -> list[Segment]:
    """Up to `how.segments` segments in a row, neighbours merged as it says, that show a moment, or a part of one that
    is longer.
    """
    keeps = rng.random(len(segments)) >= how.merge
    merged = [segments[0]]
    for one, kept in zip(segments[1:], keeps[1:], strict=True):
        if kept:
            merged.append(one)
        else:
            merged[-1] = replace(merged[-1], after=one.after, end=one.end)
    shown = [place for place, one in enumerate(merged) if one.start < moment[1] and one.end > moment[0]]
    first, last = shown[0], shown[-1]
    inside = sorted((first, last - how.segments + 1))  # a longer moment fills the stretch
    least, most = max(0, inside[0]), max(0, min(inside[1], len(merged) - how.segments))
    start = int(rng.integers(least, most + 1))
    return merged[start : start + how.segments]


class StretchCollator:
    """Examples → the fields of `training.losses.base.PreTrainingBatch`, those of stretches, as a dictionary."""

    def __init__(self, processor: PerceiverVLProcessor, segments: int) -> None:
        self.processor, self.segments = processor, segments

    def __call__(self, examples: list[StretchExample] | PerceiverVLError) -> dict[str, Any]:
        """`B` examples of up to S segments → tensors and `read_statistics`; an error → `error` alone.

        A shorter stretch is filled up with segments that last no time.
        """
        if isinstance(examples, PerceiverVLError):
            return {"error": examples}
        clips: list[Frames] = []
        edges: list[list[float]] = []
        for example in examples:
            lacking = self.segments - len(example.stretch.frames)
            clips += [*example.stretch.frames, *example.stretch.frames[-1:] * lacking]
            edges.append([*example.stretch.edges, *example.stretch.edges[-1:] * lacking])
        vision = self.processor(videos=clips, num_frames=max(map(len, clips)), return_tensors="pt")
        words = self.processor(text=[example.text for example in examples], return_tensors="pt")
        most = max(len(example.stretch.moments) for example in examples)
        moments = torch.zeros(len(examples), most, 2, dtype=torch.float64)
        for row, example in zip(moments, examples, strict=True):
            row[: len(example.stretch.moments)] = torch.tensor(example.stretch.moments, dtype=torch.float64)
        whole = torch.tensor(edges, dtype=torch.float64)
        batch = {name: value.unflatten(0, (-1, self.segments)) for name, value in vision.items()}
        begin = whole[:, :1]  # float32 has the milliseconds of a stretch, not those of ten hours
        batch["edges"], batch["moments"] = (whole - begin).float(), (moments - begin[..., None]).float()
        return {**batch, **words, **read_statistics(examples)}
