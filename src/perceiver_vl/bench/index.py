"""An index of made-up clips by size: opening, queries with and without a filter, memory, bytes, building, updating."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.search.rows import IndexSettings, Vectors, numbers, schema, with_checksums
from perceiver_vl.search.table import RECALL_AT, ClipTable, create_table
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import timed

SIZES = (10_000, 100_000, 1_000_000)
SHORTLIST = 100
UPDATED = 1000
_WIDTH, _HEADS, _VECTOR = 768, 12, 256  # the base size, and a vector of 256 numbers
_ROWS_A_CLUSTER = 100
_SPREAD = 0.8  # of the numbers about the centre of their cluster, which have a spread of 1
_AT_ONCE = 20_000
_KEPT = 0.01  # the share of clips that the filter keeps
_FAR = 100_000_000


@dataclass(frozen=True)
class IndexTimes:
    """An index of so many `rows`, in milliseconds unless the name says otherwise: p50 and p95 of warm queries, each
    with `SHORTLIST` whole rows, with and without a filter that keeps a hundredth. `rss_mib`: of a process that has
    opened it and answered all queries; `base_mib`: before. `recall`: of the `RECALL_AT` nearest, the share found.
    `build_s`: indexes over rows that are there; `update_s`: `UPDATED` rows replaced, and all indexes up to date.
    numpy: every vector, in memory; faiss: its graph of 32 neighbours, where it is installed.
    """

    rows: int
    open_ms: float
    p50_ms: float
    p95_ms: float
    filtered_p50_ms: float
    filtered_p95_ms: float
    base_mib: float
    rss_mib: float
    bytes: int
    build_s: float
    update_s: float
    recall: float
    numpy_p50_ms: float
    faiss_p50_ms: float | None
    faiss_recall: float | None


@dataclass(frozen=True)
class IndexBenchReport(BenchReport):
    """A table a size."""

    sizes: list[IndexTimes]

    def sections(self) -> list[Section]:
        """A column a size."""
        lines: list[tuple[str, Callable[[IndexTimes], str]]] = [
            ("open, ms", lambda one: f"{one.open_ms:.1f}"),
            (f"query with {SHORTLIST} rows, p50 ms", lambda one: f"{one.p50_ms:.1f}"),
            ("p95 ms", lambda one: f"{one.p95_ms:.1f}"),
            ("with a filter that keeps 1 %, p50 ms", lambda one: f"{one.filtered_p50_ms:.1f}"),
            ("p95 ms", lambda one: f"{one.filtered_p95_ms:.1f}"),
            (f"recall@{RECALL_AT}", lambda one: f"{one.recall:.3f}"),
            ("NumPy, every vector, p50 ms", lambda one: f"{one.numpy_p50_ms:.1f}"),
            ("FAISS HNSW32, p50 ms", lambda one: or_dash(one.faiss_p50_ms, ".2f")),
            (f"FAISS HNSW32, recall@{RECALL_AT}", lambda one: or_dash(one.faiss_recall, ".3f")),
            ("resident, MiB", lambda one: f"{one.rss_mib:.0f}"),
            ("before it was opened, MiB", lambda one: f"{one.base_mib:.0f}"),
            ("on disk, MB", lambda one: f"{one.bytes / 1e6:,.0f}"),
            ("build, s", lambda one: f"{one.build_s:.1f}"),
            (f"update of {UPDATED:,} rows, s", lambda one: f"{one.update_s:.1f}"),
        ]
        rows = [(name, *(show(one) for one in self.sizes)) for name, show in lines]
        columns = ("", *(f"{one.rows:,} clips" for one in self.sizes))
        return [Section("an index of made-up clips", columns, rows, tuple(self._slopes()))]

    def _slopes(self) -> list[str]:
        """What the two largest sizes, drawn on as powers, come to."""
        if len(self.sizes) < 2:
            return []
        small, large = self.sizes[-2:]

        def far(name: str) -> float:
            at, then = (max(getattr(one, name), 1e-9) for one in (small, large))
            return float(then * (_FAR / large.rows) ** (math.log(then / at) / math.log(large.rows / small.rows)))

        return [
            f"Drawn on as powers to {_FAR:,} clips: p50 {far('p50_ms'):,.0f} ms, with the filter "
            f"{far('filtered_p50_ms'):,.0f} ms, {far('bytes') / 1e9:,.0f} GB, built in "
            f"{far('build_s') / 3600:,.1f} h, updated in {far('update_s'):,.0f} s."
        ]


def measure_index(
    sizes: Sequence[int] = SIZES, *, runs: int = 50, seed: int = 0, progress: bool = False
) -> IndexBenchReport:
    """Make an index of each size in a scratch folder (4 kB a clip), and measure it; `runs` are queries.

    The vectors are of clusters of 100 on average: a centre and noise of 0.8 of its spread; a query is another such.
    Scoring the rows again is no part of it (`measure_reranking`). Raises `UsageError` for sizes that cannot be.
    """
    if not sizes or min(sizes) < 2 * UPDATED:
        raise UsageError(f"rows={','.join(map(str, sizes))}: need at least {2 * UPDATED} clips")
    found = []
    with ProgressBars(progress) as bar:
        for rows in sorted(sizes):
            advance = bar.stage(f"{rows:,} clips", rows + 3 * runs)
            with tempfile.TemporaryDirectory(prefix="perceiver-vl-index-") as folder:
                found.append(_measure(Path(folder), rows, runs, seed, advance))
    return IndexBenchReport(sizes=found, runs=runs, seed=seed)


def _measure(folder: Path, rows: int, runs: int, seed: int, advance: Callable[..., None]) -> IndexTimes:
    settings = IndexSettings("model", "fingerprint", "media", "full", 8, _VECTOR, _WIDTH, _HEADS, ("none",))
    centres = np.random.default_rng(seed).standard_normal((max(rows // _ROWS_A_CLUSTER, 10), _VECTOR), dtype=np.float32)
    queries = _vectors(centres, runs, np.random.default_rng([seed, 1]))
    table = create_table(folder, settings)
    for start in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - start)
        table.commit(_rows(settings, centres, np.arange(start, start + count), seed))
        advance(count)
    build_s = timed(lambda: table.finish(lambda: queries[:RECALL_AT]))
    vectors = _all_vectors(table)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    np.save(folder / "queries.npy", queries)
    reader = [sys.executable, "-m", "perceiver_vl.bench.index_reader"]
    words = [*reader, str(folder), f"duration < {100 * _KEPT}", str(SHORTLIST)]
    times = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    advance(runs)
    true = [np.sort(vectors @ query)[-RECALL_AT] - 1e-5 for query in queries]
    hits = [numbers(table.nearest(query, RECALL_AT)[0]["vector"]) @ query for query in queries]
    recall = float(np.mean([np.mean(cosines >= least) for cosines, least in zip(hits, true, strict=True)]))
    numpy_ms = [1e3 * timed(partial(_best, vectors, query)) for query in queries]
    advance(runs)
    faiss_ms, faiss_recall = _faiss(vectors, queries, true)
    advance(runs)
    changed = _rows(settings, centres, np.arange(0, rows, rows // UPDATED)[:UPDATED], seed + 1)

    def update() -> None:
        table.commit(changed)
        table.finish(lambda: queries[:RECALL_AT])

    return IndexTimes(
        rows=rows,
        **times,
        bytes=size,
        build_s=build_s,
        update_s=timed(update),
        recall=recall,
        numpy_p50_ms=float(np.median(numpy_ms)),
        faiss_p50_ms=faiss_ms,
        faiss_recall=faiss_recall,
    )


def _vectors(centres: Vectors, count: int, draw: np.random.Generator) -> Vectors:
    noise = draw.standard_normal((count, _VECTOR), dtype=np.float32)
    vectors = centres[draw.integers(0, len(centres), count)] + _SPREAD * noise
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _rows(settings: IndexSettings, centres: Vectors, places: Any, seed: int) -> pa.Table:
    """Rows of clips by their number; with another seed, other rows of the same files."""
    count, draw = len(places), np.random.default_rng([seed, int(places[0]), 2])
    listed = places.tolist()
    columns = {
        "id": [f"{place:032x}" for place in listed],
        "file": [f"folder {place % 1000}/clip {place}.mp4" for place in listed],
        "kind": ["video"] * count,
        "size": draw.integers(1 << 20, 1 << 30, count),
        "mtime": draw.integers(1 << 60, 3 << 59, count),
        "width": [1920] * count,
        "height": [1080] * count,
        "duration": 100 * draw.random(count),
        "created": draw.integers(1 << 50, 3 << 49, count),
        "captions": [[f"clip number {place} of the made-up ones"] for place in listed],
        "start": [None] * count,
        "end": [None] * count,
        "vector": list(_vectors(centres, count, draw)),
        "partial_attention": list(draw.standard_normal((count, _WIDTH + _HEADS), dtype=np.float32)),
        "checksum": [0] * count,
    }
    return with_checksums(pa.table(columns, schema(settings)))


def _all_vectors(table: ClipTable) -> Vectors:
    blocks = [numbers(pa.chunked_array([batch["vector"]])) for batch in table.batches(["vector"])]
    return np.concatenate(blocks)


def _best(vectors: Vectors, query: Vectors) -> Any:
    return np.argpartition(vectors @ query, -SHORTLIST)[-SHORTLIST:]


def _faiss(vectors: Vectors, queries: Vectors, true: Sequence[float]) -> tuple[float | None, float | None]:
    """Median milliseconds and recall, if it is installed."""
    try:
        import faiss
    except ImportError:
        return None, None
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    index.hnsw.efSearch = SHORTLIST
    ms = [1e3 * timed(partial(index.search, query[None], SHORTLIST)) for query in queries]
    found = index.search(queries, RECALL_AT)[0]
    recall = np.mean([np.mean(cosines >= least) for cosines, least in zip(found, true, strict=True)])
    return float(np.median(ms)), float(recall)
