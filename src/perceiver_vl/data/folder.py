"""A folder of one's own: media files and `metadata.jsonl|csv|parquet` beside them, or a folder for each class (the
videofolder/imagefolder convention of Hugging Face `datasets`).
"""

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from perceiver_vl.data.fields import SPLITS, Columns, RowError, class_names, find_columns, row_to_record, split_name
from perceiver_vl.data.metadata import METADATA_NAMES, find_metadata, metadata_elsewhere, read_rows, tables_beside
from perceiver_vl.data.records import Folder, Need, Record, SkippedSample
from perceiver_vl.data.transcode.prepared import has_features
from perceiver_vl.media.files import find_media, is_media
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

_MISSING = "named in the metadata but not there"
_IRREGULAR = "not a regular file"
_WORDS = {"text": "caption", "question": "question", "label": "label"}


def read_folder(
    folder: str | Path,
    *,
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    need: Need | None = "text",
    classes: Sequence[str] = (),
    strict: bool = False,
    exclude: Sequence[str] = (),
    unnamed: bool = False,
) -> Folder:
    """Read the records of `folder`: one for each row, but rows that only say what a clip shows are merged.

    Columns: `file_name` (within the folder); `text` (a caption, or a list); `question`, `answer` or `answers`,
    `choices` (a list, in CSV as JSON, or columns `choice_0`, `choice_1`, … or `a0`, `a1`, …; not all rows need
    have as many); `label` (an index from 0, or among choices the text of one, or the name of a class, or true or
    false; below 0: not known); `start`, `end` (seconds, or `mm:ss`); `split` (`val`, `valid` and `dev` mean
    `validation`); `second_file_name`; `id`; `kind`. An answer among choices is their label.

    `split` keeps one split. `metadata` names another metadata file, within the folder or anywhere. `columns` maps our
    names to the file's, as in `{"file_name": "file", "text": "captions"}`; "" ignores a column that means something
    else (as `start` does where it is that of the film from which a clip was cut).
    `need` is what a record is for; those without it are skipped, or if they are for something else, left out.
    Without metadata every media file of the folder is a record, which is an error if text or questions are needed;
    if labels are, the name of the folder that a file lies in is its class, below folders of splits if there are any.
    `classes` gives the names of classes in their order (those of a model); without it they are those found, sorted.
    A file whose name is written in another Unicode form or case is taken for the one that is there, and noted.
    Files that are missing and values that cannot be are skipped too; `strict` raises at the first.
    `exclude`: patterns of names that are left out where no metadata name them (`find_media`). `unnamed`: media files
    that no row names are records without words, if neither a `need` nor a `split` is asked for.

    Raises `UsageError` for a folder, metadata file, column or split that is not there, and for names that lead out of
    the folder, `PerceiverVLError` if nothing is left.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, give one that holds media files")
    if need is not None and need not in _WORDS:
        raise UsageError(f"need={need!r}: choose from {', '.join(_WORDS)} or None")
    table = find_metadata(folder, metadata)
    result = Folder(folder, [], classes=tuple(classes))
    if table is not None:
        found = _from_table(result, table, split, dict(columns or {}), need)
    elif need == "label":
        found = _from_class_folders(result, split)
    else:
        found = _all_media(result, split, need, exclude, ignored=metadata is not None)
    for record in _usable(found, result, need):
        result.records.append(record)
        if strict and result.skipped:
            break
    if table is not None and need is None and split is None and (result.records or unnamed):
        _look_for_unnamed(result, table, exclude, unnamed)
    if strict and result.skipped:
        where = f"; mend {table.name}, or leave out strict to skip such files" if table else ""
        raise PerceiverVLError(f"{folder}/{result.skipped[0]}{where}")
    if not result.records:
        raise PerceiverVLError(f"{table or folder}: no usable record{_why(result)}")
    return result


def _why(result: Folder) -> str:
    if result.skipped:
        return f" of {len(result.skipped)}, the first: {result.skipped[0]}"
    return f": {result.notes[-1]}" if result.notes else ": it has no rows"


def _usable(found: Iterable[Record], result: Folder, need: Need | None) -> Iterator[Record]:
    """The records whose files are there, with paths, and which have what is needed; the others are skipped."""
    paths: dict[str, Path | None] = {}  # one look at the disk for each file, however many records it has
    actual = _ActualNames(result.path)
    elsewhere = 0
    for record in found:
        if need is not None and not record.has(need):
            if any(record.has(other) for other in get_args(Need)):
                elsewhere += 1
            else:
                result.skipped.append(SkippedSample(record.file_name, f"no {_WORDS[need]}"))
            continue
        names = [name for name in (record.file_name, record.second_file_name) if name is not None]
        for name in names:
            if name not in paths:
                path = os.path.join(result.path, name)  # noqa: PTH118 (there may be a million of them)
                fault = _fault(path)
                if fault == _MISSING and (other := actual.of(name)) is not None:
                    path, fault = os.path.join(result.path, other), None  # noqa: PTH118
                paths[name] = Path(path) if fault is None else None
                if fault is not None:
                    hint = _where_it_may_be(result.path, name) if fault == _MISSING and not result.skipped else ""
                    result.skipped.append(SkippedSample(name, fault + hint))
                    result.unseen += [name] if fault not in (_MISSING, _IRREGULAR) else []
        there = [place for name in names if (place := paths[name]) is not None]
        if len(there) == len(names):
            named = [actual.found.get(name, name) for name in names]
            usable = replace(record, file_name=named[0], path=there[0])
            yield replace(usable, second_file_name=named[1], second_path=there[1]) if there[1:] else usable
    if actual.found:
        first, other = next(iter(actual.found.items()))
        result.notes.append(f"{len(actual.found)} names are written otherwise than the files': {first} is {other}")
    if elsewhere:
        result.notes.append(f"{elsewhere} records without a {_WORDS[need or 'text']} are for something else, left out")


def _fault(path: str) -> str | None:
    """Why a path is not that of a file; None if it is."""
    try:
        return None if stat.S_ISREG(os.stat(path).st_mode) else _IRREGULAR  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of names that no file can have
        return _MISSING
    except OSError as error:
        return error.strerror or "cannot be looked at"


class _ActualNames:
    """The files that names mean which are written in another Unicode form (composed, decomposed) or case.

    found: those that were, by the name as written.
    """

    def __init__(self, folder: Path) -> None:
        self.found: dict[str, str] = {}
        self._folder = folder
        self._listings: dict[str, dict[str, list[str]]] = {}

    def of(self, name: str) -> str | None:
        """The name of the one file within the folder that `name` can mean; None where there is none, or several."""
        actual = ""
        for part in name.split("/"):
            alike = self._listing(actual).get(_canonical(part), [])
            chosen = part if part in alike else alike[0] if len(alike) == 1 else None
            if chosen is None:
                return None
            actual = f"{actual}/{chosen}" if actual else chosen
        self.found[name] = actual
        return actual

    def _listing(self, parent: str) -> dict[str, list[str]]:
        if parent not in self._listings:
            names: dict[str, list[str]] = {}
            with contextlib.suppress(OSError):
                for name in os.listdir(self._folder / parent):  # noqa: PTH208
                    names.setdefault(_canonical(name), []).append(name)
            self._listings[parent] = names
        return self._listings[parent]


def _canonical(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _where_it_may_be(folder: Path, name: str) -> str:
    """What else the name of a missing file may mean, after the mistakes that people make."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    others = ["/".join(parts)] + ["/".join(parts[1:])] * (len(parts) > 1)
    below = sorted(path.name for path in folder.iterdir() if os.path.isdir(path))  # noqa: PTH112 (which never raises)
    others += [f"{parent}/{others[0]}" for parent in below[:100]]
    for other in others:
        if os.path.isfile(folder / other):  # noqa: PTH113 (which takes names that no file can have)
            return f", but {other} is: write names from {folder} on, with /"
    parent, stem = (folder / others[0]).parent, (folder / others[0]).name
    if os.path.isdir(parent) and not Path(stem).suffix:  # noqa: PTH112
        ended = next((path.name for path in sorted(parent.iterdir()) if path.stem == stem), None)
        if ended:
            return f", but {ended} is: write names with their ending"
    return ""


