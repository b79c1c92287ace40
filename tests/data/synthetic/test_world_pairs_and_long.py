"""The generated world's statements about two pictures, and its long clips with one short event."""

import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_vl.data.synthetic.actions import EVENTS
from perceiver_vl.data.synthetic.grid import TASK_SPLITS, GridScene
from perceiver_vl.data.synthetic.long import WHEN, LongClip
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES
from perceiver_vl.data.synthetic.statements import Pair
from perceiver_vl.data.synthetic.tasks import LONG_SPLITS, LongWorld, PairWorld

# Statements about two pictures

SINGULAR = {f"{shape}s": shape for shape in SHAPES} | {"crosses": "cross", "things": "thing"}


def count(scene: GridScene, noun: str) -> int:
    words = [SINGULAR.get(word, word) for word in noun.split()]
    return sum(all(word in (one.colour, one.shape, "thing") for word in words) for one in scene.objects)


def is_true(text: str, pair: Pair) -> bool:
    if match := re.fullmatch(r"there are more (.+) in the (left|right) picture", text):
        left, right = count(pair.left, match[1]), count(pair.right, match[1])
        return left > right if match[2] == "left" else right > left
    if match := re.fullmatch(r"(both|only one) pictures? holds? an? (.+)", text):
        held = sum(count(scene, match[2]) > 0 for scene in (pair.left, pair.right))
        return held == {"both": 2, "only one": 1}[match[1]]
    if match := re.fullmatch(r"the (left|right) picture holds exactly (\d) (.+)", text):
        return count(getattr(pair, match[1]), match[3]) == int(match[2])
    if match := re.fullmatch(r"the pictures hold equally many (.+)", text):
        return count(pair.left, match[1]) == count(pair.right, match[1])
    match = re.fullmatch(r"there (?:is|are) (\d) (.+) in all", text)
    assert match, text
    return count(pair.left, match[2]) + count(pair.right, match[2]) == int(match[1])


@given(split=st.sampled_from(TASK_SPLITS), seed=st.integers(0, 2**31), index=st.integers(0, 10**5))
@settings(max_examples=100, deadline=None)
def test_statements_are_true_or_false_as_their_labels_say(split: str, seed: int, index: int) -> None:
    world = PairWorld(split, index + 1, seed)
    pair, record = world.pair(index), world.record(index)
    parts = pair.text.split(" and ")
    truths = [is_true(part, pair) for part in parts]
    assert all(truths) == pair.truth == bool(record.label)
    assert len(parts) == (2 if split == "test-productive" else 1)
    assert record.texts == (pair.text,)


def test_each_statement_is_said_of_four_pairs_and_true_of_two() -> None:
    world = PairWorld(clips=240)
    groups = [[world.record(index) for index in range(start, start + 4)] for start in range(0, 240, 4)]
    for number, group in enumerate(groups):
        assert len({record.texts for record in group}) == 1
        assert sum(record.label or 0 for record in group) == 2
        assert [record.example_id for record in group] == [f"train-{number}-{place}-0" for place in range(4)]
    assert set(Counter(record.label for group in groups for record in group[:1])) == {0, 1}
    kinds = Counter(group[0].kind for group in groups)
    assert set(kinds) == {"more", "both", "one", "exactly", "same", "total"}


def test_both_pictures_are_needed_for_most_forms() -> None:
    """No number of things in the left picture alone decides who of the two holds more."""
    seen: dict[int, set[bool]] = {}
    world = PairWorld(clips=1200)
    for index in range(1200):
        pair = world.pair(index)
        if pair.kind == "same":
            noun = pair.text.removeprefix("the pictures hold equally many ")
            seen.setdefault(count(pair.left, noun), set()).add(pair.truth)
    assert seen == {number: {True, False} for number in range(3)}


def test_a_pair_gives_both_pictures() -> None:
    world = PairWorld("test-systematic", clips=8, size=32)
    record, pair = world.record(5), world.pair(5)
    assert (record.file_name, record.second_file_name) == (
        "pictures/systematic/test_systematic-1-1-img0.png",
        "pictures/systematic/test_systematic-1-1-img1.png",
    )
    left, right = world.frames(5), world.second.frames(5, 8)
    assert left.shape == right.shape == (1, 32, 32, 3)
    assert np.array_equal(left, pair.left.render(np.array([0.5]), 32))
    assert np.array_equal(right, pair.right.render(np.array([0.5]), 32))
    assert world.second.record(5).file_name == record.second_file_name
    assert len(world.second) == 8
    with pytest.raises(IndexError):
        world.pair(8)


def test_the_distractor_split_has_fuller_pictures() -> None:
    def extras(split: str) -> set[int]:
        world = PairWorld(split, clips=80)
        pairs = [world.pair(index) for index in range(80) if world.pair(index).kind == "same"]
        noun = "the pictures hold equally many "
        return {len(p.left.objects) - count(p.left, p.text.removeprefix(noun)) for p in pairs}

    assert max(extras("train")) < min(extras("test-distractor"))


# Long clips


