"""Sentences with the seconds that they are about, from the official files: QVHighlights, Charades-STA, ActivityNet
Captions, DiDeMo and TVR. The content of a file tells which it is of.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from perceiver_vl.data.datasets.rows import Row, json_file, json_lines, json_rows, lines
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.utils.errors import UsageError

Format = Literal["qvhighlights", "charades-sta", "activitynet-captions", "didemo", "tvr"]
DIDEMO_SEGMENT = 5.0
"""Seconds; DiDeMo marks first and last segments of these."""
SALIENCY_CLIP = 2.0
"""Seconds of the clips that QVHighlights rates."""


@dataclass(frozen=True)
class MomentQuery:
    """A sentence about a video, which files call `video`, and the `windows` in seconds that show it.

    `saliency`: of clips of two seconds by their numbers, what three people say, 0 to 4 (QVHighlights). `choices`: what
    each annotator marked, as first and last segments of five seconds (DiDeMo).
    """

    qid: str
    query: str
    video: str
    windows: tuple[tuple[float, float], ...]
    duration: float | None = None
    saliency: tuple[tuple[int, tuple[int, ...]], ...] | None = None
    choices: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class MomentQueries:
    """The queries of a file that can be used, what was wrong with others, and notes on what is odd."""

    format: Format
    queries: list[MomentQuery]
    skipped: list[SkippedSample]
    notes: list[str]


def read_moment_queries(path: str | Path) -> MomentQueries:
    """Read an official file, whichever it is of.

    A window that ends before it starts, or never, is left out, and so is a query without another, and one without
    words; a window that reaches beyond the duration is kept, as the official metrics keep it, and counted, and so are
    queries with the `qid` of another. Raises `UsageError` for a file that is none of them, by its name, row and key.
    """
    path = Path(path)
    kind = _format_of(path)
    found, skipped, beyond = list[MomentQuery](), list[SkippedSample](), 0
    for one in _READERS[kind](path):
        if not one.query:
            skipped.append(SkippedSample(one.video, f"query {one.qid}: no words, left out"))
            continue
        windows = tuple(window for window in one.windows if _is_window(*window))
        for start, end in one.windows:
            if not _is_window(start, end):
                reason = f"query {one.qid}: a window from {start:g} to {end:g} s, left out"
                skipped.append(SkippedSample(one.video, reason))
        if not windows and one.windows:
            continue
        beyond += any(one.duration is not None and end > one.duration + 0.5 for _, end in windows)
        found.append(replace(one, windows=windows))
    if not found:
        raise UsageError(f"{path}: no query with words and a window in it, give the annotations of a split")
    notes = [f"{beyond} queries have a window beyond the end of their video"] if beyond else []
    times = Counter(one.qid for one in found)
    if again := [qid for qid, count in times.items() if count > 1]:
        notes.append(f"{len(again)} qids are of several queries, such as {again[0]}; the last of each is scored")
    return MomentQueries(kind, found, skipped, notes)


def _is_window(start: float, end: float) -> bool:
    return 0 <= start < end < math.inf


def _format_of(path: Path) -> Format:
    """By the first row."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(4096).lstrip()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file, give the annotation file of a benchmark") from error
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UsageError(f"{path}: {reason}, give the annotation file of a benchmark") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read as text, give the annotation file of a benchmark") from error
    first, *others = head.splitlines() or [""]
    if "##" in first and not head.startswith(("{", "[")):
        return "charades-sta"
    if head.startswith("["):
        return "didemo"
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and "ts" in row:
        return "tvr"
    if isinstance(row, dict) and "qid" in row:
        return "qvhighlights"
    lines_of_objects = isinstance(row, dict) and any(map(str.strip, others))
    if isinstance(row, dict) and {"query", "file"} <= row.keys():
        what = "queries and the files that show them, which an index is calibrated with, but not annotations"
    elif head.startswith("{") and not lines_of_objects:
        return "activitynet-captions"
    else:
        what = "none of QVHighlights, Charades-STA, ActivityNet Captions, DiDeMo and TVR"
    raise UsageError(f"{path}: {what}, give the annotation file of one of these benchmarks: {', '.join(_READERS)}")


