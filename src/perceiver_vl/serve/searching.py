"""Searches as they are asked for over HTTP, many at once, over one version of the indexes.

Shapes: Q queries, E retrieval vector, K candidates.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from perceiver_vl.search.combined import CombinedQuery, combine
from perceiver_vl.search.filters import Filters, quoted
from perceiver_vl.search.moments import MomentOptions, find, moment_result
from perceiver_vl.search.rows import Vectors
from perceiver_vl.search.table import APPROXIMATE
from perceiver_vl.search.windows import Query
from perceiver_vl.serve.library import Library, OpenIndex
from perceiver_vl.serve.messages import (
    Hit,
    Like,
    MomentsAnswer,
    MomentsRequest,
    SearchAnswer,
    SearchRequest,
    Text,
    Understood,
)
from perceiver_vl.serve.typed_query import FILTERS, TypedQuery, parse_query
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.text import whole_characters

ALIKE = 0.995
"""The cosine from which on clips are near-duplicates, where a request does not say."""
_KEPT_TEXTS = 4096
_MOST_FILES = 1000  # whose captions a search for moments may be limited to
_WORTH_A_BATCH = 3
BatchEncoder = Callable[[Sequence[str]], Sequence[tuple[Vectors, Any]]]
"""As `QueryModel.encode_all`, with what `match` of the library's own encoder wants."""
VectorOf = Callable[[str], Vectors]
"""The vector `(E,)` of an example by its id; raises for one that there is not."""


@dataclass
class TextCache:
    """What the model makes of a text, for the last texts."""

    kept: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    hits: int = 0
    misses: int = 0

    def encode(self, library: Library, texts: Sequence[str], batches: BatchEncoder | None) -> dict[str, Any]:
        """Of each text what `QueryEncoder.encode` gives; new ones in one pass of `batches`, where that is at hand and
        there are several.
        """
        wanted = list(dict.fromkeys(texts))
        new = [text for text in wanted if text not in self.kept]
        self.misses += len(new)
        self.hits += len(wanted) - len(new)
        found = {text: self.kept.pop(text) for text in wanted if text in self.kept}
        if batches is not None and len(new) >= _WORTH_A_BATCH:
            found |= zip(new, batches(new), strict=True)
        else:
            found |= {text: library.queries.encode(text) for text in new}
        self.kept.update(found)
        while len(self.kept) > _KEPT_TEXTS:
            self.kept.popitem(last=False)
        return found


@dataclass(frozen=True)
class ReadQuery:
    """A request with what was typed into it taken apart."""

    request: SearchRequest
    typed: TypedQuery
    filters: Filters


def read_query(request: SearchRequest) -> ReadQuery:
    """Raises `UsageError` for what no search can be made of."""
    query = whole_characters(request.query)
    typed = parse_query(query)
    given = {name: getattr(request, name) for name in FILTERS if getattr(request, name) is not None}
    for name in given.keys() & typed.filters.keys():
        raise UsageError(f"{name}: is both typed and given, leave one out")
    filters = Filters(**{**typed.filters, **given})
    filters.sql()
    if not typed.texts and not request.like:
        raise UsageError(f"query {query!r}: need at least one word or example")
    return ReadQuery(replace(request, query=query), replace(typed, filters={**typed.filters, **given}), filters)