def moments(clip: LongClip, *seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(seconds) / clip.seconds


@given(
    split=st.sampled_from(LONG_SPLITS),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 10**5),
    seconds=st.floats(20, 4000),
)
@settings(max_examples=100, deadline=None)
def test_the_event_is_short_and_lies_where_it_is_said_to(split: str, seed: int, index: int, seconds: float) -> None:
    clip = LongWorld(split, index + 1, seed, seconds=seconds).clip(index)
    assert 2 <= clip.end - clip.start <= 4
    third = seconds / 3
    assert WHEN.index(clip.when) * third <= clip.start < clip.end <= (WHEN.index(clip.when) + 1) * third
    touched = [item for item in clip.scene.objects if any(action.event for action in item.actions)]
    assert [(item.colour, item.shape) for item in touched] == [clip.target]
    before, during, after = touched[0].pose(
        moments(clip, clip.start - 0.1, (clip.start + clip.end) / 2, clip.end + 0.1)
    )[3]
    grown = touched[0].pose(moments(clip, clip.start - 0.1, (clip.start + clip.end) / 2))[2]
    seen = {"appears": (0, 1, 0), "vanishes": (1, 0, 1), "grows": (1, 1, 1)}[clip.event]
    assert (before, during, after) == seen
    assert (grown[1] > 1.5 * grown[0]) == (clip.event == "grows")
    for item in clip.scene.objects:  # what is common to all of the clip goes on from its start to its end
        habit = item.actions[0]
        assert (habit.start, habit.end) == (0, 1)
        assert habit.times >= seconds / 7


@pytest.mark.parametrize("split", LONG_SPLITS)
def test_questions_and_captions_tell_the_event(split: str) -> None:
    kinds = Counter[str | None]()
    for index in range(60):
        world = LongWorld(split, clips=60)
        clip, record = world.clip(index), world.record(index)
        does, do = EVENTS[clip.event].does, EVENTS[clip.event].do
        colour, shape = clip.target
        told = {
            "what happens for a moment?": f"something {does}",
            f"when does something {do}?": clip.when,
            f"what colour is the thing that {does} for a moment?": colour,
            f"what shape is the thing that {does} for a moment?": shape,
        }
        assert record.answers == (told[record.question or ""],)
        near = {"early": "early on|beginning", "middle": "halfway|middle", "late": "late|end"}[clip.when]
        for text in record.texts:
            assert re.search(rf"\ban? {colour} {shape} {does} for a moment", text)
            assert re.search(near, text)
        alike = [one for one in clip.scene.objects if one.colour == colour or one.shape == shape]
        assert len(alike) == 1
        kinds[record.kind] += 1
    assert set(kinds) == {"what", "when", "whom"}


def test_what_appears_is_seen_at_that_moment_alone() -> None:
    world = LongWorld(clips=60)
    clips = [world.clip(index) for index in range(60)]
    some = [clip for clip in clips if clip.event == "appears" and clip.target[0] in ("red", "green", "blue", "yellow")]
    assert len(some) > 3
    for clip in some:
        times = np.concatenate([np.arange(0.5, clip.start, 1.5), np.arange(clip.end + 0.1, clip.seconds, 1.5)])
        away = clip.scene.render(times / clip.seconds, 64).astype(int)
        there = clip.scene.render(moments(clip, clip.start + 0.05, clip.end - 0.05), 64).astype(int)
        colour = COLOURS[clip.target[0]]
        assert not (np.abs(away - colour).max(-1) < 40).any()
        assert (np.abs(there - colour).max(-1) < 40).any(axis=(1, 2)).all()


def test_the_more_frames_the_more_events_are_seen() -> None:
    """A frame every fifteen seconds sees few of them, one every second sees all."""
    world = LongWorld(clips=300, seconds=120)

    def seen(frames: int) -> float:
        times = (np.arange(frames) + 0.5) / frames * world.seconds
        clips = [world.clip(index) for index in range(300)]
        return float(np.mean([((times > clip.start) & (times < clip.end)).any() for clip in clips]))

    assert seen(8) < 0.4 < seen(24) < 0.8 < seen(64)
    assert seen(121) == 1


def test_frames_of_a_day_are_drawn_one_at_a_time() -> None:
    world = LongWorld(clips=1, size=16, seconds=86_400)
    assert world.frames(0, 3).shape == (3, 16, 16, 3)
    first = list(islice(world.stream(0, frames_per_second=2), 4))
    assert [frame.shape for frame in first] == [(16, 16, 3)] * 4
    short = replace(world, seconds=20.0)
    assert np.array_equal(np.stack(list(short.stream(0, 2))), short.frames(0, 40))


def test_a_long_world_is_decided_by_its_seed_and_begins_like_a_smaller_one() -> None:
    world, larger, other = LongWorld(clips=4), LongWorld(clips=40), LongWorld(clips=4, seed=1)
    assert [world.clip(index) for index in range(4)] == [larger.clip(index) for index in range(4)]
    assert all(world.clip(index) != other.clip(index) for index in range(4))


def test_the_distractor_split_has_more_things_with_habits() -> None:
    def residents(split: str) -> set[int]:
        clips = [LongWorld(split, clips=60).clip(index) for index in range(60)]
        return {len(clip.scene.objects) - (clip.event == "appears") for clip in clips}

    assert max(residents("train")) < min(residents("test-distractor"))
