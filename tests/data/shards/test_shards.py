"""Shards: the same examples as the folder they were made of, whatever reads them; written once, whole or not at all."""

import errno
import itertools
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from perceiver_vl import MediaError, PerceiverVLError, UsageError
from perceiver_vl.cli import main
from perceiver_vl.data.batching import TrainingExamples
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Folder, Record, SkippedSample
from perceiver_vl.data.shards.manifest import is_sharded, verify_shards
from perceiver_vl.data.shards.reading import ShardedDataset, shuffled_in_groups
from perceiver_vl.data.shards.writing import write_shards
from perceiver_vl.data.sources import FolderDataset, VideoDataset
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.data.transcode.one_file import TranscodeSettings
from perceiver_vl.utils.files import sha256

SHARED = (Path(__file__).resolve().parents[3] / ".." / "shared" / "data").resolve()
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder shared/data beside the repository")
SIZE = (32, 32)
ONE_LINE = r"^[^\n]+$"


@pytest.fixture(scope="session")
def written(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the world, three clips in each; not to be changed."""
    out = tmp_path_factory.mktemp("shards") / "out"
    write_shards(read_folder(world), out, samples_per_shard=3)
    return out


@pytest.fixture
def shards(written: Path, tmp_path: Path) -> Path:
    """A copy of them, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "shards"))


class Drawn(Dataset[tuple[np.ndarray, Record]]):
    """Each clip with frames drawn for its index, and its record."""

    def __init__(self, source: VideoDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Record]:
        return self.source.frames(index, 3, np.random.default_rng([7, index])), self.source.record(index)


