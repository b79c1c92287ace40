"""Where a user says that clips are, opened: a folder, a benchmark's own files, or shards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perceiver_vl.data.datasets.file_index import FileIndex
from perceiver_vl.data.datasets.moment_queries import read_moment_queries
from perceiver_vl.data.datasets.read import read_benchmark
from perceiver_vl.data.datasets.rows import Row
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Folder, Need, Record, SkippedSample
from perceiver_vl.data.shards.manifest import is_sharded
from perceiver_vl.data.shards.reading import ShardedDataset
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_listed
from perceiver_vl.data.sources import FolderDataset, VideoDataset
from perceiver_vl.utils.errors import PerceiverVLError, UsageError


def open_dataset(
    where: str | Path,
    size: tuple[int, int],
    *,
    benchmark: str | None = None,
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    need: Need | None = "text",
    classes: Sequence[str] = (),
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    modalities: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[VideoDataset, list[SkippedSample]]:
    """The clips of a folder (or of shards, a folder or URL of theirs) at `size` (height, width), and the records that
    had to be left out.

    The other arguments are those of `read_records`. The source has `classes`. modalities: as of `FolderDataset`.
    Raises `UsageError` for options that do not go together, or nothing that has what is needed; `PerceiverVLError`
    where more than the share `max_failed_fraction` of the records cannot be used.
    """
    if is_sharded(where):
        for name, value in {"benchmark": benchmark, "metadata": metadata, "columns": columns}.items():
            if value:
                raise UsageError(f"{name}={value}: {where} holds shards, which have their own records; leave it out")
        return ShardedDataset(where, size, split, need=need), []
    folder = read_records(
        where, benchmark, split=split, metadata=metadata, columns=columns, need=need, classes=classes, strict=strict
    )
    check_listed(folder.skipped, len(folder.records), max_failed_fraction)
    return FolderDataset(folder.records, size, folder.classes, modalities), folder.skipped


def open_moments(
    folder: str | Path,
    annotations: str | Path,
    size: tuple[int, int],
    *,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
) -> tuple[FolderDataset, list[SkippedSample]]:
    """A record for each window that an official file (`read_moment_queries`) gives of a sentence, of the videos of a
    folder, which are known by their names without endings; and what had to be left out.

    Raises `UsageError` for a file that does not say when, and where none of its videos is there; otherwise as
    `open_dataset`.
    """
    known, files = read_moment_queries(annotations), FileIndex(Path(folder), "video")
    skipped, records = dict.fromkeys(known.skipped), list[Record]()
    for query in known.queries:
        row = Row(f"{annotations} query {query.qid}", {})
        names = query.video, query.video.removeprefix("v_")
        for start, end in dict.fromkeys(query.windows):
            found = files.record(row, names, texts=(query.query,), start=start, end=end, example_id=query.qid)
            if isinstance(found, Record):
                records.append(found)
            else:
                skipped |= dict.fromkeys(found)
    if not records:
        raise UsageError(
            f"{folder}: has none of the videos of {annotations}, such as {known.queries[0].video}"
            if any(query.windows for query in known.queries)
            else f"{annotations}: does not say when, give the annotations of a split that is not for testing"
        )
    if skipped and strict:
        raise PerceiverVLError(f"{annotations}: {next(iter(skipped))}; leave out strict to skip such queries")
    check_listed([*skipped], len(records), max_failed_fraction)
    return FolderDataset(records, size), [*skipped]


def read_records(
    where: str | Path,
    benchmark: str | None = None,
    *,
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    need: Need | None = None,
    classes: Sequence[str] = (),
    strict: bool = False,
    exclude: Sequence[str] = (),
) -> Folder:
    """The records of a folder, as `read_folder` reads them; or as a `benchmark` those of its official files.

    `need`: what every record must have. `classes`: the names of classes in their order (those of a model), where labels
    are names; without them those of a folder are those found in it.
    `exclude`: as of `read_folder`. Raises `UsageError` for metadata, columns or exclude of a benchmark; otherwise as
    `read_folder` and `read_benchmark`.
    """
    if benchmark is None:
        how: dict[str, Any] = {"classes": classes, "strict": strict, "exclude": exclude}
        return read_folder(where, split=split, metadata=metadata, columns=columns, need=need, **how)
    if metadata or columns or exclude:
        given = "metadata, columns, exclude" if exclude else "metadata, columns"
        raise UsageError(f"{given}: for a folder of your own; {benchmark} has files and columns of its own")
    folder = read_benchmark(benchmark, where, split=split, strict=strict)
    kept = [record for record in folder.records if need is None or record.has(need)]
    if not kept:
        raise UsageError(f"benchmark={benchmark}: none of its records has a {need}, choose another")
    lacking = [record for record in folder.records if need is not None and not record.has(need)]
    folder.skipped += [SkippedSample(record.file_name, f"no {need}") for record in lacking]
    folder.records = kept
    return folder
