"""Accuracy against cost over a grid of budgets, and at each data type; the budgets worth choosing go with the model.

Scores are those of `evaluate`. Costs are of one example (`budget_selection.unit_of`), timed interleaved with those of
all other budgets.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perceiver_vl.bench.profiling import count_flops, time_interleaved
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.bench.videos import open_videos
from perceiver_vl.data.records import Need
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import CachedDataset, VideoDataset
from perceiver_vl.inference.budget_selection import (
    RETRIEVAL,
    Frontier,
    OperatingPoint,
    example_call,
    front_of,
    model_class,
    unit_of,
    write_frontier,
)
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.loading import load_folder
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLForImageClassification,
    PerceiverVLForRetrieval,
    PerceiverVLPreTrainedModel,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.quantization import DTYPES
from perceiver_vl.tasks import example_task_of, load_for
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import MatrixProduct

STREAMS = ("multi", "mixed", "cascade")
DIALS = {"frames": "T", "latents": "N", "text_latents": "N text", "cross_attentions": "k", "blocks": "blocks"}
"""What a budget sets, and the heading of its column."""


@dataclass(frozen=True)
class MeasuredBudget:
    """A budget: its score (`scores`: by stream or metric), GFLOPs, median milliseconds and their range;
    whether no other budget is as good for fewer operations, or in less time.
    """

    budget: str
    score: float
    scores: dict[str, float]
    gflops: float
    milliseconds: float
    fastest: float
    slowest: float
    on_gflops_front: bool
    on_time_front: bool


@dataclass(frozen=True)
class MeasuredDtype:
    """The dearest budget at a data type: its score and the difference from float32's, milliseconds, and how many times
    faster than float32 that is.
    """

    dtype: str
    score: float
    score_difference: float
    milliseconds: float
    speedup: float


@dataclass(frozen=True)
class FrontierReport(BenchReport):
    """Every budget, dearest first, and every data type; `frontier_file`: where the front was written."""

    settings: list[MeasuredBudget]
    dtypes: list[MeasuredDtype]
    task: str
    metric: str
    unit: str
    data: str
    examples: int
    dtype: str
    frontier_file: str

    @property
    def out_of_order(self) -> tuple[int, int]:
        """Pairs of settings that differ in their frames alone: those in which fewer frames took longer, and all."""
        of_others: dict[ComputeBudget, list[tuple[int, float]]] = {}
        for one in self.settings:
            budget = ComputeBudget.parse(one.budget)
            if budget.frames is not None:
                of_others.setdefault(replace(budget, frames=None), []).append((budget.frames, one.milliseconds))
        pairs = [pair for timed in of_others.values() for pair in itertools.combinations(sorted(timed), 2)]
        return sum(fewer[1] > more[1] for fewer, more in pairs), len(pairs)

    def sections(self) -> list[Section]:
        """The budgets on a front, then the data types."""
        kept = [one for one in self.settings if one.on_gflops_front or one.on_time_front]
        dials = [name for name in DIALS if any(f"{name}=" in one.budget for one in self.settings)]
        others = [name for name in kept[0].scores if name != self.metric.removesuffix(" R@1")]
        budgets = [
            (
                *(_value(one.budget, name) for name in dials),
                f"{one.score:.1f}",
                *(f"{one.scores[name]:.1f}" for name in others),
                f"{one.gflops:.3g}",
                f"{one.milliseconds:.3g}",
                ", ".join(["GFLOPs"] * one.on_gflops_front + ["ms"] * one.on_time_front),
            )
            for one in kept
        ]
        dtypes = [
            (
                one.dtype,
                f"{one.score:.1f}",
                f"{one.score_difference:+.1f}",
                f"{one.milliseconds:.3g}",
                f"{one.speedup:.2f}",
            )
            for one in self.dtypes
        ]
        note = (
            f"GFLOPs and ms are of one example: {self.unit}. In {self.dtype}; decoding is not counted. "
            "T: frames; N: latents; k: cross-attentions."
        )
        wrong, pairs = self.out_of_order
        noise = (
            f"Of {pairs} pairs of settings that differ in frames alone {wrong} took longer with fewer: what sets such "
            "settings apart is within the noise, which more runs or a quieter machine lessen."
        )
        return [
            Section(
                f"{self.metric} on {self.examples} of {self.data}, the best of {len(self.settings)} budgets",
                (*(DIALS[name] for name in dials), self.metric, *others, "GFLOPs", "ms", "best for"),
                budgets,
                (note, noise) if wrong else (note,),
            ),
            Section("data types, at the dearest budget", ("dtype", self.metric, "difference", "ms", "speedup"), dtypes),
        ]


@torch.inference_mode()
def measure_frontier(
    model_folder: str | Path,
    data: str,
    *,
    task: str = RETRIEVAL,
    stream: str = "mixed",
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    clips: int | None = None,
    grid: Mapping[str, Sequence[int]] | None = None,
    runs: int = 5,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    progress: bool = False,
) -> FrontierReport:
    """Score the model of a folder on `data` at every setting of `grid`, measure what each costs, write the front.

    `data` and how it is read (`split`, `metadata`, `columns`, `max_failed_fraction`), `clips`: as of
    `videos.open_videos`. `stream`: of retrieval, whose R@1 (text → video, the first caption of each clip) is the score;
    of other tasks it is the first metric. `grid`: values by dial, one of `DIALS`; those left out have the values of
    `default_grid`.
    Raises `UsageError` for values that the model does not have, and what loading and evaluating raise.
    """
    if runs < 1 or batch_size < 1:
        raise UsageError(f"runs={runs}, batch_size={batch_size}: need at least 1 of each")
    if stream not in STREAMS:
        raise UsageError(f"stream={stream}: choose from {', '.join(STREAMS)}")
    kind = model_class(task)
    model, processor = load_for(task, kind, model_folder, device, dtype)
    model.requires_grad_(False)  # as torch's counter wants it
    budgets = grid_of(model, processor, grid or {})
    need: Need | None = "text" if task == RETRIEVAL else None
    if issubclass(kind, PerceiverVLForImageClassification):
        need = "label"
    source = open_videos(
        data,
        processor,
        split=split,
        metadata=metadata,
        columns=columns,
        max_failed_fraction=max_failed_fraction,
        clips=clips,
        need=need,
    )
    score = _Scorer(task, stream, processor, batch_size, max_failed_fraction)
    with ProgressBars(progress) as stages:
        product = MatrixProduct(2 * model.config.hidden_size, model.device)
        advance = stages.stage("Counting operations", len(budgets))
        calls = [example_call(model, budget) for budget in budgets]
        gflops = []
        for call in calls:
            call()
            gflops.append(count_flops(call) / 1e9)
            advance()
        advance = stages.stage("Measuring time", runs * len(budgets))
        timings = time_interleaved(calls, runs, product, advance).timings
        scores = []
        advance = stages.stage("Scoring", len(budgets))
        for _, of_frames in itertools.groupby(budgets, key=lambda budget: budget.frames):
            decoded = CachedDataset(source)  # the frames of one number at a time are what fits into memory
            for budget in of_frames:
                scores.append(score(model, decoded, budget))
                advance()
        dtypes = _dtypes(model_folder, budgets[0], source, score, runs, product, stages)
    lower_is_better = task != RETRIEVAL and example_task_of(task).lower_is_better
    sign = -1.0 if lower_is_better else 1.0
    points = [
        OperatingPoint(str(budget), sign * by_name[score.name], operations, timing.milliseconds)
        for budget, by_name, operations, timing in zip(budgets, scores, gflops, timings, strict=True)
    ]
    by_gflops, by_time = ({point.budget for point in front_of(points, cost)} for cost in ("gflops", "milliseconds"))
    measured = [
        MeasuredBudget(
            point.budget,
            by_name[score.name],
            by_name,
            point.gflops,
            timing.milliseconds,
            timing.fastest,
            timing.slowest,
            on_gflops_front=point.budget in by_gflops,
            on_time_front=point.budget in by_time,
        )
        for point, by_name, timing in zip(points, scores, timings, strict=True)
    ]
    kept = tuple(point for point in points if point.budget in by_gflops | by_time)
    metric = f"{stream} R@1" if task == RETRIEVAL else example_task_of(task).metrics[0]
    unit, mark = unit_of(model), model_fingerprint(model_folder)
    path = write_frontier(
        model_folder,
        Frontier(kept, task, metric, lower_is_better, unit, mark, data, len(source), dtype, **vars(RunInfo())),
    )
    return FrontierReport(measured, dtypes, task, metric, unit, data, len(source), dtype, str(path), runs=runs)


def default_grid(config: PerceiverVLConfig, num_frames: int, separate_text: bool) -> dict[str, list[int]]:
    """Frames and latents whole, a half and a quarter; of `separate_text`, latents whole and a half; all
    numbers of cross-attentions; all blocks.
    """
    assert config.num_text_latents is not None
    return {
        "frames": _shares(num_frames, 3),
        "latents": _shares(config.num_latents, 3),
        "text_latents": _shares(config.num_text_latents, 2) if separate_text else [],
        "cross_attentions": list(range(config.num_blocks, 0, -1)),
        "blocks": [config.num_blocks],
    }


def grid_of(
    model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor, given: Mapping[str, Sequence[int]]
) -> list[ComputeBudget]:
    """Every combination that can be, the dearest of each dial first. Raises `UsageError` for one beyond the model."""
    config: Any = model.config
    separate_text = isinstance(model, PerceiverVLForRetrieval)
    if not separate_text and given.get("text_latents"):
        raise UsageError("text_latents: text is read together with the clip in this task, latents says how many there")
    values = {**default_grid(config, int(processor.image_processor.num_frames), separate_text), **given}
    steps: list[list[Any]] = [sorted(set(values[name]), reverse=True) or [None] for name in DIALS]
    budgets = []
    for dials in itertools.product(*steps):
        named: dict[str, Any] = dict(zip(DIALS, dials, strict=True))
        config.check_budget(ComputeBudget(**{**named, "cross_attentions": None}))  # each of them by itself
        config.check_budget(ComputeBudget(cross_attentions=named["cross_attentions"]))
        with suppress(UsageError):  # more cross-attentions than blocks: not a setting
            budget = ComputeBudget(**named)
            budgets.append(replace(budget, blocks=None) if budget.blocks == config.num_blocks else budget)
    return budgets


def _shares(number: int, halvings: int) -> list[int]:
    """The number, its half, the half of that, and so on, each once."""
    return list(dict.fromkeys(max(1, number >> times) for times in range(halvings)))


@dataclass(frozen=True)
class _Scorer:
    """What a model scores at a budget."""

    task: str
    stream: str
    processor: PerceiverVLProcessor
    batch_size: int
    max_failed_fraction: float

    @property
    def name(self) -> str:
        return self.stream if self.task == RETRIEVAL else example_task_of(self.task).metrics[0]

    def __call__(self, model: Any, source: VideoDataset, budget: ComputeBudget) -> dict[str, float]:
        common: dict[str, Any] = {
            "budget": budget,
            "batch_size": self.batch_size,
            "max_failed_fraction": self.max_failed_fraction,
        }
        if self.task == RETRIEVAL:
            ranked = evaluate_retrieval(model, self.processor, source, streams=STREAMS, captions_per_clip=1, **common)
            return {one.stream: one.text_to_video.r1 for one in ranked.streams}
        scored = example_task_of(self.task).evaluate(model, self.processor, source, **common)
        scored.metric(self.name)  # which says if nothing tells what is right
        return scored.metrics


def _dtypes(
    model_folder: str | Path,
    budget: ComputeBudget,
    source: VideoDataset,
    score: _Scorer,
    runs: int,
    product: MatrixProduct,
    stages: ProgressBars,
) -> list[MeasuredDtype]:
    """The same budget at every data type, timed interleaved; float32 first."""
    advance = stages.stage("Data types", len(DTYPES) * (1 + runs))
    decoded = CachedDataset(source)
    scores, calls = [], []
    for name in DTYPES:
        model, _ = load_folder(model_class(score.task), score.task, model_folder, product.device, name)
        scores.append(score(model, decoded, budget)[score.name])
        calls.append(example_call(model, budget))
        calls[-1]()
        advance()
    timings = time_interleaved(calls, runs, product, advance).timings
    return [
        MeasuredDtype(
            name, of_one, of_one - scores[0], timing.milliseconds, timings[0].milliseconds / timing.milliseconds
        )
        for name, of_one, timing in zip(DTYPES, scores, timings, strict=True)
    ]


def _value(budget: str, name: str) -> str:
    value = getattr(ComputeBudget.parse(budget), name)
    return "all" if value is None else str(value)
