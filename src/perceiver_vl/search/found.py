"""The files of a folder as they are found: what tells whether the index has them already."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.media.files import VIDEO_EXTENSIONS
from perceiver_vl.search.rows import IndexEntry, SkippedFile

_ID_BLOCKS, _ID_BLOCK = 16, 1 << 16


def look_at_files(records: Sequence[Record], skipped: list[SkippedSample]) -> tuple[dict[str, IndexEntry], set[str]]:
    """File name → the file as it is now, with the captions of all its records; names that could not be looked at."""
    found: dict[str, IndexEntry] = {}
    unseen: set[str] = set()
    for record in records:
        name = record.file_name
        if (earlier := found.get(name)) is not None:
            found[name] = replace(earlier, captions=tuple(dict.fromkeys(earlier.captions + record.texts)))
            continue
        try:
            name.encode()
            status = record.path.stat()
        except UnicodeEncodeError:
            skipped.append(SkippedSample(ascii(name), "its name is not Unicode, rename it"))
        except OSError as error:
            unseen.add(name)
            skipped.append(SkippedSample(name, error.strerror or "cannot be read"))
        else:
            kind = "video" if record.path.suffix.lower() in VIDEO_EXTENSIONS else "image"
            found[name] = IndexEntry(name, kind, status.st_size, status.st_mtime_ns, record.texts)
    return found, unseen


def content_id(path: str | Path) -> str:
    """What tells contents apart, 32 hexadecimal digits: SHA-256 of the size and the bytes of a file, of one of more
    than 1 MiB only of sixteen stretches of 64 KiB from its beginning to its end.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        stretches = min(_ID_BLOCKS, -(-size // _ID_BLOCK))
        for stretch in range(stretches):
            file.seek(
                stretch * _ID_BLOCK
                if size <= _ID_BLOCKS * _ID_BLOCK
                else stretch * (size - _ID_BLOCK) // (stretches - 1)
            )
            digest.update(file.read(_ID_BLOCK))
    return digest.hexdigest()[:32]


def is_within(name: str, place: str) -> bool:
    """Whether a file is a place that was looked at, or in it."""
    return place in (".", name) or name.startswith(place + "/")


def is_same_file(one: IndexEntry | SkippedFile, other: IndexEntry) -> bool:
    """Whether size and time of change are the same."""
    return (one.size, one.mtime) == (other.size, other.mtime)
