"""The index on disk: `index.json`, `skipped.jsonl`, and parts in Parquet that are written once, whole, or not at all.

A part holds some hundred clips. Its columns: what tells whether the file changed, what is shown, `vector` (E float32,
the multi-stream) and `partial_attention` (D + H float32, the mixed stream). A partial attention is one fixed-size
binary value: those of a part are read some three times faster than as lists.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from json import JSONDecodeError, loads
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as parquet

from perceiver_vl.utils import files
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from perceiver_vl.utils.files import write_json, write_with
from perceiver_vl.utils.jsonl import write_lines

FORMAT = 2
_SHOWN = ["file_name", "size", "mtime_ns", "texts", "duration"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class IndexSettings:
    """What every clip of an index shares.

    `model` and `media` are absolute folders, `fingerprint` is the model's; E is `vector_size`, D `hidden_size`, H
    `num_attention_heads`. `decoders`: every decoder version that took part, as their pixels differ. `dtype`: what the
    model encoded in; None: as it was saved.
    """

    model: str
    fingerprint: str
    media: str
    budget: str
    frames: int
    vector_size: int
    hidden_size: int
    num_attention_heads: int
    decoders: tuple[str, ...]
    dtype: str | None = None
    format: int = FORMAT

    @property
    def partial_attention_size(self) -> int:
        """D + H."""
        return self.hidden_size + self.num_attention_heads


@dataclass(frozen=True)
class IndexEntry:
    """One file of the media folder as it was when it was encoded; `duration` in seconds, None for an image."""

    file_name: str
    size: int
    mtime_ns: int
    texts: tuple[str, ...]
    duration: float | None


@dataclass(frozen=True)
class EncodedClip:
    """A clip with its unit vector `(E,)` and its partial attention `(D+H,)`, as `partial_match` gives it.

    damaged: its file lacked frames.
    """

    clip: IndexEntry
    vector: Vectors
    partial_attention: Vectors
    damaged: bool = False


@dataclass(frozen=True)
class SkippedFile:
    """A file that cannot be decoded, remembered so that it is tried again only once it has changed."""

    file_name: str
    size: int
    mtime_ns: int
    reason: str


# Reading


def read_settings(index: Path) -> IndexSettings:
    """The settings of an index folder; `UsageError` if it is none, or one of another format."""
    path = index / "index.json"
    if not path.is_file():
        raise UsageError(f"{index}: not an index (no index.json), make one with perceiver-vl index")
    try:
        stored = loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            maker = f"made by {'an older' if stored['format'] < FORMAT else 'a newer'} version"
            raise UsageError(f"{index}: {maker} (format {stored['format']}, not {FORMAT}), index again in a new folder")
        stored.setdefault("dtype", None)  # of indexes made before there was a choice
        values = {field.name: stored[field.name] for field in fields(IndexSettings)}
        return IndexSettings(**{**values, "decoders": tuple(values["decoders"])})
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise PerceiverVLError(f"{path}: damaged ({type(error).__name__}), delete {index} and index again") from error


def part_paths(index: Path) -> list[Path]:
    """The parts in the order in which they were written."""
    return sorted((index / "parts").glob("part-*.parquet"))


def read_skipped(index: Path) -> list[SkippedFile]:
    """The files that could not be decoded."""
    path = index / "skipped.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        return [SkippedFile(**loads(line)) for line in lines if line]
    except (JSONDecodeError, TypeError) as error:
        raise PerceiverVLError(f"{path}: damaged ({type(error).__name__}), delete it and index again") from error


class StoredIndex:
    """An index folder as it was when opened. `clips`: one a file; the later part wins should a file be in two."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self.parts = part_paths(self.folder)
        listed = [(path, row, clip) for path in self.parts for row, clip in enumerate(_read_clips(path))]
        last = {clip.file_name: number for number, (_, _, clip) in enumerate(listed)}
        kept = [listed[number] for number in sorted(last.values())]
        self.clips = [clip for _, _, clip in kept]
        self._places = [(path, row) for path, row, _ in kept]
        self._rows_of: dict[Path, list[int]] = {}
        for path, row in self._places:
            self._rows_of.setdefault(path, []).append(row)

    def vectors_by_part(self) -> Iterator[Vectors]:
        """Blocks of unit vectors `(n,E)`, in the order of `clips`."""
        for path, rows in self._rows_of.items():
            column = _read_part(path, ["vector"])["vector"].combine_chunks()
            yield column.flatten().to_numpy().reshape(len(column), self.settings.vector_size)[rows]

    def partial_attentions(self, numbers: Sequence[int]) -> Vectors:
        """The partial attentions `(len(numbers),D+H)` of clips by their number in `clips`; only the parts they are in
        are read.

        Raises `PerceiverVLError` if the index is no longer as it was when opened.
        """
        result = np.empty((len(numbers), self.settings.partial_attention_size), dtype=np.float32)
        slots_of: dict[Path, list[int]] = {}
        for slot, number in enumerate(numbers):
            slots_of.setdefault(self._places[number][0], []).append(slot)
        for path, slots in slots_of.items():
            names, partial_attentions = _read_partial_attention(path, self.settings.partial_attention_size)
            rows = [self._places[numbers[slot]][1] for slot in slots]
            wanted = [self.clips[numbers[slot]].file_name for slot in slots]
            if max(rows) >= len(names) or [names[row] for row in rows] != wanted:
                raise PerceiverVLError(f"{self.folder}: changed while it was searched, search again")
            result[slots] = partial_attentions[rows]
        return result

    @property
    def state(self) -> str:
        """A name for the parts as they are now: it changes when they do."""
        listing = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.parts]
        return hashlib.sha256(repr(listing).encode()).hexdigest()[:16]


