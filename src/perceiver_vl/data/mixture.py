"""Several sources of clips trained on together, and the batches that are made of them.

A batch holds clips of one source and one modality, images or videos: no image is padded to the frames of a video, and
no model learns to match a text to its clip by what sets one source apart from another. Batches of all sources follow
each other evenly, each as often as its weight says (the paper's code alternates a batch of images and one of videos).
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from perceiver_vl.data.batching import EpochSampler, drawn_captions
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.sources import CachedDataset, VideoDataset, is_damaged, is_image, kind_of
from perceiver_vl.data.synthetic.tasks import AnyWorld
from perceiver_vl.media.files import FEATURES
from perceiver_vl.media.sampling import Frames
from perceiver_vl.media.segments import Segment
from perceiver_vl.utils.errors import UsageError

Places = npt.NDArray[np.int64]
_TELLING = 20_000
_FIRST = 1000  # of a generated source; a task that cannot do with all of its questions cannot with some of these


class Mixture:
    """Several sources as one: the clips of the first, then those of the second, and so on.

    num_frames: of the clips of each source at most so many are read, whatever is asked for (None: as many as that).
    """

    def __init__(self, sources: Sequence[VideoDataset], num_frames: Sequence[int | None] = ()) -> None:
        self.sources = list(sources)
        self.num_frames = list(num_frames) or [None] * len(self.sources)
        self.ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the source that clip `index` is of, and its index there."""
        number = bisect_right(self.ends, index)
        return number, index - self.ends[number] + len(self.sources[number])

    def record(self, index: int) -> Record:
        """As its source says."""
        number, place = self.locate(index)
        return self.sources[number].record(place)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """As its source gives them."""
        number, place = self.locate(index)
        return self.sources[number].frames(place, min(num_frames, self.num_frames[number] or num_frames), rng)

    def frame_count(self, index: int) -> int | None:
        """As its source knows, at most as many as are read of it; None where neither is known."""
        number, place = self.locate(index)
        frame_count, most = getattr(_uncached(self.sources[number]), "frame_count", None), self.num_frames[number]
        count = frame_count and frame_count(place)
        return most if count is None else min(count, most or count)

    def segments(self, index: int, seconds: float) -> list[Segment]:
        """As its source, which is of videos, cuts them."""
        number, place = self.locate(index)
        found: list[Segment] = self.sources[number].segments(place, seconds)  # type: ignore[attr-defined]
        return found

    def segment_frames(
        self, index: int, segments: Sequence[Segment], fps: float, most: int, rng: np.random.Generator | None = None
    ) -> list[Frames]:
        """As its source gives them."""
        number, place = self.locate(index)
        source: Any = self.sources[number]
        found: list[Frames] = source.segment_frames(place, segments, fps, most, rng)
        return found

    def is_damaged(self, index: int) -> bool:
        """As its source knows."""
        number, place = self.locate(index)
        return is_damaged(self.sources[number], place)


@dataclass(frozen=True)
class Pool:
    """What one batch can be made of: the `clips` of one source and one modality, by their places in the mixture.

    source: its number; weight: the share of the batches, beside the other pools' weights; kind: as of `kind_of`.
    """

    clips: Places
    source: int = 0
    weight: float = 1.0
    kind: str = "videos"


SkipReason = Callable[[Record], str | None]
"""Why a record cannot be trained on, or None."""
TextLength = Callable[[Record, tuple[int, int, int]], int]
"""How many characters of text go with a record, drawn for (seed, epoch, index)."""


def no_caption(record: Record) -> str | None:
    """What pre-training and retrieval cannot do without."""
    return None if record.texts else "no caption"


def no_moment(record: Record) -> str | None:
    """What learning of moments cannot do without."""
    if not record.texts:
        return "no caption"
    if is_image(record) or record.path.suffix == FEATURES:
        return "no video, which has moments"
    return None if record.start is not None and record.end is not None else "no start and end of a moment, in seconds"


def any_clip(record: Record) -> str | None:
    """What learning from a teacher can do without: words."""
    return None


def no_words(record: Record, key: tuple[int, int, int]) -> int:
    """No words go with a record that a teacher speaks of."""
    return 0


def caption_length(record: Record, key: tuple[int, int, int]) -> int:
    """Those of the caption that is drawn."""
    return len(drawn_captions(record.texts, key)[0])


