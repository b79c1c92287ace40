"""Folders of one's own: what metadata can say, and what is wrong with it in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Folder, Record

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
    assert found.problems == []


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
    found = read_folder(folder, need_text=False)
    assert texts(found) == {"a.mp4": (), "b.mp4": (), "pictures/c.jpg": ()}
    assert all(record.split is None and record.path.is_file() for record in found.records)


# --- What is left out, and why --------------------------------------------------------------------------------------


def test_missing_files_and_missing_captions_are_left_out_and_named(folder: Path) -> None:
    rows = [("a.mp4", "one"), ("gone.mp4", "two"), ("b.mp4", "  "), ("pictures/c.jpg", ["", "three"])]
    write_jsonl(folder, *({"file_name": name, "text": text} for name, text in rows))
    found = read_folder(folder)
    assert texts(found) == {"a.mp4": ("one",), "pictures/c.jpg": ("three",)}
    assert [problem.file_name for problem in found.problems] == ["gone.mp4", "b.mp4"]
    assert all(problem.reason for problem in found.problems)
    assert "b.mp4" in texts(read_folder(folder, need_text=False))


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


# --- Errors ---------------------------------------------------------------------------------------------------------

BAD_METADATA = [
    ("metadata.jsonl", "", "no rows"),
    ("metadata.jsonl", '{"file_name": "a.mp4"\n', "line 1: not JSON"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": "x"}\n["b.mp4"]\n', "line 2: a list"),
    ("metadata.jsonl", '{"file": "a.mp4", "text": "x"}\n', "no column 'file_name' but file, text"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": "x"}\n{"text": "y"}\n', "row 2: file_name=None"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": 7}\n', "row 1: text=7"),
    ("metadata.jsonl", '{"file_name": "a.mp4", "text": ["x", 7]}\n', "row 1: text="),
    ("metadata.csv", "file_name,text\na.mp4,a man, walking\n", "row 1: more values than columns"),
    ("metadata.csv", "file;text\na.mp4;one\n", "no column 'file_name'"),
    ("metadata.parquet", "no parquet", "cannot be read as parquet"),
]


@pytest.mark.parametrize(("name", "content", "named"), BAD_METADATA)
def test_bad_metadata_is_one_line_that_says_where(folder: Path, name: str, content: str, named: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(PerceiverVLError, match=ONE_LINE) as refused:
        read_folder(folder)
    assert name in str(refused.value)
    assert named in str(refused.value)


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes(b"file_name,text\na.mp4,\xff\xfe\n")
    with pytest.raises(UsageError, match=r"^[^\n]+metadata.csv: cannot be read as csv[^\n]+$"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "holdout"}, "split=holdout"),
        ({"metadata": "list.csv"}, "metadata=list.csv"),
        ({"columns": {"file_name": "path"}}, "file_name=path"),
        ({"columns": {"caption": "text"}}, "caption=text"),
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
        read_folder(folder, need_text=False, split="train")
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="no video or image files"):
        read_folder(folder / "empty", need_text=False)


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
        assert not found.problems
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").split("\n") if line]
    wanted = {line["file"]: tuple(line["captions"]) for line in lines if line["split"] == "test"}
    assert texts(read_folder(folder, split="test", metadata="captions.jsonl", columns=columns)) == wanted
