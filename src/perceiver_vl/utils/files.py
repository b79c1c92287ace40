"""Writing files so that a reader never sees half of one, one run at a time, and fingerprints of what was written."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perceiver_vl.utils.errors import UsageError


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a path beside `path`, flush it to disk, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{shortened(path.name, 200)}.{os.getpid()}.part")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def shortened(name: str, most: int) -> str:
    """A file's name of at most so many bytes: a long one is cut, and has a hash of the whole before its ending."""
    if len(os.fsencode(name)) <= most:
        return name
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    ending = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{ending}"
    kept = os.fsencode(stem)[: max(most - len(os.fsencode(ending)), 0)]
    return kept.decode(errors="ignore") + ending


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_with(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def user_cache(name: str) -> Path:
    """A folder for what can be made again, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perceiver-vl" / name


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path, leftovers: Sequence[str] = (".*.part",), lock: str = ".lock") -> Iterator[None]:
    """Keep other runs from writing `folder`; before and after, clear it of the `leftovers` (patterns) of killed ones.

    Raises `UsageError` where another run holds the `lock`.
    """

    def clear() -> None:
        for path in [path for pattern in leftovers for path in folder.glob(pattern)]:
            path.unlink(missing_ok=True)

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / lock, timeout=0):
            clear()
            try:
                yield
            finally:
                clear()
    except Timeout as error:
        raise UsageError(f"{folder}: another run is writing it, wait for it to end") from error


def check_made_with(folder: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise `UsageError` where a folder was made with other settings, those in the JSON of its manifest, than these."""
    for name, value in json.loads(json.dumps(settings)).items():
        if (was := earlier.get(name)) != value:
            raise UsageError(f"{folder}: made with {name}={was}, not {value}; ask for that or give another folder")