def _qvhighlights(path: Path) -> Iterator[MomentQuery]:
    for row in json_lines(path):
        about = row.text("qid"), row.text("query"), row.text("vid")
        windows = tuple(_spans(row, "relevant_windows")) if "relevant_windows" in row.values else ()
        saliency = None
        if "saliency_scores" in row.values:
            clips, scores = row.items("relevant_clip_ids"), row.items("saliency_scores")
            if len(clips) != len(scores):
                raise row.error("saliency_scores", f"as many as relevant_clip_ids, {len(clips)}")
            try:
                saliency = tuple((int(clip), tuple(map(int, some))) for clip, some in zip(clips, scores, strict=True))
            except (TypeError, ValueError, OverflowError):
                raise row.error("saliency_scores", "whole numbers for each clip of relevant_clip_ids") from None
        yield MomentQuery(*about, windows, _number(row, "duration"), saliency)


def _charades_sta(path: Path) -> Iterator[MomentQuery]:
    for number, line in lines(path):
        about, marks, text = line.partition("##")
        parts = about.split()
        try:
            video, start, end = parts[0], float(parts[1]), float(parts[2])
        except (IndexError, ValueError):
            marks = ""
        if not marks:
            raise UsageError(f"{path} row {number}: {line[:60]!r}, need VIDEO START END##SENTENCE")
        yield MomentQuery(str(number), text.strip(), video, ((start, end),))


def _activitynet(path: Path) -> Iterator[MomentQuery]:
    for name, value in json_file(path).values.items():
        row = Row(f"{path}: {name}", value if isinstance(value, dict) else {})
        windows, sentences = list(_spans(row, "timestamps")), row.texts("sentences")
        if len(windows) != len(sentences):
            raise row.error("sentences", f"as many as timestamps, {len(windows)}")
        for number, (window, sentence) in enumerate(zip(windows, sentences, strict=True)):
            yield MomentQuery(f"{name}#{number}", sentence, name, (window,), _number(row, "duration"))


def _didemo(path: Path) -> Iterator[MomentQuery]:
    for row in json_rows(path):
        marked = row.spans("times")
        choices = tuple((int(first), int(last)) for first, last in marked if _is_window(first, last + 1))
        windows = tuple(
            (_seconds(first) * DIDEMO_SEGMENT, (_seconds(last) + 1) * DIDEMO_SEGMENT) for first, last in marked
        )
        about = row.text("annotation_id"), row.text("description"), row.text("video")
        yield MomentQuery(*about, windows, choices=choices)


def _tvr(path: Path) -> Iterator[MomentQuery]:
    for row in json_lines(path):
        about = row.text("desc_id"), row.text("desc"), row.text("vid_name")
        times = row.items("ts")
        if len(times) != 2 or not all(isinstance(time, int | float) for time in times):
            raise row.error("ts", "a pair of numbers")
        yield MomentQuery(*about, ((_seconds(times[0]), _seconds(times[1])),), _number(row, "duration"))


def _spans(row: Row, key: str) -> Iterator[tuple[float, float]]:
    """Pairs of numbers as they are: `Row.spans` sorts those that are not in order, which are wrong here."""
    row.spans(key)
    return ((_seconds(start), _seconds(end)) for start, end in row.items(key))


def _seconds(value: float) -> float:
    """A number of JSON, whose whole ones may be larger than any float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number(row: Row, key: str) -> float:
    value = row.values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_seconds(value)):
        raise row.error(key, "a number")
    return float(value)


_READERS = {
    "qvhighlights": _qvhighlights,
    "charades-sta": _charades_sta,
    "activitynet-captions": _activitynet,
    "didemo": _didemo,
    "tvr": _tvr,
}