def make_pools(
    mixture: Mixture, weights: Sequence[float | None], batch: int, skip_reason: SkipReason = no_caption
) -> tuple[list[Pool], list[SkippedSample]]:
    """The pools of a mixture, and what is left out: clips with a `skip_reason`, and those that are too few of their
    modality to fill a batch of `batch`.

    weights: of the sources, or None for all of them: as many batches as they have clips.
    Raises `UsageError` for a source that cannot fill a batch.
    """
    pools: list[Pool] = []
    left: list[SkippedSample] = []
    for number, source in enumerate(mixture.sources):
        kinds, skipped = _kinds(source, skip_reason)
        left += skipped
        enough = {kind: places for kind, places in kinds.items() if len(places) >= batch}
        if not enough:
            counts = " and ".join(f"{len(places)} {kind}" for kind, places in kinds.items()) or "none"
            if skipped:
                counts += f" (of {len(source)}; {skipped[0]})"
            raise UsageError(
                f"training: a batch of {batch} clips, of one modality, but "
                f"{f'data.train[{number}] has' if len(mixture.sources) > 1 else 'there are'} {counts} to train on; "
                "make it smaller"
            )
        whole, weight = sum(map(len, enough.values())), weights[number]
        for kind, places in kinds.items():
            if kind in enough:
                share = len(places) if weight is None else weight * len(places) / whole
                pools.append(Pool(np.array(places) + mixture.ends[number] - len(source), number, share, kind))
            else:
                reason = f"one of {len(places)} {kind}, too few for a batch of {batch}"
                left += [SkippedSample(source.record(place).file_name, reason) for place in places]
    return pools, left


def _uncached(source: VideoDataset) -> VideoDataset:
    return source.source if isinstance(source, CachedDataset) else source


def telling_places(source: VideoDataset, places: Places) -> Places:
    """Those of `places` whose records tell what all of them do: of generated clips, which are drawn when they are asked
    for, the first 20,000 of each source, else all.
    """
    if not isinstance(source, Mixture):
        return places[:_TELLING] if isinstance(_uncached(source), AnyWorld) else places
    numbers = np.searchsorted(source.ends, places, side="right")
    of_sources = [(one, places[numbers == number]) for number, one in enumerate(source.sources)]
    return np.concatenate(
        [some[:_TELLING] if isinstance(_uncached(one), AnyWorld) else some for one, some in of_sources]
    )


def _kinds(source: VideoDataset, skip_reason: SkipReason) -> tuple[dict[str, Sequence[int]], list[SkippedSample]]:
    """The places of each kind of media (`kind_of`) in a source, and why other clips are skipped."""
    if isinstance(_uncached(source), AnyWorld):  # to go through the records would draw all: they are of one kind
        first = [source.record(place) for place in range(min(_FIRST, len(source)))]
        if not any(skip_reason(record) for record in first):
            return {kind_of(first[0]): range(len(source))}, []
    kinds: dict[str, list[int]] = {}
    skipped: list[SkippedSample] = []
    for index in range(len(source)):
        record = source.record(index)
        if reason := skip_reason(record):
            skipped.append(SkippedSample(record.file_name, reason))
        else:
            kinds.setdefault(kind_of(record), []).append(index)
    return {**kinds}, skipped


def make_sampler(
    mixture: Mixture,
    pools: Sequence[Pool],
    batch: int,
    seed: int,
    bucket: int,
    num_frames: int,
    text_length: TextLength = caption_length,
) -> "EpochSampler | MixtureSampler":
    """`EpochSampler` for the clips of one pool in any order; else `MixtureSampler`."""
    plain = (
        len(pools) == 1 and len(pools[0].clips) == len(mixture) and not hasattr(_uncached(mixture.sources[0]), "groups")
    )
    if plain and not bucket:
        return EpochSampler(len(mixture), seed)
    return MixtureSampler(mixture, pools, batch, seed, bucket, num_frames, text_length)


