"""Augmentation: the same for all frames of a clip, drawn from the generator alone, and no caption made untrue."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import UsageError
from perceiver_vl.data.batching import TrainingExamples
from perceiver_vl.data.records import Record
from perceiver_vl.data.transforms import (
    OPERATIONS,
    SIDES,
    Augmentation,
    augment,
    can_flip,
    flip,
    rand_augment,
    random_crop,
)
from perceiver_vl.media.sampling import Frames


def noise(frames: int = 3, height: int = 24, width: int = 32, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def still(frames: int = 3, **size: int) -> Frames:
    """The same picture again and again."""
    return np.repeat(noise(1, **size), frames, axis=0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_is_changed_unless_it_is_asked_for() -> None:
    frames = noise()
    assert np.array_equal(augment(frames, ["a dog"], Augmentation(), (16, 16), rng()), frames)


@given(
    seed=st.integers(0, 999),
    crop=st.sampled_from([0.1, 0.5, 1.0]),
    operations=st.integers(0, 3),
    magnitude=st.integers(0, 30),
    frames=st.integers(1, 3),
)
def test_shape_and_bytes_stay_and_the_generator_decides_alone(
    seed: int, crop: float, operations: int, magnitude: int, frames: int
) -> None:
    how = Augmentation(crop, flip=True, randaugment=(operations, magnitude))
    clip = noise(frames)
    before = clip.copy()
    found, again = (augment(clip, ["a dog"], how, (12, 20), rng(seed)) for _ in range(2))
    assert np.array_equal(found, again)
    assert found.dtype == np.uint8
    assert found.shape == ((frames, 12, 20, 3) if crop < 1 else clip.shape)
    assert np.array_equal(clip, before)


@given(seed=st.integers(0, 999))
def test_all_frames_are_changed_alike(seed: int) -> None:
    found = augment(still(), ["a dog"], Augmentation(0.4, True, (3, 20)), (16, 16), rng(seed))
    assert all(np.array_equal(frame, found[0]) for frame in found)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_shape_and_does_something(name: str) -> None:
    frames = (noise() // 2 + 40).astype(np.uint8)  # of little contrast
    found = OPERATIONS[name](frames, 0.5)
    assert (found.shape, found.dtype) == (frames.shape, np.uint8)
    assert not np.array_equal(found, frames)


def test_what_an_operation_measures_is_that_of_the_whole_clip() -> None:
    """A dark and a bright frame: stretched one by one, both would end equal."""
    frames = np.stack([noise(1)[0] // 4, noise(1)[0] // 4 + 128]).astype(np.uint8)
    found = OPERATIONS["autocontrast"](frames, 0.3)
    assert found[0].max() < found[1].min()


def test_randaugment_draws_all_operations_in_both_directions() -> None:
    frames = still(1)
    assert len({rand_augment(frames, rng(seed), 1, 15).tobytes() for seed in range(120)}) > len(OPERATIONS)


@given(seed=st.integers(0, 9999), least=st.sampled_from([0.08, 0.5, 0.9]))
def test_a_crop_is_one_rectangle_of_the_share_asked_for(seed: int, least: float) -> None:
    places = np.arange(40 * 60).reshape(1, 40, 60, 1).repeat(3, 3).repeat(2, 0).astype(np.uint16)
    found = random_crop(places, rng(seed), least)  # type: ignore[arg-type]
    _, height, width, _ = found.shape
    assert height * width >= 0.9 * least * 40 * 60
    assert 0.7 <= (width / 60) / (height / 40) <= 1.4
    top, left = divmod(int(found[0, 0, 0, 0]), 60)
    assert np.array_equal(found, places[:, top : top + height, left : left + width])


def test_crops_are_decoded_large_enough_and_not_without_limit() -> None:
    assert Augmentation().decoding_size((384, 384)) == (384, 384)
    assert Augmentation(crop=0.5).decoding_size((100, 200)) == (142, 283)
    assert Augmentation(crop=0.01).decoding_size((100, 200)) == (200, 400)


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("a red square moves left", False),
        ("The LEFT-hand door", False),
        ("two dancers turn counter-clockwise", False),
        ("a man, right?", False),
        ("a bright kitten upright on a cleft rock", True),
        ("", True),
    ],
)
def test_words_that_name_a_side_forbid_a_flip(text: str, may: bool) -> None:
    assert can_flip(["a dog", text]) is may


@given(word=st.sampled_from(sorted(SIDES)), seed=st.integers(0, 99))
def test_no_clip_is_ever_flipped_that_has_a_side_in_its_words(word: str, seed: int) -> None:
    frames = noise()
    assert np.array_equal(
        augment(frames, ["a dog", f"it goes {word}."], Augmentation(flip=True), (9, 9), rng(seed)), frames
    )


def test_half_of_the_other_clips_are_flipped() -> None:
    frames = noise()
    outcomes = Counter()
    for seed in range(200):
        found = augment(frames, ["a dog"], Augmentation(flip=True), (9, 9), rng(seed))
        outcomes["plain" if np.array_equal(found, frames) else "mirrored"] += 1
        assert np.array_equal(found, frames) or np.array_equal(found, flip(frames))
    assert 70 < outcomes["mirrored"] < 130
    assert np.array_equal(flip(flip(frames)), frames)


class Told:
    """Clips of noise with words of their own."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self.records = [Record("a.mp4", Path("a.mp4"), **record) for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        return noise(num_frames)


def test_every_word_of_a_record_counts() -> None:
    source = Told(
        {"texts": ("a dog", "a dog on the left")},
        {"texts": ("a dog",), "question": "what is on the right?"},
        {"texts": ("a dog",), "answers": ("left",)},
        {"texts": ("a dog",), "choices": ("it walks", "it turns left")},
        {"texts": ("a dog",)},
    )
    examples = TrainingExamples(source, 2, "uniform", 0, augmentation=Augmentation(flip=True))
    flipped = [
        sum(not np.array_equal(examples[index + 5 * epoch].frames, noise(2)) for epoch in range(40))
        for index in range(5)
    ]
    assert flipped[:4] == [0, 0, 0, 0]
    assert 8 < flipped[4] < 32


def test_an_example_is_augmented_by_its_key_and_its_captions_stay() -> None:
    source = Told(*({"texts": ("a dog", "a cat", "a bird")} for _ in range(3)))
    how = Augmentation(0.5, True, (2, 9))
    examples = TrainingExamples(source, 2, "uniform", 5, augmentation=how, size=(8, 8))
    plain = TrainingExamples(source, 2, "uniform", 5)
    first = [examples[item] for item in range(9)]
    assert [example.text for example in first] == [plain[item].text for item in range(9)]
    assert all(np.array_equal(examples[item].frames, first[item].frames) for item in reversed(range(9)))
    assert len({example.frames.tobytes() for example in first}) == 9
    assert all(example.frames.shape == (2, 8, 8, 3) for example in first)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"crop": 0.0}, "data.augmentation.crop=0"),
        ({"crop": 1.5}, "data.augmentation.crop=1.5"),
        ({"randaugment": (-1, 9)}, "data.augmentation.randaugment=[-1, 9]"),
        ({"randaugment": (2, 31)}, "data.augmentation.randaugment=[2, 31]"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as refused:
        Augmentation(**values)
    assert named in str(refused.value)
