"""Find moments by words: where in which video, from the segments of an index; called by `Searcher.moments`."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perceiver_vl.search.filters import quoted
from perceiver_vl.search.rows import IndexSettings, Vectors, numbers
from perceiver_vl.search.windows import Query, Stretch, Windows, distinct, neighbours, scales, score_together
from perceiver_vl.utils.errors import UsageError

if TYPE_CHECKING:
    from perceiver_vl.search.table import ClipTable

OVERLAP = 0.5
LONGEST = 60.0
SHORTLIST = 100
EVERYTHING = 5400
"""Up to so many segments, three hours at two seconds, all are scored."""
_TRIED = 2  # windows that are refined for each moment that is asked for


@dataclass(frozen=True)
class MomentOptions:
    """How moments are looked for: at most `top_k`, of them `per_video` of one video, lasting `min_length` to
    `max_length` seconds; through the `shortlist` segments with the largest cosines where there are more than
    `everything`; scored as `rerank` says (`Searcher.search`). always: also where the best is no better than chance.
    overlap: the share of what two moments cover together that both may cover. length_weight: what a window gains with
    the logarithm of its length; None: as the index was calibrated, or the model has learned, or nothing.
    """

    top_k: int = 10
    per_video: int = 3
    min_length: float = 0.0
    max_length: float = LONGEST
    shortlist: int = SHORTLIST
    everything: int = EVERYTHING
    rerank: str = "combined"
    always: bool = False
    overlap: float = OVERLAP
    length_weight: float | None = None

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        for name in ("top_k", "per_video", "shortlist"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if not (0 <= self.min_length <= self.max_length < math.inf and self.max_length > 0):
            raise UsageError(
                f"min_length={self.min_length}, max_length={self.max_length}: need seconds, the first no larger"
            )


@dataclass(frozen=True)
class CurvePoint:
    """How well the query fits a segment by itself: its seconds, and its score."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Moment:
    """A window that was found, `start` to `end` in seconds from the first frame of the video, on screen until then.

    `score` orders the moments, `multi_score` is the cosine, `mixed_score` the matching logit.
    """

    rank: int
    file_name: str
    path: Path
    start: float
    end: float
    score: float
    multi_score: float
    mixed_score: float | None
    duration: float


@dataclass
class MomentResult:
    """The answer to a query: `moments`, best first, and for each of their videos the `curves` of its segments that were
    scored.

    `found`: whether the best stands out more than where nothing is to be found (`surprise` over `threshold`); None
    where that was never calibrated. `windows` were scored, `searched` segments were there; `method`: exact, or through
    a shortlist; then `seconds` by stage, and `notes`: words that the model does not know, videos that are too short.
    """

    query: str
    moments: list[Moment]
    curves: dict[str, list[CurvePoint]]
    found: bool | None
    surprise: float
    threshold: float | None
    windows: int
    searched: int
    method: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def paths(self) -> list[Path]:
        """Of what was found, best first."""
        return [moment.path for moment in self.moments]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        for moment in plain["moments"]:
            moment["path"] = str(moment["path"])
        return plain


@dataclass(frozen=True)
class Candidates:
    """The best windows of some stretches, best first: (place of the stretch, its windows' place), and all there is."""

    best: list[tuple[Stretch, Windows, int]]
    curves: dict[str, list[CurvePoint]]
    surprise: float
    windows: int
    too_short: int


def find(stretches: Iterable[Stretch], query: Query, options: MomentOptions) -> Candidates:
    """The best windows of stretches of video: at several scales first, then finely about the best.

    `surprise`: by how many standard deviations of all windows' scores the best exceeds their mean.
    """
    per_stretch: list[tuple[Stretch, Windows]] = []
    count, total, squares, too_short = 0, 0.0, 0.0, 0
    listed = list(stretches)
    places = [scales(stretch, options.min_length, options.max_length) for stretch in listed]
    for stretch, windows in zip(listed, score_together(listed, query, places), strict=True):
        if not len(windows):
            too_short += 1
            continue
        count += len(windows)
        total, squares = total + float(windows.scores.sum()), squares + float((windows.scores.astype(float) ** 2).sum())
        kept = distinct(stretch, windows, _TRIED * min(options.top_k, options.per_video), options.overlap)
        per_stretch.append((stretch, kept))
    mean = total / max(count, 1)
    spread = math.sqrt(max(squares / max(count, 1) - mean**2, 0.0))
    refined = _refined(list(_best(per_stretch, _TRIED * options.top_k)), query, options)
    found = [
        (stretch, windows, place)
        for stretch, windows in refined
        for place in range(min(len(windows), options.per_video))
    ]
    found.sort(key=lambda one: -float(one[1].scores[one[2]]))
    best = _limited(found, options)
    top = float(best[0][1].scores[best[0][2]]) if best else mean
    curves = _curves(list({id(stretch): stretch for stretch, _, _ in best}.values()), query)
    return Candidates(best, curves, (top - mean) / spread if spread > 0 else 0.0, count, too_short)


def _curves(stretches: Sequence[Stretch], query: Query) -> dict[str, list[CurvePoint]]:
    """The score of every segment by itself, by file."""
    singles = [(np.arange(len(one)), np.arange(1, len(one) + 1)) for one in stretches]
    curves: dict[str, list[CurvePoint]] = {}
    for stretch, windows in zip(stretches, score_together(stretches, query, singles), strict=True):
        points = zip(stretch.starts.tolist(), stretch.ends.tolist(), windows.scores.tolist(), strict=True)
        curves.setdefault(stretch.file, []).extend(CurvePoint(*point) for point in points)
    return curves