class MixtureSampler(Sampler[int]):
    """Examples as whole numbers pass · n + index, where each `batch` in a row are of one pool.

    `batch` is that of all processes together. An epoch has as many batches as the pools can fill once; each pool gets
    its weight's share of them, and the next epoch goes on where it stopped: no clip of a large source is left out, and
    a small one is gone through several times. Of each such pass what does not fill a batch stays out, another rest each
    time. `bucket`: of so many batches at a time the clips are sorted by how many frames they have (`num_frames` are
    enough) and the `text_length` that goes with them, so that little is padded; 0: in any order. All is drawn from the
    seed, the epoch and the pass.
    """

    def __init__(
        self,
        mixture: Mixture,
        pools: Sequence[Pool],
        batch: int,
        seed: int,
        bucket: int = 0,
        num_frames: int = 1,
        text_length: TextLength = caption_length,
    ) -> None:
        self.mixture, self.pools, self.batch, self.seed, self.bucket = mixture, pools, batch, seed, bucket
        self.num_frames, self.text_length, self.epoch = num_frames, text_length, 0
        self._frames: dict[int, int] = {}
        self.counts = _shares([pool.weight for pool in pools], sum(len(pool.clips) // batch for pool in pools))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.counts) * self.batch

    def __iter__(self) -> Iterator[int]:
        batches = [self._batches(number) for number in range(len(self.pools))]
        for number in self.turns():
            yield from next(batches[number])

    def turns(self) -> list[int]:
        """Which pool each batch of the epoch is of: the batches of each at equal distances."""
        begin = np.random.default_rng([self.seed, self.epoch]).random(len(self.pools))
        times = [(np.arange(count) + begin[pool]) / count for pool, count in enumerate(self.counts)]
        pools = np.repeat(np.arange(len(self.pools)), self.counts)
        return pools[np.argsort(np.concatenate(times), kind="stable")].tolist()

    def _batches(self, number: int) -> Iterator[list[int]]:
        """The batches of a pool from this epoch's first on, pass after pass."""
        a_pass = len(self.pools[number].clips) // self.batch
        begun, done = divmod(self.epoch * self.counts[number], a_pass)
        for passing in itertools.count(begun):
            one_pass = self._one_pass(number, passing)
            for batch in itertools.islice(one_pass, done if passing == begun else 0, a_pass):
                yield (passing * len(self.mixture) + batch).tolist()

    def _one_pass(self, number: int, passing: int) -> Iterator[Places]:
        """All whole batches of a pool, in the order of one pass."""
        rng = np.random.default_rng([self.seed, passing, number])
        order = self._order(number, passing, rng)
        together = self.batch * max(1, self.bucket)
        for start in range(0, len(order) - self.batch + 1, together):
            some = order[start : start + together]
            some = some[: len(some) // self.batch * self.batch]
            if not self.bucket:
                yield some
                continue
            lengths = [self._length(self.pools[number], passing, index) for index in some.tolist()]
            batches = some[np.lexsort(np.transpose(lengths))].reshape(-1, self.batch)
            for batch in rng.permutation(batches):
                yield rng.permutation(batch)  # the objectives take neighbours, and the first of a batch, as drawn

    def _length(self, pool: Pool, passing: int, index: int) -> tuple[int, int]:
        """TextLength that are read with a clip, and its frames, which count first."""
        if index not in self._frames:
            frames = 1 if pool.kind == "images" else self.mixture.frame_count(index) or self.num_frames
            self._frames[index] = min(frames, self.num_frames)
        characters = self.text_length(self.mixture.record(index), (self.seed, passing, index))
        return characters, self._frames[index]

    def _order(self, number: int, passing: int, rng: np.random.Generator) -> Places:
        """The clips of a pool in any order; those of shards in one that reads a shard at a time."""
        pool = self.pools[number]
        source: Any = _uncached(self.mixture.sources[pool.source])
        if not hasattr(source, "groups"):
            return rng.permutation(pool.clips)
        from perceiver_vl.data.shards.reading import shuffled_in_groups

        order = shuffled_in_groups(source.groups(), self.seed, passing)
        order = order + self.mixture.ends[pool.source] - len(source)
        return order[np.isin(order, pool.clips, assume_unique=True)]


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` batches shared out by weight, the largest remainders rounded up, at least one each."""
    exact = np.array(weights) / sum(weights) * total
    counts = np.maximum(1, np.floor(exact)).astype(int)
    rest = max(0, total - int(counts.sum()))
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts.tolist()
