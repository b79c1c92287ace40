"""Records and their media → shards, an index and a manifest: in parallel, resumable, the same bytes every time.

What is being written lies in `.parts` of the output folder and under names that end in `.part`; a shard has its name
once it is complete, and the manifest is written last, so a folder that has one is complete.
"""

import errno
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perceiver_vl._version import __version__
from perceiver_vl.data.checksums import size_fault
from perceiver_vl.data.records import Folder, SkippedSample
from perceiver_vl.data.shards.manifest import (
    FORMAT,
    INDEX,
    MANIFEST,
    VERSION,
    index_schema,
    manifest_shards,
    read_manifest,
)
from perceiver_vl.data.shards.one_shard import PARTS, ShardWriter, note_path, part_path
from perceiver_vl.data.shards.planning import Plan, media_sizes, plan_shards, records_fingerprint
from perceiver_vl.data.transcode.one_file import TranscodeSettings
from perceiver_vl.media.decode import decoder_version
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from perceiver_vl.utils.files import check_made_with, locked, sha256, write_json, write_with
from perceiver_vl.utils.process_pool import run_in_processes

DEFAULT_SHARD_BYTES = 256 << 20
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class ShardReport:
    """What a folder of shards holds. written: shards written by this call. splits: how many records each has."""

    folder: Path
    shards: int
    written: int
    samples: int
    records: int
    bytes: int
    splits: dict[str, int]
    skipped: list[SkippedSample]


