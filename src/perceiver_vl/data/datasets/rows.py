"""Annotation files, row by row; what is not as the format says is named by file, row and key."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perceiver_vl.utils.errors import UsageError, first_line


@dataclass(frozen=True)
class Row:
    """One entry of an annotation file. `where`: the file and the place in it; every method raises `UsageError`."""

    where: str
    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        """A string without space around it; a whole number counts as one, for identifiers."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(key, "a string")
        return str(value).strip()

    def integer(self, key: str) -> int:
        """A whole number, or one written as a string."""
        value = self.values.get(key)
        try:
            if isinstance(value, str | int) and not isinstance(value, bool):
                return int(value)
        except ValueError:
            pass
        raise self.error(key, "a whole number")

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.items(key)
        if not all(isinstance(text, str) for text in value):
            raise self.error(key, "a list of strings")
        return tuple(text.strip() for text in value)

    def spans(self, key: str) -> list[tuple[float, float]]:
        """A list of pairs of numbers, each pair in ascending order (a few official ones are not)."""
        value = self.items(key)
        for span in value:
            if not isinstance(span, list) or len(span) != 2 or not all(isinstance(time, int | float) for time in span):
                raise self.error(key, "a list of pairs of numbers")
        return [(min(span), max(span)) for span in value]

    def choice(self, key: str, among: int) -> int:
        """The index of one of `among` choices."""
        value = self.integer(key)
        if not 0 <= value < among:
            raise self.error(key, f"a choice from 0 to {among - 1}")
        return value

    def rows(self, key: str) -> Iterator["Row"]:
        """A list of objects."""
        yield from _objects(f"{self.where}: {key}", self.items(key))

    def error(self, key: str, need: str) -> UsageError:
        """What to raise for a value that is not what the format says."""
        value = repr(self.values.get(key))
        return UsageError(f"{self.where}: {key}={value if len(value) <= 80 else value[:80] + '…'}, need {need}")


def json_file(path: Path) -> Row:
    """A file that holds one object."""
    value = _json(path, path.read_bytes())
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a {type(value).__name__}, need one object")
    return Row(str(path), value)


def json_rows(path: Path) -> Iterator[Row]:
    """A file that holds a list of objects."""
    value = _json(path, path.read_bytes())
    if not isinstance(value, list):
        raise UsageError(f"{path}: a {type(value).__name__}, need a list of objects")
    yield from _objects(str(path), value)


def json_lines(path: Path) -> Iterator[Row]:
    """A file with one object a line."""
    for number, line in lines(path):
        value = _json(f"{path} row {number}", line)
        if not isinstance(value, dict):
            raise UsageError(f"{path} row {number}: a {type(value).__name__}, need one object a line")
        yield Row(f"{path} row {number}", value)


def table_rows(path: Path, columns: Sequence[str], *, delimiter: str = ",", header: bool = True) -> Iterator[Row]:
    """A table that has these columns by its first row, or without `header` exactly these, in this order.

    Only commas come with quotes around values; what is separated by tabs is taken as it stands.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = None if header else columns
            reader = csv.DictReader(file, fieldnames=names, delimiter=delimiter, quoting=quoting)
            absent = [column for column in columns if column not in (reader.fieldnames or ())]
            if absent:
                raise UsageError(f"{path}: no column {', '.join(absent)}, need {', '.join(columns)}")
            for number, values in enumerate(reader, start=1):
                if None in values or None in values.values():
                    count = len(reader.fieldnames or ())
                    raise UsageError(f"{path} row {number}: more or fewer values than the {count} columns")
                yield Row(f"{path} row {number}", values)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a table: {first_line(error)}") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from ((number, line.strip()) for number, line in enumerate(file, start=1) if line.strip())
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read as text: {first_line(error)}") from error


def _json(where: Path | str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise UsageError(f"{where}: not JSON: {first_line(error)}") from error


def _objects(where: str, values: Sequence[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UsageError(f"{where} row {number}: a {type(value).__name__}, need an object")
        yield Row(f"{where} row {number}", value)
