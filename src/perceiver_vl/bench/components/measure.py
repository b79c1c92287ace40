"""`perceiver-vl bench components`: every switch alone, then the best few together, seed by seed, and one page."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from perceiver_vl.bench.components.equal_cost import COUNTED, equal_steps, measure_cost
from perceiver_vl.bench.components.report import ComponentsReport, Line, TrialLines, render_page
from perceiver_vl.bench.components.switches import Switch, together
from perceiver_vl.bench.components.trials import Trial, steps_of
from perceiver_vl.bench.learning.runs import RunResult, make_runs, placed_recipe
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, PreemptedError, UsageError, first_line
from perceiver_vl.utils.files import write_json, write_text

MOST_TOGETHER = 4
"""Switches that are tried together."""


def measure_components(
    trials: Sequence[Trial],
    switches: Sequence[Switch],
    output: Path,
    *,
    seeds: int = 3,
    first_seed: int = 0,
    counted: int = COUNTED,
    best_together: bool = True,
    again: str = "",
    workers: int = 1,
    progress: bool = False,
) -> ComponentsReport:
    """Make what was not made yet; `output/components.html` and `output/components.json` are written before the first
    seed and after each.

    seeds: 0 measures costs alone. first_seed: where the others are measured elsewhere. counted: steps whose operations
    are counted. best_together: also try, together, the `MOST_TOGETHER` that gain most on validation. again: what is
    typed before a switch's name to make its row again.
    Raises `PerceiverVLError` if nothing could be made.
    """
    bench = _Bench(tuple(trials), output, range(first_seed, first_seed + seeds), counted, again, workers, progress)
    bench.begin(switches)
    report = bench.make()
    if best_together:
        for one in report.trials:
            if (best := choose_together(one, switches)) is not None:
                bench.together[one.trial.name] = best.name
                bench.add(one.trial, best)
        if bench.together:
            report = bench.make()
    return report


def choose_together(found: TrialLines, switches: Sequence[Switch]) -> Switch | None:
    """Those of `switches` that gain most on validation, the best first, each beyond its spread where there are several
    seeds, leaving out what cannot be beside a better one; None where fewer than two gain.
    """
    gains = [
        (gain.points, line.switch)
        for line in found.lines
        if line.switch in switches and (gain := found.gain(line, "validation")) is not None
        if gain.points > (gain.spread or 0.0)
    ]
    best: Switch | None = None
    many = 0
    for _, switch in sorted(gains, key=lambda one: -one[0]):
        assert switch is not None
        try:
            both = switch if best is None else together(best, switch)
            PerceiverVLConfig(**found.trial.changed(both).model)
        except UsageError:
            continue
        best, many = both, many + 1
        if many == MOST_TOGETHER:
            break
    return best if many > 1 else None


@dataclass
class _Bench:
    """What was measured so far. lines: by trial."""

    trials: tuple[Trial, ...]
    output: Path
    seeds: range
    counted: int
    again: str
    workers: int
    progress: bool
    lines: dict[str, list[Line]] = field(default_factory=dict)
    together: dict[str, str] = field(default_factory=dict)
    results: dict[str, RunResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def begin(self, switches: Sequence[Switch]) -> None:
        """The baseline, its numbers of frames and the switches, with their costs."""
        starts = [trial.start for trial in self.trials if trial.start is not None]
        if starts:
            make_runs(starts, self.output, workers=self.workers, progress=self.progress)
        rows = {
            trial.name: [None, *map(trial.with_frames, trial.frames), *(s for s in switches if trial.name in s.trials)]
            for trial in self.trials
        }
        with ProgressBars(self.progress) as bars:
            advance = bars.stage("Costs", sum(map(len, rows.values())))
            for trial in self.trials:
                for switch in rows[trial.name]:
                    self.add(trial, switch)
                    advance(note=f"{trial.name}, {'baseline' if switch is None else switch.name}")

    def add(self, trial: Trial, switch: Switch | None) -> None:
        """A row; of a switch that cannot be tried it is said why, and the others go on."""
        steps = steps_of(trial.recipe)
        try:
            baseline, recipe = (
                placed_recipe(trial.row(one, steps, (0,)).runs[0], self.output) for one in (None, switch)
            )
            cost = measure_cost(baseline, recipe, self.output, self.counted)
            steps = equal_steps(baseline, recipe, steps, self.output, self.counted)
        except PreemptedError:
            raise PreemptedError("stopped; the same command goes on") from None
        except PerceiverVLError as error:
            if switch is None:
                raise
            self.failed[f"{trial.name}, {switch.name}"] = first_line(error)
            return
        row = trial.row(switch, steps, self.seeds)
        command = "" if switch is None or switch.is_baseline else f"{self.again} {switch.name}"
        self.lines.setdefault(trial.name, []).append(Line(switch, row, steps, cost, command))

    def make(self) -> ComponentsReport:
        """Train and test what was not, one seed after the other: after the first there is a whole table."""
        rows = [line.row for trial in self.trials for line in self.lines[trial.name]]
        report = self.write()
        for place in range(len(self.seeds)):
            runs = [replace(row.runs[place], tests=row.tests) for row in rows]
            made, failed = make_runs(runs, self.output, workers=self.workers, progress=self.progress)
            self.results |= made
            self.failed |= failed
            if not self.results:
                name, reason = next(iter(self.failed.items()))
                raise PerceiverVLError(f"every run failed, the first: {name}: {reason}")
            report = self.write()
        return report

    def write(self) -> ComponentsReport:
        """What is measured so far, its page and its JSON file."""
        made = tuple(TrialLines(trial, tuple(self.lines[trial.name]), dict(self.results)) for trial in self.trials)
        report = ComponentsReport(trials=made, together=dict(self.together), failed=dict(self.failed))
        write_text(self.output / "components.html", render_page(report))
        write_json(self.output / "components.json", report.to_dict())
        return report
