"""Examples in batches, their media decoded ahead of the model; a clip that many questions are about is decoded once."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from perceiver_vl.data.mixture import Mixture
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.shards.reading import ShardedDataset
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_failures
from perceiver_vl.data.sources import CachedDataset, VideoDataset
from perceiver_vl.data.synthetic.tasks import PairWorld
from perceiver_vl.media.decode import load_frames
from perceiver_vl.media.resizing import Frames
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import MediaError, PerceiverVLError

DECODING_THREADS = 2


class SecondPictures:
    """The other pictures of a source of pairs, as a source of its own, read from the files that its records name."""

    def __init__(self, source: VideoDataset, size: tuple[int, int]) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """The record of the pair, with its other picture in the place of the first."""
        record = self.source.record(index)
        if record.second_file_name is None or record.second_path is None:
            raise PerceiverVLError(f"{record.file_name}: has no second picture, a pair names two files")
        return replace(record, file_name=record.second_file_name, path=record.second_path)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Decode."""
        return load_frames(self.record(index).path, num_frames, rng=rng, size=self.size)


def other_pictures(source: VideoDataset, size: tuple[int, int]) -> VideoDataset:
    """The other pictures of a source of pairs, by the same places; read at `size` where they are files."""
    if isinstance(source, Mixture):
        return Mixture([other_pictures(one, size) for one in source.sources])
    if isinstance(source, CachedDataset):
        return CachedDataset(other_pictures(source.source, size))
    if isinstance(source, PairWorld):
        return source.second
    if isinstance(source, ShardedDataset):
        return source.seconds()
    return SecondPictures(source, size)


@dataclass(frozen=True)
class ReadBatch:
    """Examples by their places in the source, what they are about, each medium once, and which of those each is about.

    A medium is the frames `(T,H,W,3)` of a clip or picture, or of both pictures of a pair.
    """

    indices: list[int]
    media: list[tuple[Frames, ...]]
    rows: list[int]


def load_media(
    sources: Sequence[VideoDataset], index: int, num_frames: int, rng: np.random.Generator | None = None
) -> tuple[Frames, ...]:
    """The frames of example `index` in each of the sources (one, or two for a pair).

    Raises `MediaError` for a file that cannot be read.
    """
    return tuple(source.frames(index, num_frames, rng) for source in sources)


def read_ahead(
    sources: Sequence[VideoDataset],
    indices: Sequence[int],
    num_frames: int,
    batch_size: int,
    problems: list[SkippedSample],
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    group: ProcessGroup | None = None,
) -> Iterator[ReadBatch]:
    """The examples `indices` in batches, those about one clip together; two threads decode while the caller works.

    A file that cannot be read leaves its examples out and one line in `problems`; `strict` raises its `MediaError`.
    Raises `PerceiverVLError` where more than the share `max_failed_fraction` of the clips cannot be read. Of several
    processes (`group`) each gets its share of the batches, and raises that only where the others cannot make up for it.
    """
    group = group or ProcessGroup(shared=False)
    of_medium: dict[tuple[object, ...], list[int]] = {}
    for index in indices:
        of_medium.setdefault(medium_of(sources[0].record(index)), []).append(index)
    queue = [(medium, index) for medium, some in of_medium.items() for index in some]
    batches = group.share([queue[start : start + batch_size] for start in range(0, len(queue), batch_size)])
    decoding: dict[tuple[object, ...], Future[tuple[Frames, ...]]] = {}
    tried: set[tuple[object, ...]] = set()
    broken: set[tuple[object, ...]] = set()
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for number, batch in enumerate(batches):
            for medium, index in [entry for some in batches[number : number + 2] for entry in some]:
                if medium not in decoding:
                    decoding[medium] = pool.submit(load_media, sources, index, num_frames)
            loaded: dict[tuple[object, ...], tuple[Frames, ...]] = {}
            for medium, _ in batch:
                if medium in broken or medium in loaded:
                    continue
                try:
                    loaded[medium] = decoding[medium].result()
                except MediaError as error:
                    if strict:
                        raise
                    broken.add(medium)
                    lost = [sources[0].record(index) for index in of_medium[medium]]
                    problems.append(SkippedSample.of_file(error, lost))
            tried |= loaded.keys() | broken
            so_far = len(tried) if group.processes == 1 else len(of_medium)
            check_failures(len(broken), so_far, len(of_medium), max_failed_fraction, problems[-1] if broken else None)
            rows = {medium: row for row, medium in enumerate(loaded)}
            good = [(medium, index) for medium, index in batch if medium in loaded]
            if good:
                yield ReadBatch([index for _, index in good], list(loaded.values()), [rows[m] for m, _ in good])
            ahead = {medium for some in batches[number + 1 : number + 2] for medium, _ in some}
            decoding = {medium: future for medium, future in decoding.items() if medium in ahead}


def medium_of(record: Record) -> tuple[object, ...]:
    """What tells the media of records apart."""
    return record.path, record.start, record.end, record.second_path
