"""n texts against n clips with a trained model, in every stream: what the cascade saves, and what it costs in recall.

All is counted that a stream needs once the clips are decoded: encoding both sides, and scoring all n² pairs. The single
stream caches the keys and values of each clip; still its n² joint passes outgrow any patience, so beyond a limit its
time is extrapolated by n² from the most items that it was run on, and its recall left open.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import CachedDataset, Subset, VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

ITEMS = (10, 30, 100, 300, 1000)
CACHED_STREAMS = ("multi", "mixed", "cascade")
MOST_SECONDS = 120.0


@dataclass(frozen=True)
class StreamRun:
    """n texts against n clips: seconds in all (median) and their range, and R@1 of the texts.

    `extrapolated_from`: the number of items whose time was scaled to this one, where it was not run; `r1` is None then.
    """

    items: int
    stream: str
    seconds: float
    fastest: float
    slowest: float
    r1: float | None
    extrapolated_from: int | None


@dataclass(frozen=True)
class CascadeReport(BenchReport):
    """All runs. `time_ratio`: the cascade's time over the single stream's at the most items (`time_items`);
    `r1_difference`: the cascade's R@1 less the single stream's, at the most items that the latter ranked (`r1_items`).
    """

    streams: list[StreamRun]
    time_ratio: float
    time_items: int
    time_extrapolated_from: int | None
    r1_difference: float
    r1_items: int
    shortlist: int
    budget: str
    data: str

    def sections(self) -> list[Section]:
        """A row a stream and number of items."""
        rows = [
            (
                str(one.items),
                one.stream,
                f"{one.seconds:.3g}" if one.extrapolated_from is None else f"~{one.seconds:.3g}",
                f"{one.slowest / one.fastest:.2f}",
                or_dash(one.r1, ".1f"),
            )
            for one in self.streams
        ]
        fewer = self.time_extrapolated_from
        source = f", the latter extrapolated from {fewer} × {fewer}" if fewer else ""
        notes = (
            f"The cascade takes {self.time_ratio:.2g} of the single stream's time at n={self.time_items}{source}; "
            f"its R@1 differs by {self.r1_difference:+.1f} at n={self.r1_items}.",
            "s: encoding both sides and scoring all pairs, of decoded clips. ~: extrapolated by n².",
        )
        title = f"n texts against n clips of {self.data}, shortlist {self.shortlist}, budget {self.budget}"
        return [Section(title, ("n", "stream", "s", "slowest/fastest", "R@1"), rows, notes)]


def measure_cascade(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    *,
    items: Sequence[int] = ITEMS,
    shortlist: int = 20,
    runs: int = 3,
    most_seconds: float = MOST_SECONDS,
    budget: ComputeBudget = FULL_BUDGET,
    batch_size: int = 32,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    data: str = "",
    progress: bool = False,
) -> CascadeReport:
    """Rank the first clips of `source` for the first caption of each, so many `items` at a time, stream after stream.

    The single stream is run where it would take `most_seconds` or less, judged by the items before; the first number of
    items always. `data`: what the source is called in the report.
    Raises `UsageError` for fewer than two items, or more than there are clips.
    """
    if not items or min(items) < 2 or runs < 1:
        raise UsageError(f"items={','.join(map(str, items))}, runs={runs}: need two items or more, and at least 1 run")
    if max(items) > len(source):
        raise UsageError(f"items={max(items)}: more than the {len(source)} clips of {data or 'the data'}")
    num_frames = budget.frames or int(processor.image_processor.num_frames)
    decoded = CachedDataset(Subset(source, max(items)))
    common: dict[str, Any] = {"captions_per_clip": 1, "shortlist": shortlist, "budget": budget}
    common["max_failed_fraction"] = max_failed_fraction
    measured: list[StreamRun] = []
    with ProgressBars(progress) as stages:
        advance = stages.stage("Decoding", len(decoded))
        for index in range(len(decoded)):
            decoded.frames(index, num_frames)
            advance()
        advance = stages.stage("Ranking", len(items) * runs)
        for number in sorted(items):
            subset = Subset(decoded, number)
            before = [one for one in measured if one.stream == "single" and one.extrapolated_from is None]
            guess = before[-1].seconds * (number / before[-1].items) ** 2 if before else 0.0
            streams = (*CACHED_STREAMS, "single") if guess <= most_seconds else CACHED_STREAMS
            seconds: dict[str, list[float]] = {stream: [] for stream in streams}
            recalls: dict[str, float] = {}
            for _ in range(runs):
                for stream in streams:
                    result = evaluate_retrieval(
                        model, processor, subset, streams=(stream,), batch_size=batch_size, **common
                    )
                    (one,) = result.streams
                    encoding = result.seconds_per_clip * result.clips if stream != "single" else 0.0
                    seconds[stream].append(encoding + one.seconds_per_query * result.captions)
                    recalls[stream] = one.text_to_video.r1
                advance(note=f"{number} × {number}")
            measured += [
                StreamRun(number, name, statistics.median(taken), min(taken), max(taken), recalls[name], None)
                for name, taken in seconds.items()
            ]
            if "single" not in streams:
                measured.append(_extrapolated(before[-1], number))
    by_place = {(one.items, one.stream): one for one in measured}
    most = max(items)
    ranked = max(one.items for one in measured if one.stream == "single" and one.r1 is not None)
    cascade, single = by_place[ranked, "cascade"].r1, by_place[ranked, "single"].r1
    assert cascade is not None
    assert single is not None
    return CascadeReport(
        measured,
        time_ratio=by_place[most, "cascade"].seconds / by_place[most, "single"].seconds,
        time_items=most,
        time_extrapolated_from=by_place[most, "single"].extrapolated_from,
        r1_difference=cascade - single,
        r1_items=ranked,
        shortlist=shortlist,
        budget=str(budget),
        data=data,
        runs=runs,
    )


def _extrapolated(run: StreamRun, items: int) -> StreamRun:
    factor = (items / run.items) ** 2
    seconds, fastest, slowest = (factor * value for value in (run.seconds, run.fastest, run.slowest))
    return StreamRun(items, run.stream, seconds, fastest, slowest, None, run.items)
