"""Media decoded ahead of the model, in order (`decode_ahead`), and on top of it a data set's examples in batches.

A clip that many examples are about is decoded once.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from perceiver_vl.data.mixture import Mixture
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.shards.reading import ShardedDataset
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_failures
from perceiver_vl.data.sources import CachedDataset, EncodedDataset, VideoDataset, is_damaged
from perceiver_vl.data.synthetic.tasks import PairWorld
from perceiver_vl.media.decode import load_frames
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import MediaError

DECODING_THREADS = min(8, os.cpu_count() or 1)

Job = TypeVar("Job")
Decoded = TypeVar("Decoded")
MediumKey = tuple[object, ...]
"""What tells the media of records apart (`medium_of`)."""


def decode_ahead(
    jobs: Iterable[Job], decode: Callable[[Job], Decoded], ahead: int, threads: int = DECODING_THREADS
) -> Generator[tuple[Job, Decoded], None, None]:
    """Each job with what `decode` makes of it, in order, while threads decode the next `ahead` of them.

    No more than these are decoded, or held, beside the one that is handed out. What `decode` raises is raised when its
    job's turn comes, and ends the rest. Close the generator to end early: its threads end with it.
    """
    remaining = iter(jobs)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque((job, pool.submit(decode, job)) for job in islice(remaining, ahead + 1))
        while waiting:
            job, future = waiting.popleft()
            yield job, future.result()
            waiting.extend((job, pool.submit(decode, job)) for job in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def or_media_error(decode: Callable[[Job], Decoded]) -> Callable[[Job], Decoded | MediaError]:
    """`decode`, but the `MediaError` of a file that cannot be read is its result: the files after it are decoded."""

    def attempt(job: Job) -> Decoded | MediaError:
        try:
            return decode(job)
        except MediaError as error:
            return error

    return attempt


class SecondPictures:
    """The other pictures of a source of pairs, as a source of its own, read from the files that its records name."""

    def __init__(self, source: VideoDataset, size: tuple[int, int]) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """The record of the pair, with its other picture in the place of the first."""
        return self.source.record(index).second_picture()

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Decode."""
        return load_frames(self.record(index).path, num_frames, rng=rng, size=self.size)


def other_pictures(source: VideoDataset, size: tuple[int, int]) -> VideoDataset:
    """The other pictures of a source of pairs, by the same places; read at `size` where they are files."""
    if isinstance(source, Mixture):
        return Mixture([other_pictures(one, size) for one in source.sources])
    if isinstance(source, CachedDataset):
        return CachedDataset(other_pictures(source.source, size))
    if isinstance(source, EncodedDataset):
        return EncodedDataset(other_pictures(source.source, size), source.encode)
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
) -> Generator[ReadBatch, None, None]:
    """The examples `indices` in batches, those about one clip together; the next is decoded while the caller works.

    A file that cannot be read leaves its examples out and one line in `problems`; `strict` raises its `MediaError`.
    Raises `PerceiverVLError` where more than the share `max_failed_fraction` of the clips cannot be read. Of several
    processes (`group`) each gets its share of the batches, and raises that only where the others cannot make up for it.
    """
    group = group or ProcessGroup(shared=False)
    of_medium: dict[MediumKey, list[int]] = {}
    for index in indices:
        of_medium.setdefault(medium_of(sources[0].record(index)), []).append(index)
    queue = [(medium, index) for medium, some in of_medium.items() for index in some]
    batches = group.share([queue[start : start + batch_size] for start in range(0, len(queue), batch_size)])

    def decode(medium: MediumKey) -> tuple[Frames, ...]:
        return load_media(sources, of_medium[medium][0], num_frames)

    media = dict.fromkeys(medium for batch in batches for medium, _ in batch)
    loaded: dict[MediumKey, tuple[Frames, ...]] = {}
    tried: set[MediumKey] = set()
    broken: dict[MediumKey, SkippedSample] = {}
    with closing(decode_ahead(media, decode if strict else or_media_error(decode), batch_size)) as decoding:
        for batch in batches:
            wanted = dict.fromkeys(medium for medium, _ in batch)
            loaded = {medium: frames for medium, frames in loaded.items() if medium in wanted}
            for medium, decoded in islice(decoding, len(wanted.keys() - tried)):
                tried.add(medium)
                if isinstance(decoded, MediaError):
                    lost = [sources[0].record(index) for index in of_medium[medium]]
                    broken[medium] = SkippedSample.of_file(decoded, lost)
                    problems.append(broken[medium])
                else:
                    loaded[medium] = decoded
            so_far = len(tried) if group.processes == 1 else len(of_medium)
            first = next(iter(broken.values()), None)
            check_failures(len(broken), so_far, len(of_medium), max_failed_fraction, first)
            rows = {medium: row for row, medium in enumerate(loaded)}
            good = [(medium, index) for medium, index in batch if medium in loaded]
            if good:
                yield ReadBatch([index for _, index in good], list(loaded.values()), [rows[m] for m, _ in good])


@dataclass
class ClipReader:
    """The clips of a source that can be read, in batches, as often as they are needed: what failed once is left out.

    `indices`: the places of those that did not fail so far; `problems`: those that did; the other fields as of
    `read_ahead`.
    """

    source: VideoDataset
    num_frames: int
    batch_size: int
    strict: bool
    max_failed_fraction: float
    group: ProcessGroup
    problems: list[SkippedSample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.indices = list(range(len(self.source)))

    def read(self, use: Callable[[ReadBatch], None]) -> None:
        """Give `use` the batches that fall to this process; all processes of the group call this, and raise together.

        Raises as `read_ahead`, and for what all processes together could not read.
        """

        def work() -> tuple[list[int], list[SkippedSample]]:
            read: list[int] = []
            problems: list[SkippedSample] = []
            how = self.num_frames, self.batch_size, problems, self.strict, self.max_failed_fraction, self.group
            for batch in read_ahead([self.source], self.indices, *how):
                use(batch)
                read += batch.indices
            return read, problems

        found = self.group.of_all(work)
        self.indices = sorted(index for read, _ in found for index in read)
        self.problems += dict.fromkeys(problem for _, problems in found for problem in problems)
        clips, first = len(self.source), self.problems[0] if self.problems else None
        check_failures(len(self.problems), clips, clips, self.max_failed_fraction, first)

    def damaged(self) -> list[str]:
        """The files that lacked frames, as those processes know that have read them."""
        mine = {index for index in self.indices if is_damaged(self.source, index)}
        found = set().union(*self.group.of_all(lambda: mine))
        return [self.source.record(index).file_name for index in sorted(found)]


def medium_of(record: Record) -> MediumKey:
    """What tells the media of records apart."""
    return record.path, record.start, record.end, record.second_path
