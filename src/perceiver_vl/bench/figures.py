"""Results of the benches as figures."""

from collections.abc import Iterable

from perceiver_vl.bench.cascade import CascadeReport
from perceiver_vl.bench.cost_report import Cost, CostReport
from perceiver_vl.bench.cost_settings import OURS
from perceiver_vl.bench.frontier import FrontierReport
from perceiver_vl.bench.length import LengthReport
from perceiver_vl.bench.streams import ITEMS, STREAMS
from perceiver_vl.utils.plots import front_svg, points_svg

Series = dict[str, tuple[list[float], list[float]]]


def cost_figures(report: CostReport) -> list[str]:
    """Operations, time and memory against frames, operations against their size, the streams → SVG texts."""
    frames, sizes = report.part("frames"), report.part("sizes")
    ours = [cost.label for cost in frames if cost.model == OURS]
    shown = [cost for cost in frames if cost.model != OURS or cost.label in (ours[0], ours[-1])]  # dearest, cheapest
    streams: Series = {
        stream.replace("_", " "): (list(ITEMS), [report.streams.seconds[stream][str(n)] for n in ITEMS])
        for stream in STREAMS
    }
    clip = "a clip and 40 words"
    return [
        points_svg(_costs(shown, "frames", "gflops"), x="frames", y="GFLOPs", title=f"Operations, {clip}"),
        points_svg(_costs(shown, "frames", "milliseconds"), x="frames", y="ms", title=f"Time, {clip}"),
        points_svg(_costs(shown, "frames", "peak_mib"), x="frames", y="MiB", title=f"Memory, {clip}"),
        points_svg(_costs(sizes, "image_size", "gflops"), x="pixels a side", y="GFLOPs", title="8 frames of a size"),
        points_svg(streams, x="n", y="s", title="n texts against n clips, each stream"),
    ]


def length_figure(report: LengthReport) -> str:
    """Memory against minutes, a line a form → SVG text."""
    series = _series((one.form, one.minutes, one.peak_mib) for one in report.lengths)
    return points_svg(series, x="minutes, a frame a second", y="MiB", title="Memory of a long video")


def frontier_figures(report: FrontierReport) -> list[str]:
    """Score against time, and against operations → SVG texts."""
    found = []
    for cost, flag, label in (
        ("milliseconds", "on_time_front", "ms an example"),
        ("gflops", "on_gflops_front", "GFLOPs an example"),
    ):
        points = [(getattr(one, cost), one.score) for one in report.settings]
        front = [(getattr(one, cost), one.score) for one in report.settings if getattr(one, flag)]
        found.append(front_svg(points, front, x=label, y=report.metric, title=f"{len(points)} budgets"))
    return found


def cascade_figure(report: CascadeReport) -> str:
    """Seconds against n, a line a stream → SVG text."""
    series = _series(
        (f"{one.stream}, extrapolated" if one.extrapolated_from else one.stream, one.items, one.seconds)
        for one in report.streams
    )
    return points_svg(series, x="n", y="s", title="n texts against n clips, a trained model")


def _costs(costs: Iterable[Cost], x: str, y: str) -> Series:
    return _series((cost.label, getattr(cost, x), getattr(cost, y)) for cost in costs)


def _series(points: Iterable[tuple[str, float, float | None]]) -> Series:
    """(name, x, y) → xs and ys by name, of what was measured."""
    series: Series = {}
    for name, x, y in points:
        if y is not None:
            xs, ys = series.setdefault(name, ([], []))
            xs.append(x)
            ys.append(y)
    return series
