"""A prepared folder: what it says of itself, and whether it still is what it says.

`prepare.json` says how it was made; `prepare.files.jsonl` has a line for each file, written as soon as the file is, so
that a run that is stopped can go on; `metadata.jsonl` comes last.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from perceiver_vl.data.checksums import Verification, verify_files
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from perceiver_vl.utils.jsonl import read_lines

MANIFEST = "prepare.json"
FILES = "prepare.files.jsonl"
METADATA = "metadata.jsonl"
Key = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class PreparedFile:
    """One file of a prepared folder and where it is from.

    start, end, duration: seconds, of a picture None. bytes, mtime_ns: size and time of change; lost: the source
    breaks off or parts of it are damaged.
    """

    file_name: str
    bytes: int
    sha256: str
    frames: int
    duration: float | None
    lost: bool
    source: str
    start: float | None
    end: float | None
    source_bytes: int
    source_mtime_ns: int

    @property
    def key(self) -> Key:
        """What of the source it shows."""
        return self.source, self.start, self.end


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What `prepare.json` says; None if the folder has none. Raises `PerceiverVLError` for one that is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PerceiverVLError(f"{path}: damaged, remove the folder and prepare it again") from error
    if not isinstance(manifest, dict) or "settings" not in manifest:
        raise PerceiverVLError(f"{path}: not written by prepare, give another folder")
    return manifest


def has_features(folder: Path) -> bool:
    """Whether a folder holds features instead of media (`prepare --features`), as its manifest says."""
    try:
        settings = (read_manifest(folder) or {}).get("settings", {})
    except PerceiverVLError:  # whose it is will be said where it matters
        return False
    return isinstance(settings, dict) and "encoder" in settings


def read_files(folder: Path) -> dict[Key, PreparedFile]:
    """The files of a prepared folder by what they show; a line that a stopped run left half-written is passed over."""
    known = {field.name for field in fields(PreparedFile)}
    files = [PreparedFile(**values) for values in read_lines(folder / FILES) if values.keys() == known]
    return {one.key: one for one in files}


def files_hash(files: Iterable[PreparedFile]) -> str:
    """SHA-256 over the names and checksums of the files, by name: the same wherever the folder was made."""
    digest = hashlib.sha256()
    for name, checksum in sorted((one.file_name, one.sha256) for one in files):
        digest.update(f"{json.dumps(name)} {checksum}\n".encode())
    return digest.hexdigest()


def describe_prepared(folder: str | Path) -> str | None:
    """One line for an evaluation record: how the media of `folder` were prepared, and their hash; None for raw media.

    A folder whose preparation did not end says so.
    """
    manifest = read_manifest(Path(folder))
    if manifest is None:
        return None
    settings = " ".join(f"{name}={value}" for name, value in manifest["settings"].items() if value is not None)
    return f"{settings}; {'sha256 ' + manifest['hash'] if manifest.get('complete') else 'incomplete'}"


def verify_prepared(folder: str | Path, workers: int = 1, progress: bool = False) -> Verification:
    """Read every file of a prepared folder and its metadata again, in `workers` threads, and compare their checksums.

    Raises `UsageError` for a folder that is not prepared, or not to its end.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder}: no {MANIFEST}, not a prepared folder")
    if not manifest.get("complete"):
        raise UsageError(f"{folder}: its preparation did not end, run it again first")
    prepared = list(read_files(folder).values())
    files: list[tuple[str, int | None, str]] = [(one.file_name, one.bytes, one.sha256) for one in prepared]
    if manifest["metadata_sha256"]:
        files.append((METADATA, None, manifest["metadata_sha256"]))
    result = verify_files(folder, files, workers, progress)
    if files_hash(prepared) != manifest["hash"]:
        result.problems.append(SkippedSample(FILES, f"does not say what {MANIFEST} says"))
    if not manifest["metadata_sha256"] and (folder / METADATA).exists():
        result.problems.append(SkippedSample(METADATA, f"is there, which {MANIFEST} does not say"))
    return result
