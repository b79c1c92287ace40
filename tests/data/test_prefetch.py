"""Decoding ahead: in order, within bounds, nothing hidden; every clip decoded once, what is broken named once."""

import threading
from collections import Counter
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perceiver_vl import MediaError, PerceiverVLError
from perceiver_vl.data.prefetch import ClipReader, ReadBatch, SecondPictures, decode_ahead, or_media_error, read_ahead
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.distributed import ProcessGroup

SOON = 60  # seconds after which a thread that has not come is given up


# Any jobs


@given(jobs=st.integers(0, 12), ahead=st.integers(1, 5), threads=st.integers(1, 4))
def test_jobs_come_in_order_and_no_more_are_decoded_than_allowed(jobs: int, ahead: int, threads: int) -> None:
    started: list[int] = []

    def decode(job: int) -> int:
        started.append(job)
        return job**2

    handed_out = 0
    for handed_out, found in enumerate(decode_ahead(range(jobs), decode, ahead, threads), start=1):
        assert found == (handed_out - 1, (handed_out - 1) ** 2)
        assert handed_out <= len(started) <= handed_out + ahead
    assert handed_out == jobs
    assert sorted(started) == list(range(jobs))


def test_a_job_that_ends_before_its_turn_waits_for_it() -> None:
    second_is_done = threading.Event()

    def decode(job: int) -> int:
        if job == 0:
            assert second_is_done.wait(SOON)
        if job == 1:
            second_is_done.set()
        return job

    assert [job for job, _ in decode_ahead(range(3), decode, ahead=1, threads=2)] == [0, 1, 2]


def test_the_next_jobs_are_decoded_while_the_caller_works() -> None:
    begun = [threading.Event() for _ in range(6)]
    for job, _ in decode_ahead(range(6), lambda job: begun[job].set(), ahead=2, threads=1):
        for later in begun[job : job + 3]:  # this thread asks for nothing before they are there
            assert later.wait(SOON)


def test_an_error_comes_in_its_turn_and_ends_the_rest() -> None:
    def decode(job: int) -> int:
        if job == 3:
            raise RuntimeError("of job 3")
        if job in (1, 4):
            raise MediaError(f"{job}.mp4", "damaged")
        return job

    stopped = decode_ahead(range(9), decode, ahead=4)
    assert next(stopped) == (0, 0)
    with pytest.raises(MediaError, match=r"^1\.mp4: damaged$"):
        next(stopped)
    assert list(stopped) == []
    going_on = decode_ahead(range(9), or_media_error(decode), ahead=4)
    first, broken, second = (result for _, result in islice(going_on, 3))
    assert (first, str(broken), second) == (0, "1.mp4: damaged", 2)
    with pytest.raises(RuntimeError, match=r"^of job 3$"):  # no file's fault
        next(going_on)


def test_closing_early_ends_the_threads() -> None:
    threads: set[threading.Thread] = set()
    started: list[int] = []

    def decode(job: int) -> int:
        threads.add(threading.current_thread())
        started.append(job)
        return job

    decoding = decode_ahead(count(), decode, ahead=5, threads=3)  # of jobs without an end
    assert list(islice(decoding, 2)) == [(0, 0), (1, 1)]
    decoding.close()
    assert threads
    assert not any(thread.is_alive() for thread in threads)
    assert 2 <= len(started) <= 7


# Examples in batches


class Questions:
    """Question i is about the clip `about[i]`, whose frames have that colour."""

    def __init__(self, about: list[int], broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.about, self.broken = about, broken
        self.decoded: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.about)

    def record(self, index: int) -> Record:
        name = f"{self.about[index]}.mp4"
        return Record(name, Path("there") / name, question=f"question {index}")

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        clip = self.about[index]
        self.decoded[clip] += 1
        if clip in self.broken:
            raise MediaError(Path("there") / f"{clip}.mp4", "damaged")
        return np.full((num_frames, 4, 4, 3), clip, np.uint8)


