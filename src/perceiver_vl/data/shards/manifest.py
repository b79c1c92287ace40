"""What a folder or URL of shards says of itself: the manifest, and the columns of the index."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from perceiver_vl.data.checksums import Verification, verify_files
from perceiver_vl.data.records import Need, Record
from perceiver_vl.data.shards.cache import is_url, open_remote
from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line

WRITTEN_BY = "perceiver-vl data shard folder DIR OUT"
FORMAT, VERSION = "perceiver-vl shards", 1
MANIFEST, INDEX = "manifest.json", "index.parquet"
_MAX_MANIFEST_BYTES = 256 << 20
_SHARD_NAME = re.compile(r"[a-z0-9][a-z0-9-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """A line of the manifest. `samples`: media in it (pairs count once); `records`: what is said of them."""

    name: str
    split: str | None
    samples: int
    records: int
    bytes: int
    sha256: str


def is_sharded(location: str | Path) -> bool:
    """Whether a location is one for `ShardedDataset`: any URL, or a folder with an index and a manifest of shards."""
    return is_url(location) or all(Path(location, name).is_file() for name in (INDEX, MANIFEST))


def read_manifest(location: str | Path) -> dict[str, Any]:
    """The manifest of a folder or URL of shards.

    Raises `UsageError` where there is none, `PerceiverVLError` for one that is damaged or of another version.
    """
    where = f"{str(location).rstrip('/')}/{MANIFEST}"
    try:
        if is_url(location):
            with open_remote(str(location), MANIFEST) as file:
                text = file.read(_MAX_MANIFEST_BYTES + 1)
        else:
            with Path(location, MANIFEST).open("rb") as file:
                text = file.read(_MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{location}: no {MANIFEST} in it; give what {WRITTEN_BY} wrote") from None
    except PerceiverVLError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise PerceiverVLError(f"{where}: cannot be read: {first_line(error)}") from error
    try:
        if len(text) > _MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {_MAX_MANIFEST_BYTES} bytes")
        manifest = json.loads(text)
    except ValueError as error:
        raise PerceiverVLError(f"{where}: damaged: {first_line(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UsageError(f"{where}: not a manifest of shards; give what {WRITTEN_BY} wrote")
    if manifest.get("version") != VERSION:
        raise PerceiverVLError(
            f"{where}: version {manifest.get('version')}, this program reads {VERSION}: write them again, or update"
        )
    _check_file(manifest.get("index"), INDEX, where)
    classes = manifest.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise PerceiverVLError(f"{where}: damaged: no list of classes")
    return manifest


def manifest_shards(manifest: dict[str, Any], location: str | Path) -> list[Shard]:
    """The shards of a manifest. Raises `PerceiverVLError` for lines that cannot be: names that lead elsewhere."""
    where = f"{str(location).rstrip('/')}/{MANIFEST}"
    lines = manifest.get("shards")
    if not isinstance(lines, list) or not lines:
        raise PerceiverVLError(f"{where}: names no shards")
    shards = []
    for line in lines:
        name = line.get("name") if isinstance(line, dict) else None
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise PerceiverVLError(f"{where}: {name!r} is not the name of a shard")
        _check_file(line, name, where)
        counts = line.get("samples"), line.get("records")
        if not all(isinstance(count, int) and count > 0 for count in counts):
            raise PerceiverVLError(f"{where}: {name}: samples and records are {counts}, need whole numbers above 0")
        if not isinstance(line.get("split"), str | None):
            raise PerceiverVLError(f"{where}: {name}: split={line.get('split')!r}, need a name")
        shards.append(Shard(**{field.name: line.get(field.name) for field in fields(Shard)}))
    return shards


def index_schema() -> Any:
    """The columns of the index. Offsets and sizes in bytes of the tar; `second_…` only for pairs."""
    import pyarrow as pa

    place = [("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.int64())]
    return pa.schema(
        [
            ("shard", pa.string()),
            ("key", pa.string()),
            ("split", pa.string()),
            *place,
            *((f"second_{name}", kind) for name, kind in place),
            *((f"has_{need}", pa.bool_()) for need in get_args(Need)),
            ("record", pa.large_string()),
        ]
    )


def record_values(record: Record) -> dict[str, Any]:
    """A record as JSON knows it: without where it lies, and without what it does not have."""
    values = ((field.name, getattr(record, field.name), field.default) for field in fields(Record))
    return {name: value for name, value, default in values if name not in ("path", "second_path") and value != default}


def verify_shards(out: str | Path, workers: int = 1, progress: bool = False) -> Verification:
    """Read every byte of a folder of shards, in `workers` threads.

    Raises `UsageError` for a URL or a folder without a manifest, `PerceiverVLError` for a damaged manifest.
    """
    if is_url(out):
        raise UsageError(f"{out}: shards at a URL are checked as they are fetched; give a folder")
    manifest = read_manifest(out)
    files = [(shard.name, shard.bytes, shard.sha256) for shard in manifest_shards(manifest, out)]
    files.append((INDEX, manifest["index"]["bytes"], manifest["index"]["sha256"]))
    return verify_files(Path(out), files, workers, progress)


def _check_file(line: Any, name: str, where: str) -> None:
    size, digest = (line.get("bytes"), line.get("sha256")) if isinstance(line, dict) else (None, None)
    if not isinstance(size, int) or size < 0 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise PerceiverVLError(f"{where}: damaged: no size and SHA-256 of {name}")
