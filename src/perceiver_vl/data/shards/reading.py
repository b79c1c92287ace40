"""Clips read from shards by offset, so that any example is one read away, and their order."""

import copy
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.checksums import file_fault, size_fault
from perceiver_vl.data.fields import split_name
from perceiver_vl.data.records import Need, Record
from perceiver_vl.data.shards.cache import DEFAULT_CACHE_BYTES, ShardCache, is_url
from perceiver_vl.data.shards.manifest import (
    INDEX,
    MANIFEST,
    VERSION,
    Shard,
    index_schema,
    manifest_shards,
    read_manifest,
)
from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError, first_line

OPEN_SHARDS = 16
_PLACES = "offset", "size", "crc32"


def shuffled_in_groups(
    groups: Sequence[Sequence[int]], seed: int, epoch: int, open_groups: int = OPEN_SHARDS
) -> npt.NDArray[np.int64]:
    """All indices of `groups` once, in an order drawn from (seed, epoch) that has few groups open at a time.

    At no place of the order have more than `open_groups` groups been begun and not ended; one closes and the next
    opens as it goes. With as many groups as there are (or fewer) it is a plain permutation.
    """
    if open_groups < 1:
        raise UsageError(f"open_groups={open_groups}: need at least 1")
    rng = np.random.default_rng([seed, epoch])
    total = len(groups)
    span = max(total - open_groups + 1, 1)
    indices, times = [np.empty(0, np.int64)], [np.empty(0)]
    for place, number in enumerate(rng.permutation(total)):
        # Its examples come at random times of [begin, end). At time t only the groups of the places above t - 1 and up
        # to t + open_groups - 1 run: so many of them
        begin, end = max(0, place - open_groups + 1), min(place + 1, span)
        indices.append(np.asarray(groups[number], np.int64))
        times.append(rng.uniform(begin, end, len(groups[number])))
    order: npt.NDArray[np.int64] = np.concatenate(indices)[np.argsort(np.concatenate(times), kind="stable")]
    return order


