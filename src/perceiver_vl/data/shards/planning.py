"""Which media go into which shard, and what decides it."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from perceiver_vl.data.records import Record
from perceiver_vl.data.shards.manifest import record_values


@dataclass(frozen=True)
class Sample:
    """A file, or a pair of files, and all that one split says of it."""

    key: str
    records: tuple[Record, ...]

    @property
    def paths(self) -> list[Path]:
        """The file, or both of a pair."""
        first = self.records[0]
        return [first.path, *([first.second_path] if first.second_path else [])]


@dataclass(frozen=True)
class Plan:
    """A shard that is to be: its name, and what goes in, with a fingerprint of that.

    crashing: keys of samples that have killed the process that read them.
    """

    name: str
    split: str | None
    samples: tuple[Sample, ...]
    sha256: str
    crashing: frozenset[str] = frozenset()


def media_sizes(records: Iterable[Record]) -> dict[Path, int]:
    """The bytes of every file; 0 where there is none."""
    sizes: dict[Path, int] = {}
    for record in records:
        for path in (record.path, record.second_path):
            if path is not None and path not in sizes:
                try:
                    sizes[path] = path.stat().st_size
                except OSError:
                    sizes[path] = 0
    return sizes


def records_fingerprint(records: Iterable[Record], sizes: dict[Path, int]) -> str:
    """SHA-256 of what is written, the sizes of the media standing in for their bytes."""
    digest = hashlib.sha256()
    for record in records:
        second = sizes[record.second_path] if record.second_path else None
        digest.update(json.dumps([record_values(record), sizes[record.path], second]).encode())
    return digest.hexdigest()


def plan_shards(
    records: Iterable[Record], sizes: dict[Path, int], most_samples: int | None, most_bytes: int | None
) -> Iterator[Plan]:
    """The shards, split after split in order of first appearance, and in a split the media likewise."""
    media: dict[str | None, dict[tuple[str, Path, Path | None], list[Record]]] = {}
    for record in records:
        same = record.file_name, record.path, record.second_path
        media.setdefault(record.split, {}).setdefault(same, []).append(record)
    numbers: Counter[str] = Counter()
    for split, found in media.items():
        prefix = _prefix(split)
        samples = [Sample(f"{number:08d}", tuple(said)) for number, said in enumerate(found.values())]
        for some in _cut(samples, sizes, most_samples, most_bytes):
            said = [record for sample in some for record in sample.records]
            yield Plan(f"{prefix}-{numbers[prefix]:06d}.tar", split, tuple(some), records_fingerprint(said, sizes))
            numbers[prefix] += 1


def _cut(
    samples: Iterable[Sample], sizes: dict[Path, int], most_samples: int | None, most_bytes: int | None
) -> Iterator[list[Sample]]:
    """The samples in their order, as many together as there may be; one that is larger by itself."""
    waiting: list[Sample] = []
    held = 0
    for sample in samples:
        size = sum(sizes[path] for path in sample.paths)
        if waiting and (len(waiting) == most_samples or (most_bytes is not None and held + size > most_bytes)):
            yield waiting
            waiting, held = [], 0
        waiting.append(sample)
        held += size
    yield waiting


def _prefix(split: str | None) -> str:
    """How the names of a split's shards begin: whatever a split is called, a name for a file."""
    plain = re.sub("[^a-z0-9]+", "-", (split or "").lower())
    return plain.strip("-")[:40] or "data"
