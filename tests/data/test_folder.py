"""Folders of one's own: what metadata can say, and what is wrong with it in one line."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.cli.options import parse_columns
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Folder, Record, SkippedSample

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
ONE_LINE = r"^[^\n]+$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three media files; their content is not read here."""
    for name in ("a.mp4", "b.mp4", "pictures/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"media")
    return tmp_path


def write_jsonl(folder: Path, *rows: Any, name: str = "metadata.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(folder: Path, *rows: dict[str, str]) -> None:
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")


def write_parquet(folder: Path, *rows: Any) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "metadata.parquet")


def texts(folder: Folder) -> dict[str, tuple[str, ...]]:
    return {record.file_name: record.texts for record in folder.records}


# --- What metadata can say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_a_row_names_a_file_and_says_what_it_shows(folder: Path, write: Callable[..., None]) -> None:
    write(
        folder,
        {"file_name": "b.mp4", "text": "a dog, running", "split": "train"},
        {"file_name": "pictures/c.jpg", "text": "ein Hündchen", "split": "test"},
    )
    found = read_folder(folder)
    assert found.records == [
        Record("b.mp4", folder / "b.mp4", ("a dog, running",), "train"),
        Record("pictures/c.jpg", folder / "pictures/c.jpg", ("ein Hündchen",), "test"),
    ]
    assert found.skipped == []


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_text_can_be_a_list(folder: Path, write: Callable[..., None]) -> None:
    write(folder, {"file_name": "a.mp4", "text": ["one", "two"]}, {"file_name": "b.mp4", "text": ["three"]})
    assert texts(read_folder(folder)) == {"a.mp4": ("one", "two"), "b.mp4": ("three",)}


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_the_rows_of_a_file_are_merged(folder: Path, write: Callable[..., None]) -> None:
    rows = [("a.mp4", "one"), ("b.mp4", "two"), ("a.mp4", "three")]
    write(folder, *({"file_name": name, "text": text} for name, text in rows))
    assert texts(read_folder(folder)) == {"a.mp4": ("one", "three"), "b.mp4": ("two",)}


def test_a_file_in_two_splits_is_a_record_of_each(folder: Path) -> None:
    write_jsonl(
        folder,
        {"file_name": "a.mp4", "text": "one", "split": "train"},
        {"file_name": "a.mp4", "text": "two", "split": "test"},
    )
    assert texts(read_folder(folder, split="train")) == {"a.mp4": ("one",)}
    assert texts(read_folder(folder, split="test")) == {"a.mp4": ("two",)}


@pytest.mark.parametrize("written", ["val", "valid", "dev", "validation"])
@pytest.mark.parametrize("asked", ["val", "valid", "dev", "validation"])
def test_validation_has_many_names(folder: Path, written: str, asked: str) -> None:
    write_jsonl(
        folder,
        {"file_name": "a.mp4", "text": "one", "split": written},
        {"file_name": "b.mp4", "text": "two", "split": "training"},
    )
    assert texts(read_folder(folder, split=asked)) == {"a.mp4": ("one",)}
    assert texts(read_folder(folder, split="train")) == {"b.mp4": ("two",)}


def test_columns_and_metadata_of_other_names(folder: Path) -> None:
    write_jsonl(folder, {"file": "a.mp4", "captions": ["one"], "part": "val"}, name="list.jsonl")
    columns = {"file_name": "file", "text": "captions", "split": "part"}
    expected = [Record("a.mp4", folder / "a.mp4", ("one",), "validation")]
    assert read_folder(folder, metadata="list.jsonl", columns=columns).records == expected
    assert read_folder(str(folder), metadata=folder / "list.jsonl", columns=columns, split="val").records == expected


def test_a_line_may_hold_separators_within_a_string_and_a_byte_order_mark(folder: Path) -> None:
    text = "one\u2028two\x85three"
    line = json.dumps({"file_name": "a.mp4", "text": text}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(("\ufeff" + line + "\r\n\r\n").encode())
    assert texts(read_folder(folder)) == {"a.mp4": (text,)}


def test_without_metadata_every_media_file_is_a_record(folder: Path) -> None:
    (folder / "notes.txt").write_text("no media")
    found = read_folder(folder, need=None)
    assert texts(found) == {"a.mp4": (), "b.mp4": (), "pictures/c.jpg": ()}
    assert all(record.split is None and record.path.is_file() for record in found.records)


# --- Questions, choices, labels, times ------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_every_field_of_a_record_has_a_column(folder: Path, write: Callable[..., None]) -> None:
    row = {
        "file_name": "./a.mp4",
        "second_file_name": "b.mp4",
        "text": "one",
        "question": "which?",
        "answers": ["x", "z"],
    }
    row |= {"choices": ["x", "y"], "label": 1, "start": 1.5, "end": 75, "split": "test", "id": 17, "kind": "action"}
    write(folder, row)
    record = Record(
        *("a.mp4", folder / "a.mp4", ("one",), "test", 1.5, 75.0, "which?", ("x", "z"), ("x", "y"), 1),
        *("b.mp4", folder / "b.mp4", "17", "action"),
    )
    assert read_folder(folder, need=None).records == [record]


def test_columns_of_any_name_and_choices_in_columns_of_their_own(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "clip;q;opt0;opt1;opt2;right;from;to\na.mp4;who?;he;she;;she;0:01;1:02.5\nb.mp4;why?;a;b;c;2;;00:00:03\n"
    )
    columns = {"file_name": "clip", "question": "q", "choices": "opt", "label": "right", "start": "from", "end": "to"}
    first, second = read_folder(folder, need="question", columns=columns).records
    assert (first.choices, first.label, first.start, first.end) == (("he", "she"), 1, 1.0, 62.5)
    assert (second.choices, second.label, second.start, second.end) == (("a", "b", "c"), 2, None, 3.0)


def test_a_column_that_means_something_else_is_ignored(folder: Path) -> None:
    (folder / "metadata.csv").write_text(",file_name,text,start,a0,a1\n5,a.mp4,one,600,x,y\n6,a.mp4,two,600,x,y\n")
    columns = {"start": "", "choices": "", "kind": ""}
    assert read_folder(folder, columns=columns).records == [Record("a.mp4", folder / "a.mp4", ("one", "two"))]
    assert parse_columns("start=, choices=,kind=") == columns


@pytest.mark.parametrize("names", [("choice_0", "choice_1"), ("a0", "a1"), ("option1", "option2")])
def test_choices_in_columns_of_the_usual_names(folder: Path, names: tuple[str, str]) -> None:
    write_csv(folder, {"file_name": "a.mp4", "question": "who?", names[1]: "she", names[0]: "he", "answer": "She"})
    (record,) = read_folder(folder, need="label").records
    assert (record.choices, record.label, record.answers) == (("he", "she"), 1, ("She",))


def test_csv_cells_may_hold_lists(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        'file_name, text, choices, answers\na.mp4, "[""one"", ""two""]", "[1, 2]", "[""1"", ""1"", ""2""]"\n'
        "b.mp4, [music] a dog [barks],,\n"
    )
    first, second = read_folder(folder).records
    assert (first.texts, first.choices, first.answers) == (("one", "two"), ("1", "2"), ("1", "1", "2"))
    assert (second.texts, second.choices, second.answers) == (("[music] a dog [barks]",), (), ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_as_spreadsheets_write_it(folder: Path, encoding: str, separator: str) -> None:
    text = "file_name,text\r\na.mp4,ein Hündchen\r\n".replace(",", separator)
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    assert texts(read_folder(folder)) == {"a.mp4": ("ein Hündchen",)}


def test_a_json_array_is_as_good_as_lines(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps([{"file_name": "a.mp4", "text": "one"}], indent=2))
    assert texts(read_folder(folder)) == {"a.mp4": ("one",)}


def test_questions_stay_apart_and_captions_of_other_seconds_too(folder: Path) -> None:
    write_jsonl(
        folder,
        {"file_name": "a.mp4", "text": "one", "start": 0, "end": 5},
        {"file_name": "a.mp4", "question": "why?", "answer": "so"},
        {"file_name": "a.mp4", "text": "two", "start": 5},
        {"file_name": "a.mp4", "question": "why?", "answer": "so"},
        {"file_name": "a.mp4", "text": "three", "start": "0:00", "end": "0:05"},
        {"file_name": "a.mp4", "text": "the statement is false", "label": False},
        {"file_name": "a.mp4", "text": "the statement is true", "label": True},
    )
    records = read_folder(folder, need=None).records
    assert [record.texts for record in records[:4]] == [("one", "three"), (), ("two",), ()]
    assert [record.label for record in records[4:]] == [0, 1]


@pytest.mark.parametrize(
    ("labels", "indices", "classes"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (["2", "0", "2.0"], [2, 0, 2], ()),
        (["true", "False", "1"], [1, 0, 1], ()),
        (["7", "cat", "7"], [0, 1, 0], ("7", "cat")),
    ],
)
def test_labels_are_indices_truth_or_names(
    folder: Path, labels: list[str], indices: list[int], classes: tuple[str, ...]
) -> None:
    names = ["a.mp4", "b.mp4", "pictures/c.jpg"]
    write_csv(folder, *({"file_name": name, "label": label} for name, label in zip(names, labels, strict=True)))
    found = read_folder(folder, need="label")
    assert [record.label for record in found.records] == indices
    assert found.classes == classes


def test_classes_are_those_of_all_splits_or_those_given(folder: Path) -> None:
    rows = [("a.mp4", "cat", "train"), ("b.mp4", "ant", "train"), ("pictures/c.jpg", "cat", "test")]
    write_csv(folder, *({"file_name": name, "label": label, "split": split} for name, label, split in rows))
    found = read_folder(folder, need="label", split="test")
    assert (found.records[0].label, found.classes) == (1, ("ant", "cat"))
    found = read_folder(folder, need="label", classes=["dog", "bee", "cat"])
    assert (found.records[0].label, found.classes) == (2, ("dog", "bee", "cat"))
    assert [problem.file_name for problem in found.skipped] == ["b.mp4"]


def test_a_label_below_0_is_none(folder: Path) -> None:
    write_jsonl(folder, {"file_name": "a.mp4", "label": -1}, {"file_name": "b.mp4", "label": 1})
    found = read_folder(folder, need="label")
    assert [record.label for record in found.records] == [1]
    assert found.skipped == [SkippedSample("a.mp4", "no label")]


def test_folders_of_classes_need_no_metadata(tmp_path: Path) -> None:
    for name in ("train/dog/1.jpg", "train/cat/2.jpg", "val/dog/3.mp4", "val/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = read_folder(tmp_path, need="label")
    assert found.classes == ("cat", "dog")
    seen = [(record.file_name, record.label, record.split) for record in found.records]
    assert seen == [
        ("train/cat/2.jpg", 0, "train"),
        ("train/dog/1.jpg", 1, "train"),
        ("val/dog/3.mp4", 1, "validation"),
    ]
    assert found.skipped == [SkippedSample("val/4.jpg", "in no folder of a class")]
    assert [record.label for record in read_folder(tmp_path, need="label", split="dev").records] == [1]
    with pytest.raises(UsageError, match=r"split=test: not in [^\n]+ train, val"):
        read_folder(tmp_path, need="label", split="test")
    found = read_folder(tmp_path / "train", need="label")
    assert [(record.file_name, record.label, record.split) for record in found.records] == [
        ("cat/2.jpg", 0, None),
        ("dog/1.jpg", 1, None),
    ]


# --- What is left out, and why --------------------------------------------------------------------------------------


def test_missing_files_and_missing_captions_are_left_out_and_named(folder: Path) -> None:
    rows = [("a.mp4", "one"), ("gone.mp4", "two"), ("b.mp4", "  "), ("pictures/c.jpg", ["", "three"])]
    write_jsonl(folder, *({"file_name": name, "text": text} for name, text in rows))
    found = read_folder(folder)
    assert texts(found) == {"a.mp4": ("one",), "pictures/c.jpg": ("three",)}
    assert [problem.file_name for problem in found.skipped] == ["gone.mp4", "b.mp4"]
    assert all(problem.reason for problem in found.skipped)
    assert "b.mp4" in texts(read_folder(folder, need=None))


@pytest.mark.parametrize(("name", "text"), [("gone.mp4", "two"), ("b.mp4", "")])
def test_strict_stops_at_the_first_of_them(folder: Path, name: str, text: str) -> None:
    write_jsonl(folder, {"file_name": "a.mp4", "text": "one"}, {"file_name": name, "text": text})
    with pytest.raises(PerceiverVLError, match=ONE_LINE) as refused:
        read_folder(folder, strict=True)
    assert name in str(refused.value)


def test_a_folder_with_nothing_usable_is_an_error_that_says_why(folder: Path) -> None:
    write_jsonl(folder, {"file_name": "gone.mp4", "text": "one"}, {"file_name": "away.mp4", "text": "two"})
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+no usable record of 2, the first: gone.mp4[^\n]+$"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"start": 5, "end": "0:05"}, "row 2: start=5, end=5: need a start before the end"),
        ({"start": -1}, "row 2: start=-1, need seconds from the beginning"),
        ({"end": "soon"}, "row 2: end='soon', need seconds or mm:ss"),
        ({"choices": ["x", "y"], "label": 2}, "row 2: label=2: not among the 2 choices x, y"),
        ({"choices": ["x", "y"], "label": "z"}, "row 2: label='z': not among the 2 choices x, y"),
        ({"choices": ["x", "y"], "answer": "z"}, "row 2: answer='z': not among the choices x, y"),
        ({"choices": ["1", "0"], "label": "1"}, "row 2: label='1': an index and the text of another choice"),
        ({"choices": "x or y"}, "row 2: choices='x or y', need a list"),
        ({"question": ["why?"]}, "row 2: question=['why?'], need a string"),
    ],
)
def test_a_row_that_cannot_be_is_left_out_and_named(folder: Path, row: dict[str, Any], reason: str) -> None:
    write_jsonl(folder, {"file_name": "a.mp4", "text": "one"}, {"file_name": "b.mp4", "text": "two", **row})
    found = read_folder(folder)
    assert texts(found) == {"a.mp4": ("one",)}
    assert [problem.file_name for problem in found.skipped] == ["b.mp4"]
    assert found.skipped[0].reason.startswith(reason)
    with pytest.raises(PerceiverVLError, match=r"b\.mp4"):
        read_folder(folder, strict=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pictures\\c.jpg", "but pictures/c.jpg is"),
        ("videos/a.mp4", "but a.mp4 is"),
        ("c.jpg", "but pictures/c.jpg is"),
        ("pictures/c", "but c.jpg is: write names with their ending"),
    ],
)
def test_a_name_that_is_nearly_right_is_told_the_right_one(folder: Path, name: str, hint: str) -> None:
    write_jsonl(folder, {"file_name": name, "text": "one"})
    with pytest.raises(PerceiverVLError, match=ONE_LINE) as refused:
        read_folder(folder)
    assert hint in str(refused.value)


@pytest.mark.parametrize("column", ["file_name", "second_file_name"])
@pytest.mark.parametrize(
    "name", ["../a.mp4", "x/../../a.mp4", "..\\a.mp4", "/etc/passwd", "C:\\a.mp4", "//server/a.mp4"]
)
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str, column: str) -> None:
    (folder.parent / "a.mp4").touch()
    write_jsonl(folder, {"file_name": "b.mp4", "text": "one"}, {"file_name": "a.mp4", "text": "one"} | {column: name})
    with pytest.raises(UsageError, match=r"^[^\n]+metadata.jsonl row 2: [^\n]+$") as refused:
        read_folder(folder, need=None)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0.mp4", "\ud800.mp4", ".", "pictures"])