class ShardedDataset:
    """The records of shards, one split or all, decoded when asked for, at `size` (height, width): a `VideoDataset`.

    location: a folder, whose shards are read in place, or any URL of fsspec (s3://, gs://, https://, file://, …), whose
    shards are fetched whole into `cache` (default: in the user's cache folder), checked against the manifest, and kept
    there until more than `cache_bytes` are. Give it room for at least as many shards as are open at a time.

    need: keep the records that have a text, a question or a label. Records are in the order of the source they were
    made of, those of one file together; their `path` names the shard and the member in it. `classes`: the names that
    labels are indices of, where they are names. `damaged`: the records whose media gave some frames, but not all.

    Raises `UsageError` for a location without shards, a split or a need that nothing meets, `PerceiverVLError` for
    shards that are gone or of another size, and an index or manifest that is damaged or of another version.
    """

    def __init__(
        self,
        location: str | Path,
        size: tuple[int, int],
        split: str | None = None,
        *,
        need: Need | None = None,
        cache: Path | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.location, self.size = str(location), size
        self._cache = ShardCache(self.location, cache, cache_bytes) if is_url(location) else None
        manifest = read_manifest(location)
        every = manifest_shards(manifest, self.location)
        chosen = _of_split(every, split, self.location)
        self.shards = [every[number] for number in chosen]
        self.classes = tuple(manifest["classes"])
        self._check_shards(cache_bytes)
        self._index = self._read_index(manifest, every, chosen)
        owner = np.repeat(np.arange(len(chosen)), [shard.records for shard in self.shards])
        if need is not None:
            keep = self._index[f"has_{need}"].to_numpy()
            if not keep.any():
                raise UsageError(f"{location}: none of {len(keep)} records has a {need}; write shards of data that do")
            self._index, owner = self._index.filter(keep).combine_chunks(), owner[keep]
        self._counts = np.bincount(owner, minlength=len(chosen))
        self._ends = np.cumsum(self._counts)
        self._which = ""
        self.damaged: set[int] = set()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def groups(self) -> list[range]:
        """The indices of each shard's records, for `shuffled_in_groups`."""
        bounds = zip((self._ends - self._counts).tolist(), self._ends.tolist(), strict=True)
        return [range(begin, end) for begin, end in bounds if begin < end]

    def seconds(self) -> Self:
        """The other pictures of pairs, as a source of its own."""
        other = copy.copy(self)
        other._which, other.damaged = "second_", set()
        return other

    def record(self, index: int) -> Record:
        """What is known of it; `path`: `SHARD/MEMBER`, which is no file."""
        index = self._checked(index)
        shard = self._shard(index).name
        try:
            values = json.loads(self._index["record"][index].as_py())
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            second = f"{shard}/{self._member(index, 'second_')}" if "second_file_name" in values else None
            record = Record(
                path=Path(shard, self._member(index)), second_path=None if second is None else Path(second), **values
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise PerceiverVLError(f"{self._at(INDEX)}: record {index} cannot be read: {first_line(error)}") from error
        return record.second_picture() if self._which else record

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        """Read and decode.

        Raises `MediaError`, which names shard and member, for a sample that is damaged or cannot be decoded;
        `PerceiverVLError` for a shard that is gone or cannot be fetched.
        """
        record = self.record(index)
        clip = load_clip(
            self._read(self._checked(index), record.path),
            num_frames,
            rng=rng,
            size=self.size,
            start=record.start,
            end=record.end,
            name=str(record.path),
        )
        if clip.lost:
            self.damaged.add(index)
        return clip.frames

    def _read(self, index: int, path: Path) -> bytes:
        """The bytes of a sample's media, checked."""
        offset, size, crc32 = (int(self._index[f"{self._which}{name}"][index].as_py()) for name in _PLACES)
        with self._open(self._shard(index)) as file:
            file.seek(offset)
            try:
                media = file.read(size)
            except OSError as error:
                raise MediaError(path, f"cannot be read: {error.strerror or error}") from error
        if len(media) < size:
            raise MediaError(path, "truncated: the shard ends within it")
        if zlib.crc32(media) != crc32:
            raise MediaError(path, "altered: its bytes are not those that were written")
        return media

    def _open(self, shard: Shard) -> BinaryIO:
        if self._cache:
            return self._cache.open(shard.name, shard.bytes, shard.sha256)
        try:
            return Path(self.location, shard.name).open("rb")
        except OSError as error:
            raise PerceiverVLError(f"{self._at(shard.name)}: cannot be opened: {error.strerror or error}") from error

    def _shard(self, index: int) -> Shard:
        return self.shards[int(np.searchsorted(self._ends, index, side="right"))]

    def _member(self, index: int, which: str = "") -> str:
        key, suffix = (self._index[name][index].as_py() for name in ("key", f"{which}suffix"))
        return f"{key}{'.second' if which else ''}{suffix}"

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return int(index)

    def _at(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"

    def _check_shards(self, cache_bytes: int) -> None:
        """Whether what can be known before the first example is in order."""
        if self._cache:
            largest = max(self.shards, key=lambda shard: shard.bytes)
            if largest.bytes > cache_bytes:
                raise UsageError(f"cache_bytes={cache_bytes}: less than {largest.name} has, {largest.bytes}")
            return
        for shard in self.shards:
            if fault := size_fault(Path(self.location, shard.name), shard.bytes):
                raise PerceiverVLError(f"{self._at(shard.name)}: {fault}; restore it, or write the shards again")

    def _read_index(self, manifest: dict[str, Any], every: list[Shard], chosen: list[int]) -> Any:
        """The rows of the shards `chosen`, as an Arrow table whose places all lie within their shards."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        size, digest = manifest["index"]["bytes"], manifest["index"]["sha256"]
        if self._cache is None and (fault := file_fault(Path(self.location, INDEX), size, digest)):
            raise PerceiverVLError(f"{self._at(INDEX)}: {fault}; restore it, or write the shards again")
        try:
            with self._open(Shard(INDEX, None, 0, 0, size, digest)) as file, parquet.ParquetFile(file) as table:
                counts = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
                if counts != [shard.records for shard in every]:
                    raise PerceiverVLError(f"{self._at(INDEX)}: has other records than {MANIFEST} says; write it again")
                if table.schema_arrow != index_schema():
                    raise PerceiverVLError(f"{self._at(INDEX)}: has other columns than version {VERSION} has")
                known = [name for name in index_schema().names if name not in ("shard", "split")]  # from the manifest
                rows = table.read_row_groups(chosen, columns=known).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise PerceiverVLError(f"{self._at(INDEX)}: cannot be read: {first_line(error)}") from error
        limits = np.repeat([shard.bytes for shard in self.shards], [shard.records for shard in self.shards])
        for which in ("", "second_"):
            offset, size = (rows[f"{which}{name}"].fill_null(0).to_numpy() for name in ("offset", "size"))
            outside = (offset < 0) | (size < 0) | (size > limits) | (offset > limits - size)
            if outside.any():
                name = rows["key"][int(outside.argmax())].as_py()
                raise PerceiverVLError(f"{self._at(INDEX)}: {name} lies beyond the end of its shard; write it again")
        return rows


def _of_split(shards: list[Shard], split: str | None, location: str) -> list[int]:
    """The numbers of the shards of a split."""
    if split is None:
        return list(range(len(shards)))
    wanted = {split, split_name(split)}
    chosen = [number for number, shard in enumerate(shards) if shard.split in wanted]
    if not chosen:
        known = ", ".join(sorted({shard.split for shard in shards if shard.split})) or "no splits"
        raise UsageError(f"split={split}: not in {location}, which has {known}")
    return chosen