# With metadata


def _from_table(
    result: Folder, table: Path, split: str | None, mapped: dict[str, str], need: Need | None
) -> list[Record]:
    """The records of a table, without their paths, in order of first appearance; captions of one clip joined."""
    rows = read_rows(table)
    present = list(dict.fromkeys(name for row in rows for name in row))
    if not rows and not mapped:
        return []
    columns = find_columns(table, present, mapped, need)
    result.classes = result.classes or class_names(_class_labels(rows, columns))
    wanted = None if split is None else split_name(split)
    records: dict[Any, list[Record]] = {}
    splits: dict[str, None] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{table} row {number}"
        try:
            if isinstance(named := columns.value(row, "split"), str):
                splits.setdefault(split_name(named))
                if wanted is not None and split_name(named) != wanted:
                    continue
            elif wanted is not None:
                continue
            record = row_to_record(row, columns, result.classes)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        except RowError as error:
            file_name = columns.value(row, "file_name")
            if not isinstance(file_name, str):
                raise UsageError(f"{where}: {error}") from error
            result.skipped.append(SkippedSample(file_name, f"row {number}: {error}"))
            continue
        records.setdefault(_clip(record) or number, []).append(record)
    if wanted is not None and not records and not result.skipped:
        has = f"which has {', '.join(sorted(splits))}" if splits else "which has no split column"
        raise UsageError(f"split={split}: not in {table.name}, {has}")
    joined = [_join(of_one) for of_one in records.values()]
    result.notes += _notes(table, splits, joined)
    return joined


