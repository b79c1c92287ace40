"""Reading ahead: every example once, every clip decoded once, what is broken named once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perceiver_vl import MediaError, PerceiverVLError
from perceiver_vl.data.prefetch import SecondPictures, read_ahead
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.media.resizing import Frames


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
