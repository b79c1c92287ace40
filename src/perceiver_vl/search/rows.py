"""What a row of an index says, its checksum, and what all rows share: the columns and metadata of its table.

Shapes: E retrieval vector, D width, H heads, K rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from perceiver_vl.search.engine import remedy
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

FORMAT = 3

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class IndexSettings:
    """What every clip of an index shares.

    `model` and `media` are absolute folders, `fingerprint` is the model's; E is `vector_size`, D `hidden_size`, H
    `num_attention_heads`. `decoders`: every decoder version that took part, as their pixels differ. `dtype`: what the
    model encoded in; None: as it was saved. `split`, `metadata`, `columns`, `exclude`: how the folder is read.
    `segments`: how videos are cut, seconds or `scenes`; None: not at all; `segment_fps`: frames a second of these;
    `surprise`: what the best window must exceed to be more than chance, and `length_weight`: what a window gains with
    the logarithm of its length, as the model has learned it or these were calibrated.
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
    split: str | None = None
    metadata: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    segments: str | None = None
    segment_fps: float | None = None
    surprise: float | None = None
    length_weight: float | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class IndexEntry:
    """A file of the media folder: `mtime` in nanoseconds, and what is known once it was read: `id` of its content,
    `duration` in seconds (None for an image), `created` as it says itself, or else its time of change.
    """

    file: str
    kind: str
    size: int
    mtime: int
    captions: tuple[str, ...]
    id: str = ""
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    created: datetime | None = None
    start: float | None = None
    end: float | None = None


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
class WrittenClips:
    """Clips of which the rows are written, but not yet committed: the fragments as `write_rows` gives them."""

    fragments: list[str]
    files: list[str]
    damaged: list[str]


@dataclass(frozen=True)
class SkippedFile:
    """A file that cannot be decoded, remembered so that it is tried again only once it has changed."""

    file: str
    size: int
    mtime: int
    reason: str


@dataclass(frozen=True)
class Seal:
    """What the last commit of a run says of the table: that it makes this `version`, of so many `rows` whose checksums
    come to `total`. Of the approximate index, if there is one: its recall (the share of the `RECALL_AT` nearest that it
    finds, over a sample of queries), and how many rows there were when it was made.
    """

    version: int = 0
    rows: int = 0
    total: int = 0
    recall: float | None = None
    trained_rows: int = 0


def schema(settings: IndexSettings) -> pa.Schema:
    """The columns of a table, and in its metadata what all clips share."""
    return pa.schema(
        {
            "id": pa.string(),
            "file": pa.string(),
            "kind": pa.string(),
            "size": pa.int64(),
            "mtime": pa.timestamp("ns", "UTC"),
            "width": pa.int32(),
            "height": pa.int32(),
            "duration": pa.float64(),
            "created": pa.timestamp("us", "UTC"),
            "captions": pa.list_(pa.string()),
            "start": pa.float64(),
            "end": pa.float64(),
            "vector": pa.list_(pa.float32(), settings.vector_size),
            "partial_attention": pa.list_(pa.float32(), settings.hidden_size + settings.num_attention_heads),
            "checksum": pa.uint32(),
        },
        metadata=metadata_of(settings, Seal()),
    )


def rows_of(encoded: Sequence[EncodedClip], settings: IndexSettings) -> pa.Table:
    """Clips as rows, with their checksums."""
    wanted = schema(settings)
    columns = {name: [getattr(one.clip, name) for one in encoded] for name in wanted.names[:-3]}
    columns |= {name: [getattr(one, name) for one in encoded] for name in ("vector", "partial_attention")}
    columns["checksum"] = [0] * len(encoded)
    return with_checksums(pa.table(columns, wanted))


def with_checksums(rows: pa.Table) -> pa.Table:
    """The rows with the checksums that they should have."""
    return rows.set_column(rows.schema.get_field_index("checksum"), "checksum", pa.array(_checksums(rows), pa.uint32()))


def _checksums(rows: pa.Table) -> list[int]:
    """CRC-32 of each row: of its plain values as JSON, then of its vectors' bytes."""
    plain = rows.drop_columns(["vector", "partial_attention", "checksum"])
    for name in ("mtime", "created"):
        plain = plain.set_column(plain.schema.get_field_index(name), name, plain[name].cast(pa.int64()))
    vectors = [numbers(rows[name]) for name in ("vector", "partial_attention")]
    return [
        crc32(partial.tobytes(), crc32(vector.tobytes(), crc32(json.dumps(row).encode())))
        for row, vector, partial in zip(plain.to_pylist(), *vectors, strict=True)
    ]


def numbers(column: pa.ChunkedArray) -> Vectors:
    """A column of K vectors of n numbers: `(K,n)`; NaN where there is none."""
    result = np.full((len(column), column.type.list_size), np.nan, np.float32)
    present = pa.chunked_array(column.drop_null().chunks, column.type).combine_chunks()
    result[column.is_valid().to_numpy()] = present.flatten().to_numpy(zero_copy_only=False).reshape(-1, result.shape[1])
    return result


def damaged_rows(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Which of the K rows are not as they were written, `(K,)`."""
    try:
        expected = _checksums(rows)
    except ValueError:  # text that is not Unicode any more; say in which row
        return (
            np.concatenate([damaged_rows(rows.slice(row, 1)) for row in range(len(rows))])
            if len(rows) > 1
            else np.ones(1, bool)
        )
    stored = rows["checksum"].fill_null(0).to_numpy()
    return np.asarray(expected, np.uint32) != stored


def metadata_of(settings: IndexSettings, seal: Seal) -> dict[str, str]:
    """Of a table, with a checksum of its own; `read_metadata` gives both back."""
    described = json.dumps({"settings": asdict(settings), "seal": asdict(seal)}, ensure_ascii=False)
    return {"perceiver_vl": described, "checksum": str(crc32(described.encode()))}


def read_metadata(index: str, metadata: Mapping[bytes, bytes]) -> tuple[IndexSettings, Seal]:
    """What the metadata of the table of `index` say.

    Raises `UsageError` for a table that is none of ours or of another format, `PerceiverVLError` for damaged metadata.
    """
    described = metadata.get(b"perceiver_vl")
    if described is None:
        raise UsageError(f"{index}: a table that is none of ours, give another place")
    if metadata.get(b"checksum") != str(crc32(described)).encode():
        raise PerceiverVLError(
            f"{index}: damaged (its settings are not what was written), mend it with {remedy(index)}"
        )
    stored = json.loads(described)
    if (made := stored["settings"]["format"]) != FORMAT:
        maker = f"made by {'an older' if made < FORMAT else 'a newer'} version"
        raise UsageError(f"{index}: {maker} (format {made}, not {FORMAT}), index again in a new place")
    lists = {name: tuple(stored["settings"][name]) for name in ("decoders", "exclude")}
    columns = tuple((ours, theirs) for ours, theirs in stored["settings"]["columns"])
    settings = IndexSettings(**{**stored["settings"], **lists, "columns": columns})
    return settings, Seal(**stored["seal"])
