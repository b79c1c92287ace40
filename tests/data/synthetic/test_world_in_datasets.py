"""What `perceiver-vl world` writes is a `videofolder` or an `imagefolder` of Hugging Face `datasets`: every split, with
its captions.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import pyarrow.json
import pytest

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.synthetic.tasks import TASKS, splits_of
from perceiver_vl.data.synthetic.writing import write_world

SPLITS = ("train", "validation", "test")


def the_library() -> Any:
    """`datasets`; not the folder of tests of that name, which stands in for it where it is not installed."""
    pytest.importorskip("datasets.load", reason="datasets is not installed, pip install -e '.[dev]'")
    return importlib.import_module("datasets")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    write_world(out, clips=8, held_out=2, size=32, num_frames=2, tasks=TASKS, seconds=20)
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_each_split_has_a_folder_that_says_the_same(world: Path, task: str) -> None:
    written = {
        row["split"]: rows_of(world / task / row["split"].removeprefix("test-")) for row in rows_of(world / task)
    }
    assert list(written) == list(splits_of(task))
    for split, rows in written.items():
        found = read_folder(world / task, split=split, need=None).records
        assert [(world / task / split / row["file_name"]).resolve() for row in rows] == [
            record.path.resolve() for record in found
        ]
        assert [row.get("question", row.get("text")) for row in rows] == [
            record.question or (list(record.texts) if task == "captions" else record.texts[0]) for record in found
        ]


@pytest.mark.parametrize("task", TASKS)
def test_all_splits_have_the_same_columns(world: Path, task: str) -> None:
    schemas = [pyarrow.json.read_json(world / task / split / "metadata.jsonl").schema for split in SPLITS]
    assert all(schema == schemas[0] for schema in schemas), "datasets refuses splits that differ"


@pytest.mark.parametrize("task", TASKS)
def test_datasets_loads_every_split_with_its_words(world: Path, task: str, tmp_path: Path) -> None:
    datasets = the_library()
    pictures = task in ("image", "pairs")
    kind, column = ("imagefolder", "image") if pictures else ("videofolder", "video")
    loaded = datasets.load_dataset(kind, data_dir=str(world / task), cache_dir=str(tmp_path))
    assert set(loaded) == set(SPLITS)
    undecoded = datasets.Image(decode=False) if pictures else datasets.Video(decode=False)
    for split in SPLITS:
        wanted = read_folder(world / task, split=split, need=None).records
        found = loaded[split].cast_column(column, undecoded)
        assert [Path(row[column]["path"]).resolve() for row in found] == [record.path.resolve() for record in wanted]
        said = found["question"] if "question" in found.column_names else found["text"]
        words = [
            record.question or (list(record.texts) if task == "captions" else record.texts[0]) for record in wanted
        ]
        assert list(said) == words


def test_the_splits_of_generalisation_are_loaded_by_name(world: Path, tmp_path: Path) -> None:
    datasets = the_library()
    files = {"test_systematic": str(world / "frame" / "systematic" / "metadata.jsonl")}
    loaded = datasets.load_dataset("videofolder", data_files=files, cache_dir=str(tmp_path))
    assert [row["split"] for row in loaded["test_systematic"].remove_columns("video")] == ["test-systematic"] * 2
