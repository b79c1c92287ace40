"""Moments for other programs: cut into files of their own, and listed as CSV, JSON and what video editors open, an edit
decision list (CMX 3600) and an OpenTimelineIO timeline.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_vl.media.cutting import ENDINGS, Cut, cut_video
from perceiver_vl.media.decode import frame_times
from perceiver_vl.search.moments import Moment, MomentResult
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import MediaError, UsageError
from perceiver_vl.utils.files import write_text

LISTS = ("moments.csv", "moments.json", "moments.edl", "moments.otio")
_RATE = 25.0
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a cell begins that spreadsheets compute


@dataclass(frozen=True)
class ExportedMoment:
    """A moment with the file it was cut into, and the seconds of the video that this holds; or the `problem`."""

    query: str
    rank: int
    file_name: str
    path: str
    start: float
    end: float
    score: float
    cut: str | None = None
    cut_start: float | None = None
    cut_end: float | None = None
    problem: str | None = None


def export_moments(
    folder: str | Path, results: Sequence[MomentResult], cut: Cut = "keyframes", progress: bool = False
) -> list[ExportedMoment]:
    """Cut every moment of the results into `folder`, and list them there; what cannot be cut is told in its row.

    Raises `UsageError` for a place that cannot be a folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"export={folder}: cannot be made ({error.strerror}), give another folder") from error
    moments = [(result.query, moment) for result in results for moment in result.moments]
    found = []
    with ProgressBars(progress) as bar:
        advance = bar.stage("Cutting moments", len(moments))
        for number, (query, moment) in enumerate(moments, start=1):
            found.append(_cut(folder, number, query, moment, cut))
            advance()
    write_text(folder / "moments.json", json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "moments.csv", _as_csv(found))
    rates = {one.path: _rate(Path(one.path)) for one in found if one.problem is None}
    write_text(folder / "moments.edl", _as_edl(found, round(next(iter(rates.values()), _RATE))))
    write_text(folder / "moments.otio", json.dumps(_as_otio(found, rates), indent=2) + "\n")
    return found


def _cut(folder: Path, number: int, query: str, moment: Moment, cut: Cut) -> ExportedMoment:
    name = re.sub(r"[^\w.-]+", "_", Path(moment.file_name).stem)[:80]
    out = folder / f"{number:03d}_{name}_{moment.start:.1f}{ENDINGS[cut]}"
    about = query, moment.rank, moment.file_name, str(moment.path), moment.start, moment.end, moment.score
    try:
        begun, ended = cut_video(moment.path, moment.start, moment.end, out, cut)
    except MediaError as error:
        return ExportedMoment(*about, problem=error.reason)
    return ExportedMoment(*about, out.name, begun, ended)


def _as_csv(found: Sequence[ExportedMoment]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(ExportedMoment.__dataclass_fields__), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _as_cell(value) for name, value in asdict(one).items()} for one in found)
    return text.getvalue()


def _as_cell(value: object) -> object:
    """What somebody wrote is text in a spreadsheet, too: an apostrophe keeps it from being computed."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _as_edl(found: Sequence[ExportedMoment], rate: int) -> str:
    """The moments one after the other, each as a cut; times at the rate of the first video, as one list has but one."""
    lines, at = ["TITLE: moments", "FCM: NON-DROP FRAME", ""], 0
    for number, one in enumerate(found, start=1):
        first, after = _frames(one, rate)
        times = [_timecode(frames, rate) for frames in (first, after, at, at + after - first)]
        lines += [f"{number:03d}  AX       V     C        {' '.join(times)}"]
        lines += [f"* FROM CLIP NAME: {_one_line(one.file_name)}", f"* COMMENT: {_one_line(one.query)}", ""]
        at += after - first
    return "\n".join([*lines[:2], f"* FRAME RATE: {rate}", *lines[2:]])


def _as_otio(found: Sequence[ExportedMoment], rates: Mapping[str, float]) -> dict[str, Any]:
    """The same as OpenTimelineIO's JSON: one track of clips, each at the rate of its own video."""
    clips = [
        {
            "OTIO_SCHEMA": "Clip.1",
            "name": one.query,
            "metadata": {"perceiver_vl": {"query": one.query, "rank": one.rank, "score": one.score}},
            "source_range": _range(one, rates.get(one.path, _RATE)),
            "media_reference": {
                "OTIO_SCHEMA": "ExternalReference.1",
                "name": one.file_name,
                "metadata": {},
                "available_range": None,
                "target_url": Path(one.path).absolute().as_uri(),
            },
        }
        for one in found
    ]
    track = {"OTIO_SCHEMA": "Track.1", "name": "moments", "kind": "Video", "metadata": {}, "children": clips}
    stack = {"OTIO_SCHEMA": "Stack.1", "name": "tracks", "metadata": {}, "children": [track]}
    return {"OTIO_SCHEMA": "Timeline.1", "name": "moments", "metadata": {}, "tracks": stack}


def _range(one: ExportedMoment, rate: float) -> dict[str, Any]:
    first, after = _frames(one, rate)
    start_time, duration = (
        {"OTIO_SCHEMA": "RationalTime.1", "rate": rate, "value": float(value)} for value in (first, after - first)
    )
    return {"OTIO_SCHEMA": "TimeRange.1", "start_time": start_time, "duration": duration}


def _frames(one: ExportedMoment, rate: float) -> tuple[int, int]:
    """The first frame, and the one after the last, of a video of this rate."""
    first = round(one.start * rate)
    return first, max(first + 1, round(one.end * rate))


def _rate(path: Path) -> float:
    """Frames a second."""
    times, _ = frame_times(path)
    return max(1.0, round(1 / float(np.median(np.diff(times))), 3)) if len(times) > 1 else _RATE


def _timecode(frames: int, rate: int) -> str:
    seconds, rest = divmod(frames, rate)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