def write_shards(
    source: Folder,
    out: Path,
    *,
    name: str = "folder",
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    transcoding: TranscodeSettings | None = None,
    workers: int = 1,
    strict: bool = False,
    progress: bool = False,
) -> ShardReport:
    """Write the records of `source` and their media to shards in `out`; called again, write what is missing.

    A file that several records of a split speak of is stored once. A shard is full at `samples_per_shard` media or
    `shard_bytes` of source files (default: 256 MiB; give one of them). `transcoding`: write the media again small, as
    `perceiver-vl prepare` does; without it they go in as they are.
    `name`: of the data set, for the manifest. `workers`: processes, each of which writes a shard at a time.
    Media of which no frame can be decoded are left out and named in `skipped`, as are (with several workers) those
    whose decoding kills a process; `strict` raises at the first.

    Raises `UsageError` for a folder that holds something else or shards made with other settings, `PerceiverVLError`
    for a full disk, and where nothing can be read.
    """
    if samples_per_shard is not None and shard_bytes is not None:
        raise UsageError("samples_per_shard and shard_bytes: give one of them")
    if samples_per_shard is None and shard_bytes is None:
        shard_bytes = DEFAULT_SHARD_BYTES
    for what, value in (("samples_per_shard", samples_per_shard), ("shard_bytes", shard_bytes), ("workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{what}={value}: need at least 1")
    media_bytes = media_sizes(source.records)
    how: dict[str, Any] = {"name": name, "samples_per_shard": samples_per_shard, "shard_bytes": shard_bytes}
    how["transcoding"] = asdict(transcoding) if transcoding else None
    settings = how | {"records": len(source.records), "sha256": records_fingerprint(source.records, media_bytes)}
    written = 0
    if not _is_finished(out, settings):
        try:
            with _claimed(out, how | {"folder": str(source.path.resolve())}):
                plans = list(plan_shards(source.records, media_bytes, samples_per_shard, shard_bytes))
                written = _write_all(plans, ShardWriter(out, transcoding, strict), workers, progress)
                _finish(out, plans, settings, source)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise PerceiverVLError(
                f"{out}: disk full; free some space and run it again, the finished shards stay"
            ) from error
        shutil.rmtree(out / PARTS, ignore_errors=True)
    report = _report(out, written)
    if strict and report.skipped:
        raise PerceiverVLError(f"{report.skipped[0]}; mend it, or leave out strict to skip such files")
    return report


def _is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds these shards, complete; `UsageError` if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; name a folder to write the shards into")
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_manifest(out)
    _compare(out, manifest.get("settings"), settings)
    for shard in manifest_shards(manifest, out):
        if fault := size_fault(out / shard.name, shard.bytes):
            raise PerceiverVLError(f"{out / shard.name}: {fault}; restore it, or write to another folder")
    return True


@contextmanager
def _claimed(out: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make `out` a folder for shards of these settings, or make sure that it is one, and this process's alone."""
    begun = out / PARTS / _SETTINGS
    if begun.is_file():
        _compare(out, _read_json(begun), settings)
    elif out.exists() and any(path.name != PARTS for path in out.iterdir()):
        raise UsageError(f"{out}: holds files that are no shards; name a new or empty folder")
    begun.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, leftovers=(".*.part", f"{PARTS}/media-*"), lock=f"{PARTS}/.lock"):
        write_json(begun, settings)
        yield


def _compare(out: Path, earlier: Any, settings: dict[str, Any]) -> None:
    earlier = earlier if isinstance(earlier, dict) else {}
    source = {name: settings[name] for name in ("records", "sha256") if name in settings}
    check_made_with(out, earlier | source, settings)
    if any(earlier.get(name) != value for name, value in source.items()):
        raise UsageError(f"{out}: holds shards of other records or media than these; name another folder")


def _read_json(path: Path) -> Any:
    """What a file of ours holds; None for one that is not there or was damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _finish(out: Path, plans: list[Plan], settings: dict[str, Any], source: Folder) -> None:
    """Index and manifest from the parts."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    shards: list[dict[str, Any]] = []
    skipped = [asdict(sample) for sample in source.skipped]

    def write_index(path: Path) -> None:
        with parquet.ParquetWriter(path, index_schema(), compression="zstd", write_statistics=False) as index:
            for plan in plans:
                part = json.loads(part_path(out, plan).read_text(encoding="utf-8"))
                skipped.extend(part["skipped"])
                if part["shard"]:
                    shards.append(part["shard"])
                    table = pa.Table.from_pylist(part["rows"], schema=index_schema())
                    index.write_table(table, row_group_size=len(part["rows"]))

    write_with(out / INDEX, write_index)
    if not shards:
        (out / INDEX).unlink()
        first = f", the first: {skipped[0]['file_name']}: {skipped[0]['reason']}" if skipped else ""
        raise PerceiverVLError(f"{out}: nothing to write, none of the media can be read{first}")
    splits: dict[str, Counter[str]] = {}
    for shard in shards:
        counts = splits.setdefault(shard["split"] or "", Counter())
        counts.update({"shards": 1, "samples": shard["samples"], "records": shard["records"]})
    write_json(
        out / MANIFEST,
        {
            "format": FORMAT,
            "version": VERSION,
            "settings": settings,
            "splits": splits,
            "classes": source.classes,
            "index": {"bytes": (out / INDEX).stat().st_size, "sha256": sha256(out / INDEX)},
            "shards": shards,
            "skipped": skipped,
            "versions": {"perceiver_vl": __version__, "decoder": decoder_version()},
        },
    )


def _report(out: Path, written: int) -> ShardReport:
    manifest = read_manifest(out)
    shards = manifest_shards(manifest, out)
    return ShardReport(
        folder=out,
        shards=len(shards),
        written=written,
        samples=sum(shard.samples for shard in shards),
        records=sum(shard.records for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        splits={split: counts["records"] for split, counts in manifest["splits"].items()},
        skipped=[SkippedSample(**line) for line in manifest["skipped"]],
    )


def _write_all(plans: list[Plan], write: ShardWriter, workers: int, progress: bool) -> int:
    """Write the shards that are not there; → their number."""
    out = write.out
    _remove_others(out, plans)
    missing = [plan for plan in plans if not _is_written(out, plan)]
    count, total = len(missing), sum(len(plan.samples) for plan in plans)
    with ProgressBars(progress) as stages:
        done = total - sum(len(plan.samples) for plan in missing)
        advance = stages.stage("Writing shards", total=total, done=done)
        while missing:
            died: list[Plan] = []
            with closing(run_in_processes(write, missing, min(workers, count))) as jobs:
                for plan, _ in jobs:
                    if _is_written(out, plan):
                        advance(len(plan.samples))
                    else:
                        died.append(_without_crashing(plan, write))
            missing = died
    return count


def _without_crashing(plan: Plan, write: ShardWriter) -> Plan:
    """A shard whose process died, without the sample that it was at."""
    note = note_path(write.out, plan)
    key = note.read_text() if note.is_file() else None
    sample = next((sample for sample in plan.samples if sample.key == key and key not in plan.crashing), None)
    if sample is None or write.strict:
        what = f" at {sample.paths[0]}" if sample else ""
        raise PerceiverVLError(
            f"{write.out}: the process that wrote {plan.name} died{what}, of a decoder or for want of memory; "
            "run it again with fewer workers"
        )
    return replace(plan, crashing=plan.crashing | {sample.key})


def _remove_others(out: Path, plans: list[Plan]) -> None:
    """Remove shards of an earlier run that are not wanted any more, because the data have changed since."""
    wanted = {plan.name for plan in plans}
    for part in (out / PARTS).glob("*.tar.json"):
        if part.stem not in wanted:
            (out / part.stem).unlink(missing_ok=True)
            part.unlink()


def _is_written(out: Path, plan: Plan) -> bool:
    part = _read_json(part_path(out, plan))
    if part is None or part["plan"] != plan.sha256:
        return False
    return part["shard"] is None or size_fault(out / plan.name, part["shard"]["bytes"]) is None
