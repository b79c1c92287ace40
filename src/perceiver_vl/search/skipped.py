"""The files of an index's folder that could not be decoded, in a table beside it."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import lance
import pyarrow as pa

from perceiver_vl.search.engine import engine_errors, location
from perceiver_vl.search.rows import SkippedFile
from perceiver_vl.utils.errors import PerceiverVLError


def read_skipped(index: str | Path) -> list[SkippedFile]:
    """The files that could not be decoded; nothing where the list is damaged, so that they are tried again."""
    try:
        with engine_errors(location(index)):
            rows = lance.dataset(f"{location(index)}/skipped.lance").to_table().to_pylist()
        return [SkippedFile(**row) for row in rows]
    except (PerceiverVLError, TypeError):
        return []


def write_skipped(index: str | Path, skipped: Iterable[SkippedFile]) -> None:
    """Keep the list of files that could not be decoded, if it is another than before."""
    listed = [asdict(one) for one in skipped]
    if listed != [asdict(one) for one in read_skipped(index)]:
        columns = pa.schema({"file": pa.string(), "size": pa.int64(), "mtime": pa.int64(), "reason": pa.string()})
        with engine_errors(location(index)):
            place = f"{location(index)}/skipped.lance"
            lance.write_dataset(pa.Table.from_pylist(listed, columns), place, mode="overwrite")