def _best(per_stretch: Sequence[tuple[Stretch, Windows]], most: int) -> Iterator[tuple[Stretch, Windows]]:
    """The windows that are among so many best of all, by stretch."""
    scores = np.sort(np.concatenate([windows.scores for _, windows in per_stretch] or [np.empty(0, np.float32)]))
    least = scores[-most] if len(scores) > most else -np.inf
    for stretch, windows in per_stretch:
        places = np.flatnonzero(windows.scores >= least)
        if len(places):
            yield stretch, windows.take(places)


def _refined(
    best: Sequence[tuple[Stretch, Windows]], query: Query, options: MomentOptions
) -> list[tuple[Stretch, Windows]]:
    """Of each stretch the best about its windows, no two of which overlap much."""
    places = []
    for stretch, windows in best:
        about = [
            neighbours(stretch, start, end, options.min_length, options.max_length)
            for start, end in zip(windows.starts.tolist(), windows.ends.tolist(), strict=True)
        ]
        starts, ends = np.unique(np.concatenate([np.stack(one) for one in about], axis=1), axis=1)
        places.append((starts, ends))
    scored = score_together([stretch for stretch, _ in best], query, places)
    return [
        (stretch, distinct(stretch, windows, options.per_video, options.overlap))
        for (stretch, _), windows in zip(best, scored, strict=True)
    ]


def _limited(
    found: Sequence[tuple[Stretch, Windows, int]], options: MomentOptions
) -> list[tuple[Stretch, Windows, int]]:
    """At most `per_video` of each file, none twice (stretches of one file do not overlap)."""
    counts: dict[str, int] = {}
    kept: list[tuple[Stretch, Windows, int]] = []
    for one in found:
        name = one[0].file
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= options.per_video and len(kept) < options.top_k:
            kept.append(one)
    return kept


def moment_result(
    words: str,
    found: Candidates,
    options: MomentOptions,
    settings: IndexSettings,
    searched: int,
    exact: bool,
    seconds: dict[str, float],
    notes: Sequence[str],
) -> MomentResult:
    """What is said of the best windows; nothing of windows that are no better than chance."""
    threshold = settings.surprise
    is_there = None if threshold is None else bool(found.best) and found.surprise > threshold
    moments = [
        Moment(
            rank,
            stretch.file,
            Path(settings.media, stretch.file),
            float(stretch.starts[windows.starts[place]]),
            float(stretch.ends[windows.ends[place] - 1]),
            float(windows.scores[place]),
            float(windows.multi[place]),
            None if options.rerank == "none" else float(windows.mixed[place]),
            stretch.duration,
        )
        for rank, (stretch, windows, place) in enumerate(found.best, start=1)
        if is_there is not False or options.always
    ]
    said = list(notes)
    if found.too_short:
        lengths = f"{options.min_length:g} to {options.max_length:g} s"
        said.append(f"{found.too_short} videos have no window of {lengths}: they are shorter, or their segments longer")
    curves = {name: found.curves[name] for name in dict.fromkeys(moment.file_name for moment in moments)}
    method = "exact" if exact else f"of {options.shortlist} segments by vector"
    about = is_there, found.surprise, threshold, found.windows, searched, method
    return MomentResult(words, moments, curves, *about, seconds, said)


def clock(seconds: float) -> str:
    """Seconds as a player shows them: `1:02:03.4`."""
    tenths = round(10 * seconds)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


# Reading an index


def stretches_of(rows: pa.Table) -> Iterator[Stretch]:
    """The rows of segments as stretches: a video each, or parts of one where segments in between are not among them."""
    rows = rows.sort_by([("file", "ascending"), ("start", "ascending")])
    files, starts, ends = rows["file"].to_pylist(), rows["start"].to_numpy(), rows["end"].to_numpy()
    vectors, partial_attentions = numbers(rows["vector"]), numbers(rows["partial_attention"])
    durations = rows["duration"].to_numpy()
    edges = [
        place for place in range(1, len(files)) if files[place] != files[place - 1] or starts[place] != ends[place - 1]
    ]
    for first, after in zip([0, *edges], [*edges, len(files)], strict=True):
        if after > first:
            some = slice(first, after)
            yield Stretch(
                files[first],
                float(durations[first]),
                starts[some],
                ends[some],
                vectors[some],
                partial_attentions[some],
            )


def read_stretches(
    table: "ClipTable", vector: Vectors, options: MomentOptions, where: str | None
) -> tuple[list[Stretch], int, bool]:
    """What is to be scored for a query's vector `(E,)`, how many segments there are, and whether these are all.

    Of a large library: the segments with the largest cosines, and about each all that a window with it can reach.
    """
    count = table.count(where)
    if count <= options.everything:
        return list(stretches_of(table.rows(where))), count, True
    near, _ = table.nearest(vector, options.shortlist, where)
    spans: dict[str, list[tuple[float, float]]] = {}
    listed: dict[str, set[float]] = {}
    for row in near.select(["file", "start", "end"]).to_pylist():
        around = (row["end"] - options.max_length, row["start"] + options.max_length)
        spans.setdefault(row["file"], []).append(around)
        listed.setdefault(row["file"], set()).add(row["start"])
    conditions = [
        f"(file = {quoted(file)} AND start >= {first!r} AND end <= {last!r})"
        for file, some in spans.items()
        for first, last in joined_spans(some)
    ]
    stretches = stretches_of(table.rows(" OR ".join(conditions)))
    return [replace(one, wanted=np.isin(one.starts, list(listed[one.file]))) for one in stretches], count, False


def joined_spans(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Intervals as few that cover the same."""
    found: list[tuple[float, float]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found