@given(about=st.lists(st.integers(0, 6), max_size=20), broken=st.sets(st.integers(0, 6)), batch_size=st.integers(1, 7))
def test_each_example_comes_once_with_its_clip_and_each_clip_is_decoded_once(
    about: list[int], broken: set[int], batch_size: int
) -> None:
    source, problems = Questions(about, broken), []
    seen = {}
    for batch in read_ahead([source], range(len(about)), 2, batch_size, problems, max_failed_fraction=1):
        assert 1 <= len(batch.indices) <= batch_size
        assert len(batch.rows) == len(batch.indices)
        assert set(batch.rows) == set(range(len(batch.media)))
        for index, row in zip(batch.indices, batch.rows, strict=True):
            assert index not in seen
            (frames,) = batch.media[row]
            assert frames.shape == (2, 4, 4, 3)
            seen[index] = int(frames[0, 0, 0, 0])
    assert seen == {index: clip for index, clip in enumerate(about) if clip not in broken}
    assert all(count == 1 for count in source.decoded.values())
    assert sorted(problem.file_name for problem in problems) == sorted(f"{clip}.mp4" for clip in broken & set(about))


def test_a_broken_file_says_how_many_examples_it_takes_along() -> None:
    problems: list[SkippedSample] = []
    list(read_ahead([Questions([0, 1, 0, 2], broken={0, 2})], range(4), 1, 1, problems))
    assert problems == [SkippedSample("0.mp4", "damaged (2 examples)"), SkippedSample("2.mp4", "damaged")]
    with pytest.raises(MediaError, match=r"0\.mp4: damaged"):
        list(read_ahead([Questions([0, 1], broken={0})], range(2), 1, 4, problems, strict=True))


def test_too_many_broken_files_stop_the_reading() -> None:
    source, problems = Questions(list(range(30)), broken=set(range(0, 30, 5))), []  # a fifth
    with pytest.raises(
        PerceiverVLError, match=r"^6 of 30 clips cannot be read, more than max_failed_fraction=0\.1: [^\n]+$"
    ):
        list(read_ahead([source], range(30), 1, 4, problems))
    assert len(list(read_ahead([source], range(30), 1, 4, [], max_failed_fraction=0.2))) == 8


def test_leaving_early_ends_the_threads() -> None:
    threads: set[threading.Thread] = set()

    class Watched(Questions):
        def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
            threads.add(threading.current_thread())
            return super().frames(index, num_frames, rng)

    source = Watched(list(range(20)))
    reading = read_ahead([source], range(20), 1, 2, [])
    assert next(reading).indices == [0, 1]
    reading.close()
    assert threads
    assert not any(thread.is_alive() for thread in threads)
    assert source.decoded.total() <= 4  # this batch and the next


def test_a_clip_that_failed_is_not_read_again() -> None:
    source = Questions([0, 1, 2, 0, 3], broken={2})
    reader = ClipReader(source, 1, 2, False, 1.0, ProcessGroup(shared=False))
    batches: list[ReadBatch] = []
    for indices, problems, tried in (
        ([0, 1, 3, 4], ["2.mp4"], 1),
        ([0, 3, 4], ["2.mp4", "1.mp4"], 1),
        ([0, 3, 4], ["2.mp4", "1.mp4"], 1),
    ):
        batches.clear()
        reader.read(batches.append)
        assert sorted(index for batch in batches for index in batch.indices) == reader.indices == indices
        assert [problem.file_name for problem in reader.problems] == problems
        assert source.decoded[2] == tried
        source.broken = {1, 2}  # as a disk may fail between two readings
    assert reader.damaged() == []


def test_the_second_pictures_of_pairs_come_from_their_files(tmp_path: Path) -> None:
    for name, colour in (("left", 10), ("right", 200)):
        Image.new("RGB", (8, 8), (colour,) * 3).save(tmp_path / f"{name}.png")
    pair = Record("left.png", tmp_path / "left.png", second_file_name="right.png", second_path=tmp_path / "right.png")

    class Pairs(Questions):
        def record(self, index: int) -> Record:
            return [pair, Record("alone.png", tmp_path / "alone.png")][index]

    second = SecondPictures(Pairs([0, 1]), (4, 4))
    assert len(second) == 2
    assert second.record(0).file_name == "right.png"
    assert (second.frames(0, 3) == 200).all()
    assert second.frames(0, 3, np.random.default_rng(0)).shape == (1, 4, 4, 3)
    with pytest.raises(PerceiverVLError, match=r"^alone\.png: [^\n]+$"):
        second.record(1)
