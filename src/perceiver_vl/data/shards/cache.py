"""Shards at a URL, fetched whole into a folder of bounded size that all processes of a machine share."""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.utils.files import user_cache

DEFAULT_CACHE_BYTES = 64 << 30
TRIES, FIRST_WAIT = 4, 0.5  # a fetch that breaks off is tried again after 0.5, 1 and 2 seconds
_BLOCK = 8 << 20


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a URL (of fsspec, chained with `::` or not), not a folder of this machine."""
    return "://" in str(location) or "::" in str(location)


def default_cache_folder() -> Path:
    """Where shards are kept if nobody says: in the user's cache folder."""
    return user_cache("shards")


def open_remote(location: str, name: str) -> Any:
    """The file `name` at a URL, open for reading.

    Each call asks fsspec anew, which keeps connections by process: after a fork nothing is shared by mistake.
    Raises `UsageError` for a URL that this machine cannot speak; whatever the file system raises for the rest.
    """
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:  # a package that is missing, a protocol that nobody knows
        raise UsageError(f"{location}: cannot be opened: {first_line(error)}") from error
    return system.open(f"{root.rstrip('/')}/{name}", "rb", block_size=_BLOCK)


class ShardCache:
    """The shards of one URL, kept under their SHA-256 in `folder`; the least recently used make room for new ones.

    Files are complete and checked before they have their name, so that processes may come and go. The folder holds at
    most `max_bytes`, exceeded only while shards that are being fetched at the same time need more.
    """

    def __init__(self, location: str, folder: Path | None = None, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.location, self.max_bytes = location, max_bytes
        self.folder = folder or default_cache_folder()

    def open(self, name: str, size: int, sha256: str) -> BinaryIO:
        """The shard `name` of `size` bytes, fetched if it is not there, open for reading.

        Raises `PerceiverVLError` for one that cannot be fetched, or is not what `sha256` says.
        """
        kept = self.folder / f"{sha256}.tar"
        try:
            for _ in range(TRIES):  # another process may remove it between our fetching and our opening
                if file := _open_whole(kept, size):
                    return file
                self._fetch(name, size, sha256, kept)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise PerceiverVLError(
                    f"{self.folder}: disk full while fetching {name}; free some space, or give a smaller cache"
                ) from error
            raise PerceiverVLError(f"{self.folder}: {name} cannot be kept: {error.strerror or error}") from error
        raise PerceiverVLError(
            f"{self.folder}: others remove {name} as soon as it is fetched; give the cache more room"
        )

    def _fetch(self, name: str, size: int, sha256: str, kept: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(sha256):
            if kept.exists():  # another process was first
                return
            beside = kept.with_name(f".{sha256}.part")
            self._claim(beside, size)
            try:
                self._copy(name, size, sha256, beside)
                beside.replace(kept)
            finally:
                beside.unlink(missing_ok=True)

    def _copy(self, name: str, size: int, sha256: str, beside: Path) -> None:
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            digest, total = hashlib.sha256(), 0
            with beside.open("r+b") as file:
                try:
                    with open_remote(self.location, name) as source:
                        while total <= size and (block := source.read(_BLOCK)):
                            digest.update(block)
                            total += len(block)
                            _write(file, block)
                except (UsageError, _WriteError):
                    raise
                except FileNotFoundError as error:
                    raise PerceiverVLError(f"{self.location}/{name}: no such file, named in the manifest") from error
                except Exception as error:  # each file system has errors of its own
                    reason = first_line(error)
                    continue
                file.truncate()
                os.fsync(file.fileno())
            if total == size and digest.hexdigest() == sha256:
                return
            reason = f"it has other bytes than the manifest says ({total} read, {size} expected)"
        raise PerceiverVLError(f"{self.location}/{name}: cannot be fetched in {TRIES} tries: {reason}")

    def _claim(self, beside: Path, size: int) -> None:
        """Make room, and a file of `size` bytes that others see before these are there."""
        with FileLock(self.folder / ".lock"):
            for part in self.folder.glob(".*.part"):  # of processes that were killed: nobody holds their lock
                with contextlib.suppress(Timeout), self._lock(part.name[1:], timeout=0):
                    part.unlink(missing_ok=True)
            kept = _by_use(self.folder.glob("*.tar"))
            total = sum(size for _, size in [*kept, *_by_use(self.folder.glob(".*.part"))])
            for path, freed in kept:
                if total + size <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= freed
            with beside.open("wb") as file:
                file.truncate(size)

    def _lock(self, sha256: str, timeout: float = -1) -> FileLock:
        """One of 256 locks, so that they do not grow with the number of shards ever seen."""
        return FileLock(self.folder / f".{sha256[:2]}.lock", timeout=timeout)


def _open_whole(path: Path, size: int) -> BinaryIO | None:
    """A kept file, marked as used now; None if it is not there. One of another size is removed."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):  # of a cache that may only be read
        os.utime(path)
    return file


class _WriteError(OSError):
    """Writing here failed, not reading there: no reason to try again."""


def _write(file: BinaryIO, block: bytes) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise _WriteError(error.errno, error.strerror) from error


def _by_use(paths: Iterable[Path]) -> list[tuple[Path, int]]:
    """Files and their sizes, the least recently used first; those that vanish meanwhile are left out."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]