def _class_labels(rows: Iterable[Mapping[str, Any]], columns: Columns) -> Iterator[Any]:
    """The labels that are not among choices."""
    for row in rows:
        label = columns.value(row, "label")
        if label is not None and not columns.choices and columns.value(row, "choices") is None:
            yield label


def _clip(record: Record) -> tuple[Any, ...] | None:
    """What the records to be joined with this one have in common; None for one that says more than what is shown."""
    if record.question is not None or record.answers or record.choices or record.label is not None:
        return None
    return record.file_name, record.second_file_name, record.start, record.end, record.split


def _join(records: list[Record]) -> Record:
    """One record with the captions of all."""
    if len(records) == 1:
        return records[0]
    return replace(records[0], texts=tuple(text for record in records for text in record.texts))


def _notes(table: Path, splits: Iterable[str], records: Iterable[Record]) -> Iterator[str]:
    unusual = sorted(set(splits) - set(SPLITS))
    if unusual:
        yield f"{table.name}: splits of other names than {', '.join(SPLITS)}: {', '.join(unusual[:10])}"
    records = list(records)
    halves = sum(any("�" in text for text in (*one.texts, one.question or "", *one.choices)) for one in records)
    if halves:
        yield f"{table.name}: {halves} records have � for characters that were cut through or could not be read"
    counts = {len(record.choices) for record in records if record.choices}
    if len(counts) > 1:
        yield f"{table.name}: not all rows have as many choices, they have {min(counts)} to {max(counts)}"


# Without metadata


def has_class_folders(folder: Path, metadata: str | Path | None = None) -> bool:
    """Whether the folders that files lie in say what they show, as in cat/1.jpg: nothing else does, at the top."""
    if not folder.is_dir() or find_metadata(folder, metadata) is not None:
        return False
    return not any(is_media(path) for path in folder.iterdir())


