"""The index: a LanceDB table, `INDEX/clips.lance`, in a folder or in object storage, with a row for each clip; and
where videos are cut, another of the same kind, `INDEX/segments.lance`, with a row for each segment.

Every commit is a version: a killed run leaves the last one whole, and who has opened one goes on with it. The engine
neither notices a flipped bit nor that its newest version is lost, so a row has a checksum, and the last commit of a run
seals the table with their sum. A table without an approximate index is checked whole whenever it is opened, a larger
one row by row as rows are read, or whole by `check`.

Shapes: E retrieval vector, D width, H heads, K rows.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata, write_fragments
from lance.query import MultiMatchQuery

from perceiver_vl.search.engine import NoIndexError, engine_errors, location, remedy
from perceiver_vl.search.filters import quoted
from perceiver_vl.search.rows import (
    EncodedClip,
    IndexEntry,
    IndexSettings,
    Seal,
    Vectors,
    damaged_rows,
    metadata_of,
    numbers,
    read_metadata,
    rows_of,
    schema,
    with_checksums,
)
from perceiver_vl.utils import files
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

CLIPS, SEGMENTS = "clips", "segments"
"""The names of the tables."""
_MOST_WORDS = 1000  # of file names, that the index of words is read for
EXACT_ROWS = 20_000
"""Up to so many rows every vector is compared, which takes 25 ms."""
_FEW_ROWS = 1000  # of those that a filter keeps, which are read whole
APPROXIMATE = "IVF_RQ"
"""Clusters of vectors in 5 bits a number (RaBitQ); the nearest by these are ordered by the vectors themselves."""
_PROBED, _REFINED = 0.1, 3  # the share of clusters that are looked into, without a filter; vectors read for each wanted
_MOST_PARTS = 16
_KEPT_VERSIONS = timedelta(days=1)
_COMMITS_BEFORE_COMPACTION = 100
_FRAGMENT_ROWS = 16_384
RECALL_AT = 10


# Rows


def write_rows(index: str, encoded: Sequence[EncodedClip], settings: IndexSettings) -> list[str]:
    """Write clips as fragments of the table, for somebody to commit; what tells of them, as JSON."""
    if not encoded:
        return []
    with engine_errors(index):
        fragments = write_fragments(rows_of(encoded, settings), f"{index}/clips.lance")
    return [json.dumps(fragment.to_json()) for fragment in fragments]


def _fragment(written: FragmentMetadata | str) -> FragmentMetadata:
    return FragmentMetadata.from_json(written) if isinstance(written, str) else written


def _partitions(rows: int) -> int:
    return max(1, round(rows**0.5))


def _in(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(quoted(value) for value in values)})"


# The table


class ClipTable:
    """A version of an index's table, and all that is done to it; who commits goes on with the version that it made.

    `settings`: what all clips share; `seal`: what was last said of it as a whole.
    """

    def __init__(self, index: str, dataset: Any, name: str = CLIPS) -> None:
        """For a dataset that was opened or made; see `open_table` and `create_table`."""
        self._index, self._dataset, self._commits, self._name = index, dataset, 0, name
        self.settings, self.seal = read_metadata(index, dataset.schema.metadata or {})

    def __len__(self) -> int:
        return self.count()

    def count(self, where: str | None = None) -> int:
        """How many clips there are, or those for which the SQL condition `where` holds."""
        with engine_errors(self._index, where):
            return int(self._dataset.count_rows(filter=where))

    @property
    def version(self) -> int:
        """The number of the version that is open."""
        return int(self._dataset.version)

    @property
    def exact(self) -> bool:
        """Whether there is no approximate index."""
        return self.seal.recall is None

    def data_files(self) -> list[str]:
        """The names of the files that hold the rows of this version."""
        return [file.path for fragment in self._dataset.get_fragments() for file in fragment.data_files()]

    def refresh(self) -> None:
        """Go on with the newest version, if that is another."""
        with engine_errors(self._index):
            self._dataset.checkout_latest()
        self.settings, self.seal = read_metadata(self._index, self._dataset.schema.metadata or {})

    # Reading

    def entries(self) -> list[IndexEntry]:
        """All clips, as far as an update of the index asks: `id`, `file`, `kind`, `size`, `mtime`, `captions`."""
        names = ["id", "file", "kind", "size", "mtime", "captions"]
        rows = self._scan(names)
        rows = rows.set_column(names.index("mtime"), "mtime", rows["mtime"].cast(pa.int64()))
        with engine_errors(self._index):  # text that is damaged is no text
            return [IndexEntry(**{**row, "captions": tuple(row["captions"] or ())}) for row in rows.to_pylist()]

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows, unchecked."""
        return self._scan(names)

    def rows(self, where: str | None = None, limit: int | None = None) -> pa.Table:
        """Whole rows, checked."""
        return self.checked(self._scan(None, where, limit=limit))

    def renamed(self, files: Sequence[tuple[str, IndexEntry]]) -> pa.Table:
        """The rows of files, as rows of other files with the same content, or of the same with other captions."""
        stored = self.rows(_in("file", {origin for origin, _ in files}))
        places = {name: place for place, name in enumerate(stored["file"].to_pylist())}
        rows = stored.take([places[origin] for origin, _ in files])
        for name in ("id", "file", "kind", "size", "mtime", "captions"):
            column = pa.array([getattr(file, name) for _, file in files], rows.schema.field(name).type)
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        return with_checksums(rows)

    def spread(self, count: int, column: str) -> pa.ChunkedArray:
        """A column of about so many rows, as far apart as can be, or of all."""
        rows = len(self)
        with engine_errors(self._index):
            return self._dataset.take(range(0, rows, -(-rows // count) or 1), columns=[column])[column]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, some thousand at a time, unchecked."""
        with engine_errors(self._index):
            yield from self._dataset.to_batches(columns=columns, batch_size=8192)

    def nearest(self, vector: Vectors, count: int, where: str | None = None) -> tuple[pa.Table, bool]:
        """The rows whose vectors have the largest dot product with `(E,)`, largest first, and whether these are certain
        to be the nearest: by the approximate index, if there is one and the condition keeps more than a few rows.
        """
        if not self.exact and where is not None and self.count(where) <= _FEW_ROWS:
            rows = self._scan(None, where)
            cosines = numbers(rows["vector"]) @ vector
            return self.checked(rows.take(np.argsort(-cosines, kind="stable")[:count])), True
        query = {"column": "vector", "q": vector, "k": count, "metric": "dot", "use_index": not self.exact}
        if not self.exact:
            clusters = _partitions(self.seal.trained_rows)
            probed = clusters if where is not None else max(20, round(_PROBED * clusters))
            query |= {"nprobes": probed, "refine_factor": _REFINED}
        found = self.checked(
            self._scan([*self._dataset.schema.names, "_distance"], where, nearest=query, prefilter=True)
        )
        if not np.allclose(1 - found["_distance"].to_numpy(), numbers(found["vector"]) @ vector, atol=1e-3):
            raise self.damaged("its approximate index disagrees with its vectors")
        return found.drop_columns(["_distance"]), self.exact

    def matching(self, words: str, count: int, where: str | None = None) -> pa.Table:
        """The rows whose captions or file names have some of the words, best first (BM25)."""
        query = MultiMatchQuery(words, ["captions", "file"])
        return self.checked(self._scan(None, where, full_text_query=query, limit=count, prefilter=True))

    def _scan(self, columns: Sequence[str] | None, where: str | None = None, **how: Any) -> pa.Table:
        with engine_errors(self._index, where):
            return self._dataset.scanner(columns=columns, filter=where, **how).to_table()

    def checked(self, rows: pa.Table) -> pa.Table:
        """The rows, if they are as they were written; `PerceiverVLError` for the first that is not."""
        stored = rows.select(self._dataset.schema.names)
        if (wrong := damaged_rows(stored)).any():
            name = stored["file"].cast(pa.binary()).filter(wrong)[0].as_py() or b"?"
            raise self.damaged(f"the row of {name.decode(errors='replace')} is not what was written")
        return rows

    def damaged(self, what: str) -> PerceiverVLError:
        """An error that says so, and what mends it."""
        return PerceiverVLError(f"{self._index}: damaged ({what}), mend it with {remedy(self._index)}")

    # Writing

    def commit(self, rows: pa.Table | None = None, gone: Collection[str] = ()) -> None:
        """Put rows in the place of those of their files and drop the rows of the files `gone`: all of it, or nothing.

        Raises `UsageError` where somebody else has committed since.
        """
        if rows is not None:
            with engine_errors(self._index):
                fragments = write_fragments(rows, self._dataset)
            self.commit_fragments(fragments, {*gone, *rows["file"].to_pylist()})
        elif gone:
            self.commit_fragments([], gone)

    def commit_fragments(self, fragments: Sequence[FragmentMetadata | str], files: Collection[str]) -> None:
        """The same with rows that were written before, in the place of all rows of the `files`."""
        before, where = self.version, _in("file", files)
        update = lance.LanceOperation.Update(new_fragments=[_fragment(one) for one in fragments])
        with engine_errors(self._index):
            addresses = self._addresses(where) if files else ()
            for number in np.unique(np.asarray(addresses, np.uint64) >> 32).tolist():
                rest = self._dataset.get_fragment(number).delete(where)
                if rest is None:
                    update.removed_fragment_ids.append(number)
                else:
                    update.updated_fragments.append(rest)
            if self._dataset.latest_version == before:
                self._dataset = lance.LanceDataset.commit(self._dataset, update, read_version=before)
        if self.version != before + 1:
            raise UsageError(f"{self._index}: another run is writing it, wait for it to end")
        self._commits += 1
        if self._commits % _COMMITS_BEFORE_COMPACTION == 0:
            self.compact()

    def append(self, rows: pa.Table, replaced: Collection[str]) -> None:
        """Add rows beside those that their files have, but for those of the files `replaced`, which go."""
        with engine_errors(self._index):
            fragments = write_fragments(rows, self._dataset)
        self.commit_fragments(fragments, replaced)

    def _addresses(self, where: str) -> Any:
        return self._scan([], where, with_row_address=True)["_rowaddr"].to_numpy()

    def describe(self, settings: IndexSettings) -> None:
        """Say anew what all clips share; the rows are as they were sealed."""
        if settings != self.settings:
            sealed = self.seal.version == self.version
            self._describe(settings, replace(self.seal, version=self.version + 1) if sealed else self.seal)

    def _describe(self, settings: IndexSettings, seal: Seal) -> None:
        with engine_errors(self._index):
            self._dataset.update_schema_metadata(metadata_of(settings, seal))
        self.settings, self.seal = settings, seal

    def finish(self, sample_queries: Callable[[], Vectors], exact_rows: int = EXACT_ROWS) -> None:
        """What comes after the commits of a run, if there were any: fragments made whole, indexes, cleaning up, a seal.

        More than `exact_rows` rows have an approximate index, made anew whenever they have doubled or it has many
        parts, and its recall is then measured with the unit vectors `(n,E)` that `sample_queries` gives; in between,
        what each run has committed is a part of its own, with the same clusters.
        Versions that are older than a day are deleted.
        """
        if self.seal.version == self.version:
            return
        self.compact()
        rows, indexes = len(self), {one.name: len(one.segments) for one in self._dataset.describe_indices()}
        trained, recall = self.seal.trained_rows, None
        with engine_errors(self._index):
            if self._name == CLIPS:  # a segment has no words of its own
                self._index_words(indexes, anew=rows <= exact_rows)
            if rows <= exact_rows:
                for name in indexes.keys() & {"vectors", "files"}:
                    self._dataset.drop_index(name)
            else:
                if "files" not in indexes:
                    self._dataset.create_scalar_index("file", "BTREE", name="files")
                if rows > 2 * trained or not 0 < indexes.get("vectors", 0) < _MOST_PARTS:
                    how = {
                        "name": "vectors",
                        "metric": "dot",
                        "replace": True,
                        "num_partitions": _partitions(rows),
                        "num_bits": 5,
                    }
                    self._dataset = self._dataset.create_index("vector", APPROXIMATE, **how)
                    trained, recall = rows, self._recall(sample_queries(), rows)
                else:
                    self._dataset.optimize.optimize_indices(index_names=["vectors"], num_indices_to_merge=0)
                    recall = self.seal.recall
                words = ["captions_words", "file_words"] if self._name == CLIPS else []
                self._dataset.optimize.optimize_indices(index_names=[*words, "files"])
            total = sum(pc.sum(batch["checksum"].cast(pa.int64())).as_py() or 0 for batch in self.batches(["checksum"]))
        self._clean_up()
        self._describe(self.settings, Seal(self.version + 1, rows, total, recall, trained))

    def _index_words(self, indexes: Collection[str], anew: bool) -> None:
        for column in ("captions", "file"):
            if anew or f"{column}_words" not in indexes:
                self._dataset.create_scalar_index(column, "INVERTED", name=f"{column}_words", with_position=False)

    def _clean_up(self) -> None:
        """Delete old versions; those that are damaged, which the engine stumbles over, at once."""
        try:
            with engine_errors(self._index):
                self._dataset.cleanup_old_versions(_KEPT_VERSIONS)
        except PerceiverVLError:
            place = _place(self._index, self._name)
            for manifest in sorted(Path(f"{place}/_versions").glob("*.manifest"))[1:]:
                try:
                    with engine_errors(self._index):
                        lance.dataset(place, version=2**64 - 1 - int(manifest.stem))
                except PerceiverVLError:
                    manifest.unlink()

    def compact(self) -> None:
        """Join small fragments, and leave out deleted rows: all of them while the table is small."""
        share = 0.0 if len(self) <= EXACT_ROWS else 0.1
        how = {"target_rows_per_fragment": _FRAGMENT_ROWS, "materialize_deletions_threshold": share}
        with engine_errors(self._index):
            self._dataset.optimize.compact_files(**how)

    def _recall(self, queries: Vectors, trained_rows: int) -> float:
        self.seal = Seal(recall=0.0, trained_rows=trained_rows)  # there is an approximate index now
        best = np.full((len(queries), RECALL_AT), -np.inf, np.float32)
        for batch in self.batches(["vector"]):
            cosines = queries @ numbers(pa.chunked_array([batch["vector"]])).T
            best = -np.sort(-np.concatenate([best, cosines], axis=1), axis=1)[:, :RECALL_AT]
        found = [numbers(self.nearest(query, RECALL_AT)[0]["vector"]) @ query for query in queries]
        pairs = zip(found, best[:, -1] - 1e-5, strict=True)  # 1e-5: two ways to sum E products
        return float(np.mean([np.count_nonzero(cosines >= least) / RECALL_AT for cosines, least in pairs]))

    # Damage

    def check(self) -> None:
        """Raise `PerceiverVLError` where any row is not as it was written, or one is missing or should not be there."""
        rows = total = 0
        words: set[str] = set()
        for batch in self.batches():
            table = self.checked(pa.table(batch))
            if len(words) < _MOST_WORDS:
                words.update(re.findall(r"\w+", " ".join(table["file"].to_pylist())))
            rows, total = rows + len(table), total + (pc.sum(table["checksum"].cast(pa.int64())).as_py() or 0)
        if self.seal.version == self.version and (self.seal.rows, self.seal.total) != (rows, total):
            raise self.damaged(f"{rows} rows that are not those of {self.seal.rows} that were written")
        if self.seal.version and self._name == CLIPS:
            self.matching(" ".join(sorted(words)[:_MOST_WORDS]) or "words", rows or 1)  # reads its index

    def mend(self) -> int:
        """Drop the rows that are not as they were written, and all indexes: how many rows were lost."""
        before = len(self)
        for fragment in self._dataset.get_fragments():
            try:
                with engine_errors(self._index):
                    rows = fragment.to_table(with_row_address=True)
            except PerceiverVLError:
                drop = lance.LanceOperation.Delete([], [fragment.fragment_id], "damaged")
                with engine_errors(self._index):
                    self._dataset = lance.LanceDataset.commit(self._dataset, drop, read_version=self.version)
                continue
            wrong = rows["_rowaddr"].filter(damaged_rows(rows.drop_columns(["_rowaddr"]))).to_pylist()
            if wrong:
                with engine_errors(self._index):
                    self._dataset.delete(f"_rowaddr IN ({', '.join(map(str, wrong))})")
        for name in [one.name for one in self._dataset.describe_indices()]:
            self._dataset.drop_index(name)
        return before - len(self)


# Opening


def _place(index: str, name: str) -> str:
    return f"{index}/{name}.lance"


def open_table(index: str | Path, recover: bool = False, name: str = CLIPS) -> ClipTable:
    """The newest version of a table of an index. recover: or the newest that can be read, in a folder that is `locked`;
    those after it are deleted.

    Raises `NoIndexError` for a place without an index, `UsageError` for one of another format, `PerceiverVLError` for a
    damaged one and for storage that does not answer.
    """
    place = location(index)
    try:
        with engine_errors(place):
            table = ClipTable(place, lance.dataset(_place(place, name)), name)
    except UsageError:
        raise
    except PerceiverVLError:
        newest_first = sorted(Path(f"{_place(place, name)}/_versions").glob("*.manifest"))  # their names count down
        if not (recover and newest_first[1:]):
            raise
        newest_first[0].unlink()
        return open_table(index, recover, name)
    hint = Path(f"{_place(place, name)}/_versions/latest_version_hint.json")
    with suppress(OSError, ValueError, KeyError, TypeError):
        lost = json.loads(hint.read_text())["version"] > table.version
        if lost and not recover:
            raise table.damaged("its newest version is lost")
        if lost:
            hint.unlink()
            return open_table(index, recover, name)
    return table


def settings_of(index: str | Path) -> IndexSettings | None:
    """What the clips of an index share, also of a damaged one; None where there is none."""
    try:
        return open_table(index).settings
    except NoIndexError:
        return None
    except UsageError:
        raise
    except PerceiverVLError:
        with locked(index):
            return open_table(index, recover=True).settings


def create_table(index: str | Path, settings: IndexSettings, name: str = CLIPS) -> ClipTable:
    """A table without rows in a place where there is none."""
    place = location(index)
    with engine_errors(place):
        return ClipTable(place, lance.write_dataset(schema(settings).empty_table(), _place(place, name)), name)


@contextmanager
def locked(index: str | Path) -> Iterator[None]:
    """Keep other runs from writing the index; in object storage a commit notices them, and nothing is locked."""
    if "://" in str(index):
        yield
        return
    try:
        Path(index).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{index}: cannot be made ({error.strerror}), give another folder") from error
    with files.locked(Path(index), leftovers=()):
        yield
