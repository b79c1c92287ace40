"""The clips whose unit vectors are nearest to the words': exactly while they are few, through LanceDB above."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock

from perceiver_vl.search.store import StoredIndex, Vectors
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.files import write_json

EXACT_ROWS = 50_000
RECALL_AT = 10

Numbers = npt.NDArray[np.int64]


class Shortlist(Protocol):
    """A way to find the nearest clips; `recall`: the share of the true `RECALL_AT` nearest it finds, on a sample."""

    method: str
    recall: float

    def nearest(self, query: Vectors, count: int) -> tuple[Numbers, Vectors]:
        """Unit vector `(E,)` → numbers of at most `count` clips, best first, and their cosines."""
        ...


def open_shortlist(
    index: StoredIndex, sample_queries: Callable[[], Vectors], exact_rows: int = EXACT_ROWS
) -> Shortlist:
    """Exact search up to `exact_rows` clips, LanceDB above; its tables are made again when the parts have changed.

    `sample_queries` gives unit vectors `(n,E)` of typical queries, on which a new table's recall is measured.
    """
    if len(index.clips) <= exact_rows:
        return ExactShortlist(np.concatenate(list(index.vectors_by_part())))
    return LanceShortlist(index, sample_queries)


class ExactShortlist:
    """Every cosine, by one matrix product."""

    method, recall = "exact", 1.0

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def nearest(self, query: Vectors, count: int) -> tuple[Numbers, Vectors]:
        """Unit vector `(E,)` → numbers of the `count` nearest clips, best first, and their cosines."""
        numbers, cosines = _best(self._vectors @ query, count)
        return numbers, cosines


class LanceShortlist:
    """An inverted-file index (IVF, flat vectors) in `INDEX/lance/STATE`; STATE names the parts it was made from."""

    method = "lancedb"

    def __init__(self, index: StoredIndex, sample_queries: Callable[[], Vectors]) -> None:
        lancedb = _import_lancedb(len(index.clips))
        home = index.folder / "lance" / index.state
        self._partitions = max(1, round(len(index.clips) ** 0.5))
        with FileLock(index.folder / ".lance.lock"):  # the second of two searches waits for the table of the first
            if not (home / "recall.json").is_file():
                self._make(lancedb, home, index, sample_queries())
        self._table = lancedb.connect(home).open_table("clips")
        self.recall = float(json.loads((home / "recall.json").read_text(encoding="utf-8"))["recall"])

    def nearest(self, query: Vectors, count: int) -> tuple[Numbers, Vectors]:
        """Unit vector `(E,)` → numbers of about the `count` nearest clips, best first, and their cosines."""
        return self._nearest(self._table, query, count)

    def _nearest(self, table: Any, query: Vectors, count: int) -> tuple[Numbers, Vectors]:
        probes = min(self._partitions, max(20, self._partitions // 10))
        search = table.search(query).distance_type("dot").nprobes(probes).limit(count)
        found = search.select(["number", "_distance"]).to_arrow()
        return found["number"].to_numpy(), 1 - found["_distance"].to_numpy()

    def _make(self, lancedb: Any, home: Path, index: StoredIndex, queries: Vectors) -> None:
        """Write the table beside its place, measure it, and move it there; what was made from other parts goes."""
        beside = home.with_name(f".{home.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        table = lancedb.connect(beside).create_table("clips", _rows(index))
        kind = lancedb.index.IvfFlat(distance_type="dot", num_partitions=self._partitions)
        table.create_index("vector", config=kind)
        found = [set(self._nearest(table, query, RECALL_AT)[0].tolist()) for query in queries]
        write_json(beside / "recall.json", {"recall": measure_recall(found, exact_nearest(index, queries, RECALL_AT))})
        shutil.rmtree(home, ignore_errors=True)
        beside.rename(home)
        for other in home.parent.iterdir():
            if other != home:
                shutil.rmtree(other, ignore_errors=True)


def exact_nearest(index: StoredIndex, queries: Vectors, count: int) -> list[set[int]]:
    """For each of the queries `(n,E)` the numbers of its `count` nearest clips, reading one part at a time."""
    numbers = np.empty((len(queries), 0), dtype=np.int64)
    cosines = np.empty((len(queries), 0), dtype=np.float32)
    start = 0
    for block in index.vectors_by_part():
        cosines = np.concatenate([cosines, queries @ block.T], axis=1)
        here = np.arange(start, start + len(block))
        numbers = np.concatenate([numbers, np.broadcast_to(here, (len(queries), len(block)))], axis=1)
        kept = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        cosines, numbers = np.take_along_axis(cosines, kept, axis=1), np.take_along_axis(numbers, kept, axis=1)
        start += len(block)
    return [set(row.tolist()) for row in numbers]


def measure_recall(found: list[set[int]], true: list[set[int]]) -> float:
    """The share of the true nearest that were found, over all queries."""
    return sum(len(one & other) for one, other in zip(found, true, strict=True)) / sum(len(one) for one in true)


def _best(cosines: Vectors, count: int) -> tuple[Numbers, Vectors]:
    """The numbers and values of the `count` largest, largest first; of equals, the earlier clip first."""
    numbers = np.argsort(-cosines, kind="stable")[:count]
    return numbers, cosines[numbers]


def _rows(index: StoredIndex) -> pa.RecordBatchReader:
    """Every clip's number and vector, one part at a time."""
    vector_type = pa.list_(pa.float32(), index.settings.vector_size)
    schema = pa.schema({"number": pa.int64(), "vector": vector_type})

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for block in index.vectors_by_part():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=vector_type)
            yield pa.record_batch([pa.array(np.arange(start, start + len(block))), vectors], schema=schema)
            start += len(block)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _import_lancedb(clips: int) -> Any:
    try:
        import lancedb
        import lancedb.index
    except ImportError as error:
        raise UsageError(
            f"index of {clips} clips: so many are searched through LanceDB, pip install 'perceiver-vl[lancedb]'"
        ) from error
    return lancedb
