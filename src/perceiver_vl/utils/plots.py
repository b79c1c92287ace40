"""Figures for reports: inline SVG that needs no script, and PNGs."""

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from perceiver_vl.utils.files import write_with

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "perceiver-vl",  # the same data gives the same file
    "svg.fonttype": "none",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "text.parse_math": False,  # a name with dollars is a name
}


@contextmanager
def _figure() -> Iterator[tuple[Figure, Any]]:
    """A figure of one plot, with its axes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        yield figure, figure.add_subplot()


def curves_svg(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, title: str, measured: bool = False
) -> str:
    """Lines by name, each (xs, ys) → SVG text; `measured`: with a mark at each point, both axes logarithmic."""
    with _figure() as (figure, axes):
        for name, (xs, ys) in series.items():
            axes.plot(xs, ys, label=name, linewidth=1.4, marker="o" if measured else "", markersize=3)
        axes.set(xlabel=x, ylabel=y, title=title)
        if measured:
            _logarithmic(axes, sorted({number for xs, _ in series.values() for number in xs}))
        if series:
            axes.legend(frameon=False)
        return _svg(figure)


def write_curves(
    path: Path, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, title: str
) -> None:
    """A PNG of measured lines by name, each (xs, ys)."""
    with _figure() as (figure, axes):
        FigureCanvasAgg(figure)
        for name, (xs, ys) in series.items():
            axes.plot(xs, ys, label=name, linewidth=1.4, marker="o", markersize=3)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.legend(frameon=False)
        write_with(path, lambda beside: figure.savefig(beside, format="png", dpi=150))


def points_svg(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, title: str) -> str:
    """The same of measured points."""
    return curves_svg(series, x=x, y=y, title=title, measured=True)


def _logarithmic(axes: Any, xs: Sequence[float]) -> None:
    """Both axes, with plain numbers: along x those that were measured."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(xs, [f"{number:g}" for number in xs])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


def _plain_numbers(axis: Any) -> None:
    """Of a logarithmic axis: as it is, matplotlib writes them as mathematics."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def front_svg(
    points: Sequence[tuple[float, float]], front: Sequence[tuple[float, float]], *, x: str, y: str, title: str
) -> str:
    """(cost, score) of every setting, and a line through those worth choosing → SVG text, cost logarithmic."""
    with _figure() as (figure, axes):
        axes.plot(*zip(*points, strict=True), ".", color="0.6", label="every setting")
        axes.plot(*zip(*sorted(front), strict=True), "o-", markersize=4, linewidth=1.4, label="the front")
        axes.set(xscale="log", xlabel=x, ylabel=y, title=title)
        _plain_numbers(axes.xaxis)
        axes.legend(frameon=False)
        return _svg(figure)


def recall_against_latency_svg(points: Sequence[tuple[str, float, float]], title: str) -> str:
    """(name, milliseconds a query, R@1 in per cent) → SVG text, time on a logarithmic axis."""
    with _figure() as (figure, axes):
        _recall_against_latency(axes, points, title)
        return _svg(figure)


def write_picture(
    path: Path,
    query: str,
    strips: Sequence[tuple[str, npt.NDArray[np.uint8]]],
    points: Sequence[tuple[str, float, float]],
    title: str,
) -> None:
    """A PNG: the filmstrips (caption, frames `(T,H,W,3)`) that a query found, above recall against latency."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.2 * len(strips) + 3.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subfigures(2, 1, height_ratios=(1.2 * len(strips) + 0.4, 2.8))  # type: ignore[misc]
        above.suptitle(f"“{query}”", fontsize=11, fontweight="bold")
        for axes, (caption, frames) in zip(np.atleast_1d(above.subplots(len(strips), 1)), strips, strict=True):
            axes.imshow(np.concatenate(list(frames), axis=1), interpolation="nearest")
            axes.set_title(caption, fontsize=8, loc="left")
            axes.axis("off")
        _recall_against_latency(below.subplots(), points, title)
        write_with(path, lambda beside: figure.savefig(beside, format="png"))


def _recall_against_latency(axes: Any, points: Sequence[tuple[str, float, float]], title: str) -> None:
    for (name, milliseconds, recall), marker in zip(points, itertools.cycle("osD^v<>"), strict=False):
        axes.plot(milliseconds, recall, marker, label=name)
    axes.set(
        xscale="log", xlabel="milliseconds a text query (logarithmic)", ylabel="R@1, text → video (%)", title=title
    )
    _plain_numbers(axes.xaxis)
    axes.margins(x=0.1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside: points of equal recall lie close
    axes.set_ylim(0, 1.1 * max([1.0, *(recall for *_, recall in points)]))  # room about the highest


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL)
