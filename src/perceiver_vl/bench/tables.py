"""Results of the benches as tables of text: for the terminal (80 columns) and for the page."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from perceiver_vl.tasks.provenance import RunInfo


@dataclass(frozen=True)
class Section:
    """A table: what it is, its columns (the first is a name), its rows, and what to know to read it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchReport(RunInfo, ABC):
    """What a bench found. runs: measured runs of each setting; seed: of weights, inputs and generated clips."""

    runs: int
    seed: int = 0

    @abstractmethod
    def sections(self) -> list[Section]:
        """As tables."""


def or_dash(value: float | None, spec: str) -> str:
    """A number as the format `spec` says; a dash for what was not measured."""
    return "–" if value is None else format(value, spec)
