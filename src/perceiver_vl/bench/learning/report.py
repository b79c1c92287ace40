"""`perceiver-vl bench learning`: make the runs of all parts that were asked for, then one page and one JSON file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from perceiver_vl.bench.learning.costs import RunCost, costs_section, measure_costs
from perceiver_vl.bench.learning.parts import Part, Results
from perceiver_vl.bench.learning.runs import Run, make_runs
from perceiver_vl.bench.tables import Section
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.errors import PerceiverVLError
from perceiver_vl.utils.files import write_json, write_text
from perceiver_vl.utils.html import render
from perceiver_vl.utils.plots import points_svg


@dataclass(frozen=True)
class LearningReport(RunInfo):
    """What came out. failed: why a run has no figures, by its name; costs: of ours and of the joint transformer;
    baselines: tables that no run makes, by the names of the parts that they stand in.
    """

    parts: tuple[Part, ...]
    results: Results
    failed: dict[str, str]
    costs: list[RunCost]
    baselines: Mapping[str, Sequence[Section]]

    @property
    def minutes(self) -> float:
        """Of training, all runs together."""
        return sum(result.seconds for result in self.results.values()) / 60

    def part_sections(self, part: Part) -> list[Section]:
        """The tables of a part as text; the first part has that of the costs, too."""
        sections = [*(table.section(self.results) for table in part.tables), *self.baselines.get(part.name, ())]
        return [*sections, costs_section(self.costs)] if self.costs and part is self.parts[0] else sections

    def sections(self) -> list[Section]:
        """All tables."""
        return [section for part in self.parts for section in self.part_sections(part)]

    def figures(self, part: Part) -> list[str]:
        """What of a part is drawn, as SVG."""
        drawn = []
        for table in part.tables:
            if table.x and (series := table.series(self.results)):
                drawn.append(points_svg(series, x=table.x_title, y=table.y_title, title=table.title))
        return drawn

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each part's tables, row by row."""
        parts = {part.name: {table.title: table.to_dict(self.results) for table in part.tables} for part in self.parts}
        return {
            "parts": parts,
            "baselines": {name: [asdict(one) for one in sections] for name, sections in self.baselines.items()},
            "costs": [vars(cost) for cost in self.costs],
            "failed": self.failed,
            "minutes": self.minutes,
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
        }


def measure_learning(
    parts: Sequence[Part],
    output: Path,
    *,
    cost_runs: Sequence[tuple[str, Run]] = (),
    baselines: Mapping[str, Sequence[Section]] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> LearningReport:
    """Make what was not made yet, then write `output/learning.html` and `output/learning.json`.

    cost_runs: runs whose costs are measured, by what they learn. baselines: as of `LearningReport`. Raises
    `PerceiverVLError` if every run failed.
    """
    runs = [run for part in parts for run in part.runs]
    results, failed = make_runs(runs, output, workers=workers, progress=progress)
    if failed and not results:
        name, reason = next(iter(failed.items()))
        raise PerceiverVLError(f"every run failed, the first: {name}: {reason}")
    costs = measure_costs(cost_runs, output) if cost_runs else []
    report = LearningReport(tuple(parts), results, failed, costs, baselines or {})
    write_text(output / "learning.html", render_page(report))
    write_json(output / "learning.json", report.to_dict())
    return report


def render_page(report: LearningReport) -> str:
    """→ HTML."""
    parts = [(part, report.part_sections(part), [Markup(svg) for svg in report.figures(part)]) for part in report.parts]
    return render("bench/learning/report.html.jinja", report=report, parts=parts)
