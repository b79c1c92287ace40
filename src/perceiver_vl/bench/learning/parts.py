"""What evidence is made of: tables whose rows are runs and whose columns are figures of tests."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from perceiver_vl.bench.learning.runs import Run, RunResult, Test
from perceiver_vl.bench.tables import Section

Results = Mapping[str, RunResult]
"""Figures by the runs' keys."""


@dataclass(frozen=True)
class Row:
    """A line of a table: its runs, which differ in their seeds alone, and what they are tested by."""

    label: str
    runs: tuple[Run, ...]
    tests: tuple[Test, ...] = ()

    def values(self, column: "Column", results: Results) -> list[float]:
        """What was measured, a number a run."""
        found = [results[run.key] for run in self.runs if run.key in results]
        if column.of_run:
            return [getattr(result, column.of_run) / column.unit for result in found]
        tests = [test for test in self.tests if column.test in ("", test.name)][:1]
        measured = [result.figure(test, *column.path) for result in found for test in tests]
        return [value / column.unit for value in measured if value is not None]


@dataclass(frozen=True)
class Column:
    """A figure: of the row's `test` of this name (empty: its first) by its `path`, or `of_run` an attribute of
    `RunResult`; in units of `unit`.
    """

    title: str
    path: tuple[str, ...] = ()
    test: str = ""
    of_run: str = ""
    digits: int = 1
    unit: float = 1.0


@dataclass(frozen=True)
class Table:
    """Rows and columns, and what to know to read them. x: numbers along an axis, one a row, over which the columns are
    drawn, too.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    first: str = "model"
    notes: tuple[str, ...] = ()
    x: tuple[float, ...] = ()
    x_title: str = ""
    y_title: str = ""

    def section(self, results: Results) -> Section:
        """As text; of several seeds the mean and the standard deviation."""
        rows = [(row.label, *(cell(row.values(one, results), one) for one in self.columns)) for row in self.rows]
        return Section(self.title, (self.first, *(column.title for column in self.columns)), rows, self.notes)

    def series(self, results: Results) -> dict[str, tuple[list[float], list[float]]]:
        """The columns as lines over `x`, for a figure."""
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for column in self.columns:
            for x, row in zip(self.x, self.rows, strict=bool(self.x)):
                if values := row.values(column, results):
                    xs, ys = lines.setdefault(column.title, ([], []))
                    xs.append(x)
                    ys.append(statistics.mean(values))
        return lines

    def to_dict(self, results: Results) -> list[dict[str, object]]:
        """For JSON: each row with its figures by the columns' names, a list of one number a run."""
        return [
            {self.first: row.label, **{column.title: row.values(column, results) for column in self.columns}}
            for row in self.rows
        ]


@dataclass(frozen=True)
class Part:
    """A question, and the tables that answer it."""

    name: str
    title: str
    tables: tuple[Table, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs of its tables, with the tests of their rows."""
        return [replace(run, tests=row.tests) for table in self.tables for row in table.rows for run in row.runs]


def cell(values: Sequence[float], column: Column) -> str:
    """The mean, of several the standard deviation, too; a dash of none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{column.digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{column.digits}f}" if len(values) > 1 else mean
