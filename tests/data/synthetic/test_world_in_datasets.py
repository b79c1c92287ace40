"""What `perceiver-vl world` writes is a `videofolder` or an `imagefolder` of Hugging Face `datasets`: every split, with
its captions.
"""

from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.json
import pytest

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.synthetic.tasks import TASKS, splits_of
from perceiver_vl.data.synthetic.writing import write_world

SPLITS = ("train", "validation", "test")
PICTURES = ("image", "pairs")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    write_world(out, clips=8, held_out=2, size=32, num_frames=2, tasks=TASKS, seconds=20)
    return out


def media_of(world: Path, task: str, split: str) -> Path:
    return world / task / ("pictures" if task in PICTURES else "clips") / split.removeprefix("test-")


@pytest.mark.parametrize("task", TASKS)
def test_the_folder_of_a_split_is_a_data_set_that_says_the_same(world: Path, task: str) -> None:
    for split in splits_of(task):
        found = read_folder(world / task, split=split, need=None)
        alone = read_folder(media_of(world, task, split), need=None)
        assert not [*found.skipped, *alone.skipped]
        named = [
            replace(one, file_name=other.file_name, second_file_name=other.second_file_name)
            for one, other in zip(alone.records, found.records, strict=True)
        ]  # the paths are the same, the names begin elsewhere
        assert named == found.records


@pytest.mark.parametrize("task", TASKS)
def test_all_splits_have_the_same_columns(world: Path, task: str) -> None:
    schemas = [pyarrow.json.read_json(media_of(world, task, split) / "metadata.jsonl").schema for split in SPLITS]
    assert all(schema == schemas[0] for schema in schemas), "datasets refuses splits that differ"


@pytest.mark.parametrize("task", TASKS)
def test_datasets_loads_every_split_with_its_words(world: Path, task: str, tmp_path: Path) -> None:
    kind, column = ("imagefolder", "image") if task in PICTURES else ("videofolder", "video")
    loaded = datasets.load_dataset(kind, data_dir=str(world / task), cache_dir=str(tmp_path))
    assert set(loaded) == set(SPLITS)
    undecoded = datasets.Image(decode=False) if task in PICTURES else datasets.Video(decode=False)
    for split in SPLITS:
        wanted = read_folder(world / task, split=split, need=None).records
        found = loaded[split].cast_column(column, undecoded)
        assert [Path(row[column]["path"]).resolve() for row in found] == [record.path.resolve() for record in wanted]
        said = found["question"] if "question" in found.column_names else found["text"]
        words = [
            record.question or (list(record.texts) if task == "captions" else record.texts[0]) for record in wanted
        ]
        assert list(said) == words


def test_a_split_of_generalisation_is_loaded_from_its_own_folder(world: Path, tmp_path: Path) -> None:
    folder = media_of(world, "frame", "test-systematic")
    loaded = datasets.load_dataset("videofolder", data_dir=str(folder), cache_dir=str(tmp_path))
    rows = loaded["train"].cast_column("video", datasets.Video(decode=False))
    assert [row["split"] for row in rows] == ["test-systematic"] * 2
    assert [row["question"] for row in rows] == [one.question for one in read_folder(folder, need=None).records]
