"""Looking a data set over before it is used: what its files name, what is there, what cannot be read."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perceiver_vl.data.datasets.read import BenchmarkRecords, find_benchmark, read_splits
from perceiver_vl.data.datasets.table import Split
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.metadata import METADATA_NAMES, find_metadata, metadata_elsewhere
from perceiver_vl.data.prefetch import decode_ahead
from perceiver_vl.data.records import Folder, Record, SkippedSample
from perceiver_vl.media.decode import load_frames
from perceiver_vl.models.perceiver_vl.modalities import load_recording, modality_of_file
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import MediaError, Setting, UsageError

FOLDER = "folder"  # the name of a folder of one's own
_BUNDLE = 64  # files that a thread looks at in one go: handing it each by itself costs more than the look
_WAITING = 64  # bundles that wait for a thread: millions would fill the memory


@dataclass(frozen=True)
class SplitCheck:
    """What was found of one split, and what is published. Media are counted once each, however many records they have.

    records: rows that are named, usable or not. media: files that are there. missing: files that are not.
    unusable: files that are empty or cannot be decoded, cannot be told from others, or have no caption.
    """

    split: str
    records: int
    media: int
    missing: int
    unusable: int
    published_records: int | None = None
    published_media: int | None = None


@dataclass
class Check:
    """The splits that are there, those that are not, and every file that is missing or unusable, with the reason."""

    name: str
    folder: Path
    decoded: bool
    splits: list[SplitCheck]
    absent: list[str] = field(default_factory=list)
    problems: list[SkippedSample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every file that is named can be used."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"complete": self.complete, "folder": str(self.folder)}


def check_data(
    name: str,
    folder: str | Path,
    *,
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    decode: bool = False,
    progress: bool = False,
) -> Check:
    """Check the benchmark `name`, or with the name `folder` a folder of one's own, in all splits that are there.

    metadata, columns: of a folder of one's own, as `read_folder` takes them.
    Without `decode` a file counts as usable if it is there and not empty; with it one frame of each is decoded, in
    threads. Raises as `read_benchmark` and `read_folder` do for what cannot be read at all.
    """
    if name != FOLDER and (metadata or columns):
        raise UsageError(f"metadata, columns: for a folder of your own; {name} has files and columns of its own")
    with ProgressBars(progress) as stages:
        published = {} if name == FOLDER else dict(find_benchmark(name).splits)
        notes: list[str] = []
        if name == FOLDER:
            content = read_folder(folder, split=split, metadata=metadata, columns=columns, need=None)
            if metadata is None and find_metadata(content.path, None) is None:
                _refuse_metadata_elsewhere(content.path)
            parts, notes = _by_split(content), content.notes
        else:
            read = stages.stage("read the annotations", total=1 if split else len(published))
            parts = read_splits(name, folder, split=split, on_request=True, progress=read)
        files = {str(path): file_name for part in parts.values() for file_name, path in _files(part.records)}
        advance = stages.stage("decode a frame of each" if decode else "look at each file", total=len(files))
        faults: dict[str, str] = {}
        for path, fault in _faults(files, decode):
            if fault is not None:
                faults[path] = fault
            advance()
    checks = [_check(part, found, faults, published.get(part, Split())) for part, found in parts.items()]
    problems = dict.fromkeys(sample for found in parts.values() for sample in found.skipped)
    problems |= dict.fromkeys(SkippedSample(files[path], fault) for path, fault in faults.items())
    absent = [part for part in published if split is None and part not in parts]
    return Check(name, Path(folder), decode, checks, absent, list(problems), notes)


def _refuse_metadata_elsewhere(folder: Path) -> None:
    """A file that looks like metadata and is not read, which training would stop at."""
    if elsewhere := metadata_elsewhere(folder):
        alone = Setting("metadata", "none")
        raise UsageError(
            f"{folder}: no {', '.join(METADATA_NAMES)} ", *elsewhere, ", or check the media alone with ", alone
        )


def _by_split(content: Folder) -> dict[str, BenchmarkRecords]:
    """A folder's records by split; what was left out has none any more, and is counted by itself."""
    parts: dict[str, BenchmarkRecords] = {}
    for record in content.records:
        part = parts.setdefault(record.split or "no split", BenchmarkRecords(content.path, []))
        part.records.append(record)
        part.rows += 1
    if content.skipped:
        parts["left out"] = BenchmarkRecords(content.path, [], content.skipped, rows=len(content.skipped))
    return parts


def _files(records: Iterable[Record]) -> Iterator[tuple[str, Path]]:
    for record in records:
        yield record.file_name, record.path
        if record.second_file_name is not None and record.second_path is not None:
            yield record.second_file_name, record.second_path


def _faults(paths: Iterable[str], decode: bool) -> Iterator[tuple[str, str | None]]:
    """Each path with what is wrong with it, or None."""
    look, waiting = _decoding_fault if decode else _size_fault, iter(paths)
    bundles = iter(lambda: list(itertools.islice(waiting, 1 if decode else _BUNDLE)), [])
    cores = os.cpu_count() or 1  # nothing else is at work
    for bundle, faults in decode_ahead(bundles, lambda some: [look(path) for path in some], _WAITING, cores):
        yield from zip(bundle, faults, strict=True)


def _size_fault(path: str) -> str | None:
    try:
        return None if os.stat(path).st_size else "empty file (0 bytes)"  # noqa: PTH116 (a million of them)
    except OSError as error:
        return error.strerror or "cannot be looked at"


def _decoding_fault(path: str) -> str | None:
    try:
        if (modality := modality_of_file(Path(path))) is not None:
            load_recording(modality, Path(path))
        else:
            load_frames(path, 1)
    except MediaError as error:
        return error.reason
    return None


def _check(split: str, content: BenchmarkRecords, faults: dict[str, str], published: Split) -> SplitCheck:
    media = {str(path) for _, path in _files(content.records)}
    left_out = {sample.file_name: sample.reason for sample in content.skipped}
    missing = Counter("but not there" in reason for reason in left_out.values())
    return SplitCheck(
        split,
        records=content.rows,
        media=len(media),
        missing=missing[True],
        unusable=missing[False] + len(media & faults.keys()),
        published_records=published.records,
        published_media=published.media,
    )