def nowhere(record: Record) -> Record:
    """A record without the paths, which differ between a folder and shards."""
    return replace(record, path=Path(), second_path=None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def rows(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(folder / "index.parquet").to_pylist()


def rewrite_index(folder: Path, change: dict[str, Any]) -> None:
    """The first row with other values, and a manifest that agrees with the index's bytes."""
    path = folder / "index.parquet"
    table = pyarrow.parquet.ParquetFile(path)
    groups = [table.read_row_group(number) for number in range(table.num_row_groups)]
    first = [groups[0].to_pylist()[0] | change, *groups[0].to_pylist()[1:]]
    groups[0] = pyarrow.Table.from_pylist(first, schema=groups[0].schema)
    with pyarrow.parquet.ParquetWriter(path, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["index"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_manifest(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | values
    (folder / "manifest.json").write_text(json.dumps(manifest))


def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk is full once so many files are in tars."""
    add, left = tarfile.TarFile.addfile, iter(range(after))

    def addfile(tar: tarfile.TarFile, *arguments: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(tar, *arguments)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)


# --- The same examples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_folder_and_its_shards_give_the_same_frames_and_records(world: Path, written: Path, workers: int) -> None:
    folder = FolderDataset(read_folder(world, split="train").records, SIZE)
    shards = ShardedDataset(written, SIZE, "train")
    assert len(shards) == len(folder) == 10
    loader: DataLoader[Any] = DataLoader(Drawn(shards), batch_size=None, num_workers=workers)
    for index, (frames, record) in enumerate(loader):
        expected, known = Drawn(folder)[index]
        assert np.array_equal(np.asarray(frames), expected)
        assert nowhere(record) == nowhere(known)
        assert np.array_equal(shards.frames(index, 4), folder.frames(index, 4))


def test_training_examples_are_the_same_too(world: Path, written: Path) -> None:
    folder = TrainingExamples(FolderDataset(read_folder(world, split="train").records, SIZE), 3, "random", seed=5)
    shards = TrainingExamples(ShardedDataset(written, SIZE, "train"), 3, "random", seed=5)
    for item in range(2 * len(folder)):
        ours, theirs = shards[item], folder[item]
        assert np.array_equal(ours.frames, theirs.frames)
        assert (ours.text, ours.other_text, ours.key) == (theirs.text, theirs.other_text, theirs.key)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "metadata"), [("msrvtt_full_motion", "captions.jsonl"), ("tgif_qa_samples", "qa.jsonl")]
)
def test_real_clips_are_the_same(name: str, metadata: str, tmp_path: Path) -> None:
    columns = {"file_name": "file"} | ({"text": "captions"} if metadata == "captions.jsonl" else {})
    folder = read_folder(SHARED / name, metadata=metadata, columns=columns, need=None)
    write_shards(folder, tmp_path / "out", shard_bytes=400_000)
    shards, files = ShardedDataset(tmp_path / "out", (64, 64)), FolderDataset(folder.records, (64, 64))
    assert len(shards) == len(files) >= 10
    assert len(shards.groups()) > 1
    for index in range(len(files)):
        rng, same = np.random.default_rng(index), np.random.default_rng(index)
        assert nowhere(shards.record(index)) == nowhere(files.record(index))
        assert np.array_equal(shards.frames(index, 4, rng), files.frames(index, 4, same))


def test_all_splits_are_there_without_one(world: Path, written: Path) -> None:
    everything = ShardedDataset(written, SIZE)
    assert [everything.record(i).file_name for i in range(len(everything))] == [
        record.file_name for record in read_folder(world).records
    ]
    assert len(ShardedDataset(written, SIZE, "val")) == 1  # as in folders, another word for validation
    with pytest.raises(UsageError, match=r"split=best: .* has test, train, validation$"):
        ShardedDataset(written, SIZE, "best")


def test_shards_are_told_from_folders(world: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")  # of somebody else
    assert is_sharded(written)
    assert is_sharded("s3://bucket/shards")
    assert not any(is_sharded(folder) for folder in (world, tmp_path, tmp_path / "nowhere"))


def test_an_index_that_is_not_there_is_an_index_error(written: Path) -> None:
    shards = ShardedDataset(written, SIZE, "train")
    for index in (-1, 10):
        with pytest.raises(IndexError):
            shards.record(index)
        with pytest.raises(IndexError):
            shards.frames(index, 1)


# --- What records can say -------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures of one colour each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), 50 * number, np.uint8)).save(folder / f"{number}.PNG")
    return folder


def test_a_file_of_many_records_is_stored_once_and_every_record_comes_back(world: Path, tmp_path: Path) -> None:
    clip = next(path for path in sorted((world / "clips").rglob("*.mp4")) if path.stat().st_size > 1000)
    asked = [
        Record(clip.name, clip, question="what moves?", answers=("a star", "the star"), label=3, example_id="q1"),
        Record(clip.name, clip, question="where?", choices=("left", "right"), label=0, kind="action", start=0.2),
        Record(clip.name, clip, texts=("a star\u2028moves",), start=0.0, end=0.5),
    ]
    report = write_shards(Folder(world, asked, classes=("no", "yes")), tmp_path / "out")
    assert (report.samples, report.records, report.splits) == (1, 3, {"": 3})
    shards, files = ShardedDataset(tmp_path / "out", SIZE), FolderDataset(asked, SIZE)
    assert [nowhere(shards.record(i)) for i in range(3)] == [nowhere(record) for record in asked]
    assert all(np.array_equal(shards.frames(i, 4), files.frames(i, 4)) for i in range(3))
    assert len({shards.record(i).path for i in range(3)}) == 1
    assert shards.classes == ("no", "yes")
    with tarfile.open(tmp_path / "out" / "data-000000.tar") as tar:
        assert tar.getnames() == ["00000000.mp4", "00000000.json"]
        told = tar.extractfile("00000000.json")
        assert told is not None
        assert [record.get("question") for record in json.load(told)["records"]] == ["what moves?", "where?", None]


def test_records_can_be_kept_by_what_they_have(world: Path, tmp_path: Path) -> None:
    paths = sorted((world / "clips").rglob("*.mp4"))[:4]
    said: list[dict[str, Any]] = [{"texts": ("one",)}, {"question": "what?"}, {"label": 0}, {"texts": ("four",)}]
    records = [Record(path.name, path, **values) for path, values in zip(paths, said, strict=True)]
    write_shards(Folder(world, records), tmp_path / "out", samples_per_shard=1)
    shards = ShardedDataset(tmp_path / "out", SIZE, need="text")
    assert [shards.record(i).texts for i in range(len(shards))] == [("one",), ("four",)]
    assert shards.groups() == [range(1), range(1, 2)]
    assert np.array_equal(shards.frames(1, 2), FolderDataset(records, SIZE).frames(3, 2))
    assert ShardedDataset(tmp_path / "out", SIZE, need="label").record(0).label == 0
    write_shards(Folder(world, records[:1]), tmp_path / "words")
    with pytest.raises(UsageError, match="none of 1 records has a question"):
        ShardedDataset(tmp_path / "words", SIZE, need="question")


def test_both_pictures_of_a_pair_are_in_one_sample(pictures: Path, tmp_path: Path) -> None:
    records = [
        Record(f"{n}.PNG", pictures / f"{n}.PNG", ("s",), second_file_name="3.PNG", second_path=pictures / "3.PNG")
        for n in range(2)
    ]
    write_shards(Folder(pictures, records), tmp_path / "out")
    shards = ShardedDataset(tmp_path / "out", SIZE)
    for index, record in enumerate(records):
        assert nowhere(shards.record(index)) == nowhere(record)
        assert shards.seconds().record(index).file_name == "3.PNG"
        assert shards.record(index).second_path == shards.seconds().record(index).path
        assert shards.frames(index, 1).mean() == 50 * index
        assert shards.seconds().frames(index, 1).mean() == 150
    with tarfile.open(tmp_path / "out" / "data-000000.tar") as tar:
        assert tar.getnames()[:3] == ["00000000.png", "00000000.second.png", "00000000.json"]


def test_a_single_picture_has_no_second(pictures: Path, tmp_path: Path) -> None:
    write_shards(read_folder(pictures, need=None), tmp_path / "out")
    with pytest.raises(PerceiverVLError, match=r"0\.PNG: has no second picture"):
        ShardedDataset(tmp_path / "out", SIZE).seconds().frames(0, 1)


@pytest.mark.parametrize("split", ["../../evil", "/", "", "Ünïcode set", "train.tar", "x" * 400])
def test_no_name_of_a_data_set_becomes_a_path(pictures: Path, tmp_path: Path, split: str) -> None:
    odd = Record("../../outside/0.PNG", pictures / "0.PNG", ("s",), split)
    write_shards(Folder(pictures, [odd]), tmp_path / "a" / "b" / "out")
    shards = ShardedDataset(tmp_path / "a" / "b" / "out", SIZE)
    assert nowhere(shards.record(0)) == nowhere(odd)
    (shard,) = shards.shards
    assert sorted(contents(tmp_path / "a" / "b" / "out")) == sorted([shard.name, "index.parquet", "manifest.json"])
    assert not (tmp_path / "outside").exists()
    with tarfile.open(tmp_path / "a" / "b" / "out" / shard.name) as tar:
        assert tar.getnames() == ["00000000.png", "00000000.json"]


# --- What is written ------------------------------------------------------------------------------------------------


def test_shards_are_plain_tars_whose_members_lie_where_the_index_says(world: Path, written: Path) -> None:
    found = rows(written)
    assert len(found) == 12
    originals = {record.file_name: record.path.read_bytes() for record in read_folder(world).records}
    for row in found:
        with tarfile.open(written / row["shard"], "r:") as tar:
            member = tar.getmember(row["key"] + row["suffix"])
            assert (member.offset_data, member.size) == (row["offset"], row["size"])
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            content, told = tar.extractfile(member), tar.extractfile(row["key"] + ".json")
            assert content is not None
            assert told is not None
            assert content.read() == originals[json.loads(row["record"])["file_name"]]
            assert json.load(told)["records"] == [json.loads(row["record"])]


def test_the_manifest_says_what_there_is(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert [shard["samples"] for shard in manifest["shards"]] == [3, 3, 3, 1, 1, 1]
    assert {split: counts["records"] for split, counts in manifest["splits"].items()} == {
        "train": 10,
        "validation": 1,
        "test": 1,
    }
    assert manifest["settings"]["samples_per_shard"] == 3
    assert manifest["skipped"] == []
    for shard in manifest["shards"]:
        assert (written / shard["name"]).stat().st_size == shard["bytes"]
        assert sha256(written / shard["name"]) == shard["sha256"]
    assert not [path for path in written.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_data_give_the_same_bytes_anywhere(world: Path, written: Path, tmp_path: Path, workers: int) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(world, elsewhere, copy_function=shutil.copy)  # with other times
    write_shards(read_folder(elsewhere), tmp_path / "out", samples_per_shard=3, workers=workers)
    assert contents(tmp_path / "out") == contents(written)


def test_originals_are_only_read(world: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, sha256(path)) for path in world.rglob("*") if path.is_file()}
    write_shards(read_folder(world), tmp_path / "out", transcoding=TranscodeSettings(size=16))
    assert {path: (path.stat().st_mtime_ns, sha256(path)) for path in world.rglob("*") if path.is_file()} == before


@given(most=st.integers(1, 60_000))
def test_a_shard_has_no_more_bytes_than_asked_unless_one_file_has(world: Path, most: int) -> None:
    from perceiver_vl.data.shards.planning import media_sizes, plan_shards

    records = read_folder(world, split="train").records
    sizes = media_sizes(records)
    plans = list(plan_shards(records, sizes, None, most))
    assert [record for plan in plans for sample in plan.samples for record in sample.records] == records
    for plan in plans:
        held = sum(sizes[path] for sample in plan.samples for path in sample.paths)
        assert held <= most or len(plan.samples) == 1


def test_media_can_be_written_small(tmp_path: Path) -> None:
    write_world(tmp_path / "world", clips=3, num_frames=6, size=64)
    folder = read_folder(tmp_path / "world")
    write_shards(folder, tmp_path / "out", transcoding=TranscodeSettings(size=16))
    write_shards(folder, tmp_path / "again", transcoding=TranscodeSettings(size=16))
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    small, full = ShardedDataset(tmp_path / "out", (16, 16)), FolderDataset(folder.records, (16, 16))
    for index in range(3):
        assert np.abs(small.frames(index, 4).astype(int) - full.frames(index, 4)).mean() < 12
    assert sum(row["size"] for row in rows(tmp_path / "out")) < sum(r.path.stat().st_size for r in folder.records)


# --- Broken files, interruptions, full disks ------------------------------------------------------------------------


@pytest.fixture
def broken(world: Path, tmp_path: Path) -> Path:
    """A copy of the world whose second and sixth training clips are damaged."""
    folder = Path(shutil.copytree(world, tmp_path / "broken"))
    records = read_folder(folder, split="train").records
    records[1].path.write_bytes(b"")
    records[5].path.write_bytes(b"no media at all")
    return folder


def test_broken_files_are_left_out_named_and_counted(world: Path, broken: Path, tmp_path: Path) -> None:
    report = write_shards(read_folder(broken, split="train"), tmp_path / "out", samples_per_shard=1)
    names = [record.file_name for record in read_folder(world, split="train").records]
    assert [problem.file_name for problem in report.skipped] == [names[1], names[5]]
    assert report.skipped[0].reason == "empty file (0 bytes)"
    assert (report.shards, report.samples, report.records) == (8, 8, 8)
    shards = ShardedDataset(tmp_path / "out", SIZE)
    assert [shards.record(i).file_name for i in range(8)] == [n for i, n in enumerate(names) if i not in (1, 5)]
    assert all(len(shards.frames(i, 2)) == 2 for i in range(8))
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]
    assert [line["file_name"] for line in told] == [names[1], names[5]]


def test_a_broken_file_takes_all_its_records_along(pictures: Path, tmp_path: Path) -> None:
    (pictures / "1.PNG").write_bytes(b"nothing")
    records = [Record("1.PNG", pictures / "1.PNG", (words,)) for words in ("one", "two")]
    pair = Record("0.PNG", pictures / "0.PNG", ("pair",), second_file_name="1.PNG", second_path=pictures / "1.PNG")
    good = Record("2.PNG", pictures / "2.PNG", ("two",))
    source = Folder(pictures, [*records, pair, good], skipped=[SkippedSample("9.PNG", "not there")])
    report = write_shards(source, tmp_path / "out")
    assert [problem.file_name for problem in report.skipped] == ["9.PNG", "1.PNG", "1.PNG"]
    assert report.skipped[1].reason.endswith("(2 examples)")
    assert report.records == 1


@pytest.fixture
def crashing(world: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fifth training clip kills each process that reads it; names of the shards on which one died."""
    died: list[str] = []
    fifth = read_folder(world, split="train").records[4].path

    def run_in_processes(write: Any, plans: list[Any], workers: int) -> Iterator[tuple[Any, None]]:
        for plan in plans:
            sample = next((sample for sample in plan.samples if fifth in sample.paths), None)
            if sample is None or sample.key in plan.crashing:
                write(plan)
            else:
                (write.out / ".parts" / f"{plan.name}.at").write_text(sample.key)
                died.append(plan.name)
            yield plan, None

    monkeypatch.setattr("perceiver_vl.data.shards.writing.run_in_processes", run_in_processes)
    return died


def test_a_file_that_kills_the_process_is_left_out_too(world: Path, crashing: list[str], tmp_path: Path) -> None:
    report = write_shards(read_folder(world, split="train"), tmp_path / "out", samples_per_shard=3, workers=2)
    assert crashing == ["train-000001.tar"]
    assert (report.written, report.shards, report.samples) == (4, 4, 9)
    (problem,) = report.skipped
    assert problem == SkippedSample(
        read_folder(world, split="train").records[4].file_name, "damaged: reading it kills the process that does"
    )
    with pytest.raises(PerceiverVLError, match=r"process that wrote train-000001\.tar died at .*mp4, of a decoder or"):
        write_shards(read_folder(world, split="train"), tmp_path / "strict", samples_per_shard=3, strict=True)


def test_nothing_readable_is_an_error(broken: Path, tmp_path: Path) -> None:
    records = read_folder(broken, split="train").records[1:2]
    with pytest.raises(PerceiverVLError, match=r"none of the media can be read, the first: .*empty file"):
        write_shards(Folder(broken, records), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_too_large_for_memory_is_left_out(world: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.mp4"
    with huge.open("wb") as file:
        file.truncate(2 << 30)  # sparse: takes no room
    good = read_folder(world, split="test").records[0]
    report = write_shards(Folder(tmp_path, [Record("huge.mp4", huge, ("much",)), good]), tmp_path / "out")
    assert [problem.file_name for problem in report.skipped] == ["huge.mp4"]
    assert "transcode it first" in report.skipped[0].reason


def test_strict_stops_and_once_mended_the_run_goes_on(world: Path, written: Path, broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MediaError, match=r"mp4: empty file"):
        write_shards(read_folder(broken), out, samples_per_shard=3, workers=1, strict=True)
    assert not (out / "manifest.json").exists()
    for record, good in zip(read_folder(broken).records, read_folder(world).records, strict=True):
        shutil.copy(good.path, record.path)
    report = write_shards(read_folder(broken), out, samples_per_shard=3, strict=True)
    assert (report.shards, report.skipped) == (6, [])
    assert contents(out) == contents(written)


def test_strict_also_refuses_what_an_earlier_run_left_out(broken: Path, tmp_path: Path) -> None:
    write_shards(read_folder(broken), tmp_path / "out")
    with pytest.raises(PerceiverVLError, match="empty file"):
        write_shards(read_folder(broken), tmp_path / "out", strict=True)


@pytest.mark.parametrize("after", [0, 1, 9, 15])
def test_after_a_full_disk_finished_shards_stay_and_the_rest_is_written(
    world: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        with pytest.raises(PerceiverVLError, match="out: disk full; free some space and run it again"):
            write_shards(read_folder(world), out, samples_per_shard=3, workers=1)
    finished = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert len(finished) == after // 6  # a media file and a JSON file for each of three clips
    assert finished.items() <= contents(written).items()
    report = write_shards(read_folder(world), out, samples_per_shard=3)
    assert (report.shards, report.written) == (6, 6 - len(finished))
    assert contents(out) == contents(written)


def test_leftovers_of_a_killed_run_are_cleared_and_shards_of_changed_data_written_anew(
    world: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = Path(shutil.copytree(world, tmp_path / "changing"))
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    more = [line.replace("clips/", "./clips/", 1).replace('"split": "train"', '"split": "extra"') for line in lines]
    changed = [lines[0].replace('"text": ["', '"text": ["other ', 1), *lines[1:]]
    (folder / "metadata.jsonl").write_text("".join([*changed, *more]))
    with monkeypatch.context() as patch:
        full_disk(patch, 40)
        with pytest.raises(PerceiverVLError, match="disk full"):
            write_shards(read_folder(folder), out, samples_per_shard=3, workers=1)
    assert list(out.glob("extra-*.tar"))
    (out / ".train-000002.tar.4242.part").write_bytes(b"half")
    (folder / "metadata.jsonl").write_text("".join(lines))
    report = write_shards(read_folder(folder), out, samples_per_shard=3)
    assert 0 < report.written < report.shards
    assert contents(out) == contents(written)


def test_a_finished_folder_is_not_written_again(world: Path, shards: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    report = write_shards(read_folder(world), shards, samples_per_shard=3)
    assert (report.written, report.shards, report.samples) == (0, 6, 12)
    assert {path.name: path.stat().st_mtime_ns for path in shards.iterdir()} == before


# --- Folders and values that are refused ----------------------------------------------------------------------------


def test_a_folder_of_something_else_or_of_other_settings_is_refused(world: Path, shards: Path, tmp_path: Path) -> None:
    folder = read_folder(world)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    (tmp_path / "file").write_text("do not touch")
    for out, how, message in (
        (tmp_path / "mine", {}, "holds files that are no shards"),
        (tmp_path / "file", {}, "is a file"),
        (shards, {"samples_per_shard": 4}, "made with samples_per_shard=3, not 4"),
        (
            shards,
            {"samples_per_shard": 3, "transcoding": TranscodeSettings(size=16)},
            "made with transcoding=None, not",
        ),
        (shards, {"samples_per_shard": 3, "name": "msrvtt"}, "made with name=folder, not msrvtt"),
    ):
        before = out.read_bytes() if out.is_file() else contents(out)
        with pytest.raises(UsageError, match=ONE_LINE) as refused:
            write_shards(folder, out, **how)  # type: ignore[arg-type]
        assert message in str(refused.value)
        assert (out.read_bytes() if out.is_file() else contents(out)) == before
    with pytest.raises(UsageError, match="of other records or media"):
        write_shards(read_folder(world, split="train"), shards, samples_per_shard=3)


def test_a_run_that_was_begun_otherwise_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        full_disk(patch, 8)
        with pytest.raises(PerceiverVLError, match="disk full"):
            write_shards(read_folder(world), out, samples_per_shard=3, workers=1)
    before = contents_below(out)
    with pytest.raises(UsageError, match="made with samples_per_shard=3, not 2"):
        write_shards(read_folder(world), out, samples_per_shard=2)
    other = Path(shutil.copytree(world, tmp_path / "other"))
    with pytest.raises(UsageError, match=r"made with folder=.*world, not .*other"):
        write_shards(read_folder(other), out, samples_per_shard=3)
    with FileLock(out / ".parts" / ".lock"), pytest.raises(PerceiverVLError, match="another run is writing it"):
        write_shards(read_folder(world), out, samples_per_shard=3)
    assert contents_below(out) == before


def contents_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("values", [{"samples_per_shard": 0}, {"shard_bytes": -1}, {"workers": 0}])
def test_numbers_that_cannot_be_are_refused(world: Path, tmp_path: Path, values: dict[str, int]) -> None:
    ((name, value),) = values.items()
    with pytest.raises(UsageError, match=f"{name}={value}: need at least 1"):
        write_shards(read_folder(world), tmp_path / "out", **values)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_two_ways_to_fill_a_shard_are_one_too_many(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of them"):
        write_shards(read_folder(world), tmp_path / "out", samples_per_shard=1, shard_bytes=1)


# --- Damage ---------------------------------------------------------------------------------------------------------


def test_an_altered_sample_is_a_media_error_that_names_shard_and_key_and_others_are_read(shards: Path) -> None:
    row = rows(shards)[4]
    overwrite(shards / row["shard"], row["offset"] + row["size"] // 2, b"\xff\x00\xff")
    clips = ShardedDataset(shards, SIZE, "train")
    with pytest.raises(MediaError) as refused:
        clips.frames(4, 2)
    assert str(refused.value) == "train-000001.tar/00000004.mp4: altered: its bytes are not those that were written"
    assert refused.value.path == clips.record(4).path
    assert all(len(clips.frames(index, 2)) == 2 for index in range(10) if index != 4)
    example = TrainingExamples(clips, 2, "random", seed=0)[4]
    assert [problem.file_name for problem in example.problems] == [clips.record(4).file_name]


def test_a_shard_that_is_cut_off_while_it_is_read(shards: Path) -> None:
    clips = ShardedDataset(shards, SIZE, "train")
    last = rows(shards)[2]
    os.truncate(shards / "train-000000.tar", last["offset"] + 10)
    assert len(clips.frames(0, 2)) == 2
    with pytest.raises(MediaError, match=r"^train-000000\.tar/00000002\.mp4: truncated"):
        clips.frames(2, 2)
    (shards / "train-000000.tar").unlink()
    with pytest.raises(PerceiverVLError, match=r"train-000000\.tar: cannot be opened: No such file"):
        clips.frames(0, 2)


def damages() -> Iterator[Any]:
    def damage(name: str, message: str, kind: type[Exception] = PerceiverVLError) -> Any:
        def register(spoil: Any) -> Any:
            found.append(pytest.param(spoil, kind, message, id=name))
            return spoil

        return register

    found: list[Any] = []
    damage("no manifest", r"no manifest\.json in it", UsageError)(lambda f: (f / "manifest.json").unlink())
    damage("half a manifest", r"manifest\.json: damaged")(lambda f: os.truncate(f / "manifest.json", 300))
    damage("no text", r"manifest\.json: damaged")(lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\xff"))
    damage("another file", "not a manifest of shards", UsageError)(lambda f: (f / "manifest.json").write_text("[1]"))
    damage("another version", "version 99, this program reads 1")(lambda f: change_manifest(f, version=99))
    damage("no shards", "names no shards")(lambda f: change_manifest(f, shards=[]))
    damage("no index", "no size and SHA-256 of index")(lambda f: change_manifest(f, index=None))
    damage("no classes", "no list of classes")(lambda f: change_manifest(f, classes=[1]))
    for name in ("../train-000000.tar", "/etc/passwd", "a/b.tar", "..", "", None, "C:x.tar", "x.tar\n"):
        line = {"name": name, "split": "train", "samples": 1, "records": 1, "bytes": 1, "sha256": "0" * 64}
        damage(f"shard {name!r}", "is not the name of a shard")(lambda f, line=line: change_manifest(f, shards=[line]))
    for change in (
        {"bytes": -1},
        {"bytes": "many"},
        {"sha256": "../x"},
        {"records": 0},
        {"samples": 1.5},
        {"split": 3},
    ):
        line = {"name": "a.tar", "split": "train", "samples": 1, "records": 1, "bytes": 1, "sha256": "0" * 64} | change
        damage(f"{change}", r"manifest\.json: ")(lambda f, line=line: change_manifest(f, shards=[line]))
    damage("shard gone", r"train-000001\.tar: no such file")(lambda f: (f / "train-000001.tar").unlink())
    damage("shard cut", r"train-000001\.tar: truncated: 1000 bytes")(
        lambda f: os.truncate(f / "train-000001.tar", 1000)
    )
    damage("shard grown", r"train-000001\.tar: altered")(lambda f: os.truncate(f / "train-000001.tar", 10**6))
    damage("index gone", r"index\.parquet: no such file")(lambda f: (f / "index.parquet").unlink())
    damage("index altered", r"index\.parquet: altered")(lambda f: overwrite(f / "index.parquet", 40, b"\0\1\2"))
    for change in ({"offset": 10**9}, {"offset": -1}, {"size": 10**9}, {"size": -5}, {"offset": 2**63 - 1}):
        damage(f"{change}", "00000000 lies beyond the end of its shard")(
            lambda f, change=change: rewrite_index(f, change)
        )
    damage("second", "lies beyond the end")(
        lambda f: rewrite_index(f, {"second_offset": 10**9, "second_size": 1, "second_suffix": ".jpg"})
    )
    damage("no records", "has other records than manifest")(
        lambda f: change_manifest(f, shards=json.loads((f / "manifest.json").read_text())["shards"][:2])
    )
    yield from found


@pytest.mark.parametrize(("spoil", "kind", "message"), damages())
def test_what_is_wrong_with_shards_is_one_line_before_the_first_example(
    shards: Path, spoil: Any, kind: type[Exception], message: str
) -> None:
    spoil(shards)
    with pytest.raises(kind, match=ONE_LINE) as refused:
        ShardedDataset(shards, SIZE)
    assert type(refused.value) is kind
    assert re.search(message, str(refused.value))


@pytest.mark.parametrize("record", ["not JSON", "[1]", '{"colour": "red"}', "{}", '{"file_name": "a", "path": "/etc"}'])
def test_a_record_that_cannot_be_is_an_error(shards: Path, record: str) -> None:
    rewrite_index(shards, {"record": record})
    clips = ShardedDataset(shards, SIZE, "train")
    with pytest.raises(PerceiverVLError, match=r"index\.parquet: record 0 cannot be read"):
        clips.record(0)
    assert clips.record(1).texts


def test_verify_reads_every_byte(shards: Path) -> None:
    assert verify_shards(shards).problems == []
    row = rows(shards)[0]
    overwrite(shards / row["shard"], row["offset"], b"\xff")
    os.truncate(shards / "train-000001.tar", 999)
    (shards / "test-000000.tar").unlink()
    overwrite(shards / "index.parquet", 10, b"\xff")
    found = {problem.file_name: problem.reason.split(":")[0] for problem in verify_shards(shards, workers=2).problems}
    assert found == {
        "train-000000.tar": "altered",
        "train-000001.tar": "truncated",
        "test-000000.tar": "no such file, named in the manifest",
        "index.parquet": "altered",
    }
    with pytest.raises(UsageError, match="give a folder"):
        verify_shards("memory://shards")


# --- Order ----------------------------------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 12), max_size=12)


def ranges(counts: list[int]) -> list[range]:
    ends = np.cumsum([0, *counts]).tolist()
    return [range(begin, end) for begin, end in itertools.pairwise(ends)]


@given(counts=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 9), open_groups=st.integers(1, 15))
def test_every_example_comes_once_with_few_groups_open(
    counts: list[int], seed: int, epoch: int, open_groups: int
) -> None:
    groups = ranges(counts)
    order = shuffled_in_groups(groups, seed, epoch, open_groups)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    owner = np.repeat(np.arange(len(counts)), counts)[order]
    places = [np.flatnonzero(owner == number) for number in range(len(counts)) if counts[number]]
    for place in range(len(order)):
        assert sum(mine[0] <= place <= mine[-1] for mine in places) <= open_groups


@given(counts=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_the_order_is_of_seed_and_epoch_alone(counts: list[int], seed: int, epoch: int) -> None:
    groups = ranges(counts)
    order = shuffled_in_groups(groups, seed, epoch, 3)
    assert order.dtype == np.int64
    assert np.array_equal(order, shuffled_in_groups([list(group) for group in groups], seed, epoch, 3))
    if sum(counts) > 8:
        assert not np.array_equal(order, shuffled_in_groups(groups, seed, epoch + 1, 3))
        assert not np.array_equal(order, shuffled_in_groups(groups, seed + 1, epoch, 3))


def test_open_groups_are_mixed_from_the_first_to_the_last() -> None:
    """Of 40 groups of 100, 8 open: anywhere, 100 examples in a row come from several groups, and none follow on."""
    order = shuffled_in_groups(ranges([100] * 40), 0, 0, 8)
    for begin in range(0, 4000, 100):
        assert len(set((order[begin : begin + 100] // 100).tolist())) >= 6
    assert np.mean(np.diff(order) == 1) < 0.05
    assert not set((order[:1000] // 100).tolist()) & set((order[-1000:] // 100).tolist())


def test_with_all_groups_open_it_is_a_plain_permutation() -> None:
    order = shuffled_in_groups(ranges([50] * 10), 0, 0, 10)
    early = Counter((order[:250] // 50).tolist())
    assert all(10 <= early[number] <= 40 for number in range(10))


def test_the_groups_of_shards_are_the_records_of_each(written: Path) -> None:
    clips = ShardedDataset(written, SIZE, "train")
    assert clips.groups() == [range(3), range(3, 6), range(6, 9), range(9, 10)]
    for group, shard in zip(clips.groups(), clips.shards, strict=True):
        assert {clips.record(index).path.parent.name for index in group} == {shard.name}
    order = shuffled_in_groups(clips.groups(), seed=1, epoch=0, open_groups=1)
    assert sorted(order.tolist()) == list(range(10))


def test_no_open_group_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="open_groups=0: need at least 1"):
        shuffled_in_groups([range(2)], 0, 0, 0)


# --- The command ----------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["perceiver-vl", "data", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_writes_reports_and_checks(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, "shard", "folder", broken, out, "--samples-per-shard", 4, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shards"], told["written"], told["samples"]) == (5, 5, 10)
    assert told["splits"] == {"train": 8, "validation": 1, "test": 1}
    assert len(told["skipped"]) == 2
    assert run(monkeypatch, "shard", "folder", broken, out, "--samples-per-shard", 4) == 0
    plain = capsys.readouterr()
    assert "5 shards (0 written now), 10 media" in plain.out
    assert "skipped 2 files:" in plain.err
    assert run(monkeypatch, "shard", "--verify", out) == 0
    assert "as they were written" in capsys.readouterr().out
    os.truncate(out / "test-000000.tar", 10)
    assert run(monkeypatch, "shard", "--verify", out, "--json") == 1
    assert [p["file_name"] for p in json.loads(capsys.readouterr().out)["problems"]] == ["test-000000.tar"]


def test_the_command_takes_one_split_and_re_encodes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "shard", "folder", world, tmp_path / "out", "--split", "val", "--size", 16, "--json") == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"validation": 1}
    assert ShardedDataset(tmp_path / "out", (16, 16)).frames(0, 2).shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "nonsense: unknown benchmark"),
        (["msrvtt", "--columns", "file_name=file"], "metadata, columns: for a folder"),
        (["folder", "--samples-per-shard", "1", "--shard-bytes", "1"], "give one of them"),
        (["folder", "--split", "best"], "split=best"),
        (["folder", "--size", "17"], "size="),
        (["folder", "--size", "small"], "size=small"),
    ],
)
def test_what_was_mistyped_is_one_line(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "shard", words[0], world, tmp_path / "out", *words[1:]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
