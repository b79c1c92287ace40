"""All benches in one run: `bench.json`, and one HTML page that needs nothing else (no script, no font, no file)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from perceiver_vl.bench.cascade import CascadeReport, measure_cascade
from perceiver_vl.bench.cost import MOST_SECONDS, Cost, CostReport, measure_cost
from perceiver_vl.bench.frontier import FrontierReport, measure_frontier
from perceiver_vl.bench.length import MINUTES, LengthReport, measure_length
from perceiver_vl.bench.peers import PEERS
from perceiver_vl.bench.questions import FRAMES as ASKED_FRAMES
from perceiver_vl.bench.questions import QuestionsReport, measure_questions
from perceiver_vl.bench.reranking import CANDIDATES, RerankingReport, measure_reranking
from perceiver_vl.bench.settings import FRAMES, OURS
from perceiver_vl.bench.sources import open_source
from perceiver_vl.bench.streams import ITEMS, STREAMS
from perceiver_vl.bench.tables import Section, cost_sections, length_section, questions_section, reranking_section
from perceiver_vl.bench.trained import cascade_section, frontier_sections
from perceiver_vl.bench.trained_figures import cascade_figure, frontier_figures
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.console import err
from perceiver_vl.utils.files import write_json, write_text
from perceiver_vl.utils.html import render
from perceiver_vl.utils.plots import points_svg

QUICK_SECONDS = 2.0
QUICK_CLIPS = 12
TRAINED_ITEMS = (10, 30, 100)


@dataclass(frozen=True)
class BenchReport(RunInfo):
    """What each bench found, and what it takes to get it again."""

    cost: CostReport
    length: LengthReport
    ask: QuestionsReport
    rerank: RerankingReport
    frontier: FrontierReport | None
    cascade: CascadeReport | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each bench's figures under its command's name."""
        names = ("cost", "length", "ask", "rerank", "frontier", "cascade")
        benches = {name: getattr(self, name).to_dict() for name in names if getattr(self, name) is not None}
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
    device: str = "cpu",
    progress: bool = False,
) -> BenchReport:
    """Run all benches, then write `output/bench.json` and `output/bench.html`; `candidates` are those re-ranked.

    `trained`: a folder of a model of retrieval, whose frontier and cascade are measured on `data` too.
    `quick`: one run of everything, of what takes two seconds at most, short videos and clips.
    """
    common: dict[str, Any] = {"seed": seed, "device": device, "progress": progress, "runs": 1 if quick else runs}
    _say("Cost", progress)
    most = QUICK_SECONDS if quick else MOST_SECONDS
    cost = measure_cost(config, frames=FRAMES[:3] if quick else FRAMES, most_seconds=most, **common)
    _say("Length", progress)
    length = measure_length(config, minutes=MINUTES[:2] if quick else MINUTES, **(common | {"runs": 1}))
    _say("Second questions", progress)
    ask = measure_questions(config, frames=ASKED_FRAMES[:2] if quick else ASKED_FRAMES, **common)
    _say("Re-ranking", progress)
    rerank = measure_reranking(config, candidates=candidates, **common)
    frontier, cascade = (None, None) if trained is None else _measure_trained(trained, data, quick, common)
    report = BenchReport(cost, length, ask, rerank, frontier, cascade)
    write_text(output / "bench.html", render_page(report))
    write_json(output / "bench.json", report.to_dict())
    return report


def _measure_trained(
    trained: Path, data: str, quick: bool, common: dict[str, Any]
) -> tuple[FrontierReport, CascadeReport]:
    how = {name: common[name] for name in ("runs", "progress")}
    clips = QUICK_CLIPS if quick else None
    _say("Frontier", common["progress"])
    frontier = measure_frontier(trained, data, clips=clips, device=common["device"], **how)
    _say("Cascade", common["progress"])
    model, processor = load_retriever(trained, common["device"])
    source = open_source(data, processor, clips=clips)
    items = [number for number in TRAINED_ITEMS if number <= len(source)] or [len(source)]
    return frontier, measure_cascade(model, processor, source, items=items, data=data, **how)


def render_page(report: BenchReport) -> str:
    """→ HTML."""
    sections: list[tuple[str, Section]] = [("cost", section) for section in cost_sections(report.cost)]
    sections += [("length", length_section(report.length)), ("ask", questions_section(report.ask))]
    sections += [("rerank", reranking_section(report.rerank))]
    drawn = [*_cost_figures(report.cost), _length_figure(report.length)]
    if report.frontier is not None:
        sections += [("frontier", section) for section in frontier_sections(report.frontier)]
        drawn += frontier_figures(report.frontier)
    if report.cascade is not None:
        sections.append(("cascade", cascade_section(report.cascade)))
        drawn.append(cascade_figure(report.cascade))
    figures = [Markup(figure) for figure in drawn]
    peers = [(peer.title, peer.passes) for peer in PEERS]
    return render("bench/page.html.jinja", report=report, sections=sections, figures=figures, peers=peers)


def _cost_figures(report: CostReport) -> list[str]:
    frames, sizes = report.part("frames"), report.part("sizes")
    shown = [cost for cost in frames if cost.model != OURS or cost.label in _dials(frames)]
    streams = {
        stream.replace("_", " "): (list(ITEMS), [report.streams.seconds[stream][str(n)] for n in ITEMS])
        for stream in STREAMS
    }
    words = "and 40 words"
    return [
        points_svg(_series(shown, "frames", "gflops"), x="frames", y="GFLOPs", title=f"Operations, a clip {words}"),
        points_svg(_series(shown, "frames", "milliseconds"), x="frames", y="ms", title=f"Time, a clip {words}"),
        points_svg(_series(shown, "frames", "peak_mib"), x="frames", y="MiB", title=f"Memory, a clip {words}"),
        points_svg(_series(sizes, "image_size", "gflops"), x="pixels a side", y="GFLOPs", title="8 frames of a size"),
        points_svg(streams, x="n", y="s", title="n texts against n clips, each stream"),
    ]


def _dials(frames: list[Cost]) -> list[str]:
    """The dearest and the cheapest of our budgets: two lines among the others'."""
    labels = list(dict.fromkeys(cost.label for cost in frames if cost.model == OURS))
    return [labels[0], labels[-1]]


def _length_figure(report: LengthReport) -> str:
    series = {}
    for form in dict.fromkeys(one.form for one in report.lengths):
        points = [(one.minutes, one.peak_mib) for one in report.lengths if one.form == form and one.peak_mib]
        if points:
            series[form] = ([minutes for minutes, _ in points], [mib for _, mib in points])
    return points_svg(series, x="minutes, a frame a second", y="MiB", title="Memory of a long video")


def _series(costs: Iterable[Cost], x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """By label, where both were measured."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for cost in costs:
        if getattr(cost, y) is not None:
            xs, ys = series.setdefault(cost.label, ([], []))
            xs.append(getattr(cost, x))
            ys.append(getattr(cost, y))
    return series


def _say(name: str, progress: bool) -> None:
    if progress:
        err.print(f"[bold]{name}[/bold] …")
