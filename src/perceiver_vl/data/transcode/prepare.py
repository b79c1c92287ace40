"""A folder or data set, written again once as small files that are quickly sampled, in parallel processes.

Whatever ends a run, no file is half-written under its name, and the same call goes on where it was.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from perceiver_vl._version import __version__
from perceiver_vl.data.fields import safe_name
from perceiver_vl.data.metadata import write_metadata
from perceiver_vl.data.records import Folder, Record, SkippedSample
from perceiver_vl.data.transcode.one_file import TranscodeSettings, ended, ended_name
from perceiver_vl.data.transcode.prepared import (
    FILES,
    MANIFEST,
    METADATA,
    Key,
    PreparedFile,
    files_hash,
    read_files,
    read_manifest,
)
from perceiver_vl.media.decode import decoder_version
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError
from perceiver_vl.utils.files import check_made_with, locked, sha256, shortened, write_json
from perceiver_vl.utils.jsonl import append_line, write_lines
from perceiver_vl.utils.process_pool import run_in_processes

if TYPE_CHECKING:
    from perceiver_vl.data.transcode.features import FeatureSettings

Settings: TypeAlias = "TranscodeSettings | FeatureSettings"
_MOST_NAME_BYTES = 250  # of the 255 that file systems take: an ending may be added


@dataclass
class PrepareReport:
    """What a run did. files: of `out`, of which `written` by this run; bytes of these and of what they are from."""

    out: str
    records: int = 0
    files: int = 0
    written: int = 0
    removed: int = 0
    source_bytes: int = 0
    bytes: int = 0
    frames: int = 0
    hash: str = ""
    seconds: float = 0.0
    skipped: list[SkippedSample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        before, after = self.source_bytes / 1e6, self.bytes / 1e6
        share = f" ({100 * after / before:.0f} %)" if before else ""
        return (
            f"{self.out}: {self.records} records of {self.files} files, {self.frames} frames; {self.written} written, "
            f"{self.removed} removed, {len(self.skipped)} skipped; {before:.1f} MB before, {after:.1f} MB now{share}, "
            f"in {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class _Job:
    """Seconds `start` to `end` of a file, to be written as `target` with an ending added."""

    source: Path
    source_name: str
    start: float | None
    end: float | None
    out: Path
    target: str
    settings: Settings

    @property
    def key(self) -> Key:
        return self.source_name, self.start, self.end


def prepare(
    folder: Folder,
    out: str | Path,
    settings: "Settings | None" = None,
    *,
    workers: int = 1,
    strict: bool = False,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> PrepareReport:
    """Write the media of `folder`'s records again, small, to the folder `out`, with metadata of the same convention.

    Videos and animations become MP4 files, pictures upright JPEG, or with `FeatureSettings` both what an encoder makes
    of them; what records with `start` and `end` are about is cut
    out, once for all records that share it, and their new `start` and `end` are None. What `out` has of unchanged
    sources is kept, what is no longer named is removed, the sources are never touched. Files that cannot be read are
    skipped and reported; with `strict` the first raises.
    workers: processes; 1: this one (a script that asks for more needs `if __name__ == "__main__":`).
    about: what else must be the same when `out` is brought up to date, such as the split.

    Raises `UsageError` for an `out` that holds something else, was made otherwise or lies within the folder (or the
    other way round), `MediaError` with `strict`, `PerceiverVLError` if nothing can be written or read.
    """
    begun = time.perf_counter()
    if workers < 1:
        raise UsageError(f"workers={workers}: need at least 1")
    settings, out = settings or TranscodeSettings(), Path(out)
    _check_apart(folder.path, out)
    report = PrepareReport(str(out), skipped=list(folder.skipped), notes=list(folder.notes))
    jobs = _plan(folder.records, out, settings)
    if out.is_dir() and read_manifest(out) is None and not all(map(_is_ours, out.iterdir())):
        raise UsageError(f"{out}: holds something else, give a new or empty folder")
    with _writing(out), locked(out, leftovers=("**/.*.part",)):
        before = _claim(out, folder.path, jobs, settings, about or {})
        done = {job.key: before[job.key] for job in jobs if _is_done(job, before.get(job.key))}
        todo = [job for job in jobs if job.key not in done]
        write_lines(out / FILES, map(asdict, before.values()))  # without the line that a killed run left half-written
        with ProgressBars(progress) as bar, closing(run_in_processes(_do, todo, workers)) as results:
            advance = bar.stage("Preparing", len(todo))
            for job, result in results:
                advance()
                if isinstance(result, PreparedFile):
                    done[job.key] = result
                    append_line(out / FILES, asdict(result))
                    continue
                error = result or MediaError(job.source, "the decoder crashed on it")
                if strict:
                    raise error
                report.skipped.append(SkippedSample(job.source_name, _with_times(job, error.reason)))
        report.written = len(todo) - sum(job.key not in done for job in todo)
        _finish(folder, out, done, before, report)
    report.seconds = time.perf_counter() - begun
    return report


def _with_times(job: _Job, reason: str) -> str:
    if job.start is None and job.end is None:
        return reason
    return f"{reason} (from {job.start or 0:g} s to {'its end' if job.end is None else f'{job.end:g} s'})"


# What is to be done


def _check_apart(source: Path, out: Path) -> None:
    source, target = source.resolve(), out.resolve()
    if source == target or source in target.parents:
        raise UsageError(f"{out}: lies in the folder that is read, give one outside {source}")
    if target in source.parents:
        raise UsageError(f"{out}: holds the folder that is read, give one beside {source}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, give a folder to write")


def _plan(records: Sequence[Record], out: Path, settings: Settings) -> list[_Job]:
    """A job for each part of a file that records are about, in the order of their names."""
    sources: dict[Key, Path] = {}
    for record in records:
        sources.setdefault((record.file_name, record.start, record.end), record.path)
        if record.second_file_name is not None and record.second_path is not None:
            sources.setdefault((record.second_file_name, None, None), record.second_path)
    targets = {key: _target(key) for key in sources}
    claims = Counter(name.casefold() for target in targets.values() for name in _names(target, settings))
    for key, target in targets.items():
        if any(
            claims[name.casefold()] > 1 for name in _names(target, settings)
        ):  # two would get one name: each gets its own
            stem, ending = os.path.splitext(target)  # noqa: PTH122
            targets[key] = _fitting(f"{stem}~{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}{ending}")
    jobs = [_Job(path, *key, out, targets[key], settings) for key, path in sources.items()]
    return sorted(jobs, key=lambda job: job.target)


def _target(key: Key) -> str:
    """The name of a part, without the ending that may be added: `clips/a@12.5-20.mp4`."""
    name, start, end = key
    name = safe_name(name)
    if start is None and end is None:
        return _fitting(name)
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return _fitting(f"{stem}@{start or 0:g}-{'' if end is None else f'{end:g}'}{ending}")


def _fitting(target: str) -> str:
    """The name, shortened where with the ending that may be added it would be longer than a name can be."""
    parent, slash, name = target.rpartition("/")
    return f"{parent}{slash}{shortened(name, _MOST_NAME_BYTES)}"


def _names(target: str, settings: Settings) -> set[str]:
    """What a file may be called in the end, by what it turns out to hold."""
    return {ended_name(target, suffix) for suffix in settings.suffixes()}


def _is_done(job: _Job, before: PreparedFile | None) -> bool:
    """Whether the file is there and its source the same."""
    if before is None:
        return False
    try:
        source = os.stat(job.source)  # noqa: PTH116 (there may be a million)
        target = os.stat(job.out / before.file_name)  # noqa: PTH116
    except OSError:
        return False
    same = (source.st_size, source.st_mtime_ns) == (before.source_bytes, before.source_mtime_ns)
    return same and target.st_size == before.bytes and before.file_name in _names(job.target, job.settings)


# Where it is written


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Errors of the disk, in one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise PerceiverVLError(
            f"{error.filename or out}: cannot be written ({error.strerror or error}); "
            "what is done is kept, the same command goes on from there"
        ) from error


def _is_ours(path: Path) -> bool:
    """Whether a file is one that a run may have left before it had a manifest."""
    return path.name == ".lock" or path.name.startswith(f".{MANIFEST}.")


def _claim(
    out: Path, source: Path, jobs: Sequence[_Job], settings: Settings, about: dict[str, Any]
) -> dict[Key, PreparedFile]:
    """Make `out` a folder for these settings, or make sure that it is one; the files it has."""
    manifest = read_manifest(out)
    before = read_files(out)
    if manifest is not None:
        same = {name: value for name, value in asdict(settings).items() if name != "model"}  # it may lie elsewhere now
        check_made_with(out, manifest | manifest["settings"], about | same)
        moved = manifest["source"] != str(source.resolve())
        if moved and before and not any(_is_done(job, before.get(job.key)) for job in jobs):
            raise UsageError(f"{out}: made of {manifest['source']}, give another folder for {source}")
    write_json(
        out / MANIFEST, {"settings": asdict(settings), **about, "source": str(source.resolve()), "complete": False}
    )
    return before


def _finish(
    folder: Folder, out: Path, done: dict[Key, PreparedFile], before: dict[Key, PreparedFile], report: PrepareReport
) -> None:
    """Write the metadata and the manifest, then remove what they no longer name."""
    records = [record for one in folder.records if (record := _prepared_record(one, out, done)) is not None]
    if not records:
        raise PerceiverVLError(
            f"{out}: nothing could be prepared of {len(folder.records)} records, the first: {report.skipped[0]}"
        )
    files = sorted(done.values(), key=lambda one: one.file_name)
    metadata = out / METADATA
    if any(record != Record(record.file_name, record.path) for record in records):
        write_metadata(records, metadata, folder.classes)
    else:  # nothing is said of them but where they lie, which may say more: folders of classes
        metadata.unlink(missing_ok=True)
    write_lines(out / FILES, map(asdict, files))
    sizes = {one.source: one.source_bytes for one in files}
    report.records, report.files, report.hash = len(records), len(files), files_hash(files)
    report.source_bytes, report.bytes = sum(sizes.values()), sum(one.bytes for one in files)
    report.frames = sum(one.frames for one in files)
    manifest = read_manifest(out) or {}
    write_json(
        out / MANIFEST,
        {
            **manifest,
            "complete": True,
            **{name: getattr(report, name) for name in ("records", "files", "frames", "source_bytes", "bytes", "hash")},
            "metadata_sha256": sha256(metadata) if metadata.is_file() else None,
            "versions": {"perceiver-vl": __version__, "decoder": decoder_version()},
            "skipped": [asdict(sample) for sample in report.skipped],
        },
    )
    named = {one.file_name for one in files}
    for name in {one.file_name for one in before.values()} - named:
        (out / safe_name(name)).unlink(missing_ok=True)
        report.removed += 1


def _prepared_record(record: Record, out: Path, done: dict[Key, PreparedFile]) -> Record | None:
    """The record of the prepared file; None if that could not be made."""
    first = done.get((record.file_name, record.start, record.end))
    second = done.get((record.second_file_name, None, None)) if record.second_file_name else None
    if first is None or (record.second_file_name and second is None):
        return None
    return replace(
        record,
        file_name=first.file_name,
        path=out / first.file_name,
        start=None,
        end=None,
        second_file_name=second.file_name if second else None,
        second_path=out / second.file_name if second else None,
    )


# Doing it


def _do(job: _Job) -> PreparedFile | MediaError:
    try:
        info = job.source.stat()
    except OSError as error:
        return MediaError(job.source, error.strerror or "cannot be read")
    try:
        written = job.settings.write(job.source, job.out / job.target, job.start, job.end)
    except MediaError as error:
        return error
    path = ended(job.out / job.target, written.suffix)
    return PreparedFile(
        file_name=path.relative_to(job.out).as_posix(),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        frames=written.frames,
        duration=written.duration,
        lost=written.lost,
        source=job.source_name,
        start=job.start,
        end=job.end,
        source_bytes=info.st_size,
        source_mtime_ns=info.st_mtime_ns,
    )
