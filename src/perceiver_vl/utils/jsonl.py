"""Files of JSON lines: an object a line. One that grows loses its last line at most in a crash."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perceiver_vl.utils.files import write_with


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write all entries, atomically."""

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, entries))

    write_with(path, write)


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry to the end of a file, and see it onto the disk. Numbers that are not finite are left out."""
    known = {name: value for name, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(known))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, none where there is none. What is no whole line is passed over."""
    return list(_entries(path.read_text(encoding="utf-8", errors="replace"))) if path.is_file() else []


def parsed(text: str) -> list[dict[str, Any]]:
    """The entries of some lines that have a `step`, in their order. What is no whole line is passed over."""
    return [entry for entry in _entries(text) if isinstance(entry.get("step"), int)]


def keep_until(path: Path, step: int, without: str | None = None) -> list[dict[str, Any]]:
    """Drop what a run that goes on from `step` will write again: entries of later steps, and those that have the key
    `without`; → the rest.
    """
    if not path.is_file():
        return []
    found = parsed(path.read_text(encoding="utf-8", errors="replace"))
    kept = [entry for entry in found if entry["step"] <= step and without not in entry]
    write_lines(path, kept)
    return kept


def _entries(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):  # names of files may hold other ends of lines
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _line(entry: Mapping[str, Any]) -> str:
    line = json.dumps(entry, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is not Unicode, which JSON can only write escaped
        line = json.dumps(entry)
    return line + "\n"