def test_names_that_no_file_can_have_are_missing(folder: Path, name: str) -> None:
    rows = [{"file_name": "a.mp4", "text": "one"}, {"file_name": name, "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_folder(folder)
    assert texts(found) == {"a.mp4": ("one",)}
    assert len(found.skipped) == 1


def test_a_missing_file_of_many_records_is_one_problem(folder: Path) -> None:
    rows = [{"file_name": "gone.mp4", "question": str(number)} for number in range(5)]
    write_jsonl(folder, {"file_name": "a.mp4", "question": "why?"}, *rows)
    found = read_folder(folder, need="question")
    assert len(found.records) == 1
    assert [problem.file_name for problem in found.skipped] == ["gone.mp4"]


def test_records_for_something_else_are_no_problems(folder: Path) -> None:
    write_jsonl(
        folder,
        {"file_name": "a.mp4", "text": "one"},
        {"file_name": "a.mp4", "question": "why?", "answer": "so"},
        {"file_name": "b.mp4", "question": "who?", "answer": "me"},
    )
    assert [record.question for record in read_folder(folder, need="question").records] == ["why?", "who?"]
    told = read_folder(folder)
    assert texts(told) == {"a.mp4": ("one",)}
    assert told.skipped == []
    assert len(told.notes) == 1
    assert told.notes[0].startswith("2 records without a caption")
    assert len(read_folder(folder, need=None).records) == 3


def test_what_is_unusual_but_no_mistake_is_noted(folder: Path) -> None:
    write_jsonl(
        folder,
        {"file_name": "a.mp4", "question": "why?", "choices": ["x", "y"], "split": "holdout"},
        {"file_name": "b.mp4", "question": "why?", "choices": ["x", "y", "z"], "split": "train"},
    )
    notes = read_folder(folder, need="question").notes
    assert len(notes) == 2
    assert "holdout" in notes[0]
    assert "2 to 3" in notes[1]


# --- Errors ---------------------------------------------------------------------------------------------------------

BAD_METADATA = [
    ("metadata.jsonl", "", "no rows"),
    ("metadata.jsonl", '{"file_name": "a.mp4"\n', "line 1: not JSON"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": "x"}\n["b.mp4"]\n', "line 2: a list"),
    ("metadata.jsonl", '{"file": "a.mp4", "text": "x"}\n', "no column 'file_name' but file, text"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": "x"}\n{"text": "y"}\n', "row 2: file_name=None"),
    ("metadata.jsonl", '[{"file_name": "a.mp4", "text": "x"}, 7]', "row 2: a int"),
    ("metadata.jsonl", '[{"file_name": "a.mp4", "text": "x"}', "not a JSON array"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": 7}\n', "row 1: text=7"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": ["x", 7]}\n', "row 1: text="),
    ("metadata.csv", "file_name,text\na.mp4,a man, walking\n", "row 1: more values than columns"),
    (
        "metadata.csv",
        "file;text\na.mp4;one\n",
        "no column 'file_name' but file, text; map it with columns={'file_name': 'file'}",
    ),
    (
        "metadata.csv",
        "file_name,Caption\na.mp4,one\n",
        "no column 'text' but Caption, file_name; map it with columns={'text': 'Caption'}",
    ),
    ("metadata.csv", "file_name,text\na.mp4,\"['one' 'two']\"\n", "write it as JSON"),
    ("metadata.parquet", "no parquet", "cannot be read as parquet"),
]


@pytest.mark.parametrize(("name", "content", "named"), BAD_METADATA)
def test_bad_metadata_is_one_line_that_says_where(folder: Path, name: str, content: str, named: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(PerceiverVLError, match=ONE_LINE) as refused:
        read_folder(folder)
    assert name in str(refused.value)
    assert named in str(refused.value)


def test_bytes_that_are_not_utf_8_are_refused_by_their_line(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes("file_name,text\na.mp4,one\nb.mp4,Hündchen\n".encode("cp1252"))
    with pytest.raises(UsageError, match=r"^[^\n]+metadata.csv: cannot be read as csv: line 3 is not UTF-8[^\n]+$"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "holdout"}, "split=holdout"),
        ({"metadata": "list.csv"}, "metadata=list.csv"),
        ({"columns": {"file_name": "path"}}, "file_name=path"),
        ({"columns": {"file_name": "file_nam"}}, "did you mean file_name?"),
        ({"columns": {"caption": "text"}}, "caption=text"),
        ({"columns": {"quesion": "text"}}, "did you mean question?"),
        ({"need": "question"}, "no column 'question'"),
        ({"need": "captions"}, "need='captions'"),
    ],
)
def test_what_was_asked_for_and_is_not_there_is_named(folder: Path, arguments: dict[str, Any], named: str) -> None:
    write_jsonl(folder, {"file_name": "a.mp4", "text": "one", "split": "train"})
    with pytest.raises(UsageError, match=ONE_LINE) as refused:
        read_folder(folder, **arguments)
    assert named in str(refused.value)


def test_folders_that_cannot_be_read_without_more_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_folder(folder / "nowhere")
    with pytest.raises(UsageError, match=r"no metadata\.jsonl"):
        read_folder(folder)
    with pytest.raises(UsageError, match="split=train"):
        read_folder(folder, need=None, split="train")
    with pytest.raises(UsageError, match=r"no metadata\.jsonl[^\n]+folder for each class"):
        read_folder(folder / "pictures", need="label")
    (folder / "captions.csv").touch()
    with pytest.raises(UsageError, match=r"but captions.csv; name it with metadata='captions.csv'"):
        read_folder(folder)
    (folder / "captions.csv").rename(folder / "pictures" / "metadata.csv")
    with pytest.raises(UsageError, match=r"but pictures has one; give [^\n]+pictures as the folder"):
        read_folder(folder)
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="no video, image or sound files"):
        read_folder(folder / "empty", need=None)


# --- Real manifests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("msrvtt_keyframes", {"train": 428, "val": 46, "test": 115}),
        ("flickr8k", {"train": 1086, "val": 149, "test": 246}),
    ],
)
def test_manifests_of_real_data_sets(name: str, counts: dict[str, int]) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {name} beside the project")
    columns = {"file_name": "file", "text": "captions"}
    for split, count in counts.items():
        found = read_folder(folder, split=split, metadata="captions.jsonl", columns=columns)
        assert len(found.records) == count
        assert not found.skipped
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").split("\n") if line]
    wanted = {line["file"]: tuple(line["captions"]) for line in lines if line["split"] == "test"}
    assert texts(read_folder(folder, split="test", metadata="captions.jsonl", columns=columns)) == wanted


