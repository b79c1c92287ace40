"""What is written as metadata is read as it was."""

import json
import string
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.metadata import read_rows, write_metadata
from perceiver_vl.data.records import Record
from perceiver_vl.utils.errors import UsageError

NAMES = ("a.mp4", "b c/ü.mp4", "d.jpg")
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
seconds = st.floats(0, 1e6, allow_nan=False)
splits = st.none() | st.sampled_from(["train", "validation", "test", "holdout"])
identities = st.none() | st.text(string.ascii_letters + string.digits + "-_[]", min_size=1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """As `read_folder` gives them, but for their paths; each of another split or about another file."""
    start, end = draw(st.none() | seconds), draw(st.none() | seconds)
    if start is not None and end is not None and start >= end:
        start = None
    choices = tuple(draw(st.lists(words, max_size=4, unique_by=lambda word: word.strip().casefold())))
    answers = tuple(draw(st.lists(words, max_size=3)))
    label = draw(st.none() | st.integers(0, len(choices) - 1 if choices else 9))
    if choices and label is None and len(set(answers)) == 1:  # one answer among choices would be their label
        answers = ()
    second = draw(st.none() | st.sampled_from(NAMES))
    return Record(
        file_name=draw(st.sampled_from(NAMES)),
        path=Path(),
        texts=tuple(draw(st.lists(words, max_size=3))),
        split=draw(splits),
        start=start,
        end=end,
        question=draw(st.none() | words),
        answers=answers,
        choices=choices,
        label=label,
        second_file_name=second,
        example_id=draw(identities),
        kind=draw(identities),
    )


def merges(record: Record) -> Any:
    """What of two records must differ for them to stay two."""
    if record.question or record.answers or record.choices or record.label is not None:
        return object()
    return record.file_name, record.second_file_name, record.start, record.end, record.split


@given(st.lists(records(), min_size=1, max_size=5, unique_by=merges))
def test_records_come_back_as_they_were(some: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for media in NAMES:
            (folder / media).parent.mkdir(exist_ok=True)
            (folder / media).touch()
        some = [
            replace(
                record,
                path=folder / record.file_name,
                second_path=folder / record.second_file_name if record.second_file_name else None,
            )
            for record in some
        ]
        write_metadata(some, folder / "metadata.jsonl")
        found = read_folder(folder, need=None)
        assert found.records == some
        assert found.skipped == []


def test_only_what_a_record_has_is_written(tmp_path: Path) -> None:
    record = Record("a.mp4", Path("a.mp4"), ("ein Hündchen",), start=0.0, label=0)
    write_metadata([record], tmp_path / "metadata.jsonl")
    text = (tmp_path / "metadata.jsonl").read_text(encoding="utf-8")
    assert "Hündchen" in text
    assert json.loads(text) == {"file_name": "a.mp4", "text": "ein Hündchen", "start": 0.0, "label": 0}


def test_classes_are_written_by_their_names(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    before = read_folder(tmp_path, need="label")
    write_metadata(before.records, tmp_path / "metadata.jsonl", before.classes)
    assert [row["label"] for row in read_rows(tmp_path / "metadata.jsonl")] == ["cat", "dog"]
    assert read_folder(tmp_path, need="label") == before


def test_a_name_that_is_not_unicode_comes_back(tmp_path: Path) -> None:
    name = b"\xff.mp4".decode(errors="surrogateescape")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    write_metadata([Record(name, tmp_path / name, ("ü",))], tmp_path / "metadata.jsonl")
    assert read_folder(tmp_path).records == [Record(name, tmp_path / name, ("ü",))]


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        with pytest.raises(UsageError, match=rf"^[^\n]+{name}: cannot be read as[^\n]+$"):
            read_rows(tmp_path / name)
