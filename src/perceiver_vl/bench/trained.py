"""Results of the benches of trained models as tables."""

from perceiver_vl.bench.cascade import CascadeReport
from perceiver_vl.bench.frontier import FrontierReport, Measured
from perceiver_vl.bench.tables import Section
from perceiver_vl.models.budget import ComputeBudget

_SHORT = {
    "frames": "T",
    "latents": "N",
    "text_latents": "N text",
    "cross_attentions": "cross-attentions",
    "blocks": "blocks",
}


def frontier_sections(report: FrontierReport) -> list[Section]:
    """`bench frontier`: the settings on a front, then the data types."""
    kept = [one for one in report.settings if one.on_gflops_front or one.on_time_front]
    dials = {name: shown for name, shown in _SHORT.items() if any(f"{name}=" in one.budget for one in report.settings)}
    others = [name for name in kept[0].scores if name != report.metric.removesuffix(" R@1")]
    return [
        Section(
            f"{report.metric} on {report.examples} of {report.data}, the best of {len(report.settings)} budgets",
            (*dials.values(), report.metric, *others, "GFLOPs", "ms", "best for"),
            [
                (
                    *(_dial(one.budget, name) for name in dials),
                    f"{one.score:.1f}",
                    *(f"{one.scores[name]:.1f}" for name in others),
                    f"{one.gflops:.3g}",
                    f"{one.milliseconds:.3g}",
                    _best_for(one),
                )
                for one in kept
            ],
            (
                f"GFLOPs and ms are of one example: {report.unit}. In {report.dtype}; decoding is not counted. "
                "T: frames; N: latents.",
            ),
        ),
        Section(
            "data types, at the dearest setting",
            ("dtype", report.metric, "difference", "ms", "speedup"),
            [
                (
                    one.dtype,
                    f"{one.score:.1f}",
                    f"{one.score_difference:+.1f}",
                    f"{one.milliseconds:.3g}",
                    f"{one.speedup:.2f}",
                )
                for one in report.dtypes
            ],
        ),
    ]


def cascade_section(report: CascadeReport) -> Section:
    """`bench cascade`."""
    from_fewer = report.time_extrapolated_from
    said = f", the latter extrapolated from {from_fewer} × {from_fewer}" if from_fewer else ""
    return Section(
        f"n texts against n clips of {report.data}, shortlist {report.shortlist}, budget {report.budget}",
        ("n", "stream", "s", "slowest/fastest", "R@1"),
        [
            (
                str(one.items),
                one.stream,
                f"{one.seconds:.3g}" if one.extrapolated_from is None else f"~{one.seconds:.3g}",
                f"{one.slowest / one.fastest:.2f}",
                "–" if one.r1 is None else f"{one.r1:.1f}",
            )
            for one in report.runs_of_streams
        ],
        (
            f"The cascade takes {report.time_ratio:.2g} of the single stream's time at n={report.time_items}{said}; "
            f"its R@1 differs by {report.r1_difference:+.1f} at n={report.r1_items}.",
            "s: encoding both sides and scoring all pairs, of decoded clips. ~: extrapolated by n².",
        ),
    )


def _best_for(one: Measured) -> str:
    both = {"GFLOPs": one.on_gflops_front, "ms": one.on_time_front}
    return ", ".join(name for name, is_best in both.items() if is_best)


def _dial(budget: str, name: str) -> str:
    value = getattr(ComputeBudget.parse(budget), name)
    return "all" if value is None else str(value)