def test_reading_names_loads_neither_torch_nor_a_decoder() -> None:
    modules = "data.folder", "data.datasets.read", "data.synthetic.tasks", "cli"
    imports = "; ".join(f"import perceiver_vl.{module}" for module in modules)
    code = f"import sys; {imports}; print(*{{'torch', 'av', 'PIL', 'transformers'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("asked", ["café über.mp4", "cafe\u0301 u\u0308ber.mp4", "CAFÉ über.mp4"])
def test_a_name_in_another_unicode_form_or_case_is_the_file_that_is_there(folder: Path, asked: str) -> None:
    actual = unicodedata.normalize("NFD", "café über.mp4")
    (folder / actual).write_bytes(b"media")
    write_jsonl(folder, {"file_name": asked, "text": "coffee"})
    found = read_folder(folder)
    assert [(record.file_name, record.path) for record in found.records] == [(actual, folder / actual)]
    assert bool(found.notes) == (asked != actual)
    assert all("written otherwise" in note for note in found.notes)


def test_a_name_that_may_mean_two_files_is_neither(folder: Path) -> None:
    for name in ("Clip.mp4", "CLIP.mp4"):
        (folder / name).write_bytes(b"media")
    write_jsonl(folder, {"file_name": "clip.mp4", "text": "?"}, {"file_name": "Clip.mp4", "text": "!"})
    found = read_folder(folder)
    assert [record.file_name for record in found.records] == ["Clip.mp4"]
    assert [sample.file_name for sample in found.skipped] == ["clip.mp4"]


