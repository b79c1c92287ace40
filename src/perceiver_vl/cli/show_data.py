"""Data sets as people read them: the table of benchmarks, and what was found of one."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from perceiver_vl.cli.show import print_skipped
from perceiver_vl.utils.console import out

if TYPE_CHECKING:
    from perceiver_vl.data.datasets.table import Benchmark
    from perceiver_vl.data.validate import Check


def print_check(check: "Check") -> None:
    """A row for each split, then what was looked at, and the files that are amiss."""
    table = Table(title=escape(f"{check.name}: {check.folder}"), collapse_padding=True, pad_edge=False)
    for column in ("split", "records", "published", "media", "published", "missing", "unusable"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in check.splits:
        published = _count(split.published_records), _count(split.published_media)
        counts = f"{split.records:,}", published[0], f"{split.media:,}", published[1]
        table.add_row(escape(split.split), *counts, f"{split.missing:,}", f"{split.unusable:,}")
    out.print(table, soft_wrap=False)
    for note in check.notes:
        out.print(note)
    if check.absent:
        out.print(f"without annotations here: {', '.join(check.absent)}")
    if check.decoded:
        out.print("one frame of every file was decoded")
    else:
        out.print("looked only whether files are there and not empty; to decode one frame of each: --decode")
    print_skipped(check.problems)


def print_benchmarks(benchmarks: "list[Benchmark]") -> None:
    """A row for each benchmark: what it asks, and the published records of each split."""
    table = Table(collapse_padding=True, pad_edge=False)
    for column in ("benchmark", "task", "media", "records of each split"):
        table.add_column(column, overflow="fold")
    for benchmark in benchmarks:
        splits = ", ".join(f"{name} {_count(split.records)}".rstrip() for name, split in benchmark.splits.items())
        table.add_row(benchmark.name, benchmark.task, f"{benchmark.kind}s", splits)
    out.print(table, soft_wrap=False)


def print_benchmark(benchmark: "Benchmark") -> None:
    """What to download and how it must lie."""
    print_benchmarks([benchmark])
    out.print(f"download: {benchmark.download}")
    out.print(f"layout:   {benchmark.layout}")
    out.print(f"check:    perceiver-vl data check {benchmark.name} DIR")


def benchmark_as_dict(benchmark: "Benchmark") -> dict[str, Any]:
    """As plain values, without its reader."""
    values = {name: value for name, value in vars(benchmark).items() if name not in ("read", "classes", "splits")}
    return values | {"splits": {name: asdict(split) for name, split in benchmark.splits.items()}}


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
