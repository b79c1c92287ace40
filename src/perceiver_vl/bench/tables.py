"""Results of the benches as tables of text: for the terminal (80 columns) and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from perceiver_vl.bench.cost import Cost, CostReport
from perceiver_vl.bench.length import LengthReport
from perceiver_vl.bench.questions import QuestionsReport
from perceiver_vl.bench.reranking import RerankingReport
from perceiver_vl.bench.streams import ITEMS, STREAMS


@dataclass(frozen=True)
class Section:
    """A table: what it is, its columns (the first is a name), its rows, and what to know to read it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def cost_sections(report: CostReport) -> list[Section]:
    """Every part of `bench cost`."""
    with_words = f"batch {report.batch_size}, 40 words"
    product = f"{report.matrix_product_gflops:.0f} GFLOP/s"
    return [
        Section(
            f"a clip and words, {with_words} (Figure 4)",
            ("model", "frames", *_MEASURED, "peak"),
            [(cost.label, str(cost.frames), *_measured(cost), _share(cost)) for cost in report.part("frames")],
            (
                "Ratio: time over that of ours at all latents and cross-attentions; spread: slowest over fastest run; "
                "peak: "
                f"share of a matrix product's rate beside it ({product}, median); MiB: held at once, beside model.",
                *_skipped(report.part("frames"), "frames"),
            ),
        ),
        Section(
            f"size of the frames, 8 frames, {with_words} (Figure 4)",
            ("model", "pixels", *_MEASURED),
            [(cost.label, str(cost.image_size), *_measured(cost)) for cost in report.part("sizes")],
            _skipped(report.part("sizes"), "image_size"),
        ),
        Section(
            "beside the paper's figures (Tables 1 and 2)",
            ("input, model", "GFLOPs", "published", "ms", "published"),
            [(cost.label, *_beside(cost)) for cost in report.part("tables")],
            (
                "Published: GFLOPs and ms in the paper, on other machines. Ours and ViLT: one pass over clip and words "
                "together; TimeSformer: one over each. All at 384 × 384 pixels and patches of 32. ViLT's 55.9 is about "
                "what its own 384 × 640 pixels take (51.8 by this count). 43.9 is one joint pass, though it stands in "
                "the row of the mixed stream: a pair of that takes the two passes below it.",
            ),
        ),
        Section(
            f"number of latents, 8 frames, {with_words} (Figure 5)",
            ("latents", *_MEASURED, "published R@1"),
            [(cost.label, *_measured(cost), _number(cost.published.score, ".1f")) for cost in report.part("latents")],
        ),
        Section(
            f"number of cross-attentions, 8 frames, {with_words} (Table 3)",
            ("cross_attentions", *_MEASURED, "published ms", "R@1"),
            [
                (
                    cost.label,
                    *_measured(cost),
                    _number(cost.published.milliseconds, ".0f"),
                    _number(cost.published.score, ".1f"),
                )
                for cost in report.part("cross_attentions")
            ],
        ),
        Section(
            f"{with_words} and no clip: a query",
            ("model", *_MEASURED),
            [(cost.label, *_measured(cost)) for cost in report.part("words")],
        ),
        Section(
            f"n texts against n clips of {report.streams.frames} frames, seconds (Figure 6)",
            ("stream", *(f"n={n}" for n in ITEMS)),
            [
                (stream.replace("_", " "), *(_amount(report.streams.seconds[stream][str(n)]) for n in ITEMS))
                for stream in STREAMS
            ],
            (
                "Added up from the steps, each measured: "
                + ", ".join(
                    f"{name.replace('_', ' ')} {_seconds(step.seconds)}" for name, step in report.streams.steps.items()
                )
                + ".",
            ),
        ),
    ]


