"""The videos of an index in segments: encoded one after the other as they are decoded, a row each, into a table beside
that of the clips. A run that ends goes on within the video where the last commit was.
"""

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from perceiver_vl.data.prefetch import decode_ahead
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.media.decode import Clip
from perceiver_vl.media.segments import find_segments, read_segments
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.search.encode import encode_clips, encoded_rows
from perceiver_vl.search.engine import NoIndexError
from perceiver_vl.search.filters import quoted
from perceiver_vl.search.rows import EncodedClip, IndexEntry, rows_of, with_checksums
from perceiver_vl.search.table import SEGMENTS, ClipTable, create_table, open_table
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import MediaError, PerceiverVLError

SEGMENT_FPS = 1.0
_ROUNDING = 1e-6  # seconds, of the sum over a video
_AHEAD = 2  # batches that are decoded while one is encoded


@dataclass
class SegmentsReport:
    """What a run did: segments `encoded`, in all (`total`), the `hours` of video that these are, rows `mended`; videos
    that broke off (`skipped`) or lacked frames (`damaged`); the `seconds` that it took, decoding included.
    """

    encoded: int = 0
    total: int = 0
    hours: float = 0.0
    mended: int = 0
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Known:
    """The rows that there are of a file: of which content, how many, the seconds that they cover, where they end."""

    id: str
    count: int
    covered: float
    end: float
    duration: float

    @property
    def whole(self) -> bool:
        return abs(self.covered - self.duration) <= _ROUNDING

    @property
    def without_gaps(self) -> bool:
        """Whether they are the first ones of the file."""
        return abs(self.covered - self.end) <= _ROUNDING


@dataclass(frozen=True)
class _Piece:
    """A segment that was decoded; `first`: of its file."""

    entry: IndexEntry
    clip: Clip
    first: bool


def update_segments(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    clips: ClipTable,
    index: str | Path,
    budget: ComputeBudget,
    *,
    batch_size: int,
    commit_rows: int,
    commit_seconds: float,
    verify: bool,
    strict: bool,
    bar: ProgressBars,
) -> tuple[ClipTable, SegmentsReport]:
    """Bring the table of segments up to date with that of the clips, whose settings say how videos are cut.

    Files that moved are known by their content. Of a video that changed the old segments serve until the first new ones
    are there. Raises `MediaError` with `strict` for a video that cannot be read to its end; else it is reported, keeps
    the segments up to there, and is tried again by the next run.
    """
    started = time.perf_counter()
    weight = None if model.length_weight is None else model.length_weight.item()
    table, mended = _open(index, clips, verify, weight)
    wanted = {entry.file: entry for entry in clips.entries() if entry.kind == "video"}
    known = _relabel(table, _known(table), wanted)
    table.commit(gone=[name for name, rows in known.items() if name not in wanted or not rows.without_gaps])
    same = {name: rows for name, rows in known.items() if name in wanted and rows.id == wanted[name].id}
    todo = [
        (entry, same[name] if name in same and same[name].without_gaps else None)
        for name, entry in wanted.items()
        if name not in same or not same[name].whole
    ]
    report = SegmentsReport(mended=mended)
    advance = bar.stage("Encoding segments, seconds", round(sum(_seconds(clips, [entry.file for entry, _ in todo]))))
    commits, seconds = _Commits(table, commit_rows, commit_seconds), 0.0
    try:
        with closing(_encode(model, processor, clips, budget, todo, batch_size)) as encoded:
            for one in encoded:
                if isinstance(one, MediaError):
                    if strict:
                        raise one
                    name = one.path.relative_to(clips.settings.media).as_posix()
                    report.skipped.append(SkippedSample(name, one.reason))
                    continue
                made, first = one
                commits.add(made, first)
                report.encoded += 1
                if made.damaged and made.clip.file not in report.damaged[-1:]:
                    report.damaged.append(made.clip.file)
                seconds += (made.clip.end or 0.0) - (made.clip.start or 0.0)
                advance(int(seconds))
                seconds %= 1
    finally:
        commits.write()
    report.total, report.hours = len(table), sum(one.covered for one in _known(table).values()) / 3600
    report.seconds = time.perf_counter() - started
    return table, report


class _Commits:
    """Segments, gathered and committed by at most `most`, or by what so many seconds of work gave."""

    def __init__(self, table: ClipTable, most: int, seconds: float) -> None:
        self._table, self._most, self._seconds = table, most, seconds
        self._waiting: list[EncodedClip] = []
        self._begun_files: set[str] = set()
        self._begun = time.monotonic()

    def add(self, segment: EncodedClip, first: bool) -> None:
        """Commit it sooner or later; the `first` of a file in the place of all that there was of that."""
        self._waiting.append(segment)
        if first:
            self._begun_files.add(segment.clip.file)
        if len(self._waiting) >= self._most or time.monotonic() - self._begun > self._seconds:
            self.write()

    def write(self) -> None:
        """Commit what there is; what could not be committed is not tried again."""
        waiting, files, self._waiting, self._begun_files = self._waiting, self._begun_files, [], set()
        self._begun = time.monotonic()
        if waiting:
            self._table.append(rows_of(waiting, self._table.settings), files)