def search_all(
    library: Library,
    asked: Sequence[ReadQuery],
    vector_of: VectorOf,
    cache: TextCache,
    batches: BatchEncoder | None = None,
) -> list[SearchAnswer | Exception]:
    """The answer to each of Q queries, or what is wrong with it; they share the work where they can."""
    seconds: dict[str, float] = {}
    combined: list[CombinedQuery | Exception] = []
    encoded: dict[str, Any] = {}
    with _timed(seconds, "encode"):
        with suppress(Exception):  # of one of them, as is found out below
            encoded = cache.encode(library, [text for one in asked for text, _ in one.typed.texts], batches)
        for one in asked:
            texts = [text for text, _ in one.typed.texts]
            try:
                own = encoded if encoded.keys() >= set(texts) else cache.encode(library, texts, None)
                combined.append(_combined(one, vector_of, own))
            except Exception as error:
                combined.append(error)
    answers: list[SearchAnswer | Exception] = list(combined)  # type: ignore[arg-type]
    clips = [
        place
        for place, query in enumerate(combined)
        if isinstance(query, CombinedQuery) and not isinstance(asked[place].request, MomentsRequest)
    ]
    _search_clips(library, asked, combined, clips, answers, seconds)
    for place, query in enumerate(combined):
        if isinstance(query, CombinedQuery) and isinstance(asked[place].request, MomentsRequest):
            try:
                answers[place] = _moments(library, asked[place], query, dict(seconds))
            except Exception as error:
                answers[place] = error
    return answers


def _combined(asked: ReadQuery, vector_of: VectorOf, encoded: Mapping[str, Any]) -> CombinedQuery:
    words = [(*encoded[text], weight) for text, weight in asked.typed.texts]
    examples = [(vector_of(example.id), example.weight) for example in asked.request.like]
    return combine(words, examples)


def _notes(library: Library, asked: ReadQuery) -> list[str]:
    return [note for text, _ in asked.typed.texts for note in library.queries.notes(text)]


def _understood(asked: ReadQuery) -> Understood:
    return Understood([Text(*one) for one in asked.typed.texts], asked.typed.filters)


# Clips


def _search_clips(
    library: Library,
    asked: Sequence[ReadQuery],
    combined: Sequence[CombinedQuery | Exception],
    places: Sequence[int],
    answers: list[SearchAnswer | Exception],
    seconds: dict[str, float],
) -> None:
    """Put the answers of the queries at `places` into `answers`."""
    candidates: dict[int, list[_Candidates]] = {place: [] for place in places}
    with _timed(seconds, "shortlist"):
        for index in library.indexes:
            some = [place for place in places if asked[place].request.index in (None, index.name)]
            for place, found in zip(some, _shortlists(index, asked, combined, some), strict=True):
                if isinstance(found, Exception):
                    answers[place] = found
                else:
                    candidates[place].append(found)
    for place in places:
        if isinstance(answers[place], CombinedQuery):
            try:
                library.named(asked[place].request.index)
                answers[place] = _ranked(library, asked[place], combined[place], candidates[place], dict(seconds))  # type: ignore[arg-type]
            except Exception as error:
                answers[place] = error


@dataclass(frozen=True)
class _Candidates:
    index: OpenIndex
    rows: pa.Table
    vectors: Vectors
    partial_attentions: Vectors
    exact: bool
    searched: int


def _shortlists(
    index: OpenIndex,
    asked: Sequence[ReadQuery],
    combined: Sequence[CombinedQuery | Exception],
    places: Sequence[int],
) -> list[_Candidates | Exception]:
    if not places:
        return []
    vectors = np.stack([combined[place].vector for place in places])  # type: ignore[union-attr]
    counts = [max(asked[place].request.shortlist, asked[place].request.top) for place in places]
    wheres = [asked[place].filters.sql() for place in places]
    try:
        found = index.clips.nearest(vectors, counts, wheres)
    except Exception as error:
        if len(places) == 1:
            return [error]
        return [one for place in places for one in _shortlists(index, asked, combined, [place])]
    return [
        _Candidates(
            index,
            near.rows,
            near.vectors,
            near.partial_attentions,
            near.exact,
            len(index.clips) if where is None else index.clips.table.count(where),
        )
        for near, where in zip(found, wheres, strict=True)
    ]


