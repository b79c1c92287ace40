"""Every window of stretches of video scored for a query, from what an index stores of their segments.

The mixed stream's score is that of the decoder over the latents of all segments of a window together, as their partial
attentions merge exactly; the multi-stream's is the cosine of the mean of their vectors. NumPy alone, as searches do not
wait for torch. Shapes: S segments, K windows, E retrieval vector, D width, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from perceiver_vl.layers.windows import Places, WindowTable
from perceiver_vl.media.sampling import Seconds
from perceiver_vl.search.rows import Vectors

STARTS_AT_ONCE = 1024  # bounds the memory of a video of any length
WINDOWS_AT_ONCE = 1024  # whose MLP, at base size, stays in memory that is used again and again
_ARRAYS = ("starts", "ends", "vectors", "partial_attentions")
_REFINED = 9  # starts, and ends, about a window that are tried

Match = Callable[[Vectors], Vectors]
"""Matching logits `(K,)` of the query, from partial attentions `(K,D+H)`."""


@dataclass(frozen=True)
class Stretch:
    """Segments of a video that follow each other: `starts`, `ends` `(S,)` in seconds, `vectors (S,E)`,
    `partial_attentions (S,D+H)`; `duration` of the whole video. `wanted (S,)`: where only windows with at least one of
    some segments are.
    """

    file: str
    duration: float
    starts: Seconds
    ends: Seconds
    vectors: Vectors
    partial_attentions: Vectors
    wanted: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """The number of segments S."""
        return len(self.starts)


@dataclass(frozen=True)
class Query:
    """What scoring asks of a query: its unit vector `(E,)`, the factor on cosines, `match`, and the heads H.

    rerank: by which of both a window is scored, as in `Searcher.search`. length_weight: what is added to a scaled
    cosine or a logit for each nat of the logarithm of its seconds.
    """

    vector: Vectors
    logit_scale: float
    match: Match
    num_heads: int
    rerank: str = "combined"
    length_weight: float = 0.0


@dataclass(frozen=True)
class Windows:
    """K windows of a stretch: segments [start, end), and the `scores`, cosines and matching logits `(K,)` of each."""

    starts: Places
    ends: Places
    scores: Vectors
    multi: Vectors
    mixed: Vectors

    def __len__(self) -> int:
        """The number of windows K."""
        return len(self.starts)

    def take(self, places: npt.NDArray[np.int64]) -> "Windows":
        """Some of them, in this order."""
        return Windows(
            self.starts[places], self.ends[places], self.scores[places], self.multi[places], self.mixed[places]
        )


def scales(stretch: Stretch, shortest: float, longest: float) -> tuple[Places, Places]:
    """Windows of one, two, four, … segments from every segment on, and of as many as there can be, that last from
    `shortest` to `longest` seconds: their starts and ends.
    """
    reach = np.searchsorted(stretch.ends, stretch.starts + longest + 1e-6, side="right") - np.arange(len(stretch))
    most = int(reach.max(initial=0))
    counts = sorted({*(1 << power for power in range(most.bit_length())), most} - {0})
    starts = np.concatenate([np.arange(len(stretch) - count + 1) for count in counts] or [np.empty(0, np.int64)])
    ends = np.concatenate([np.arange(count, len(stretch) + 1) for count in counts] or [np.empty(0, np.int64)])
    kept = _lasting(stretch, starts, ends, shortest, longest)
    if stretch.wanted is not None:
        before = np.concatenate([[0], np.cumsum(stretch.wanted)])
        kept &= before[ends] > before[starts]
    return starts[kept], ends[kept]


def neighbours(stretch: Stretch, start: int, end: int, shortest: float, longest: float) -> tuple[Places, Places]:
    """Windows that begin and end up to half a window earlier or later than one."""
    reach = max(1, (end - start) // 2)
    steps = np.unique(np.round(np.linspace(-reach, reach, _REFINED)).astype(np.int64))
    starts, ends = (grid.ravel() for grid in np.meshgrid(start + steps, end + steps, indexing="ij"))
    inside = (starts >= 0) & (ends <= len(stretch)) & (starts < ends)
    starts, ends = starts[inside], ends[inside]
    kept = _lasting(stretch, starts, ends, shortest, longest)
    return starts[kept], ends[kept]


def _lasting(stretch: Stretch, starts: Places, ends: Places, shortest: float, longest: float) -> npt.NDArray[np.bool_]:
    seconds = stretch.ends[ends - 1] - stretch.starts[starts]
    kept: npt.NDArray[np.bool_] = (seconds >= shortest - 1e-6) & (seconds <= longest + 1e-6)
    return kept


def score(stretch: Stretch, query: Query, starts: Places, ends: Places) -> Windows:
    """The windows [start, end) of segments, `(K,)` each, scored, in the order of their starts."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    multi = _cosines(stretch, query.vector, starts, ends)
    longer = query.length_weight * np.log(stretch.ends[ends - 1] - stretch.starts[starts])
    if query.rerank == "none":
        scores = (multi + longer / query.logit_scale).astype(np.float32)
        return Windows(starts, ends, scores, multi, np.full(len(starts), np.nan, np.float32))
    mixed = np.concatenate([*_logits(stretch, query, starts, ends), np.empty(0, np.float32)])
    scores = mixed if query.rerank == "mixed" else query.logit_scale * multi + mixed
    return Windows(starts, ends, (scores + longer).astype(np.float32), multi, mixed)


