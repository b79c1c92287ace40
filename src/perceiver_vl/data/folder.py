"""A folder of one's own: media files and `metadata.jsonl|csv|parquet` beside them (the videofolder/imagefolder
convention).
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_vl.data.records import Folder, Problem, Record
from perceiver_vl.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.media import find_media

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
COLUMNS = ("file_name", "text", "split")
_SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}


def read_folder(
    folder: str | Path,
    *,
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    need_text: bool = True,
    strict: bool = False,
) -> Folder:
    """Read the records of `folder`; rows of one file are merged, so that a clip has all its captions.

    `split` keeps one split (`val`, `valid` and `dev` mean `validation`). `metadata` names another metadata file,
    within the
    folder or anywhere. `columns` maps our names to the file's, as in `{"file_name": "file", "text": "captions"}`.
    Without metadata every media file of the folder is a record; `need_text` then is an error.
    Files that are missing and clips without a caption (with `need_text`) become problems; `strict` raises at the first.

    Raises `UsageError` for a folder, metadata file, column or split that is not there, `PerceiverVLError` if nothing
    is left.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, give one that holds media files")
    table = _find_metadata(folder, metadata)
    if table is None:
        if need_text:
            raise UsageError(
                f"{folder}: no {', '.join(METADATA_NAMES)} with captions, write one or name it with metadata="
            )
        if split is not None:
            raise UsageError(f"split={split}: {folder} has no metadata that could say so, leave the split out")
        found = [Record(path.relative_to(folder).as_posix(), path) for path in find_media(folder)]
        if not found:
            raise UsageError(f"{folder}: no video or image files in it, give a folder that holds some")
        return Folder(folder, found)

    merged = _merge_rows(table, dict(columns or {}))
    known = sorted({record_split for _, record_split in merged if record_split})
    if split is not None:
        wanted = _SPLIT_NAMES.get(split, split)
        merged = {key: texts for key, texts in merged.items() if key[1] == wanted}
        if not merged:
            raise UsageError(f"split={split}: not in {table.name}, which has {', '.join(known) or 'no split column'}")

    result = Folder(folder, [])
    for (file_name, record_split), texts in merged.items():
        path = folder / file_name
        texts = tuple(text for text in texts if text.strip())
        if not path.is_file():
            reason = "named in the metadata but not there"
        elif need_text and not texts:
            reason = "no caption"
        else:
            result.records.append(Record(file_name, path, texts, record_split))
            continue
        if strict:
            raise PerceiverVLError(f"{path}: {reason}; mend {table.name}, or leave out strict to skip such files")
        result.problems.append(Problem(file_name, reason))
    if not result.records:
        first = result.problems[0] if result.problems else Problem(table.name, "it has no rows")
        raise PerceiverVLError(
            f"{table}: no usable record of {len(merged)}, the first: {first.file_name}: {first.reason}"
        )
    return result


def _find_metadata(folder: Path, metadata: str | Path | None) -> Path | None:
    if metadata is None:
        return next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
    for candidate in (folder / metadata, Path(metadata)):
        if candidate.is_file():
            return candidate
    raise UsageError(f"metadata={metadata}: no such file in {folder}")


def _merge_rows(table: Path, columns: dict[str, str]) -> dict[tuple[str, str | None], tuple[str, ...]]:
    """(file name, split) → captions, in order of first appearance."""
    for name in columns:
        if name not in COLUMNS:
            raise UsageError(f"columns {name}={columns[name]}: unknown name, choose from {', '.join(COLUMNS)}")
    rows = _read_rows(table)
    present = set(rows[0]) if rows else set()
    for name, column in columns.items():
        if column not in present:
            raise UsageError(f"columns {name}={column}: {table.name} has {', '.join(sorted(present)) or 'no columns'}")
    file_column = columns.get("file_name", "file_name")
    if rows and file_column not in present:
        raise UsageError(
            f"{table}: no column {file_column!r} but {', '.join(sorted(present))}; map it with columns file_name=NAME"
        )
    text_column, split_column = columns.get("text", "text"), columns.get("split", "split")
    merged: dict[tuple[str, str | None], tuple[str, ...]] = {}
    for number, row in enumerate(rows, start=1):
        file_name, texts, split = row.get(file_column), row.get(text_column), row.get(split_column)
        if not isinstance(file_name, str) or not file_name:
            raise UsageError(f"{table} row {number}: {file_column}={file_name!r}, need a file name")
        if texts is None:
            texts = []
        elif isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{table} row {number}: {text_column}={texts!r}, need a string or a list of strings")
        if split is not None and not isinstance(split, str):
            raise UsageError(f"{table} row {number}: {split_column}={split!r}, need the name of a split")
        key = (file_name, _SPLIT_NAMES.get(split, split) if split else None)
        merged[key] = merged.get(key, ()) + tuple(texts)
    return merged


def _read_rows(table: Path) -> list[dict[str, Any]]:
    try:
        if table.suffix == ".parquet":
            import pyarrow.parquet as parquet

            return parquet.read_table(table).to_pylist()
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"{table}: cannot be read as {table.suffix[1:]}: {first_line(error)}") from error
    rows: list[dict[str, Any]] = []
    if table.suffix == ".csv":
        try:
            rows += csv.DictReader(io.StringIO(text, newline=""))
        except csv.Error as error:
            raise UsageError(f"{table}: cannot be read as csv: {error}") from error
        for number, row in enumerate(rows, start=1):
            if None in row:
                raise UsageError(f"{table} row {number}: more values than columns, put texts with commas in quotes")
        return rows
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 within a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{table} line {number}: not JSON ({error.msg}), need one object a line") from error
        if not isinstance(row, dict):
            raise UsageError(f"{table} line {number}: a {type(row).__name__}, need one object a line")
        rows.append(row)
    return rows