def test_what_cannot_be_looked_at_is_not_said_to_be_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(path: Any, **how: Any) -> os.stat_result:
        if str(path).endswith("a.mp4"):
            raise OSError(116, "Stale file handle")
        return real(path, **how)

    monkeypatch.setattr(os, "stat", stat)
    os.mkfifo(folder / "pipe.mp4")
    names = ["a.mp4", "b.mp4", "pipe.mp4", "gone.mp4"]
    write_jsonl(folder, *({"file_name": name, "text": "words"} for name in names))
    found = read_folder(folder)
    assert [record.file_name for record in found.records] == ["b.mp4"]
    reasons = {sample.file_name: sample.reason for sample in found.skipped}
    assert reasons["a.mp4"] == "Stale file handle"
    assert reasons["pipe.mp4"] == "not a regular file"
    assert reasons["gone.mp4"].startswith("named in the metadata but not there")
    assert found.unseen == ["a.mp4"]


def test_media_without_a_row_are_counted_and_taken_where_they_are_asked_for(folder: Path) -> None:
    write_jsonl(folder, {"file_name": "b.mp4", "text": "one"})
    found = read_folder(folder, need=None)
    assert [record.file_name for record in found.records] == ["b.mp4"]
    assert found.notes == ["2 media files have no row in metadata.jsonl, left out: a.mp4"]
    found = read_folder(folder, need=None, unnamed=True)
    assert [(record.file_name, record.texts) for record in found.records] == [
        ("b.mp4", ("one",)),
        ("a.mp4", ()),
        ("pictures/c.jpg", ()),
    ]
    assert read_folder(folder).notes == []


