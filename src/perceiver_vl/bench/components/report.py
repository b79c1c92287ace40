"""What came out: a table a trial, what pays and what contradicts a paper in words, and how each row is made again."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perceiver_vl.bench.components.equal_cost import Cost
from perceiver_vl.bench.components.switches import Switch
from perceiver_vl.bench.components.trials import Trial
from perceiver_vl.bench.learning.parts import Column, Results, Row, cell
from perceiver_vl.bench.tables import Section, or_dash
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.utils.html import render


@dataclass(frozen=True)
class Gain:
    """Points of a score, and their spread over seeds (None: of one seed)."""

    points: float
    spread: float | None

    @property
    def sign(self) -> int:
        """1 for more than the spread, -1 for less than minus the spread, 0 for what is not known to be either."""
        return 0 if self.spread is None else (self.points > self.spread) - (self.points < -self.spread)

    def __str__(self) -> str:
        return f"{self.points:+.1f}" if self.spread is None else f"{self.points:+.1f} ± {self.spread:.1f}"


@dataclass(frozen=True)
class Line:
    """A row of a trial: what was changed, for how many steps, at which cost. command: which makes it again, alone."""

    switch: Switch | None
    row: Row
    steps: int
    cost: Cost
    command: str = ""

    @property
    def is_switch(self) -> bool:
        """Else it is the baseline at some number of frames, which the switches are held against."""
        return self.switch is not None and not self.switch.is_baseline


@dataclass(frozen=True)
class TrialLines:
    """All rows of a trial, the baseline first."""

    trial: Trial
    lines: tuple[Line, ...]
    results: Results

    def scores(self, line: Line, test: str = "test") -> list[float]:
        """What is compared, a number a seed; test: of which split."""
        score = self.trial.score
        return line.row.values(Column(score.title, score.path, test), self.results)

    def gain(self, line: Line, test: str = "test") -> Gain | None:
        """Above what the baseline reaches at as many operations of training and of an answer; None where something was
        not measured.

        Between two numbers of frames that the baseline was trained with, its score is taken as a line over the
        logarithm of the operations; beyond the last of them, as that of the last.
        """
        found = self.scores(line, test)
        frontier = [(one, self.scores(one, test)) for one in self.lines if not one.is_switch]
        points = sorted((one.cost.answer_gflops, statistics.mean(scores)) for one, scores in frontier if scores)
        if not found or not points or not frontier[0][1]:
            return None
        gflops, scores = np.array(points).T
        expected = float(np.interp(math.log(line.cost.answer_gflops), np.log(gflops), scores))
        both = found, frontier[0][1]
        spread = math.hypot(*map(statistics.stdev, both)) if min(map(len, both)) > 1 else None
        return Gain(statistics.mean(found) - expected, spread)

    def table(self) -> Section:
        """Everything, for a page."""
        first, *others = self.worth(), self.answers(), self.training()
        columns = (*first.columns, *(name for one in others for name in one.columns[1:]))
        rows = [
            (*row, *(cell for other in beside for cell in other[1:]))
            for row, *beside in zip(first.rows, *(one.rows for one in others), strict=True)
        ]
        return Section(self.trial.title, columns, rows, tuple(note for one in (first, *others) for note in one.notes))

    def worth(self) -> Section:
        """Scores."""
        columns = (self.trial.score, *self.trial.beside)
        rows = []
        for line in self.lines:
            cells = [cell(line.row.values(column, self.results), column) for column in columns]
            gain = self.gain(line) if line.is_switch else None
            rows.append((line.row.label, cells[0], "–" if gain is None else str(gain), *cells[1:], f"{line.steps:,}"))
        head = ("switch", columns[0].title, "gain", *(column.title for column in columns[1:]), "steps")
        note = (
            "Mean ± standard deviation over the seeds. Each has as many steps as cost the operations of the baseline's "
            "training. Gain: above what the baseline, trained with more or fewer frames, reaches at the operations of "
            "the switch's answer; ± of both."
        )
        return Section(f"{self.trial.title}: what it is worth", head, rows, (note,))

    def answers(self) -> Section:
        """What a model is, and what it costs in use."""
        base, rows = self.lines[0].cost, []
        for line in self.lines:
            counts = [self.results[run.key].parameters for run in line.row.runs if run.key in self.results][:1]
            cost = line.cost
            rows.append(
                (
                    line.row.label,
                    or_dash(counts[0] if counts else None, ",d"),
                    f"{1e3 * cost.answer_gflops:.3g}",
                    f"{cost.answer_gflops / base.answer_gflops:.2f}",
                    f"{cost.answer_ms:.2f}",
                    f"{cost.answer_ratio:.2f}",
                    f"{cost.answer_mib:.2f}",
                )
            )
        note = (
            "Of one example's answer, words and clip in one input array. Milliseconds of the processor, one thread, "
            "each measured in turn with the baseline, to whose time of that moment × is the ratio."
        )
        head = ("switch", "parameters", "MFLOPs", "×", "ms", "×", "MiB")
        return Section(f"{self.trial.title}: what an answer costs", head, rows, (note,))

    def training(self) -> Section:
        """What it costs to train."""
        base, rows = self.lines[0].cost, []
        for line in self.lines:
            found = [self.results[run.key] for run in line.row.runs if run.key in self.results]
            times = [1e3 * one.processor_seconds / one.steps for one in found if one.processor_seconds is not None]
            rows.append(
                (
                    line.row.label,
                    f"{line.cost.step_gflops:.3g}",
                    f"{line.cost.step_gflops / base.step_gflops:.2f}",
                    or_dash(statistics.mean(times) if times else None, ".0f"),
                    f"{line.cost.training_mib:.0f}",
                )
            )
        note = (
            "A step's operations are those of all its forward passes, of the backward pass and of the optimizer; its "
            "milliseconds those of the processor in the trainings above, all threads, with all that a training does. "
            "MiB are what torch holds at once."
        )
        head = ("switch", "GFLOPs a step", "×", "ms a step", "MiB")
        return Section(f"{self.trial.title}: what training costs", head, rows, (note,))


@dataclass(frozen=True)
class ComponentsReport(RunInfo):
    """What each switch is worth. together: by trial, what was chosen to be tried together."""

    trials: tuple[TrialLines, ...]
    together: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def sections(self) -> list[Section]:
        """For a terminal: what switches are worth, and what they cost."""
        return [section for one in self.trials for section in (one.worth(), one.answers(), one.training())]

    def sentences(self) -> list[str]:
        """What pays, what was chosen together, what contradicts a paper."""
        return [*self.verdicts(), *self.contradictions()]

    def verdicts(self) -> list[str]:
        """Of each trial, what is above and what is below the baseline by more than its spread, and what was chosen."""
        said = []
        for one in self.trials:
            switches = [line for line in one.lines if line.is_switch]
            seeds = max((len(one.scores(line)) for line in switches), default=0)
            if seeds < 2:
                said.append(f"{one.trial.title}: one seed, so nothing is said of what pays.")
                continue
            gains = {line.row.label: one.gain(line) for line in switches}
            up, down = (
                ", ".join(name for name, gain in gains.items() if gain and gain.sign == sign) or "nothing"
                for sign in (1, -1)
            )
            said.append(
                f"{one.trial.title}, {seeds} seeds: above the baseline by more than the spread: {up}; below: {down}."
            )
        said += [f"{trial}: together, chosen on validation: {names}." for trial, names in self.together.items()]
        return said

    def contradictions(self) -> list[str]:
        """Where a paper found a gain, and here there is a loss beyond the spread: both, with their conditions."""
        said = []
        for one in self.trials:
            for line in one.lines:
                gain, switch = one.gain(line), line.switch
                if switch is None or gain is None or not (switch.claim and gain.sign < 0):
                    continue
                parameters = one.results[line.row.runs[0].key].parameters
                said.append(
                    f"{switch.name}: {switch.system}: {switch.claim}. Here {gain} points ({one.trial.title}; "
                    f"{parameters / 1e6:.1f} million parameters, {line.steps:,} steps from nothing, at equal FLOPs)."
                )
        return said

    def commands(self) -> Section:
        """How each row is made again, alone."""
        commands = {line.row.label: line.command for one in self.trials for line in one.lines if line.is_switch}
        return Section("each row again, alone", ("switch", "command"), list(commands.items()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each trial's rows with all figures."""
        trials = {}
        for one in self.trials:
            trials[one.trial.name] = [
                {
                    "switch": line.row.label,
                    "overrides": [] if line.switch is None else list(line.switch.overrides),
                    "steps": line.steps,
                    "scores": one.scores(line),
                    "validation": one.scores(line, "validation"),
                    "gain": _plain(one.gain(line)) if line.is_switch else None,
                    "figures": {column.title: line.row.values(column, one.results) for column in one.trial.beside},
                    "cost": vars(line.cost),
                    "command": line.command,
                }
                for line in one.lines
            ]
        return {
            "trials": trials,
            "together": self.together,
            "sentences": self.sentences(),
            "failed": self.failed,
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
        }


def render_page(report: ComponentsReport) -> str:
    """→ HTML."""
    tried = {line.switch.name: line.switch for one in report.trials for line in one.lines if line.switch is not None}
    of = {name: switch.system for name, switch in tried.items()}
    return render("bench/components/report.html.jinja", report=report, of=of)


def list_section(switches: Sequence[Switch]) -> Section:
    """The switches with the works that they are of."""
    rows = [(one.name, one.system, one.idea, " ".join(one.overrides), ", ".join(one.trials)) for one in switches]
    return Section("switches", ("switch", "of", "idea", "behind a recipe", "tried on"), rows)


def _plain(gain: Gain | None) -> dict[str, float | None] | None:
    return None if gain is None else vars(gain)