def length_section(report: LengthReport) -> Section:
    """`bench length`."""
    return Section(
        f"a frame a second, {report.image_size} pixels, chunks of {report.chunk_frames} frames",
        ("form", "minutes", "GFLOPs", "s", "s a minute", "MiB"),
        [
            (
                one.form,
                f"{one.minutes:g}",
                f"{one.gflops:.0f}",
                _number(one.seconds, ".1f"),
                _number(one.seconds_per_minute, ".2f"),
                _number(one.peak_mib, ".0f"),
            )
            for one in report.lengths
        ],
        (
            "MiB: held at once beside the model, frames included. In chunks the frames are embedded for every "
            "cross-attention.",
            f"The shortest video's latents in chunks differ from those of it whole by {report.max_difference:.1e}.",
            *(
                f"Not run: {one.form}, {one.minutes:g} minutes ({one.skipped})."
                for one in report.lengths
                if one.skipped
            ),
        ),
    )


def questions_section(report: QuestionsReport) -> Section:
    """`bench ask`."""
    return Section(
        "the second question about a clip",
        ("frames", "cross_attentions", "first, ms", "second, ms", "ratio", "GFLOPs", "cache MiB", "max diff"),
        [
            (
                str(one.frames),
                str(one.cross_attentions),
                f"{one.first_ms:.0f}",
                f"{one.second_ms:.0f}",
                f"{one.second_over_first:.2f}",
                f"{one.first_gflops:.0f} → {one.second_gflops:.0f}",
                f"{one.cache_mib:.1f}",
                f"{one.max_difference:.0e}",
            )
            for one in report.questions
        ],
        ("Ratio: second over first. Max diff: of the second's logits from those of a model that sees the clip again.",),
    )


def reranking_section(report: RerankingReport) -> Section:
    """`bench rerank`."""
    projected, decoder, partial_attention = report.projected_ms, report.decoder_ms, report.partial_attention_ms
    whole = str(report.decoder_bytes), "1"
    return Section(
        f"re-ranking {report.candidates} clips for one query",
        ("from", "ms", "speedup", "bytes a clip", "ratio"),
        [
            (f"{report.latents} latents, keys and values projected", f"{projected:.0f}", "1.0", *whole),
            (f"{report.latents} latents, in their own space", f"{decoder:.0f}", f"{projected / decoder:.1f}", *whole),
            (
                "stored partial attentions",
                f"{partial_attention:.0f}",
                f"{report.speedup:.1f}",
                str(report.partial_attention_bytes),
                f"{report.bytes_ratio:.0f}",
            ),
        ],
        (f"Largest difference of the logits {report.max_difference:.1e}, their spread {report.logits_std:.2f}.",),
    )


_MEASURED = ("GFLOPs", "ms", "spread", "ratio", "MiB")


def _measured(cost: Cost) -> tuple[str, ...]:
    spread = f"{cost.slowest / cost.fastest:.2f}" if cost.slowest and cost.fastest else "–"
    return (
        f"{cost.gflops:.1f}",
        _number(cost.milliseconds, ".0f"),
        spread,
        _number(cost.ratio, ".2f"),
        _number(cost.peak_mib, ".0f"),
    )


def _beside(cost: Cost) -> tuple[str, ...]:
    return (
        f"{cost.gflops:.1f}",
        _number(cost.published.gflops, ".1f"),
        _number(cost.milliseconds, ".0f"),
        _number(cost.published.milliseconds, ".0f"),
    )


def _share(cost: Cost) -> str:
    return "–" if cost.share_of_peak is None else f"{100 * cost.share_of_peak:.0f} %"


def _skipped(costs: Sequence[Cost], where: str) -> tuple[str, ...]:
    """A line a model; `where`: the field that its settings differ in."""
    found: dict[str, list[str]] = {}
    for cost in costs:
        if cost.skipped:
            found.setdefault(cost.label, []).append(f"{getattr(cost, where)} ({cost.skipped})")
    names = {"frames": "frames", "image_size": "pixels"}
    return tuple(f"Counted, not run: {label}, {names[where]} {', '.join(those)}." for label, those in found.items())


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e-9:.3g} ns"