def test_a_foreign_table_can_be_ignored(folder: Path) -> None:
    (folder / "metadata.csv").write_text("track,bpm\nsong,120\n")
    with pytest.raises(UsageError, match="or ignore the file with metadata='none'"):
        read_folder(folder, need=None)
    assert len(read_folder(folder, need=None, metadata="none").records) == 3


@pytest.mark.parametrize(
    "rows",
    [["a.mp4,one", 'b.mp4,"two', "pictures/c.jpg,three"], ["a.mp4,one", 'b.mp4,"12" ruler, wood', "pictures/c.jpg,3"]],
)
def test_a_quote_that_never_closes_loses_no_row_in_silence(folder: Path, rows: list[str]) -> None:
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]) + "\n")
    with pytest.raises(UsageError, match=r"^[^\n]*metadata\.csv row 2: [^\n]+close every quote"):
        read_folder(folder)


def test_halves_of_characters_are_replaced_and_told(folder: Path) -> None:
    """As JSON may hold: an emoji that a program has cut through."""
    rows = [
        '{"file_name": "a.mp4", "text": ["fun \\ud83d", "ok \\ud83d\\ude00"]}',
        '{"file_name": "b.mp4", "text": "plain"}',
    ]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    found = read_folder(folder)
    assert texts(found) == {"a.mp4": ("fun �", "ok 😀"), "b.mp4": ("plain",)}
    assert found.notes == ["metadata.jsonl: 1 records have � for characters that were cut through or could not be read"]
