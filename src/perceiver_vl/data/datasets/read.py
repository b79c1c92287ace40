"""Reading a benchmark: its splits by name, what is missing named and counted, never a long job stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perceiver_vl.data.datasets.file_index import FileIndex, MissingAnnotationsError
from perceiver_vl.data.datasets.table import BENCHMARKS, Benchmark
from perceiver_vl.data.fields import split_name
from perceiver_vl.data.records import Folder, Record, SkippedSample
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from perceiver_vl.utils.text import did_you_mean


@dataclass
class BenchmarkRecords(Folder):
    """One split: its records, what was skipped, and the `rows` of annotations that both came from."""

    rows: int = 0


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name; `UsageError` if there is none."""
    if name not in BENCHMARKS:
        near = did_you_mean(name.replace("_", "-"), BENCHMARKS, "see the names")
        raise UsageError(f"{name}: unknown benchmark, {near} perceiver-vl data list names them all")
    return BENCHMARKS[name]


def read_benchmark(name: str, folder: str | Path, *, split: str | None = None, strict: bool = False) -> Folder:
    """Read the records of a benchmark from its official files in `folder`, in the order of these.

    split: one of `BENCHMARKS[name].splits` (`val`, `valid` and `dev` mean `validation`); without it every split whose
    annotations are there, save those that share their media with others and are read on request only.
    Media that are not there and captions that are empty are skipped, each named once; `strict` raises at the first.

    Raises `UsageError` for an unknown name or split, annotations that are not there or not as their format says,
    and for names of media that lead out of the folder; `PerceiverVLError` if nothing usable is left.
    """
    splits = read_splits(name, folder, split=split)
    result = Folder(Path(folder), [record for part in splits.values() for record in part.records])
    result.classes = next((part.classes for part in splits.values()), ())
    result.skipped += dict.fromkeys(sample for part in splits.values() for sample in part.skipped)
    if result.skipped and strict:
        raise PerceiverVLError(f"{folder}: {result.skipped[0]}; leave out strict to skip such files")
    if not result.records:
        first = result.skipped[0] if result.skipped else SkippedSample(", ".join(splits), "no rows")
        raise PerceiverVLError(
            f"{folder}: no usable record of {name}, the first: {first}; see perceiver-vl data list {name}"
        )
    return result


def read_splits(
    name: str,
    folder: str | Path,
    *,
    split: str | None = None,
    on_request: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, BenchmarkRecords]:
    """The splits whose annotations are there, as `read_benchmark` says.

    on_request: also those that share their media with others. progress: called after each split.
    """
    benchmark = find_benchmark(name)
    files = FileIndex(Path(folder), benchmark.kind)
    result: dict[str, BenchmarkRecords] = {}
    missing: MissingAnnotationsError | None = None
    for part in _wanted(benchmark, split, on_request):
        try:
            result[part] = _read(benchmark, files.of_split(part))
        except MissingAnnotationsError as error:
            missing = missing or error
        progress()
    if missing and not result:
        raise UsageError(f"{missing}; see perceiver-vl data list {name}") from missing
    return result


def _wanted(benchmark: Benchmark, split: str | None, on_request: bool) -> list[str]:
    if split is None:
        return [part for part, facts in benchmark.splits.items() if on_request or not facts.on_request]
    wanted = split if split in benchmark.splits else split_name(split)
    if wanted not in benchmark.splits:
        raise UsageError(f"split={split}: {benchmark.name} has {', '.join(benchmark.splits)}")
    return [wanted]


def _read(benchmark: Benchmark, files: FileIndex) -> BenchmarkRecords:
    result = BenchmarkRecords(files.folder, [], classes=benchmark.classes(files) if benchmark.classes else ())
    skipped: dict[SkippedSample, None] = {}
    for found in benchmark.read(files):
        result.rows += 1
        if isinstance(found, Record):
            result.records.append(found)
        else:
            skipped |= dict.fromkeys(found)
    result.skipped += skipped
    return result
