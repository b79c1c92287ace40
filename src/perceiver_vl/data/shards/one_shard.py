"""One shard: its media and records → a tar file, whose bytes are the same whoever writes it and when."""

import io
import json
import stat
import tarfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from perceiver_vl.data.records import Need, SkippedSample
from perceiver_vl.data.shards.manifest import Shard, record_values
from perceiver_vl.data.shards.planning import Plan, Sample
from perceiver_vl.data.transcode.one_file import TranscodeSettings, ended, transcode
from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from perceiver_vl.utils.errors import MediaError
from perceiver_vl.utils.files import sha256, write_json, write_with

MAX_MEDIA_BYTES = 1 << 30  # a sample is read into memory whole
PARTS = ".parts"


def part_path(out: Path, plan: Plan) -> Path:
    """Where it is kept what the index and the manifest will say of a shard."""
    return out / PARTS / f"{plan.name}.json"


def note_path(out: Path, plan: Plan) -> Path:
    """Where the key of the sample stands that is being read: what a process died of."""
    return out / PARTS / f"{plan.name}.at"


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards to `out`, in whatever process it is called."""

    out: Path
    transcoding: TranscodeSettings | None
    strict: bool

    def __call__(self, plan: Plan) -> None:
        """The tar of a plan and, once it has its name, its part: what the index and the manifest say of it."""
        rows: list[dict[str, Any]] = []
        skipped: list[SkippedSample] = []
        path = self.out / plan.name
        write_with(path, lambda beside: self._write_tar(beside, plan, rows, skipped))
        shard = None
        if rows:
            samples = len(plan.samples) - len(skipped)
            shard = asdict(Shard(plan.name, plan.split, samples, len(rows), path.stat().st_size, sha256(path)))
        else:
            path.unlink()
        lines = [asdict(sample) for sample in skipped]
        write_json(part_path(self.out, plan), {"plan": plan.sha256, "shard": shard, "rows": rows, "skipped": lines})

    def _write_tar(self, beside: Path, plan: Plan, rows: list[dict[str, Any]], skipped: list[SkippedSample]) -> None:
        with tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in plan.samples:
                note_path(self.out, plan).write_text(sample.key)
                try:
                    if sample.key in plan.crashing:
                        raise MediaError(sample.paths[0], "damaged: reading it kills the process that does")
                    media = [self._media(path, f"{plan.name}-{sample.key}") for path in sample.paths]
                except MediaError as error:
                    if self.strict:
                        raise
                    skipped.append(SkippedSample.of_file(error, sample.records))
                else:
                    rows.extend(_add(tar, plan, sample, media))

    def _media(self, path: Path, name: str) -> tuple[str, bytes]:
        """The suffix and bytes that go into a shard; `MediaError` for a file of which no frame can be decoded."""
        if self.transcoding is None:
            return _as_it_is(path)
        target = self.out / PARTS / f"media-{name}"
        written = ended(target, transcode(path, target, None, None, self.transcoding).suffix)
        try:
            return written.suffix, written.read_bytes()
        finally:
            written.unlink()


def _add(tar: tarfile.TarFile, plan: Plan, sample: Sample, media: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Write a sample; → a row of the index for each of its records."""
    row: dict[str, Any] = {"shard": plan.name, "key": sample.key, "split": plan.split}
    for which, (suffix, content) in zip(("", "second_"), media, strict=False):
        offset = _member(tar, f"{sample.key}{'.second' if which else ''}{suffix}", content)
        row |= {f"{which}suffix": suffix, f"{which}offset": offset}
        row |= {f"{which}size": len(content), f"{which}crc32": zlib.crc32(content)}
    values = [record_values(record) for record in sample.records]
    _member(tar, f"{sample.key}.json", json.dumps({"records": values}, ensure_ascii=False).encode())
    return [
        row | {f"has_{need}": record.has(need) for need in get_args(Need)} | {"record": json.dumps(value)}
        for record, value in zip(sample.records, values, strict=True)
    ]


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file, the same bytes whoever writes it and when; → where its content begins."""
    header = tarfile.TarInfo(name)  # of nobody, from 1970
    header.size = len(content)
    begin = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(content))
    return begin


def _as_it_is(path: Path) -> tuple[str, bytes]:
    """The suffix and bytes of a media file; `MediaError` if no frame can be decoded."""
    suffix = PurePosixPath(path.name.lower()).suffix
    if suffix not in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
        suffix = ".bin"  # whatever else the name holds stays out of the tar
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading from a pipe could wait for ever
            raise MediaError(path, "not a regular file")
        if status.st_size > MAX_MEDIA_BYTES:
            raise MediaError(
                path, f"{status.st_size} bytes, a sample has at most {MAX_MEDIA_BYTES}; transcode it first"
            )
        content = path.read_bytes()
    except OSError as error:
        raise MediaError(path, f"cannot be read: {error.strerror or error}") from error
    load_clip(content, 1, name=str(path))
    return suffix, content
