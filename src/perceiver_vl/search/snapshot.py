"""A table of an index as it was when it was opened, in memory where it fits: what a service asks, many queries at once.

Shapes: Q queries, K rows, E retrieval vector, D width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perceiver_vl.search.filters import quoted
from perceiver_vl.search.moments import MomentOptions, joined_spans, read_stretches, stretches_of
from perceiver_vl.search.rows import IndexSettings, Vectors, numbers
from perceiver_vl.search.table import CLIPS, ClipTable, open_table
from perceiver_vl.search.windows import Stretch

RESIDENT_BYTES = 2 << 30
"""Tables whose vectors and partial attentions are larger stay where they are, and are asked through the engine."""
_LIGHT = ("id", "file", "kind", "size", "width", "height", "duration", "created", "captions", "start", "end")


@dataclass(frozen=True)
class Shortlist:
    """The rows nearest to a query, largest dot product first: what they say, their `vectors (K,E)` and
    `partial_attentions (K,D+H)`; `exact`: they are certain to be the nearest.
    """

    rows: pa.Table
    vectors: Vectors
    partial_attentions: Vectors
    exact: bool


class Snapshot:
    """One version of a table. What is asked of it stays the same, whatever becomes of the index; a newer one is opened
    beside it.
    """

    def __init__(self, index: str | Path, name: str = CLIPS, most_bytes: int = RESIDENT_BYTES) -> None:
        """Open the newest version, every row checked where they are kept in memory; raises as `open_table`."""
        self.table: ClipTable = open_table(index, name=name)
        settings = self.settings
        width = settings.vector_size + settings.hidden_size + settings.num_attention_heads
        self.rows: pa.Table | None = None
        if 4 * width * len(self.table) <= most_bytes:
            rows = self.table.rows().sort_by([("file", "ascending"), ("start", "ascending")])
            self.rows = rows.select(list(_LIGHT)).combine_chunks()
            self.vectors = numbers(rows["vector"])
            if name == CLIPS:
                self.partial_attentions = numbers(rows["partial_attention"])
            else:
                self._stretches = list(stretches_of(rows))
                self._begins = np.cumsum([0, *map(len, self._stretches)])  # whose last is the number of rows
        elif self.table.exact:
            self.table.check()

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    @property
    def settings(self) -> IndexSettings:
        """What all rows share."""
        return self.table.settings

    # Clips

    def nearest(self, vectors: Vectors, counts: Sequence[int], wheres: Sequence[str | None]) -> list[Shortlist]:
        """For each of Q queries `(Q,E)` its `counts` rows with the largest dot products, of those for which its SQL
        condition holds. Those without a condition share one matrix product.
        """
        found: list[Shortlist | None] = [None] * len(vectors)
        rows = self.rows
        free = [place for place, where in enumerate(wheres) if where is None and rows is not None]
        if free and rows is not None:
            for place, products in zip(free, vectors[free] @ self.vectors.T, strict=True):
                best = _largest(products, counts[place])
                near = self.vectors[best], self.partial_attentions[best]
                found[place] = Shortlist(rows.take(best), *near, exact=True)
        for place, where in enumerate(wheres):
            if found[place] is None:
                nearest, exact = self.table.nearest(vectors[place], counts[place], where)
                stored = numbers(nearest["vector"]), numbers(nearest["partial_attention"])
                found[place] = Shortlist(nearest.select(list(_LIGHT)), *stored, exact)
        return [one for one in found if one is not None]

    def of_id(self, content: str) -> dict[str, Any] | None:
        """What the row of a clip with this id says, with its `vector (E,)` and `partial_attention`, and as `files` the
        names of all files with this content; None: there is none.
        """
        if self.rows is None:
            rows = self.table.rows(f"id = {quoted(content)}")
            if not len(rows):
                return None
            of_first: dict[str, Any] = rows.select(list(_LIGHT)).slice(0, 1).to_pylist()[0]
            stored = numbers(rows["vector"])[0], numbers(rows["partial_attention"])[0]
            names = rows["file"].to_pylist()
        else:
            places = self._places_of_id.get(content)
            if places is None:
                return None
            of_first = self.rows.slice(places[0], 1).to_pylist()[0]
            stored = self.vectors[places[0]], self.partial_attentions[places[0]]
            names = self.rows["file"].take(places).to_pylist()
        return {**of_first, "vector": stored[0], "partial_attention": stored[1], "files": names}

    def of_files(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the rows of some files say, by name, each with its `vector (E,)`."""
        if self.rows is None:
            listed = ", ".join(map(quoted, names)) or "''"
            rows = self.table.rows(f"file IN ({listed})")
            vectors, rows = numbers(rows["vector"]), rows.select(list(_LIGHT))
        else:
            known = [self._place_of_file[name] for name in names if name in self._place_of_file]
            places = np.array(known, np.int64)
            vectors, rows = self.vectors[places], self.rows.take(places)
        return {row["file"]: {**row, "vector": vector} for row, vector in zip(rows.to_pylist(), vectors, strict=True)}

    @cached_property
    def _place_of_file(self) -> dict[str, int]:
        assert self.rows is not None
        return {name: place for place, name in enumerate(self.rows["file"].to_pylist())}

    @cached_property
    def _places_of_id(self) -> dict[str, list[int]]:
        assert self.rows is not None
        places: dict[str, list[int]] = {}
        for place, content in enumerate(self.rows["id"].to_pylist()):
            places.setdefault(content, []).append(place)
        return places

    # Segments

    def stretches(
        self, vector: Vectors, options: MomentOptions, where: str | None = None
    ) -> tuple[list[Stretch], int, bool]:
        """As `read_stretches`; without a condition from memory, where every segment's vector is compared."""
        if self.rows is None or where is not None:
            return read_stretches(self.table, vector, options, where)
        if len(self) <= options.everything:
            return self._stretches, len(self), True
        places = np.sort(_largest(self.vectors @ vector, options.shortlist))
        of_stretch = np.searchsorted(self._begins, places, side="right") - 1
        near: list[Stretch] = []
        for number in np.unique(of_stretch).tolist():
            stretch = self._stretches[number]
            wanted = np.zeros(len(stretch), bool)
            wanted[places[of_stretch == number] - self._begins[number]] = True
            near += _within_reach(replace(stretch, wanted=wanted), options.max_length)
        return near, len(self), False


def _largest(values: Vectors, count: int) -> Any:
    """The places of the `count` largest, largest first, the earlier of equal ones before the later."""
    if count < len(values):
        kept = np.flatnonzero(values >= np.partition(values, -count)[-count])
    else:
        kept = np.arange(len(values))
    return kept[np.argsort(-values[kept], kind="stable")][:count]


def _within_reach(stretch: Stretch, max_length: float) -> list[Stretch]:
    """The parts of a stretch that windows of at most so many seconds with one of its `wanted` segments can cover."""
    assert stretch.wanted is not None
    spans = [
        (stretch.ends[place] - max_length, stretch.starts[place] + max_length)
        for place in np.flatnonzero(stretch.wanted).tolist()
    ]
    parts = []
    for begin, end in joined_spans(spans):
        inside = np.flatnonzero((stretch.starts >= begin) & (stretch.ends <= end))
        if len(inside):
            some = slice(int(inside[0]), int(inside[-1]) + 1)
            names = ("starts", "ends", "vectors", "partial_attentions", "wanted")
            parts.append(replace(stretch, **{name: getattr(stretch, name)[some] for name in names}))
    return parts
