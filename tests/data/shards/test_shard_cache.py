"""Shards at a URL: fetched once for all processes, checked, kept within bounds; what goes wrong is one line."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader, Dataset

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.shards.manifest import manifest_shards, read_manifest
from perceiver_vl.data.shards.reading import ShardedDataset
from perceiver_vl.data.shards.writing import write_shards
from perceiver_vl.data.sources import FolderDataset

SIZE = (32, 32)
CACHE = "perceiver_vl.data.shards.cache"


class Remote(MemoryFileSystem):
    """Files in memory that count how often they are opened, and fail as often as they are told to."""

    protocol = "remote"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    opened: list[str] = []
    failures: list[Exception] = []

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.opened.append(path.rsplit("/", 1)[-1])
        if self.failures:
            raise self.failures.pop(0)
        return super()._open(path, *arguments, **options)


fsspec.register_implementation("remote", Remote, clobber=True)


@pytest.fixture(scope="session")
def written(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of a clip each."""
    out = tmp_path_factory.mktemp("remote") / "out"
    write_shards(read_folder(world), out, samples_per_shard=1)
    return out


@pytest.fixture
def remote(written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Their URL, where nobody has looked yet."""
    Remote.store.clear()
    for path in written.iterdir():
        Remote().pipe_file(f"remote://data/{path.name}", path.read_bytes())
    Remote.opened.clear()
    Remote.failures.clear()
    monkeypatch.setattr(f"{CACHE}.FIRST_WAIT", 0.0)
    yield "remote://data"
    Remote.store.clear()


def kept(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in cache.iterdir() if not path.name.endswith(".lock")}


def digests(written: Path) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in manifest_shards(read_manifest(written), written)}


class Drawn(Dataset[np.ndarray]):
    def __init__(self, source: ShardedDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source.frames(index, 3, np.random.default_rng(index))


# --- The same examples ----------------------------------------------------------------------------------------------


def test_a_url_gives_what_the_folder_gives_and_each_shard_is_fetched_once(
    world: Path, remote: str, tmp_path: Path
) -> None:
    folder = FolderDataset(read_folder(world, split="train").records, SIZE)
    clips = ShardedDataset(remote, SIZE, "train", cache=tmp_path)
    for _ in range(2):
        for index in range(len(folder)):
            assert np.array_equal(clips.frames(index, 3), folder.frames(index, 3))
    assert sorted(Remote.opened) == sorted(["manifest.json", "index.parquet", *(s.name for s in clips.shards)])
    again = ShardedDataset(remote, SIZE, "train", cache=tmp_path)
    assert np.array_equal(again.frames(3, 3), folder.frames(3, 3))
    assert Remote.opened[-1] == "manifest.json"


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_the_cache(world: Path, written: Path, tmp_path: Path, workers: int) -> None:
    folder = FolderDataset(read_folder(world).records, SIZE)
    clips = ShardedDataset(written.as_uri(), SIZE, cache=tmp_path)
    loader: DataLoader[Any] = DataLoader(Drawn(clips), batch_size=None, num_workers=workers)
    for _ in range(2):
        for index, frames in enumerate(loader):
            assert np.array_equal(np.asarray(frames), folder.frames(index, 3, np.random.default_rng(index)))
    expected = {f"{digest}.tar": (written / name).stat().st_size for name, digest in digests(written).items()}
    assert expected.items() <= kept(tmp_path).items()
    assert len(kept(tmp_path)) == len(expected) + 1  # and the index; nothing half-fetched


def test_many_at_once_fetch_a_shard_once(remote: str, tmp_path: Path) -> None:
    sources = [ShardedDataset(remote, SIZE, cache=tmp_path) for _ in range(6)]
    Remote.opened.clear()
    with ThreadPoolExecutor(6) as pool:
        clips = list(pool.map(lambda source: source.frames(0, 2), sources))
    assert all(np.array_equal(frames, clips[0]) for frames in clips)
    assert len(Remote.opened) == 1


def test_without_a_cache_folder_it_is_the_users(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ShardedDataset(remote, SIZE).frames(0, 1)
    assert len(kept(tmp_path / "cache" / "perceiver-vl" / "shards")) == 2


# --- Bounds ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_make_room(remote: str, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, "train", cache=tmp_path)
    three = sum(sorted(shard.bytes for shard in clips.shards)[-3:])
    for path in tmp_path.iterdir():
        path.unlink()
    clips = ShardedDataset(remote, SIZE, "train", cache=tmp_path / "small", cache_bytes=three)
    for path in (tmp_path / "small").glob("*.tar"):
        path.unlink()  # the index
    Remote.opened.clear()
    used = [f"{shard.sha256}.tar" for shard in clips.shards]
    for number in (0, 1, 2, 0, 3, 4, 0, 5):
        clips.frames(number, 1)
        assert sum(kept(tmp_path / "small").values()) <= three
        assert used[number] in kept(tmp_path / "small")
        time.sleep(0.01)  # times of files are coarse
    assert Remote.opened.count(clips.shards[0].name) == 1  # used again and again, so it stayed
    assert used[1] not in kept(tmp_path / "small")
    Remote.opened.clear()
    clips.frames(1, 1)
    assert Remote.opened == [clips.shards[1].name]


def test_a_cache_smaller_than_a_shard_is_refused(remote: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cache_bytes=10: less than .*\.tar has, \d+$"):
        ShardedDataset(remote, SIZE, cache=tmp_path, cache_bytes=10)


def test_what_a_killed_process_left_is_cleared_and_what_another_fetches_is_not(remote: str, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, "train", cache=tmp_path)
    wanted = clips.shards[0].sha256
    free = (prefix for prefix in ("00", "01", "02") if not wanted.startswith(prefix))
    dead, held = next(free), next(free)
    for prefix in (dead, held):
        (tmp_path / f".{prefix}{'0' * 62}.part").write_bytes(b"half")
    (tmp_path / f".{wanted}.part").write_bytes(b"half")
    with FileLock(tmp_path / f".{held}.lock"):
        clips.frames(0, 1)
    assert not (tmp_path / f".{dead}{'0' * 62}.part").exists()
    assert not (tmp_path / f".{wanted}.part").exists()
    assert (tmp_path / f".{held}{'0' * 62}.part").exists()


# --- What goes wrong ------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_tried_again(remote: str, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, cache=tmp_path)
    Remote.failures[:] = [ConnectionError("reset"), TimeoutError("slow")]
    assert len(clips.frames(0, 2)) == 2
    Remote.failures[:] = [ConnectionError("reset by peer")] * 9
    with pytest.raises(PerceiverVLError, match=r"remote://data/train-000001\.tar: cannot be fetched in 4 tries: reset"):
        clips.frames(1, 2)
    assert len(Remote.failures) == 5
    Remote.failures.clear()
    assert len(clips.frames(1, 2)) == 2
    assert not [name for name in kept(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:2000] + b"\xff" + b[2001:]])
def test_a_shard_with_other_bytes_is_never_used(remote: str, tmp_path: Path, change: Any) -> None:
    clips = ShardedDataset(remote, SIZE, cache=tmp_path)
    path = f"{remote}/{clips.shards[0].name}"
    good = Remote().cat_file(path)
    Remote().pipe_file(path, change(good))
    with pytest.raises(PerceiverVLError, match=r"tries: it has other bytes than the manifest says"):
        clips.frames(0, 1)
    assert len(kept(tmp_path)) == 1  # the index
    Remote().pipe_file(path, good)
    assert len(clips.frames(0, 1)) == 1


def test_a_cached_shard_that_was_cut_is_fetched_again(remote: str, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, cache=tmp_path)
    expected = clips.frames(0, 2)
    os.truncate(tmp_path / f"{clips.shards[0].sha256}.tar", 700)
    assert np.array_equal(clips.frames(0, 2), expected)


def test_what_is_gone_is_said_at_once(remote: str, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, cache=tmp_path)
    Remote().rm_file(f"{remote}/{clips.shards[0].name}")
    Remote.opened.clear()
    with pytest.raises(PerceiverVLError, match=r"train-000000\.tar: no such file, named in the manifest"):
        clips.frames(0, 1)
    assert len(Remote.opened) == 1
    Remote().rm_file(f"{remote}/manifest.json")
    with pytest.raises(UsageError, match=r"remote://data: no manifest\.json in it"):
        ShardedDataset(remote, SIZE, cache=tmp_path)


def test_an_index_of_other_bytes_is_refused(remote: str, tmp_path: Path) -> None:
    Remote().pipe_file(f"{remote}/index.parquet", b"PAR1")
    with pytest.raises(PerceiverVLError, match=r"index\.parquet: cannot be fetched"):
        ShardedDataset(remote, SIZE, cache=tmp_path)


@pytest.mark.parametrize("url", ["nothing://data", "sftp://host/data"])  # unknown; known, but its package is not here
def test_a_url_that_nobody_here_speaks(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{url}: cannot be opened: [^\n]+$"):
        ShardedDataset(url, SIZE, cache=tmp_path)


def test_a_full_disk_is_said(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = ShardedDataset(remote, SIZE, cache=tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PerceiverVLError, match=r"disk full while fetching train-000000\.tar; free some space"):
            clips.frames(0, 1)
    assert not [name for name in kept(tmp_path) if name.endswith(".part")]
    assert len(clips.frames(0, 1)) == 1


def test_a_cache_that_cannot_be_written_is_said(remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PerceiverVLError, match=r"^[^\n]*file: index\.parquet cannot be kept: [^\n]+$"):
        ShardedDataset(remote, SIZE, cache=tmp_path / "file")


def test_readers_survive_the_removal_of_what_they_read(remote: str, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, "train", cache=tmp_path)
    expected = [clips.frames(index, 1) for index in range(4)]
    done = threading.Event()

    def remove() -> None:
        while not done.is_set():
            for path in tmp_path.glob("*.tar"):
                path.unlink(missing_ok=True)
            time.sleep(0.005)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(remove)
        try:
            for _ in range(5):
                for index in range(4):
                    assert np.array_equal(clips.frames(index, 1), expected[index])
        finally:
            done.set()
        job.result()


def test_the_name_of_a_kept_file_is_its_sha256(remote: str, written: Path, tmp_path: Path) -> None:
    clips = ShardedDataset(remote, SIZE, cache=tmp_path)
    clips.frames(0, 1)
    assert f"{digests(written)[clips.shards[0].name]}.tar" in kept(tmp_path)
    shutil.rmtree(tmp_path)
    assert len(clips.frames(0, 1)) == 1  # even if somebody removes the cache meanwhile
