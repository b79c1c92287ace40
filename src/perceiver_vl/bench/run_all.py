"""All benches in one run: `bench.json`, and one HTML page that needs nothing else (no script, no font, no file)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from perceiver_vl.bench.baselines import BASELINES
from perceiver_vl.bench.cascade import CascadeReport, measure_cascade
from perceiver_vl.bench.cost import MOST_SECONDS, measure_cost
from perceiver_vl.bench.cost_report import CostReport
from perceiver_vl.bench.cost_settings import FRAMES
from perceiver_vl.bench.figures import cascade_figure, cost_figures, frontier_figures, length_figure
from perceiver_vl.bench.frontier import FrontierReport, measure_frontier
from perceiver_vl.bench.length import MINUTES, LengthReport, measure_length
from perceiver_vl.bench.reranking import CANDIDATES, RerankingReport, measure_reranking
from perceiver_vl.bench.tables import BenchReport
from perceiver_vl.bench.videos import open_videos
from perceiver_vl.bench.vision_cache import FRAMES as CACHED_FRAMES
from perceiver_vl.bench.vision_cache import VisionCacheReport, measure_vision_cache
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.console import err
from perceiver_vl.utils.files import write_json, write_text
from perceiver_vl.utils.html import render

QUICK_SECONDS = 2.0
QUICK_CLIPS = 12
TRAINED_ITEMS = (10, 30, 100)


@dataclass(frozen=True)
class AllReports(RunInfo):
    """What each bench found, by its command's name; frontier and cascade: of a trained model, where there is one."""

    cost: CostReport
    length: LengthReport
    ask: VisionCacheReport
    rerank: RerankingReport
    frontier: FrontierReport | None
    cascade: CascadeReport | None

    def reports(self) -> Iterator[tuple[str, BenchReport]]:
        """Each with its command's name."""
        return ((name, report) for name, report in vars(self).items() if isinstance(report, BenchReport))

    def figures(self) -> list[str]:
        """All that is drawn, as SVG texts."""
        figures = [*cost_figures(self.cost), length_figure(self.length)]
        figures += frontier_figures(self.frontier) if self.frontier else []
        return [*figures, cascade_figure(self.cascade)] if self.cascade else figures

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        benches = {name: report.to_dict() for name, report in self.reports()}
        return {**benches, "command": self.command, "machine": self.machine, "versions": self.versions}


def run_benches(
    output: Path,
    config: PerceiverVLConfig | None = None,
    *,
    quick: bool = False,
    runs: int = 3,
    seed: int = 0,
    candidates: int = CANDIDATES,
    trained: Path | None = None,
    data: str = "",
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    device: str = "cpu",
    progress: bool = False,
) -> AllReports:
    """Run all benches, then write `output/bench.json` and `output/bench.html`; `candidates` are those re-ranked.

    `trained`: a folder of a model of retrieval, whose frontier and cascade are measured on `data` too, which is read as
    `metadata`, `columns` and `max_failed_fraction` say.
    `quick`: one run of everything, of what takes two seconds at most, short videos and clips.
    """
    runs = 1 if quick else runs
    shared: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    _announce("Cost", progress)
    most = QUICK_SECONDS if quick else MOST_SECONDS
    cost = measure_cost(config, frames=FRAMES[:3] if quick else FRAMES, most_seconds=most, runs=runs, **shared)
    _announce("Length", progress)
    length = measure_length(config, minutes=MINUTES[:2] if quick else MINUTES, **shared)
    _announce("Second questions", progress)
    frames = CACHED_FRAMES[:2] if quick else CACHED_FRAMES
    ask = measure_vision_cache(config, frames=frames, runs=runs, **shared)
    _announce("Re-ranking", progress)
    rerank = measure_reranking(config, candidates=candidates, runs=runs, **shared)
    frontier = cascade = None
    if trained is not None:
        clips = QUICK_CLIPS if quick else None
        _announce("Frontier", progress)
        how: dict[str, Any] = {"metadata": metadata, "columns": columns, "max_failed_fraction": max_failed_fraction}
        frontier = measure_frontier(trained, data, clips=clips, runs=runs, device=device, progress=progress, **how)
        _announce("Cascade", progress)
        model, processor = load_retriever(trained, device)
        source = open_videos(data, processor, clips=clips, **how)
        items = [number for number in TRAINED_ITEMS if number <= len(source)] or [len(source)]
        cascade = measure_cascade(
            model,
            processor,
            source,
            items=items,
            runs=runs,
            max_failed_fraction=max_failed_fraction,
            data=data,
            progress=progress,
        )
    report = AllReports(cost, length, ask, rerank, frontier, cascade)
    write_text(output / "bench.html", render_page(report))
    write_json(output / "bench.json", report.to_dict())
    return report


def render_page(report: AllReports) -> str:
    """→ HTML."""
    return render(
        "bench/report.html.jinja",
        report=report,
        figures=[Markup(figure) for figure in report.figures()],
        baselines=BASELINES,
    )


def _announce(name: str, progress: bool) -> None:
    if progress:
        err.print(f"{name} …", style="bold")