def _ranked(
    library: Library, asked: ReadQuery, query: CombinedQuery, candidates: list[_Candidates], seconds: dict[str, float]
) -> SearchAnswer:
    request = asked.request
    with _timed(seconds, "rerank"):
        rows = pa.concat_tables([one.rows for one in candidates])
        indexes = [one.index for one in candidates for _ in range(len(one.rows))]
        vectors = np.concatenate([one.vectors for one in candidates])
        partial_attentions = np.concatenate([one.partial_attentions for one in candidates])
        if len(candidates) > 1:
            best = np.argsort(-(vectors @ query.vector), kind="stable")[: max(request.shortlist, request.top)]
            rows, indexes = rows.take(best), [indexes[place] for place in best]
            vectors, partial_attentions = vectors[best], partial_attentions[best]
        scores, cosines, mixed = query.scores(library.queries, vectors, partial_attentions, request.rerank)
        order = np.argsort(-scores, kind="stable").tolist()
        groups = _grouped(order, rows["id"].to_pylist(), vectors, _threshold(request), request.top)
        shown = np.array([place for group in groups for place in group], np.int64)
        found = dict(zip(shown.tolist(), rows.take(shown).to_pylist(), strict=True))
        if request.sort == "date":
            groups.sort(key=lambda group: _created(found[group[0]]), reverse=True)
    hits = [
        Hit(
            rank=rank,
            **_about(indexes[first], found[first]),
            score=float(scores[first]),
            multi_score=float(cosines[first]),
            mixed_score=None if mixed is None else float(mixed[first]),
            start=None if found[first]["duration"] is None else 0.0,
            end=found[first]["duration"],
            alike=[Like(found[one]["id"], found[one]["file"], indexes[one].name, float(scores[one])) for one in others],
        )
        for rank, (first, *others) in enumerate(groups, start=1)
    ]
    exact = all(one.exact for one in candidates)
    recall = None if exact else min(one.index.clips.table.seal.recall or 0.0 for one in candidates if not one.exact)
    seconds["total"] = sum(seconds.values())
    return SearchAnswer(
        query=request.query,
        understood=_understood(asked),
        hits=hits,
        found=None,
        notes=_notes(library, asked),
        method="exact" if exact else APPROXIMATE,
        recall=recall,
        searched=sum(one.searched for one in candidates),
        seconds=seconds,
    )


def _threshold(request: SearchRequest) -> float | None:
    return (ALIKE if request.alike is None else request.alike) if request.group else None


def _grouped(
    order: Sequence[int], ids: Sequence[str], vectors: Vectors, alike: float | None, top: int
) -> list[list[int]]:
    """The first `top` groups of candidates, best first: the first of a group is the best, the others are like it."""
    groups: list[list[int]] = []
    of_id: dict[str, int] = {}
    heads = np.empty((min(top, len(order)), vectors.shape[1]), np.float32)
    for place in order:
        like = None
        if alike is not None and groups:
            cosines = heads[: len(groups)] @ vectors[place]
            nearest = int(np.argmax(cosines))
            like = nearest if cosines[nearest] >= alike else of_id.get(ids[place])
        if like is not None:
            groups[like].append(place)
        elif len(groups) < top:
            heads[len(groups)] = vectors[place]
            of_id.setdefault(ids[place], len(groups))
            groups.append([place])
        elif alike is None:
            break
    return groups


def _about(index: OpenIndex, row: dict[str, Any]) -> dict[str, Any]:
    """What a hit says of its clip."""
    names = ("id", "file", "kind", "duration", "width", "height")
    about = {name: row[name] for name in names}
    return {**about, "index": index.name, "created": said_time(row["created"]), "captions": list(row["captions"] or ())}


def said_time(created: Any) -> str | None:
    """A time as JSON has it."""
    return None if created is None else created.isoformat()


def _created(row: dict[str, Any]) -> float:
    return float("-inf") if row["created"] is None else row["created"].timestamp()


# Moments


