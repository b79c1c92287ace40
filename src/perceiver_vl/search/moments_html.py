"""Moments as one HTML page that needs nothing else: a filmstrip, how well each part of it fits, the moment marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceiver_vl.data.prefetch import DECODING_THREADS, decode_ahead
from perceiver_vl.media.filmstrip import STRIP_FRAMES, STRIP_HEIGHT, Filmstrip, filmstrip
from perceiver_vl.search.moments import CurvePoint, Moment, MomentResult, clock
from perceiver_vl.utils.files import write_text
from perceiver_vl.utils.html import render

_WIDTH, _HEIGHT = 1000.0, 100.0


@dataclass(frozen=True)
class _Shown:
    """The stretch of a video about a moment: its filmstrip, its curve as an SVG polyline, and the moment's place."""

    strip: Filmstrip
    points: str
    left: float
    width: float
    start: float
    end: float


def write_moments_page(
    path: str | Path,
    results: Sequence[MomentResult],
    *,
    title: str = "Perceiver-VL moments",
    frames: int = STRIP_FRAMES,
) -> None:
    """Write the results of one query or more to an HTML file. A video that cannot be shown any more gets a note."""
    jobs = [(place, result, moment) for result in results for place, moment in enumerate(result.moments)]
    decoded = decode_ahead(jobs, lambda job: _show(job[2], job[1].curves[job[2].file_name], frames), DECODING_THREADS)
    strips = {(place, result.query): shown for (place, result, _), shown in decoded}
    values = {"results": results, "strips": strips, "height": STRIP_HEIGHT, "clock": clock}
    write_text(Path(path), render("search/moments_page.html.jinja", title=title, **values))


def _show(moment: Moment, curve: Sequence[CurvePoint], frames: int) -> _Shown:
    points = _about(moment, curve)
    start, end = points[0].start, points[-1].end
    scores = [point.score for point in points]
    low, high = min(scores), max(scores)
    scale = _WIDTH / max(end - start, 1e-9)

    def corner(seconds: float, score: float) -> str:
        height = (score - low) / (high - low) if high > low else 0.5
        return f"{(seconds - start) * scale:.2f},{_HEIGHT * (0.95 - 0.9 * height):.2f}"

    line = " ".join(corner(seconds, one.score) for one in points for seconds in (one.start, one.end))
    strip = filmstrip(moment.path, frames, start, end)
    return _Shown(strip, line, (moment.start - start) * scale, (moment.end - moment.start) * scale, start, end)


def _about(moment: Moment, curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points about a moment that follow each other without a gap."""
    points = sorted(curve, key=lambda point: point.start)
    first = after = next(place for place, point in enumerate(points) if point.end > moment.start)
    while first > 0 and points[first - 1].end == points[first].start:
        first -= 1
    while after + 1 < len(points) and points[after + 1].start == points[after].end:
        after += 1
    return points[first : after + 1]
