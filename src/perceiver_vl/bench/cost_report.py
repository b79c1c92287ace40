"""What `bench cost` found: its rows, as tables, and in words who costs less from where on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from perceiver_vl.bench.baselines import BASELINES
from perceiver_vl.bench.cost_settings import TEXT_TOKENS, CostSetting, Published
from perceiver_vl.bench.streams import ITEMS, STREAMS, StreamCosts
from perceiver_vl.bench.tables import BenchReport, Section, or_dash


@dataclass(frozen=True)
class Cost:
    """One row. Operations are of one example, times and memory of a batch.

    `milliseconds`: median, with the range; `peak_mib`: held at once, model and inputs aside; `share_of_peak`: the rate
    in units of a matrix product's at the same time; `ratio`: the time in units of ours at the same frames, size and
    words. `skipped`: why it was counted and not run; the measured values are None then.
    """

    part: str
    label: str
    model: str
    frames: int
    image_size: int
    words: int
    latents: int | None
    cross_attentions: int | None
    gflops: float
    milliseconds: float | None
    fastest: float | None
    slowest: float | None
    peak_mib: float | None
    share_of_peak: float | None
    ratio: float | None
    skipped: str | None
    published: Published


@dataclass(frozen=True)
class CostReport(BenchReport):
    """The rows, the streams, and who costs less from where on."""

    costs: list[Cost]
    streams: StreamCosts
    crossovers: list[str]
    parameters: dict[str, int]
    matrix_product_gflops: float
    batch_size: int

    def part(self, name: str) -> list[Cost]:
        """The rows of one part: frames, sizes, tables, latents, cross_attentions or words."""
        return [cost for cost in self.costs if cost.part == name]

    def sections(self) -> list[Section]:
        """Every part."""
        batch = f"batch {self.batch_size}, {TEXT_TOKENS} words"
        steps = (f"{name.replace('_', ' ')} {_seconds(step.seconds)}" for name, step in self.streams.steps.items())
        return [
            Section(
                f"a clip and words, {batch} (Figure 4)",
                ("model", "frames", *_MEASURED, "peak"),
                [(cost.label, str(cost.frames), *_measured(cost), _share(cost)) for cost in self.part("frames")],
                (
                    "N: latents; k: cross-attentions. Ratio: time over that of ours at all of both; spread: slowest "
                    "over fastest run; peak: share of the rate of a matrix product at the same time "
                    f"({self.matrix_product_gflops:.0f} GFLOP/s, median); MiB: held at once, model aside.",
                    *_skipped(self.part("frames"), "frames", "frames"),
                ),
            ),
            Section(
                f"size of the frames, 8 frames, {batch} (Figure 4)",
                ("model", "pixels", *_MEASURED),
                [(cost.label, str(cost.image_size), *_measured(cost)) for cost in self.part("sizes")],
                _skipped(self.part("sizes"), "image_size", "pixels"),
            ),
            Section(
                "beside the paper's figures (Tables 1 and 2)",
                ("input, model", "GFLOPs", "published", "ms", "published"),
                [
                    (
                        cost.label,
                        f"{cost.gflops:.1f}",
                        or_dash(cost.published.gflops, ".1f"),
                        or_dash(cost.milliseconds, ".0f"),
                        or_dash(cost.published.milliseconds, ".0f"),
                    )
                    for cost in self.part("tables")
                ],
                (
                    "Published: GFLOPs and ms in the paper, on other machines. Ours and ViLT: one pass over clip and "
                    "words together; TimeSformer: one over each. All at 384 × 384 pixels and patches of 32. ViLT's "
                    "55.9 is about what its own 384 × 640 pixels take (51.8 by this count). 43.9 is one joint pass, "
                    "though it stands in the row of the mixed stream: a pair of that takes the two passes below it.",
                ),
            ),
            Section(
                f"number of latents, 8 frames, {batch} (Figure 5)",
                ("latents", *_MEASURED, "published R@1"),
                [(cost.label, *_measured(cost), or_dash(cost.published.score, ".1f")) for cost in self.part("latents")],
            ),
            Section(
                f"number of cross-attentions, 8 frames, {batch} (Table 3)",
                ("cross-attentions", *_MEASURED, "published ms", "R@1"),
                [
                    (
                        cost.label,
                        *_measured(cost),
                        or_dash(cost.published.milliseconds, ".0f"),
                        or_dash(cost.published.score, ".1f"),
                    )
                    for cost in self.part("cross_attentions")
                ],
            ),
            Section(
                f"{batch} and no clip: a query",
                ("model", *_MEASURED),
                [(cost.label, *_measured(cost)) for cost in self.part("words")],
            ),
            Section(
                f"n texts against n clips of {self.streams.frames} frames, seconds (Figure 6)",
                ("stream", *(f"n={n}" for n in ITEMS)),
                [
                    (
                        stream.replace("_", " "),
                        *(_amount(self.streams.seconds[stream][str(n)], ".3g") for n in ITEMS),
                    )
                    for stream in STREAMS
                ],
                (f"Added up from the steps, each measured: {', '.join(steps)}.",),
            ),
        ]


Point = tuple[int, float, float]
"""Frames, the cost of another model, the cost of ours."""
FEW = (1, 2, 4)
"""Numbers of frames at which the others may still be ahead."""


def crossovers(costs: Sequence[Cost], count_at: Callable[[CostSetting], float], full: CostSetting) -> list[str]:
    """For each of the others: at which numbers of frames a clip and words cost it less than ours at `full`.

    By operations (`count_at`) at few frames more than were measured, by time where both were.
    """
    frames = [cost for cost in costs if cost.part == "frames"]
    ours = {cost.frames: cost.milliseconds for cost in frames if _is_at(cost, full)}
    sentences = []
    for baseline in BASELINES:
        theirs = {cost.frames: cost.milliseconds for cost in frames if cost.model == baseline.name}
        counted = [
            (
                number,
                count_at(replace(full, model=baseline.name, frames=number)),
                count_at(replace(full, frames=number)),
            )
            for number in sorted({*FEW, *theirs})
        ]
        timed = [
            (number, milliseconds, our_milliseconds)
            for number, milliseconds in sorted(theirs.items())
            if milliseconds is not None and (our_milliseconds := ours[number]) is not None
        ]
        sentences.append(in_words(baseline.title, counted, "GFLOPs"))
        if timed:
            sentences.append(in_words(baseline.title, timed, "ms"))
    alone = ", ".join(f"{cost.label} {cost.gflops:.1f}" for cost in costs if cost.part == "words")
    return [*sentences, f"{full.words} words alone, GFLOPs: {alone}."]


def in_words(title: str, points: Sequence[Point], unit: str) -> str:
    """One sentence on `points`, in ascending order of frames."""
    less = [(frames, theirs, ours) for frames, theirs, ours in points if theirs < ours]
    ends = ", ".join(dict.fromkeys((_pair(points[0]), _pair(points[-1]))))
    measure = f"{title} ({unit}): "
    if not less:
        return measure + f"costs more than ours at every number of frames, {ends}."
    if len(less) == len(points):
        return measure + f"costs less than ours at every number of frames, {ends}."
    if less == list(points[: len(less)]):
        turn = points[len(less)]
        return measure + f"costs less than ours up to {_pair(less[-1])}; more from {_pair(turn)} on."
    if less == list(points[-len(less) :]):
        return measure + f"costs more than ours up to {_pair(points[-len(less) - 1])}; less from {_pair(less[0])} on."
    return measure + "costs less than ours at " + ", ".join(_pair(point) for point in less) + "; more elsewhere."


_MEASURED = ("GFLOPs", "ms", "spread", "ratio", "MiB")


def _measured(cost: Cost) -> tuple[str, ...]:
    spread = cost.slowest / cost.fastest if cost.slowest and cost.fastest else None
    return (
        f"{cost.gflops:.1f}",
        or_dash(cost.milliseconds, ".0f"),
        or_dash(spread, ".2f"),
        or_dash(cost.ratio, ".2f"),
        or_dash(cost.peak_mib, ".0f"),
    )


def _share(cost: Cost) -> str:
    return "–" if cost.share_of_peak is None else f"{100 * cost.share_of_peak:.0f} %"


def _skipped(costs: Sequence[Cost], attribute: str, unit: str) -> tuple[str, ...]:
    """A line a model; `attribute`: what its settings differ in."""
    found: dict[str, list[str]] = {}
    for cost in costs:
        if cost.skipped:
            found.setdefault(cost.label, []).append(f"{getattr(cost, attribute)} ({cost.skipped})")
    return tuple(f"Counted, not run: {label}, {unit} {', '.join(those)}." for label, those in found.items())


def _seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e-9:.3g} ns"


def _pair(point: Point) -> str:
    frames, theirs, ours = point
    return f"{frames} frame{'s' if frames > 1 else ''} ({_amount(theirs, '.1f')} against {_amount(ours, '.1f')})"


def _amount(value: float, spec: str) -> str:
    return f"{value:,.0f}" if value >= 100 else format(value, spec)


def _is_at(cost: Cost, setting: CostSetting) -> bool:
    return (cost.model, cost.image_size, cost.latents, cost.cross_attentions) == (
        setting.model,
        setting.image_size,
        setting.budget.latents,
        setting.budget.cross_attentions,
    )
