"""The generated world's tasks on disk: what was drawn is what the folder's and the benchmarks' readers give back."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceiver_vl.cli import main
from perceiver_vl.data.datasets.read import read_splits
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Record
from perceiver_vl.data.sources import FolderDataset
from perceiver_vl.data.synthetic.grid import GENERALISATION
from perceiver_vl.data.synthetic.tasks import TASKS, PairWorld, open_world, splits_of
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.utils.errors import UsageError

SMALL: dict[str, Any] = {"clips": 6, "held_out": 2, "size": 32, "seed": 3}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "out"
    counts = write_world(out, **SMALL, tasks=TASKS, seconds=20)
    held_out = dict.fromkeys(GENERALISATION[:2], 16) | {"test-productive": 14}
    assert counts == {"train": 18, "validation": 18, "test": 18, **held_out}
    return out


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "official"
    assert write_world(out, **SMALL, tasks=TASKS, seconds=20, layout="official") == {
        "train": 18,
        "validation": 12,
        "test": 18,
    }
    return out


@pytest.mark.parametrize("task", TASKS)
def test_the_folder_reader_gives_what_the_world_gives(written: Path, task: str) -> None:
    folder = read_folder(written / task, need="text" if task in ("captions", "pairs") else "question")
    assert not folder.skipped
    assert Counter(record.split for record in folder.records) == dict.fromkeys(splits_of(task), 2)
    for split in splits_of(task):
        world = open_world(task, split, 2, seed=3, size=32, seconds=20.0)
        records = [record for record in folder.records if record.split == split]
        for index, record in enumerate(records):
            drawn = world.record(index)
            assert replace(record, path=drawn.path, second_path=drawn.second_path) == drawn
        frames, drawn_frames = FolderDataset(records, (32, 32)).frames(0, 8), world.frames(0, 8)
        assert frames.shape == drawn_frames.shape
        assert np.abs(frames.astype(int) - drawn_frames).mean() < (0.1 if task in ("image", "pairs") else 12)


def test_the_second_picture_is_written_too(written: Path) -> None:
    record = read_folder(written / "pairs", split="test").records[1]
    assert record.second_path is not None
    second = FolderDataset([replace(record, path=record.second_path)], (32, 32)).frames(0, 1)
    assert np.array_equal(second, PairWorld("test", 2, seed=3, size=32).second.frames(1))


def test_the_truth_is_written_beside(written: Path) -> None:
    lines = [json.loads(line) for line in (written / "long" / "metadata.jsonl").read_text().splitlines()]
    clip = open_world("long", clips=2, seed=3, size=32, seconds=20.0).clip(0)  # type: ignore[union-attr]
    assert lines[0]["scene"]["start"] == clip.start
    assert lines[0]["scene"]["event"] == clip.event


@pytest.mark.parametrize(
    ("task", "benchmark"),
    [
        ("captions", "msrvtt"),
        ("captions", "msrvtt-1ka"),
        ("action", "tgif-qa-action"),
        ("transition", "tgif-qa-transition"),
        ("frame", "tgif-qa-frame"),
        ("frame", "msrvtt-qa"),
        ("count", "tgif-qa-count"),
        ("yesno", "msrvtt-qa"),
        ("long", "msrvtt-qa"),
        ("image", "vqav2"),
        ("pairs", "nlvr2"),
    ],
)
def test_the_readers_of_the_benchmarks_give_what_the_world_gives(official: Path, task: str, benchmark: str) -> None:
    splits = read_splits(benchmark, official / task)
    assert {"train", "test"} <= set(splits)
    for split, folder in splits.items():
        assert not folder.skipped
        assert len(folder.records) == (4 if (benchmark, split) == ("msrvtt-1ka", "train") else 2)
        world = open_world(task, split, 2, seed=3, size=32, seconds=20.0)
        for index, record in enumerate(folder.records[:2]):
            drawn = world.record(index)
            assert record.question == drawn.question
            assert record.choices == drawn.choices
            assert record.label == drawn.label
            if (task, split) == ("image", "test"):
                assert record.answers == ()
                assert record.kind is None
            elif task in ("action", "transition"):
                assert record.choices[record.label or 0] == drawn.answers[0]
            else:
                assert record.answers == drawn.answers
            if task in ("captions", "pairs"):
                assert record.texts == (
                    drawn.texts[:1] if (benchmark, split) == ("msrvtt-1ka", "test") else drawn.texts
                )
            shown(record, world.frames(index, 8), exact=task in ("image", "pairs"))
    if task == "pairs":
        assert splits["test"].records[1].example_id == "test1-0-1-0"


def shown(record: Record, drawn: np.ndarray[Any, np.dtype[np.uint8]], exact: bool) -> None:
    frames = FolderDataset([record], (32, 32)).frames(0, 8)
    assert frames.shape == drawn.shape
    assert np.abs(frames.astype(int) - drawn).mean() < (0.1 if exact else 12)


@pytest.mark.parametrize("layout", ["folder", "official"])
def test_the_same_arguments_give_the_same_bytes_and_torn_folders_are_completed(tmp_path: Path, layout: str) -> None:
    arguments = {**SMALL, "tasks": ("count", "pairs"), "layout": layout}
    write_world(tmp_path / "one", **arguments)
    before = contents(tmp_path / "one")
    write_world(tmp_path / "other", **arguments)
    assert contents(tmp_path / "other") == before
    media = sorted(path for path in (tmp_path / "one").rglob("*") if path.suffix in (".mp4", ".png"))
    notes = [path for path in (tmp_path / "one").rglob("*") if path.suffix in (".json", ".jsonl", ".csv")]
    for path in [*media[::3], *(path for path in notes if path.name != "world.json")]:
        path.unlink()
    kept = media[1].stat().st_mtime_ns
    write_world(tmp_path / "one", **arguments, progress=True)
    assert contents(tmp_path / "one") == before
    assert media[1].stat().st_mtime_ns == kept


def test_of_one_task_the_folder_itself_is_the_data_set(tmp_path: Path) -> None:
    write_world(tmp_path / "frame", **SMALL, tasks=["frame"], num_frames=4)
    assert (tmp_path / "frame" / "metadata.jsonl").exists()
    manifest = json.loads((tmp_path / "frame" / "world.json").read_text())
    assert manifest["task"] == "frame"
    assert manifest["num_frames"] == 4
    with pytest.raises(UsageError, match="a world made with other arguments"):
        write_world(tmp_path / "frame", **SMALL, tasks=["count"], num_frames=4)
    (tmp_path / "frame" / "world.json").write_text(json.dumps(manifest | {"generator_version": 2}, indent=2) + "\n")
    with pytest.raises(UsageError, match="frame: holds a world of generator_version 2, this is 3; name another folder"):
        write_world(tmp_path / "frame", **SMALL, tasks=["frame"], num_frames=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["poem"]}, "tasks=poem: choose from captions, action"),
        ({"tasks": []}, "tasks=: name each task once"),
        ({"tasks": ["frame", "frame"]}, "tasks=frame,frame: name each task once"),
        ({"layout": "mine"}, "layout=mine: choose folder or official"),
        ({"seconds": 30}, "seconds=30: only long clips have a length"),
        ({"tasks": ["long"], "seconds": 1}, "seconds=1: a long clip lasts 20 seconds to a day"),
        ({"tasks": ["pairs", "long"], "num_frames": 4}, "num_frames=4: pairs, long have no short clips"),
        ({"tasks": ["frame"], "num_frames": 0}, "num_frames=0: need at least 1"),
        ({"tasks": ["frame"], "seed": -1}, "seed=-1: need at least 0"),
    ],
)
def test_arguments_that_cannot_work_write_nothing(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^" + message):
        write_world(tmp_path / "out", **({"clips": 6} | arguments))
    assert not (tmp_path / "out").exists()


def test_a_refused_task_keeps_the_others_from_being_written(tmp_path: Path) -> None:
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "holiday.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a generated world"):
        write_world(tmp_path, **SMALL, tasks=["frame", "count"])
    assert set(contents(tmp_path)) <= {"count/holiday.txt", "frame/world.json"}


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `perceiver-vl WORDS…` in this process → its exit code."""
    monkeypatch.setattr("sys.argv", ["perceiver-vl", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_writes_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    small = ("--clips", "6", "--held-out", "1", "--size", "16", "--json")
    assert command(monkeypatch, "world", out, "--tasks", "image, pairs", *small) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == {"out": out, "train": 8, **dict.fromkeys(("validation", "test", *GENERALISATION), 2)}
    assert (tmp_path / "out" / "pairs" / "metadata.jsonl").exists()
    assert command(monkeypatch, "world", str(tmp_path / "no"), "--tasks", "poem") == 2
    assert "tasks=poem: choose from" in capsys.readouterr().err
