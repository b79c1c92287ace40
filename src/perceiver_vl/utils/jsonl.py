"""Files of JSON lines that grow with a run: a crash costs the last line at most, a resume drops what it does again."""

import json
import math
import os
from pathlib import Path
from typing import Any

from perceiver_vl.utils.files import write_text


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add an entry to the end of a file, and see it onto the disk. Numbers that are not finite are left out."""
    known = {name: value for name, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(known, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def parsed(text: str) -> list[dict[str, Any]]:
    """The entries of some lines that have a `step`, in their order. What is no whole line is passed over."""
    found = []
    for line in text.split("\n"):  # names of files may hold other ends of lines
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def keep_until(path: Path, step: int, without: str | None = None) -> list[dict[str, Any]]:
    """Drop what a run that goes on from `step` will write again: entries of later steps, and those that have the key
    `without`; → the rest.
    """
    if not path.is_file():
        return []
    found = parsed(path.read_text(encoding="utf-8", errors="replace"))
    kept = [entry for entry in found if entry["step"] <= step and without not in entry]
    write_text(path, "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in kept))
    return kept