def _read_clips(path: Path) -> list[IndexEntry]:
    rows = _read_part(path, _SHOWN).to_pylist()
    return [IndexEntry(**{**row, "texts": tuple(row["texts"])}) for row in rows]


def _read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    with _one_line(path), parquet.ParquetFile(path) as part:
        return part.read(columns)


def _read_partial_attention(path: Path, size: int) -> tuple[list[str], Vectors]:
    """The file names of a part, and its partial attentions `(n,size)`."""
    with _one_line(path), parquet.ParquetFile(path, memory_map=True) as part:
        table = part.read(["file_name", "partial_attention"], use_threads=False)
        values = table["partial_attention"].combine_chunks().buffers()[1]
        return table["file_name"].to_pylist(), np.frombuffer(values, dtype=np.float32).reshape(len(table), size)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise PerceiverVLError(f"{path}: gone while it was read, try again") from error
    except (ValueError, OSError, KeyError) as error:  # Arrow raises all three
        raise PerceiverVLError(f"{path}: damaged, delete it and index again") from error


# Writing


@contextmanager
def locked(index: Path) -> Iterator[None]:
    """Keep other runs from writing the index, and clear what a killed run left half-written."""
    try:
        index.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{index}: cannot be made ({error.strerror}), give another folder") from error
    with files.locked(index, leftovers=(".*.part", "parts/.*.part")):
        yield


def write_settings(index: Path, settings: IndexSettings) -> None:
    """Write `index.json`."""
    write_json(index / "index.json", asdict(settings))


def write_skipped(index: Path, skipped: Iterable[SkippedFile]) -> None:
    """Write `skipped.jsonl`, an object a line."""
    write_lines(index / "skipped.jsonl", map(asdict, skipped))


def write_part(index: Path, encoded: Sequence[EncodedClip]) -> None:
    """Add a part of one clip or more: after this they are in the index, whatever happens."""
    names = [path.stem for path in part_paths(index)]
    number = int(names[-1].split("-")[1]) + 1 if names else 0
    vectors = np.stack([one.vector for one in encoded]).astype(np.float32)
    partial_attentions = np.stack([one.partial_attention for one in encoded]).astype(np.float32)
    table = pa.table(
        {
            **_shown_columns([one.clip for one in encoded]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            "partial_attention": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(partial_attentions[0].nbytes),
                len(partial_attentions),
                [None, pa.py_buffer(partial_attentions)],
            ),
        }
    )
    _write_table(index / "parts" / f"part-{number:06d}.parquet", table)


def keep_only(index: Path, wanted: dict[str, IndexEntry]) -> None:
    """Drop the clips that are not in `wanted`, and take its captions for the others; no other part is written."""
    for path in part_paths(index):
        stored = _read_clips(path)
        kept = [replace(clip, texts=wanted[clip.file_name].texts) for clip in stored if clip.file_name in wanted]
        if kept == stored:
            continue
        if not kept:
            path.unlink()
            continue
        table = _read_part(path).filter(pa.array([clip.file_name in wanted for clip in stored]))
        for name, column in _shown_columns(kept).items():
            table = table.set_column(table.column_names.index(name), name, column)
        _write_table(path, table)


def _shown_columns(clips: list[IndexEntry]) -> dict[str, pa.Array]:
    types = [pa.string(), pa.int64(), pa.int64(), pa.list_(pa.string()), pa.float64()]
    return {
        name: pa.array([getattr(clip, name) for clip in clips], kind) for name, kind in zip(_SHOWN, types, strict=True)
    }


def _write_table(path: Path, table: pa.Table) -> None:
    def write(beside: Path) -> None:
        parquet.write_table(table, beside, compression="none", use_dictionary=False, write_statistics=False)

    try:
        write_with(path, write)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise PerceiverVLError(f"{path}: cannot be written ({reason}); the parts before it are kept") from error