def _moments(library: Library, asked: ReadQuery, query: CombinedQuery, seconds: dict[str, float]) -> MomentsAnswer:
    """Over several indexes: the best of each, ordered by their scores."""
    request = asked.request
    assert isinstance(request, MomentsRequest)
    indexes = library.named(request.index)
    if without := [one.name for one in indexes if one.segments is None]:
        again = f"perceiver-vl index --out {without[0]} --segments 2"
        raise UsageError(f"{', '.join(without)}: has no segments, index again with {again}")
    options = MomentOptions(
        top_k=request.top,
        per_video=request.per_video,
        min_length=request.min_length,
        max_length=request.max_length,
        shortlist=request.shortlist,
        rerank=request.rerank if query.texts else "none",
        always=request.always,
    )
    options.check()
    results = []
    for index in indexes:
        assert index.segments is not None
        settings = index.segments.settings
        with _timed(seconds, "shortlist"):
            where = _where_of_segments(index, asked.filters)
            stretches, count, exact = index.segments.stretches(query.vector, options, where)
        with _timed(seconds, "rerank"):
            match = partial(query.match, library.queries)
            scale, heads = library.queries.logit_scale, settings.num_attention_heads
            of_query = Query(query.vector, scale, match, heads, options.rerank, settings.length_weight or 0.0)
            found = find(stretches, of_query, options)
        results.append((index, moment_result(request.query, found, options, settings, count, exact, {}, [])))
    hits, curves = [], {}
    for index, result in results:
        rows = index.clips.of_files(list(dict.fromkeys(one.file_name for one in result.moments)))
        for moment in result.moments:
            if (row := rows.get(moment.file_name)) is None:
                continue  # committed in between: its clip is not in this version
            curves[row["id"]] = result.curves[moment.file_name]
            hit = Hit(
                rank=0,
                **_about(index, row),
                score=moment.score,
                multi_score=moment.multi_score,
                mixed_score=moment.mixed_score,
                start=moment.start,
                end=moment.end,
                alike=[],
            )
            hits.append((hit, row["vector"]))
    hits.sort(key=lambda one: -one[0].score)
    groups = _alike_moments(hits, _threshold(request), request.top)
    if request.sort == "date":
        groups.sort(key=lambda one: one.created or "", reverse=True)
    best = max((result for _, result in results), key=lambda result: result.surprise)
    judged = [result.found for _, result in results]
    notes = dict.fromkeys([*_notes(library, asked), *(note for _, result in results for note in result.notes)])
    seconds["total"] = sum(seconds.values())
    return MomentsAnswer(
        query=request.query,
        understood=_understood(asked),
        hits=[replace(hit, rank=rank) for rank, hit in enumerate(groups, start=1)],
        found=None if None in judged else any(judged),
        notes=list(notes),
        method=best.method,
        recall=None,
        searched=sum(result.searched for _, result in results),
        seconds=seconds,
        curves=curves,
        surprise=best.surprise,
        threshold=best.threshold,
    )


def _where_of_segments(index: OpenIndex, filters: Filters) -> str | None:
    """The condition on segments. These have no captions; those of their clips are looked at."""
    if filters.caption is None:
        return filters.sql()
    rows = index.clips.table.rows(filters.sql(), limit=_MOST_FILES)
    listed = ", ".join(quoted(name) for name in rows["file"].to_pylist()) or "''"
    return f"file IN ({listed})"


def _alike_moments(hits: Sequence[tuple[Hit, Vectors]], alike: float | None, top: int) -> list[Hit]:
    """Moments at the same time of videos that are alike are one."""
    kept: list[tuple[Hit, Vectors]] = []
    for hit, vector in hits:
        for place, (best, of_best) in enumerate(kept if alike is not None else ()):
            same = hit.file != best.file and (hit.id == best.id or float(vector @ of_best) >= (alike or 0))
            if same and _overlap(hit, best) > 0.5:
                like = Like(hit.id, hit.file, hit.index, hit.score)
                kept[place] = replace(best, alike=[*best.alike, like]), of_best
                break
        else:
            kept.append((hit, vector))
    return [hit for hit, _ in kept[:top]]


def _overlap(one: Hit, other: Hit) -> float:
    """What two moments cover together, of what both cover."""
    first, last = (one.start or 0.0, one.end or 0.0), (other.start or 0.0, other.end or 0.0)
    shared = min(first[1], last[1]) - max(first[0], last[0])
    return shared / max(max(first[1], last[1]) - min(first[0], last[0]), 1e-9)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
