"""Where clips and captions come from: one small interface for folders, single files and the generated world."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt

from perceiver_vl.data.records import Record
from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.files import FEATURES, IMAGE_EXTENSIONS
from perceiver_vl.media.sampling import Frames, sample_indices
from perceiver_vl.media.segments import Segment, find_segments, read_segments
from perceiver_vl.models.perceiver_vl.modalities import load_recording, modality_of_file
from perceiver_vl.utils.errors import MediaError

EncodedFrames = npt.NDArray[np.float16]
"""What a vision encoder makes of frames: (T, 1+P, W), of each its vector and its tokens."""

_IMAGES = IMAGE_EXTENSIONS - {".gif"}  # most of those move


class VideoDataset(Protocol):
    """Clips and their records, by index."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """What is known of clip `index`: its name, its words."""

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Up to `num_frames` frames `(T,H,W,3)`: the middles of equal segments, or (`rng`) a random one of each. Of a
        sound, or what else is no picture, the `Recording` whole.

        Raises `MediaError` for a file that cannot be read.
        """


class SegmentedDataset(VideoDataset, Protocol):
    """Records about moments of videos, which can be cut into segments as an index cuts them (`media.segments`)."""

    def segments(self, index: int, seconds: float) -> list[Segment]:
        """All segments of so many seconds of the video that record `index` is about.

        Raises `MediaError` for a file that cannot be read.
        """

    def segment_frames(
        self, index: int, segments: Sequence[Segment], fps: float, most: int, rng: np.random.Generator | None = None
    ) -> list[Frames]:
        """Of each of some segments in a row the frames, as of `read_segments`."""


def is_image(record: Record) -> bool:
    """Whether a record is about a picture, by the ending of its file."""
    return record.path.suffix.lower() in _IMAGES


def kind_of(record: Record) -> str:
    """What a record is about, by the ending of its file: "images", "videos", or the name of a modality."""
    return modality_of_file(record.path) or ("images" if is_image(record) else "videos")


def is_damaged(source: VideoDataset, index: int) -> bool:
    """Whether clip `index` lacked frames when the source decoded it; of some sources nobody knows."""
    inner = getattr(source, "is_damaged", None)  # of sources that hold others
    return bool(inner(index)) if inner else index in getattr(source, "damaged", ())


def load_features(path: Path, num_frames: int, rng: np.random.Generator | None = None) -> Any:
    """Of the frames that `prepare --features` wrote `(T,1+P,W)` float16, up to `num_frames`, sampled as of a clip.

    Raises `MediaError` for a file that cannot be read, or is no such array.
    """
    try:
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MediaError(path, f"features: cannot be read ({error})") from error
    if not isinstance(whole, np.ndarray) or whole.ndim != 3 or whole.dtype != np.float16 or not len(whole):
        raise MediaError(path, "features: not an array (T, 1+P, W) of float16")
    return np.array(whole[sample_indices(len(whole), num_frames, rng)])


class FolderDataset:
    """The records of a folder, decoded when asked for, at `size` (height, width).

    classes: the names that labels are indices of, where they are names. modalities: a model's settings of them, by
    name, for which sounds and other series are made; those that they refuse cannot be read. damaged: clips whose files
    lacked frames when they were decoded.
    """

    def __init__(
        self,
        records: Sequence[Record],
        size: tuple[int, int],
        classes: Sequence[str] = (),
        modalities: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.records = records
        self.size = size
        self.modalities = dict(modalities)
        self.classes = tuple(classes)
        self.damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        """As the metadata says."""
        return self.records[index]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Any:
        """Decode."""
        record = self.records[index]
        if (modality := modality_of_file(record.path)) is not None:
            settings = self.modalities.get(modality)
            recording = load_recording(modality, record.path, record.start, record.end, settings)
            if recording.lost:
                self.damaged.add(index)
            return recording
        if record.path.suffix == FEATURES:
            return load_features(record.path, num_frames, rng)
        clip = load_clip(record.path, num_frames, rng=rng, size=self.size, start=record.start, end=record.end)
        if clip.lost:
            self.damaged.add(index)
        return clip.frames

    def segments(self, index: int, seconds: float) -> list[Segment]:
        """Of the file."""
        return find_segments(self.records[index].path, str(seconds))[0]

    def segment_frames(
        self, index: int, segments: Sequence[Segment], fps: float, most: int, rng: np.random.Generator | None = None
    ) -> list[Frames]:
        """Decode."""
        pieces = list(read_segments(self.records[index].path, segments, fps, most, size=self.size, rng=rng))
        if pieces[-1].clip.lost:
            self.damaged.add(index)
        return [piece.frames for piece in pieces]

    def frame_count(self, index: int) -> int | None:
        """About how many frames there are to sample from, as the head of the file says; None where it does not."""
        record = self.records[index]
        try:
            with av.open(str(record.path)) as container:
                stream = container.streams.video[0]
                frames, rate = stream.frames, stream.average_rate
        except Exception:  # whatever it is, decoding will say it
            return None
        if not (frames and rate):
            return frames or None
        begin, end = record.start or 0.0, frames / rate if record.end is None else min(record.end, frames / rate)
        return max(1, round((end - begin) * rate))


class Subset:
    """The clips of a source from place `first` to before `end` (both within it; None: to its end)."""

    def __init__(self, source: VideoDataset, end: int | None = None, first: int = 0) -> None:
        self.source, self.first = source, first
        self.end = len(source) if end is None else min(end, len(source))

    def __len__(self) -> int:
        return self.end - self.first

    def record(self, index: int) -> Record:
        """As the source has it."""
        return self.source.record(self.first + index)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """As the source decodes them."""
        return self.source.frames(self.first + index, num_frames, rng)

    def is_damaged(self, index: int) -> bool:
        """As the source knows."""
        return is_damaged(self.source, self.first + index)


class EncodedDataset:
    """Another source, whose clips a pretrained encoder has seen: kept in memory, as it is far dearer than its result.

    `encode`: frames `(T,H,W,3)` → float16 `(T,1+P,W)`. Only clips that are sampled uniformly are the same each time.
    """

    def __init__(self, source: VideoDataset, encode: Callable[[Frames], EncodedFrames]) -> None:
        self.source, self.encode = source, encode
        self._encoded: dict[tuple[object, ...], EncodedFrames] = {}

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """As the source has it."""
        return self.source.record(index)

    def is_damaged(self, index: int) -> bool:
        """As the source knows."""
        return is_damaged(self.source, index)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Any:
        """Encoded frames `(T,1+P,W)` float16, as the encoder sees those of the source."""
        record = self.source.record(index)
        key = record.path, record.start, record.end, num_frames
        if rng is not None:
            return self.encode(self.source.frames(index, num_frames, rng))
        if key not in self._encoded:
            self._encoded[key] = self.encode(self.source.frames(index, num_frames))
        return self._encoded[key]


class CachedDataset:
    """Another source, whose records and frames are kept in memory once they were asked for: for small data.

    Records about one clip share its frames. Frames that are sampled at random are new each time, and not kept.
    """

    def __init__(self, source: VideoDataset) -> None:
        self.source = source
        self._frames: dict[tuple[object, ...], Frames] = {}
        self._records: dict[int, Record] = {}

    def is_damaged(self, index: int) -> bool:
        """As the source knows."""
        return is_damaged(self.source, index)

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
        record = self.record(index)
        key = record.path, record.start, record.end, num_frames
        if key not in self._frames:
            self._frames[key] = self.source.frames(index, num_frames)
        return self._frames[key]
