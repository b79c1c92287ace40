"""Find clips by words: a shortlist by unit vectors (multi-stream), re-ranked by partial attentions (mixed stream)."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from perceiver_vl.models.folder import model_fingerprint, warning_of_folder
from perceiver_vl.search.engine import NoIndexError, how_to_make
from perceiver_vl.search.filters import Filters
from perceiver_vl.search.moments import MomentOptions, MomentResult, find, moment_result, read_stretches
from perceiver_vl.search.query_graph import QueryEncoder, open_graph
from perceiver_vl.search.rows import Vectors, numbers
from perceiver_vl.search.table import APPROXIMATE, SEGMENTS, ClipTable, open_table
from perceiver_vl.search.windows import Query
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError
from perceiver_vl.utils.text import whole_characters
from perceiver_vl.utils.threads import use_threads

if TYPE_CHECKING:
    import torch

Rerank = Literal["combined", "mixed", "none"]
RERANK_BATCH = 4096  # bounds the memory of a shortlist of any length
FUSION_CONSTANT = 60


@dataclass(frozen=True)
class Hit:
    """A clip that was found: `score` orders the hits, `multi_score` is the cosine, `mixed_score` the matching logit."""

    rank: int
    file_name: str
    path: Path
    score: float
    multi_score: float
    mixed_score: float | None
    duration: float | None
    texts: tuple[str, ...]


@dataclass
class SearchResult:
    """The answer to a query: hits, best first; seconds by stage (encode, shortlist, rerank, total); how it was found.

    `notes`: words of the query that the model does not know, or that were cut off.
    `method` is that of the shortlist, exact or approximate, then with its `recall` (the share of the true nearest that
    it finds, on a sample); `searched` is the number of clips in the index that the filters keep.
    """

    query: str
    hits: list[Hit]
    method: str
    recall: float | None
    searched: int
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def paths(self) -> list[Path]:
        """Of what was found, best first."""
        return [hit.path for hit in self.hits]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        for hit in plain["hits"]:
            hit["path"] = str(hit["path"])
        return plain


class Searcher:
    """An index opened once, to answer many queries, all from the version that was the newest then: see `refresh`. The
    model is in memory, the clips are where the index is. `notes`: what a person may want to know.
    """

    def __init__(
        self,
        index: str | Path,
        model_folder: str | Path | None = None,
        device: "str | torch.device | None" = None,
        *,
        light: bool = False,
        threads: int | None = None,
    ) -> None:
        """Open an index with the model that made it; `model_folder` says where it is now, should it have moved.

        light: on the CPU and without importing torch, where `perceiver-vl index` has left the graphs for that
        (`query_graph`); what is found is the same. `threads`: to compute with; None: as torch or onnxruntime is set.
        Raises `UsageError` for a place without an index, an index without clips, and another model; `PerceiverVLError`
        for a damaged index, as far as it is noticed before it is searched: a small one is checked whole.
        """
        self.index = index
        self._segments: ClipTable | None = None
        self.table = open_table(index)
        settings = self.table.settings
        if not len(self.table):
            raise UsageError(f"{index}: an index without clips, give it some with {how_to_make(str(index))}")
        if self.table.exact:
            self.table.check()
        folder = Path(model_folder or settings.model)
        if model_folder is None and not folder.is_dir():
            where = Setting("model", "FOLDER")
            raise UsageError(f"{index}: its model {folder} is not there any more, say where it is with ", where)
        if model_fingerprint(folder) != settings.fingerprint:
            raise UsageError(
                f"{index}: made by another model than {folder} now holds; give the one that made it with ",
                Setting("model", "FOLDER"),
                ", or index again into a new folder",
            )
        warning = warning_of_folder(Path(folder))
        self.notes = [f"{folder}: {warning}"] if warning else []
        queries: QueryEncoder | None = None
        if light and str(device or "cpu") == "cpu":
            try:
                queries = open_graph(folder, settings, threads)
            except PerceiverVLError as error:
                again = f"perceiver-vl index --out {shlex.quote(str(index))}"
                self.notes.append(f"{error}; torch is imported instead, {again} makes it anew")
        if queries is None:
            from perceiver_vl.search.query_model import QueryModel

            if threads is not None:
                use_threads(threads)
            queries = QueryModel(folder, settings, device)
        self.queries = queries

    def refresh(self) -> None:
        """Go on with the newest version of the index. Raises `UsageError` if another model has made that."""
        fingerprint = self.table.settings.fingerprint
        self.table.refresh()
        self._segments = None
        if self.table.settings.fingerprint != fingerprint:
            raise UsageError("the index was made anew by another model, open it again")

    def search(
        self,
        words: str,
        top_k: int = 10,
        shortlist: int = 100,
        rerank: Rerank = "combined",
        filters: Filters | None = None,
        hybrid: bool = False,
    ) -> SearchResult:
        """The `top_k` clips for `words`, of those that the `filters` keep.

        The `shortlist` clips with the largest cosine are scored again by the mixed stream and ordered by
        `combined_scores`, by the matching logit alone (`rerank="mixed"`), or left as they are (`"none"`).
        hybrid: as many clips are looked for by the words in captions and file names (BM25), and both rankings are
        joined: `score` is the sum of 1 / (60 + rank) (reciprocal rank fusion, Cormack et al. 2009).
        Raises `UsageError` for an empty query, numbers below 1 and a condition that is no SQL.
        """
        words = whole_characters(words)
        _check_query(words, top_k, shortlist, rerank)
        where = None if filters is None else filters.sql()
        count = top_k if rerank == "none" and not hybrid else max(shortlist, top_k)
        seconds: dict[str, float] = {}
        with _timed(seconds, "total"):
            with _timed(seconds, "encode"):
                vector, text = self.queries.encode(words)
            with _timed(seconds, "shortlist"):
                rows, exact = self.table.nearest(vector, count, where)
                by_words = self.table.matching(words, count, where) if hybrid else None
            with _timed(seconds, "rerank"):
                rows, text_ranks = _joined(rows, by_words)
                cosines: Vectors = numbers(rows["vector"]) @ vector
                mixed = None if rerank == "none" else self.match(numbers(rows["partial_attention"]), text)
                scores = self._scores(cosines, mixed, rerank)
                if by_words is not None:
                    scores = _fused(np.argsort(np.argsort(-scores, kind="stable"), kind="stable"), text_ranks)
                order = np.argsort(-scores, kind="stable")[:top_k]
        found = rows.select(["file", "kind", "duration", "captions"]).take(order).to_pylist()
        hits = [
            Hit(
                rank,
                row["file"],
                Path(self.table.settings.media, row["file"]),
                float(scores[place]),
                float(cosines[place]),
                None if mixed is None else float(mixed[place]),
                row["duration"],
                tuple(row["captions"]),
            )
            for rank, (place, row) in enumerate(zip(order, found, strict=True), start=1)
        ]
        method, recall = ("exact", None) if exact else (APPROXIMATE, self.table.seal.recall)
        return SearchResult(words, hits, method, recall, self.table.count(where), seconds, self.queries.notes(words))

    def moments(self, words: str, options: MomentOptions | None = None, filters: Filters | None = None) -> MomentResult:
        """Where in which of the videos that the `filters` keep: the best windows of their segments for `words`.

        Every window is scored from its segments' stored partial attentions as the decoder would over all of it. Raises
        `UsageError` for an empty query, options that cannot be, and an index without segments.
        """
        options, words = options or MomentOptions(), whole_characters(words)
        _check_query(words, options.top_k, options.shortlist, options.rerank)
        options.check()
        table, where = self.segments(), None if filters is None else filters.sql()
        seconds: dict[str, float] = {}
        with _timed(seconds, "total"):
            with _timed(seconds, "encode"):
                vector, text = self.queries.encode(words)
            with _timed(seconds, "shortlist"):
                stretches, count, exact = read_stretches(table, vector, options, where)
            with _timed(seconds, "score"):
                match = partial(self.match, text=text)
                heads = table.settings.num_attention_heads
                weight = table.settings.length_weight if options.length_weight is None else options.length_weight
                query = Query(vector, self.queries.logit_scale, match, heads, options.rerank, weight or 0.0)
                found = find(stretches, query, options)
        return moment_result(words, found, options, table.settings, count, exact, seconds, self.queries.notes(words))

    def segments(self) -> ClipTable:
        """The table of segments, opened once; raises as the constructor, `UsageError` for an index without segments."""
        if self._segments is None:
            try:
                self._segments = open_table(self.index, name=SEGMENTS)
            except NoIndexError:
                again = f"perceiver-vl index --out {shlex.quote(str(self.index))} --segments 2"
                raise UsageError(f"{self.index}: has no segments, index again with {again}") from None
            if self._segments.exact:
                self._segments.check()
        return self._segments

    def match(self, clips: Vectors, text: Any) -> Vectors:
        """Matching logits `(K,)` of a text with clips, from the stored partial attentions `(K,D+H)`."""
        parts = [clips[start : start + RERANK_BATCH] for start in range(0, len(clips), RERANK_BATCH)]
        return np.concatenate([self.queries.match(part, text) for part in parts] or [np.empty(0, np.float32)])

    def _scores(self, cosines: Vectors, mixed: Vectors | None, rerank: Rerank) -> Vectors:
        if mixed is None:
            return cosines
        if rerank == "mixed":
            return mixed
        return log_softmax(self.queries.logit_scale * cosines) + log_softmax(mixed)  # as `combined_scores`


def log_softmax(values: Vectors) -> Vectors:
    """Of `(K,)`, without torch."""
    logarithms: Vectors = values - float(np.logaddexp.reduce(values, dtype=np.float64))
    return logarithms


def _joined(rows: pa.Table, by_words: pa.Table | None) -> tuple[pa.Table, Vectors]:
    """The clips of one ranking, then those that are only in the other; the ranks of all in the other, from 0."""
    if by_words is None:
        return rows, np.empty(0, np.float32)
    ranks = {name: rank for rank, name in enumerate(by_words["file"].to_pylist())}
    known = set(rows["file"].to_pylist())
    others = by_words.select(rows.schema.names).filter(pa.array([name not in known for name in ranks], pa.bool_()))
    joined = pa.concat_tables([rows, others])
    return joined, np.array([ranks.get(name, np.inf) for name in joined["file"].to_pylist()], np.float32)


def _fused(*rankings: npt.NDArray[Any]) -> Vectors:
    """Reciprocal rank fusion of the ranks that each ranking gives `(K,)`, from 0; infinite: not in it."""
    fused: Vectors = np.sum([1 / (1 + FUSION_CONSTANT + ranks.astype(np.float32)) for ranks in rankings], axis=0)
    return fused


def _check_query(words: str, top_k: int, shortlist: int, rerank: str) -> None:
    if not words.strip():
        raise UsageError(f"query {words!r}: need at least one word")
    if top_k < 1 or shortlist < 1:
        raise UsageError(f"top_k={top_k}, shortlist={shortlist}: need at least 1 of each")
    if rerank not in get_args(Rerank):
        raise UsageError(f"rerank={rerank!r}: choose {', '.join(get_args(Rerank))}")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
