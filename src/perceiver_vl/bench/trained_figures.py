"""Results of the benches of trained models as figures."""

from perceiver_vl.bench.cascade import CascadeReport
from perceiver_vl.bench.frontier import FrontierReport
from perceiver_vl.utils.plots import front_svg, points_svg


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
    series: dict[str, tuple[list[float], list[float]]] = {}
    for one in report.runs_of_streams:
        scaled = one.extrapolated_from is not None
        xs, ys = series.setdefault(f"{one.stream}, extrapolated" if scaled else one.stream, ([], []))
        xs.append(one.items)
        ys.append(one.seconds)
    return points_svg(series, x="n", y="s", title="n texts against n clips, a trained model")