def _all_media(
    result: Folder, split: str | None, need: Need | None, exclude: Sequence[str], ignored: bool
) -> list[Record]:
    """A record for each media file. ignored: there is to be no metadata."""
    folder = result.path
    if need is not None:
        other = metadata_elsewhere(folder) or (f"with {_WORDS[need]}s, write one",)
        raise UsageError(f"{folder}: no {', '.join(METADATA_NAMES)} ", *other)
    if split is not None:
        raise UsageError(f"split={split}: {folder} has no metadata that could say so, leave the split out")
    if not ignored and (tables := tables_beside(folder)):
        result.notes.append(
            f"{tables[0]} is not read: its name is not {METADATA_NAMES[0]}, and it is not named as metadata"
        )
    return [Record(name, Path(name)) for name in _media_names(result, exclude)]


def _media_names(result: Folder, exclude: Sequence[str] = ()) -> list[str]:
    """The media files of the folder; what could not be listed or was left out is told."""
    found = find_media(result.path, exclude, features=has_features(result.path))
    if not found.files:
        found = find_media(result.path, exclude, sounds=True)
    result.unseen += found.unlisted
    result.skipped += [
        SkippedSample(name, f"a folder that cannot be listed: {why}") for name, why in found.unlisted.items()
    ]
    if found.excluded:
        count, first = len(found.excluded), found.excluded[0]
        result.notes.append(f"{count} left out by name, as thumbnails and what was thrown away are: {first}")
    if not found.files:
        why = f" ({result.skipped[0]})" if result.skipped else ""
        raise UsageError(f"{result.path}: no video, image or sound files in it{why}, give a folder that holds some")
    return found.files


def _look_for_unnamed(result: Folder, table: Path, exclude: Sequence[str], unnamed: bool) -> None:
    """Count the media files that no row names, or take them, too."""
    named = {record.file_name for record in result.records} | {record.second_file_name for record in result.records}
    named |= {sample.file_name for sample in result.skipped}
    others = [name for name in _media_names(result, exclude) if name not in named]
    if not others:
        return
    if unnamed:
        result.records += [Record(name, result.path / name) for name in others]
    so = "taken without words" if unnamed else "left out"
    result.notes.append(f"{len(others)} media files have no row in {table.name}, {so}: {others[0]}")


def _from_class_folders(result: Folder, split: str | None) -> list[Record]:
    """A record for each media file, labelled by the folder that it lies in: `cat/1.jpg`, or `train/cat/1.jpg`."""
    folder = result.path
    names = _media_names(result)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    has_splits = bool(tops) and all(split_name(top) in SPLITS for top in tops)
    if split is not None and not has_splits:
        raise UsageError(f"split={split}: {folder} has neither metadata nor folders of splits, leave the split out")
    records: list[tuple[Record, str]] = []
    for name in names:
        top, *inner = name.split("/")
        of_class = inner[:-1] if has_splits else [top, *inner][:-1]
        if not of_class:
            result.skipped.append(SkippedSample(name, "in no folder of a class"))
            continue
        records.append((Record(name, Path(name), split=split_name(top) if has_splits else None), of_class[-1]))
    if not records:
        other = metadata_elsewhere(folder) or ("and no folder for each class, as in cat/1.jpg",)
        raise UsageError(f"{folder}: no {', '.join(METADATA_NAMES)} ", *other)
    result.classes = result.classes or tuple(sorted({name for _, name in records}))
    places = {name: index for index, name in enumerate(result.classes)}
    wanted = None if split is None else split_name(split)
    labelled = []
    for record, name in records:
        if wanted is not None and record.split != wanted:
            continue
        if name in places:
            labelled.append(replace(record, label=places[name]))
        else:
            result.skipped.append(SkippedSample(record.file_name, f"{name}: not one of the {len(places)} classes"))
    if wanted is not None and not labelled:
        raise UsageError(f"split={split}: not in {folder}, which has {', '.join(sorted(tops))}")
    return labelled
