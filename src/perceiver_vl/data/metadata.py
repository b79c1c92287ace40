"""Metadata tables: JSON lines, CSV or Parquet → rows; and records → `metadata.jsonl`."""

import codecs
import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perceiver_vl.data.records import Record
from perceiver_vl.utils.errors import Setting, UsageError, first_line
from perceiver_vl.utils.jsonl import write_lines

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IGNORED = "none"
"""In place of the name of a metadata file: as if there were none."""
_TABLES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet"})


def find_metadata(folder: Path, metadata: str | Path | None) -> Path | None:
    """The metadata file of `folder`, or the one named `metadata`, within the folder or anywhere; None: there is none,
    or it is to be ignored (`none`).

    Raises `UsageError` if `metadata` names nothing.
    """
    if metadata is None:
        return next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
    if str(metadata) == IGNORED:
        return None
    for candidate in (folder / metadata, Path(metadata)):
        if candidate.is_file():
            return candidate
    raise UsageError(f"metadata={metadata}: no such file in {folder}")


def metadata_elsewhere(folder: Path) -> tuple[str | Setting, ...]:
    """What to do about metadata that lies where it is not looked for, as parts of a message; nothing if there is
    nothing like it.
    """
    below = next((path for path in sorted(folder.iterdir()) if _is_folder(path) and _has_table(path)), None)
    if beside := tables_beside(folder):
        return f"but {', '.join(beside[:5])}; name it with ", Setting("metadata", beside[0])
    if below is not None:
        return (f"but {below.name} has one; give {below} as the folder",)
    return ()


def tables_beside(folder: Path) -> list[str]:
    """Files of a folder that look like metadata."""
    return sorted(path.name for path in folder.iterdir() if not _is_folder(path) and path.suffix.lower() in _TABLES)


def _has_table(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in METADATA_NAMES)  # noqa: PTH113


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (which says no where `Path.is_dir` raises)


def read_rows(table: Path) -> list[dict[str, Any]]:
    """The rows of `table`, by its ending: Parquet, CSV (split by commas, semicolons or tabs), else JSON lines.

    JSON may also be one array of objects. Text is UTF-8, or UTF-16 that says so by its first bytes. A CSV cell that
    is a JSON list becomes a list.

    Raises `UsageError` for a file that cannot be read, with the line.
    """
    try:
        if table.suffix.lower() == ".parquet":
            import pyarrow.parquet as parquet

            return parquet.read_table(table).to_pylist()
        content = table.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{table}: cannot be read as {table.suffix[1:]}: {first_line(error)}") from error
    text = _decode(table, content)
    return _csv_rows(table, text) if table.suffix.lower() in (".csv", ".tsv") else _json_rows(table, text)


def _decode(table: Path, content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{table}: cannot be read as {table.suffix[1:]}: line {line} is not UTF-8 "
            f"(byte {content[error.start]:#04x}), save it as UTF-8 (Excel calls it “CSV UTF-8”)"
        ) from error


def _csv_rows(table: Path, text: str) -> list[dict[str, Any]]:
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[dict[str, Any]] = []
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise UsageError(f"{table} row {number}: more values than columns, put texts with commas in quotes")
            rows.append({name: _cell(table, number, name, value) for name, value in row.items()})
    except csv.Error as error:
        raise UsageError(
            f"{table} row {len(rows) + 1}: cannot be read as csv ({error}), close every quote, and double those inside"
        ) from error
    return rows


def _cell(table: Path, number: int, name: str, value: str | None) -> Any:
    """A cell as it is, or the list that it holds as JSON."""
    if value is None or not (value.startswith("[") and value.endswith("]")):
        return value
    try:
        listed = json.loads(value)
    except ValueError:
        if value.startswith("['"):  # how Python and NumPy print lists, the latter without commas
            raise UsageError(
                f'{table} row {number}: {name}={value[:40]!r} is a printed list, write it as JSON: ["one", "two"]'
            ) from None
        return value
    return listed if all(isinstance(one, str | int | float) for one in listed) else value


def _json_rows(table: Path, text: str) -> list[dict[str, Any]]:
    if text.lstrip().startswith("["):
        return _json_array(table, text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 within a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
            raise UsageError(f"{table} line {number}: not JSON ({reason}), need one object a line") from error
        rows.append(_object(row, f"{table} line {number}"))
    return rows


def _json_array(table: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{table}: not a JSON array ({first_line(error)}), need one object a line") from error
    return [_object(row, f"{table} row {number}") for number, row in enumerate(rows, start=1)]


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a {type(row).__name__}, need one object a line")
    return row


def write_metadata(records: Iterable[Record], path: str | Path, classes: Sequence[str] = ()) -> None:
    """Write `records` as JSON lines to `path`, atomically: `read_folder` of its folder gives them back.

    What a record does not have is left out. With `classes` the labels of records without choices are written as the
    names of their classes.
    """
    write_lines(Path(path), (record_to_row(record, classes) for record in records))


def record_to_row(record: Record, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The columns that `record` fills."""
    label: int | str | None = record.label
    if classes and record.label is not None and not record.choices:
        label = classes[record.label]
    row = {
        "file_name": record.file_name,
        "second_file_name": record.second_file_name,
        "text": record.texts[0] if len(record.texts) == 1 else record.texts,
        "question": record.question,
        "answer": record.answers[0] if len(record.answers) == 1 else None,
        "answers": record.answers if len(record.answers) > 1 else None,
        "choices": record.choices,
        "label": label,
        "start": record.start,
        "end": record.end,
        "split": record.split,
        "id": record.example_id,
        "kind": record.kind,
    }
    return {name: value for name, value in row.items() if value is not None and value != ()}