def score_together(
    stretches: Sequence[Stretch], query: Query, places: Sequence[tuple[Places, Places]]
) -> Iterator[Windows]:
    """`score` of windows of each of several stretches, some hundred short ones at once."""
    first = 0
    while first < len(stretches):
        after, segments = first + 1, len(stretches[first])
        while after < len(stretches) and segments + len(stretches[after]) <= STARTS_AT_ONCE:
            segments += len(stretches[after])
            after += 1
        some, offset, offsets = stretches[first:after], 0, []
        for one in some:
            offsets.append(offset)
            offset += len(one)
        joined = Stretch(
            "",
            0.0,
            *(np.concatenate([getattr(one, name) for one in some]) for name in _ARRAYS),
        )
        starts, ends = (
            np.concatenate([pair[side] + offset for pair, offset in zip(places[first:after], offsets, strict=True)])
            for side in (0, 1)
        )
        found = score(joined, query, starts, ends)
        edges = np.searchsorted(found.starts, [*offsets, offset])
        for place, offset in enumerate(offsets):
            of_one = found.take(np.arange(edges[place], edges[place + 1]))
            yield replace(of_one, starts=of_one.starts - offset, ends=of_one.ends - offset)
        first = after


def _cosines(stretch: Stretch, vector: Vectors, starts: Places, ends: Places) -> Vectors:
    """Of the mean of the vectors of each window."""
    sums = np.zeros((len(stretch) + 1, stretch.vectors.shape[1]))
    for place, row in enumerate(stretch.vectors):  # row by row, which cumsum(axis=0) takes six times as long for
        np.add(sums[place], row, out=sums[place + 1])
    found = np.empty(len(starts), np.float32)
    for first in range(0, len(starts), WINDOWS_AT_ONCE):
        some = slice(first, first + WINDOWS_AT_ONCE)
        means = sums[ends[some]] - sums[starts[some]]
        found[some] = means @ vector / np.maximum(np.linalg.norm(means, axis=1), 1e-12)
    return found


def _logits(stretch: Stretch, query: Query, starts: Places, ends: Places) -> Iterator[Vectors]:
    """Of windows that are sorted by their starts, by the decoder."""
    for first in range(0, len(stretch), STARTS_AT_ONCE):
        begin, stop = np.searchsorted(starts, [first, first + STARTS_AT_ONCE])
        if begin == stop:
            continue
        table = WindowTable(stretch.partial_attentions[first : ends[begin:stop].max()], query.num_heads)
        for place in range(begin, stop, WINDOWS_AT_ONCE):
            some = slice(place, min(place + WINDOWS_AT_ONCE, stop))
            yield query.match(table.merge(starts[some] - first, ends[some] - first))


def distinct(stretch: Stretch, windows: Windows, most: int, overlap: float) -> Windows:
    """The best windows of which no two overlap by more than the share `overlap` of what they cover together, at most so
    many: non-maximum suppression.
    """
    begin, end = stretch.starts[windows.starts], stretch.ends[windows.ends - 1]
    left = np.argsort(-windows.scores, kind="stable")
    chosen: list[int] = []
    while len(left) and len(chosen) < most:
        best, left = int(left[0]), left[1:]
        chosen.append(best)
        common = np.minimum(end[left], end[best]) - np.maximum(begin[left], begin[best])
        together = np.maximum(end[left], end[best]) - np.minimum(begin[left], begin[best])
        left = left[common <= overlap * together]
    return windows.take(np.array(chosen, np.int64))