def _open(index: str | Path, clips: ClipTable, verify: bool, weight: float | None) -> tuple[ClipTable, int]:
    """The table, made if there is none, and how many damaged rows it has lost. weight: what a window gains with its
    length, as the model itself has learned; it counts as long as nothing else was.
    """
    try:
        table = open_table(index, recover=True, name=SEGMENTS)
    except NoIndexError:
        return create_table(index, replace(clips.settings, length_weight=weight), SEGMENTS), 0
    before = table.settings
    table.describe(replace(clips.settings, surprise=before.surprise, length_weight=before.length_weight))
    if verify or table.exact:
        try:
            table.check()
        except PerceiverVLError:
            verify = True
    return table, table.mend() if verify else 0


def _known(table: ClipTable) -> dict[str, _Known]:
    """What there is, by file; of rows that say different things of one file nothing is kept."""
    rows = table.columns(["file", "id", "start", "end", "duration"])
    rows = rows.append_column("covered", pa.array(rows["end"].to_numpy() - rows["start"].to_numpy()))
    wanted = [("id", "min"), ("id", "max"), ("covered", "sum"), ("end", "max"), ("duration", "min"), ("id", "count")]
    found = {}
    for row in rows.group_by("file").aggregate(wanted).to_pylist():
        one = _Known(row["id_min"], row["id_count"], row["covered_sum"], row["end_max"], row["duration_min"])
        found[row["file"]] = one if row["id_min"] == row["id_max"] else replace(one, covered=np.inf)
    return found


def _relabel(table: ClipTable, known: dict[str, _Known], wanted: dict[str, IndexEntry]) -> dict[str, _Known]:
    """Give the segments of files whose content is now elsewhere (too) to those; what is known then."""
    of_content = {rows.id: name for name, rows in known.items() if rows.whole}
    found = dict(known)
    for name, entry in wanted.items():
        origin = of_content.get(entry.id)
        if origin is not None and (name not in known or known[name].id != entry.id):
            rows = segments_of(table, origin)
            if len(rows) and rows["id"][0].as_py() == entry.id:  # not of two files that changed places
                table.commit(_renamed(rows, entry))
                found[name] = known[origin]
    return found


def _renamed(rows: pa.Table, entry: IndexEntry) -> pa.Table:
    for name in ("file", "size", "mtime"):
        column = pa.array([getattr(entry, name)] * len(rows), rows.schema.field(name).type)
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return with_checksums(rows)


def _seconds(clips: ClipTable, names: Sequence[str]) -> Iterator[float]:
    rows = clips.columns(["file", "duration"])
    durations = dict(zip(rows["file"].to_pylist(), rows["duration"].to_pylist(), strict=True))
    return (durations[name] or 0.0 for name in names)


def _encode(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    clips: ClipTable,
    budget: ComputeBudget,
    todo: Sequence[tuple[IndexEntry, _Known | None]],
    batch_size: int,
) -> Generator[tuple[EncodedClip, bool] | MediaError, None, None]:
    """The segments that are still to be encoded, in order, each with whether it is the first of its file; and what
    ended those files that could not be read.
    """
    most = min(model.config.max_frames, budget.frames or model.config.max_frames)
    height, width = processor.image_processor.size.height, processor.image_processor.size.width
    batch: list[_Piece] = []
    with closing(_ahead(_read(clips, todo, most, (height, width)), _AHEAD * batch_size)) as pieces:
        for piece in pieces:
            if isinstance(piece, _Piece):
                batch.append(piece)
            if batch and (len(batch) == batch_size or not isinstance(piece, _Piece)):
                found = encode_clips(model, processor, [one.clip.frames for one in batch], most, budget)
                rows = encoded_rows([(one.entry, one.clip) for one in batch], *found, clips.settings)
                yield from zip(rows, [one.first for one in batch], strict=True)
                batch = []
            if isinstance(piece, MediaError):
                yield piece


def _read(
    clips: ClipTable, todo: Sequence[tuple[IndexEntry, _Known | None]], most: int, size: tuple[int, int]
) -> Iterator[_Piece | MediaError]:
    """The segments that are still to be encoded, file after file, and what ended those that could not be read."""
    how, fps = clips.settings.segments, clips.settings.segment_fps
    assert how is not None
    assert fps is not None
    for entry, rows in todo:
        path = Path(clips.settings.media, entry.file)
        try:
            segments, _ = find_segments(path, how)
            done = rows.count if rows is not None else 0
            if rows is not None and not (done < len(segments) and segments[done - 1].end == rows.end):
                done = 0  # cut otherwise, as by another version of the decoder
            left = segments[done:]
            for one in read_segments(path, left, fps, most, size=size) if left else ():
                part = replace(entry, captions=(), start=one.segment.start, end=one.segment.end)
                yield _Piece(part, replace(one.clip, frames=one.frames), one.segment.first == 0)
        except MediaError as error:
            yield error


def _ahead(pieces: Iterator[_Piece | MediaError], ahead: int) -> Generator[_Piece | MediaError | None, None, None]:
    """The same, decoded by another thread while this one encodes; None at the end."""
    with closing(decode_ahead(itertools.repeat(None), lambda _: next(pieces, None), ahead, threads=1)) as decoding:
        for _, piece in decoding:
            yield piece
            if piece is None:
                return


def segments_of(table: ClipTable, file: str) -> pa.Table:
    """All rows of a video, in the order of time, checked."""
    return table.rows(f"file = {quoted(file)}").sort_by("start")
