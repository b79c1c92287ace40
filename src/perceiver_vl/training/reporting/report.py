"""A training run as one HTML page that needs nothing else: curves, recipe, data, and clips it gets right and wrong.

What is missing or damaged is said on the page; the rest of it is there all the same.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import read_skipped
from perceiver_vl.training.recipe import DataSource, Recipe, read_recipe
from perceiver_vl.training.recipe_trainer import SKIPPED
from perceiver_vl.training.reporting.examples import Examples, retrieval_examples, task_examples
from perceiver_vl.training.reporting.monitor import RunReader, RunState
from perceiver_vl.training.reporting.scores import Blind, Table, blind_scores, score_table
from perceiver_vl.training.setup import Start, prepare_start
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, first_line
from perceiver_vl.utils.files import write_text
from perceiver_vl.utils.html import render as render_template
from perceiver_vl.utils.plots import curves_svg

MOST_POINTS = 500
"""Of a curve: longer logs are averaged in stretches."""
LISTED = 20
"""Skipped files that are named on the page."""

Line = dict[str, float]


@dataclass(frozen=True)
class Chart:
    """Figures of the log that share an axis: those whose whole name `pattern` matches, each called by what its group
    has caught, or `title`.
    """

    title: str
    y: str
    pattern: str


OF_TRAINING = (
    Chart("Loss", "loss", r"loss"),
    Chart("Loss of each objective", "loss", r"loss_(.+)"),
    Chart("Learning rate", "learning rate", r"learning_rate"),
    Chart("Norm of the gradient", "norm", r"grad_norm"),
    Chart("Norm of the gradient, by part", "norm", r"grad_norm_(.+)"),
    Chart("Norm of the weights, by part", "norm", r"weight_norm_(.+)"),
    Chart("Throughput", "clips a second", r"clips_per_second"),
    Chart("Shares of the time and of the hardware's peak", "share", r"(data_wait|share_of_peak)"),
    Chart("Are latents, or examples, alike?", "cosine", r"(.+)_similarity"),
    Chart("Attention of each cross-attention", "entropy, of uniform", r"cross_attention_(.+)_entropy"),
    Chart("What each cross-attention adds", "relative norm", r"cross_attention_(.+)_update"),
    Chart("Memory", "MiB", r"(.*memory)_mib"),
)
OF_VALIDATION = (
    Chart("Validation, text → video", "R@1 (%)", r"(?!.*v2t)(.+)_r1"),
    Chart("Validation, video → text", "R@1 (%)", r"(.+)_v2t_r1"),
)
_RECALLS = re.compile(r".*_r\d+|runtime|.*per_second|epoch|step")


@dataclass
class Report:
    """Everything that is on the page. missing: what is not there, and why, a sentence each."""

    run: Path
    path: Path
    missing: list[str] = field(default_factory=list)
    state: RunState | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    data: list[tuple[str, int]] = field(default_factory=list)
    skipped: list[SkippedSample] = field(default_factory=list)
    examples: Examples | None = None
    blind: Blind = field(default_factory=Blind)

    def scores(self, validations: Sequence[Line]) -> Table | None:
        """The last validation beside the best one, chance and the most frequent answer."""
        with self.saying("the last validation"):
            return score_table(self.metrics, validations, self.blind)
        return None

    @contextmanager
    def saying(self, what: str) -> Iterator[None]:
        """Note what goes wrong meanwhile, and go on."""
        try:
            yield
        except (PerceiverVLError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            self.missing.append(f"{what}: {first_line(error)}")


def write_report(run: Path, out: Path | None = None, *, progress: bool = False, device: str | None = None) -> Report:
    """Write the page of a run, ended or not, to `out` (None: `report.html` in the run's folder).

    Its data are opened and its model is asked the first validation clips, as far as they are still there.
    Raises `UsageError` for a folder that no run has written to, `OSError` if the page cannot be written.
    """
    reader = RunReader(run)
    report = Report(run, out or run / "report.html")
    with ProgressBars(progress) as bar:
        advance = bar.stage("Reporting", 3)
        with report.saying("the log"):
            report.state = reader.read()
        _read_files(report)
        advance()
        _look_at_data(report, device)
        advance()
        write_text(report.path, render(report))
        advance()
    return report


def render(report: Report) -> str:
    """→ HTML."""
    log, validations = (report.state.log, report.state.validations) if report.state else ([], [])
    figures = [*charts(log, OF_TRAINING[:2]), *charts(validations, _of_validation(validations))]
    figures += charts(log, OF_TRAINING[2:])
    return render_template(
        "training/reporting/report.html.jinja",
        report=report,
        name=report.run.resolve().name,
        facts=_facts(report),
        figures=[Markup(figure) for figure in figures],
        scores=report.scores(validations),
        listed=LISTED,
    )


def charts(lines: Sequence[Line], wanted: Sequence[Chart]) -> list[str]:
    """A figure for each chart of which the lines have at least two points; numbers that are not finite are left out."""
    drawn = []
    for chart in wanted:
        series = {}
        for name in dict.fromkeys(name for line in lines for name in line):
            if matched := re.fullmatch(chart.pattern, name):
                points = [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
                if len(points) > 1:
                    series[(matched.groups() or (chart.title,))[0].replace("_", " ")] = thinned(points)
        if series:
            drawn.append(curves_svg(series, x="step", y=chart.y, title=chart.title))
    return drawn


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` points (xs, ys), each the mean of a stretch of them."""
    count = min(len(points), most)
    edges = [number * len(points) // count for number in range(count + 1)]
    stretches = [points[start:end] for start, end in pairwise(edges)]
    means = [[sum(column) / len(stretch) for column in zip(*stretch, strict=True)] for stretch in stretches]
    return [x for x, _ in means], [y for _, y in means]


def _of_validation(validations: Sequence[Line]) -> list[Chart]:
    """Recalls together, any other metric by itself."""
    others = dict.fromkeys(name for line in validations for name in line if not _RECALLS.fullmatch(name))
    return [*OF_VALIDATION, *(Chart(f"Validation, {name.replace('_', ' ')}", name, re.escape(name)) for name in others)]


def _read_files(report: Report) -> None:
    """What the run has left beside its log."""
    run = report.run
    if report.state is None or not report.state.log:
        report.missing.append("curves: no line of training in log.jsonl")
    with report.saying("recipe.yaml"):
        report.recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    with report.saying(SKIPPED):
        report.skipped = read_skipped(run / SKIPPED)
    if (run / "metrics.json").is_file():
        with report.saying("metrics.json"):
            report.metrics = dict(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
    else:
        report.missing.append("the last validation: no metrics.json, which is written when the run ends")


def _look_at_data(report: Report, device: str | None) -> None:
    """Count the clips, and ask the model about some of them."""
    run = report.run
    if not (run / "config.json").is_file():
        report.missing.append("examples: no model yet, it is written when the run ends")
        return
    start: Start | None = None
    with report.saying("data and examples"):
        recipe = read_recipe(run / "recipe.yaml")
        start = prepare_start(recipe, run, 1, 0)
        sources = start.source.sources
        train = zip(recipe.data.train, sources, strict=True)
        report.data = [(f"train: {_source_name(split)}", len(source)) for split, source in train]
        if start.validation is not None and recipe.data.validation is not None:
            report.data.append((f"validation: {_source_name(recipe.data.validation)}", len(start.validation)))
    if start is None:
        return
    with report.saying("chance"):
        report.blind = blind_scores(recipe, start)
    with report.saying("examples"):
        report.examples = _examples(run, recipe, start, device)
    if start.validation is None:
        report.missing.append("examples: the recipe has no data.validation")


def _examples(run: Path, recipe: Recipe, start: Start, device: str | None) -> Examples | None:
    if start.validation is None or recipe.teacher is not None:
        return None
    if start.task is None:
        return retrieval_examples(run, start.validation, recipe.objectives, recipe.data.validation_frames, device)
    return task_examples(run, start.validation, start.task, recipe.data.validation_frames, device)


def _source_name(split: DataSource) -> str:
    """Where clips are from."""
    where = f"the generated world ({split.world.task})" if split.world is not None else split.folder or split.shards
    return ", ".join(str(part) for part in (split.benchmark, where, split.split) if part)


def _facts(report: Report) -> list[tuple[str, str]]:
    """The run in a few lines."""
    facts: list[tuple[str, str]] = []
    if (state := report.state) is not None:
        how = "ended" if state.ended else "stopped, or killed" if state.stopped else "still running"
        steps = f"{state.step:,} of {state.steps:,}" if state.steps else f"{state.step:,}"
        facts += [("state", f"{how} at step {steps}")]
        latest = state.health
        shown = {
            "clips_per_second": ("clips a second", "{:.3g}"),
            "share_of_peak": ("share of the hardware's peak", "{:.1%}"),
            "data_wait": ("waiting for data", "{:.1%} of the time"),
            "memory_mib": ("memory, most of a process", "{:,.0f} MiB"),
            "gpu_memory_mib": ("memory of the GPU, most", "{:,.0f} MiB"),
        }
        facts += [(words, form.format(latest[name])) for name, (words, form) in shown.items() if name in latest]
        if state.nonfinite:
            facts.append(("steps skipped, not finite", str(state.nonfinite)))
    if isinstance(seconds := report.metrics.get("seconds"), int | float):
        facts.append(("training took", _duration(seconds)))
    facts.append(("files skipped", str(len(report.skipped))))
    if damaged := report.metrics.get("damaged"):
        facts.append(("files that lacked frames, and were used", str(len(damaged))))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
