"""What one row of metadata says, column by column."""

import difflib
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from perceiver_vl.data.records import Record
from perceiver_vl.utils.errors import Setting, UsageError
from perceiver_vl.utils.text import whole_characters

COLUMNS = tuple(
    "file_name text question answer answers choices label start end split second_file_name id kind".split()  # noqa: SIM905
)
SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {  # those that Hugging Face datasets knows
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_USUAL_NAMES = {
    "file_name": "file filename path filepath file_path video video_path image image_path clip media name".split(),  # noqa: SIM905
    "text": "caption captions texts sentence sentences description descriptions".split(),  # noqa: SIM905
    "question": ["questions", "query"],
    "label": ["class", "category", "labels", "target", "class_name"],
}
_CHOICE_PREFIXES = ("choice_", "choice", "option_", "option", "a")
_NOWHERE = Path()
_TIME = re.compile(r"(?:(\d+):)?(\d+):(\d\d(?:\.\d+)?)")


class RowError(Exception):
    """A row that cannot be used, and why."""


@dataclass(frozen=True)
class Columns:
    """Where each field lies in a table.

    names: field → column, or "" for one whose column means something else; choices: the columns of one each, if any.
    """

    names: Mapping[str, str]
    choices: tuple[str, ...] = ()

    def value(self, row: Mapping[str, Any], name: str) -> Any:
        """What `row` has in the column of `name`; None for an empty cell."""
        column = self.names.get(name, name)
        return _given(row.get(column)) if column else None


def find_columns(table: Path, present: Sequence[str], mapped: Mapping[str, str], need: str | None) -> Columns:
    """Where the fields of a table with the columns `present` lie; `mapped` gives their names there.

    `need`: the one that must be there beside `file_name`; choices may stand for labels, as an answer tells which.

    Raises `UsageError` for names that are not there, with the nearest that is.
    """
    has = ", ".join(sorted(present)) or "no columns"
    for name, column in mapped.items():
        if name not in COLUMNS:
            nearest = _nearest(name, COLUMNS)
            hint = f"did you mean {nearest}?" if nearest else f"choose from {', '.join(COLUMNS)}"
            raise UsageError(f"columns {name}={column}: unknown name {name}, {hint}")
        if column and column not in present and not (name == "choices" and _numbered([column], present)):
            nearest = _nearest(column, present)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise UsageError(f"columns {name}={column}: {table.name} has {has}{hint}")
    choices = mapped.get("choices", "choices")
    prefixes = [name for name in [mapped["choices"]] if name] if "choices" in mapped else _CHOICE_PREFIXES
    found = Columns(mapped, () if choices in present else _numbered(prefixes, present))
    has_choices = bool(found.choices) or choices in present
    for name in ("file_name", *([need] if need else [])):
        column = mapped.get(name, name)
        if column not in present and not (name == "label" and has_choices):
            nearest = _nearest(name, present) or "NAME"
            ignore = (", or ignore the file with ", Setting("metadata", "none")) if need is None else ()
            remedy = Setting("columns", {**mapped, name: nearest})
            raise UsageError(f"{table}: no column {column!r} but {has}; map it with ", remedy, *ignore)
    return found


def _nearest(name: str, present: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in present}
    for usual in (name.lower(), *_USUAL_NAMES.get(name, ())):
        if usual in lower:
            return lower[usual]
    return next((lower[close] for close in difflib.get_close_matches(name.lower(), lower, 1)), None)


def _numbered(prefixes: Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """The columns `PREFIX0`, `PREFIX1` … of the first prefix that has at least two, in their order."""
    for prefix in prefixes:
        numbers = {int(name[len(prefix) :]): name for name in present if re.fullmatch(rf"{re.escape(prefix)}\d+", name)}
        if len(numbers) > 1:
            return tuple(numbers[number] for number in sorted(numbers))
    return ()


def split_name(name: str) -> str:
    """`train`, `validation` or `test` for their many names; any other name as it is."""
    return _SPLIT_NAMES.get(name.strip().lower(), name)


def safe_name(name: str) -> str:
    """`name` without `./`; raises `UsageError` for one that may lead out of the folder it is meant for."""
    if name.startswith("/") or (":" in name and PureWindowsPath(name).is_absolute()):
        raise UsageError(f"{name}: an absolute path, write names from the folder on")
    if ".." in name and ".." in re.split(r"[/\\]", name):
        raise UsageError(f"{name}: leads out of the folder, write names within it")
    return posixpath.normpath(name)


def row_to_record(row: Mapping[str, Any], columns: Columns, classes: Sequence[str]) -> Record:
    """A row as a record that has names but no paths yet; `classes`: what labels without choices are names of.

    Raises `RowError` for a value that cannot be, `UsageError` for a name that leads out of the folder.
    """
    file_name = columns.value(row, "file_name")
    if not isinstance(file_name, str):
        raise RowError(f"file_name={file_name!r}, need a file name")
    start, end = _seconds("start", columns.value(row, "start")), _seconds("end", columns.value(row, "end"))
    if start is not None and end is not None and start >= end:
        raise RowError(f"start={start:g}, end={end:g}: need a start before the end")
    second = _string("second_file_name", columns.value(row, "second_file_name"))
    choices = read_choices(row, columns)
    answers = _answers(row, columns)
    split = _string("split", columns.value(row, "split"))
    return Record(
        file_name=safe_name(file_name),
        path=_NOWHERE,
        texts=_texts(columns.value(row, "text")),
        split=split and split_name(split),
        start=start,
        end=end,
        question=_string("question", columns.value(row, "question")),
        answers=answers,
        choices=choices,
        label=_label(columns.value(row, "label"), answers, choices, classes),
        second_file_name=second and safe_name(second),
        example_id=_string("id", columns.value(row, "id")),
        kind=_string("kind", columns.value(row, "kind")),
    )


def _given(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.strip() else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _string(name: str, value: Any) -> str | None:
    """A string, of whole characters unless it names a file, or a number as one (identities are often numbers)."""
    if value is None or isinstance(value, str):
        return value if value is None or name == "second_file_name" else whole_characters(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
    raise RowError(f"{name}={value!r}, need a string")


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError(f"text={value!r}, need a string or a list of strings")
    return tuple(whole_characters(text) for text in texts if text.strip())


def _answers(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    """All annotators' answers if there are several columns of them, or the one."""
    for name in ("answers", "answer"):
        value = columns.value(row, name)
        if value is not None:
            return tuple(one for one in _strings(name, value) if one.strip())
    return ()


def read_choices(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    """The choices of a row, in their order: a list, or one column each."""
    if columns.choices:
        each = [_string(name, _given(row.get(name))) for name in columns.choices]
        return tuple(choice for choice in each if choice is not None)
    value = columns.value(row, "choices")
    if isinstance(value, str):
        raise RowError(f'choices={value!r}, need a list, in CSV as JSON: ["one", "two"]')
    return () if value is None else _strings("choices", value)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(_word(name, one) for one in listed)


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    word = _string(name, value)
    if word is None:
        raise RowError(f"{name} with an empty item, leave it out")
    return word


def _seconds(name: str, value: Any) -> float | None:
    """A number of seconds, or `mm:ss`, or `hh:mm:ss`."""
    if value is None:
        return None
    try:
        clock = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        hours, minutes, rest = clock.groups() if clock else (None, None, value)
        seconds = 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + float(rest)
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"{name}={value!r}, need seconds or mm:ss") from None
    if not 0 <= seconds < math.inf:
        raise RowError(f"{name}={value!r}, need seconds from the beginning of the file")
    return seconds


# Labels


def class_names(values: Iterable[Any]) -> tuple[str, ...]:
    """The names, sorted, of which the labels `values` are; empty if all are indices, or true and false."""
    given = {str(value) for value in values if _given(value) is not None}
    return () if all(_index(value) is not None for value in given) else tuple(sorted(given))


def _index(value: Any) -> int | None:
    """An index, also as `2.0` (how a column of numbers with gaps is often written); true and false as 1 and 0."""
    text = str(value).strip().lower()
    if text in ("true", "false"):
        return int(text == "true")
    return int(text.partition(".")[0]) if re.fullmatch(r"-?\d{1,9}(\.0)?", text) else None


def _label(value: Any, answers: Sequence[str], choices: Sequence[str], classes: Sequence[str]) -> int | None:
    """The index of the right choice (by `value`, or by the one answer), or of the class; a negative one is no label."""
    if choices and value is None:
        return _place_of_answer(answers, choices)
    if value is None:
        return None
    if choices:
        return _choice(value, choices)
    if classes:
        if str(value) not in classes:
            raise RowError(f"label={value!r}: not one of the {len(classes)} classes {', '.join(classes[:5])} …")
        return list(classes).index(str(value))
    index = _index(value)
    if index is None:
        raise RowError(f"label={value!r}, need an index, true or false")
    return index if index >= 0 else None


def _place_of_answer(answers: Sequence[str], choices: Sequence[str]) -> int | None:
    if len(set(answers)) != 1:
        return None
    place = _place(answers[0], choices)
    if place is None:
        raise RowError(f"answer={answers[0]!r}: not among the choices {', '.join(choices)}")
    return place


def _choice(value: Any, choices: Sequence[str]) -> int | None:
    index = None if isinstance(value, bool) else _index(value)
    place = _place(str(value), choices) if isinstance(value, str | bool) else None
    if place is not None and index not in (None, place) and 0 <= index < len(choices):
        raise RowError(f"label={value!r}: an index and the text of another choice, give the text as answer instead")
    if place is not None:
        return place
    if index is None or index >= len(choices):
        raise RowError(f"label={value!r}: not among the {len(choices)} choices {', '.join(choices)}")
    return index if index >= 0 else None


def _place(text: str, choices: Sequence[str]) -> int | None:
    """Where `text` is among the choices, to the letter or else but for case and spaces around it."""
    if text in choices:
        return list(choices).index(text)
    folded = [choice.strip().casefold() for choice in choices]
    return folded.index(text.strip().casefold()) if text.strip().casefold() in folded else None
