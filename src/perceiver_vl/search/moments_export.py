"""Moments for other programs: cut into files of their own, and listed as CSV, JSON and an edit decision list (CMX
3600), which video editors open.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from perceiver_vl.media.cutting import ENDINGS, Cut, cut_video
from perceiver_vl.media.decode import frame_times
from perceiver_vl.search.moments import Moment, MomentResult
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import MediaError, UsageError
from perceiver_vl.utils.files import write_text

LISTS = ("moments.csv", "moments.json", "moments.edl")
_RATE = 25


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
    write_text(folder / "moments.edl", _as_edl(found))
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
    table.writerows(asdict(one) for one in found)
    return text.getvalue()


def _as_edl(found: Sequence[ExportedMoment]) -> str:
    """The moments one after the other, each as a cut; times at the rate of the first video, as one list has but one."""
    rate = next((_rate(Path(one.path)) for one in found if one.problem is None), _RATE)
    lines, at = ["TITLE: moments", "FCM: NON-DROP FRAME", ""], 0
    for number, one in enumerate(found, start=1):
        first, after = round(one.start * rate), max(round(one.start * rate) + 1, round(one.end * rate))
        times = [_timecode(frames, rate) for frames in (first, after, at, at + after - first)]
        lines += [f"{number:03d}  AX       V     C        {' '.join(times)}"]
        lines += [f"* FROM CLIP NAME: {_one_line(one.file_name)}", f"* COMMENT: {_one_line(one.query)}", ""]
        at += after - first
    return "\n".join([*lines[:2], f"* FRAME RATE: {rate}", *lines[2:]])


def _rate(path: Path) -> int:
    """Frames a second, as a whole number."""
    times, _ = frame_times(path)
    return max(1, round(1 / float(np.median(np.diff(times))))) if len(times) > 1 else _RATE


def _timecode(frames: int, rate: int) -> str:
    seconds, rest = divmod(frames, rate)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
