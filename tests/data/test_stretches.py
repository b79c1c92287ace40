"""Stretches about moments: as an index cuts and reads them, the same whenever they are made; what cannot be used."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.data.mixture import Mixture, no_moment
from perceiver_vl.data.open import open_moments
from perceiver_vl.data.records import Record
from perceiver_vl.data.stretches import Stretch, StretchCollator, StretchExamples, drawn_stretch
from perceiver_vl.data.synthetic.moment_clips import MomentClips
from perceiver_vl.data.synthetic.moments import MomentsWorld
from perceiver_vl.data.transforms import Augmentation
from perceiver_vl.media.segments import Segment, find_segments, read_segments
from small_media import write_clip, write_image
from tiny import tiny_processor

WORLD = MomentClips(MomentsWorld("train", 2, 0, 60.0, size=16))
HOW = Stretch(segments=4, seconds=2.0)


def examples_of(source: Any, how: Stretch = HOW, sampling: Any = "uniform", **more: Any) -> StretchExamples:
    return StretchExamples(how, source, 4, sampling, 0, more.pop("strict", False), **more)


@given(
    count=st.integers(1, 40),
    first=st.integers(0, 39),
    length=st.integers(1, 40),
    most=st.integers(2, 12),
    merge=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 99),
)
def test_a_stretch_is_of_neighbours_and_shows_its_moment(
    count: int, first: int, length: int, most: int, merge: float, seed: int
) -> None:
    segments = [Segment(2 * place, 2 * place + 2, float(place), place + 1.0) for place in range(count)]
    first = min(first, count - 1)
    moment = first + 0.25, min(first + length, count) - 0.25
    how = Stretch(segments=most, merge=merge)
    found = drawn_stretch(segments, moment, how, np.random.default_rng(seed))
    assert 1 <= len(found) <= most
    assert all(one.end == after.start and one.after == after.first for one, after in pairwise(found))
    assert {edge for one in found for edge in (one.start, one.end)} <= set(range(count + 1))
    if merge == 0:
        assert all(one.end - one.start == 1 for one in found)
        assert len(found) == min(most, count)
    shown = max(found[0].start, moment[0]), min(found[-1].end, moment[1])
    assert shown[1] > shown[0]
    longer = sum(one.start < moment[1] and one.end > moment[0] for one in found) == most  # it fills the stretch
    assert longer or shown == moment


def test_neighbours_are_merged_as_often_as_it_says_and_moments_lie_anywhere() -> None:
    segments = [Segment(place, place + 1, float(place), place + 1.0) for place in range(100)]
    draws = [
        drawn_stretch(segments, (50.2, 50.8), Stretch(segments=10, merge=0.3), np.random.default_rng(seed))
        for seed in range(300)
    ]
    lengths = [one.end - one.start for some in draws for one in some]
    assert np.mean([length == 1 for length in lengths]) == pytest.approx(0.7, abs=0.05)
    places = [next(place for place, one in enumerate(some) if one.end > 50.5) for some in draws]
    assert set(places) == set(range(10))


def test_an_example_is_cut_and_read_as_an_index_would() -> None:
    examples = examples_of(WORLD)
    for item in range(0, len(WORLD), 3):
        example, record = examples[item], WORLD.record(item)
        assert example.text == record.texts[0]
        assert (record.start, record.end) in example.stretch.moments
        cut = {one.start: one for one in WORLD.segments(item, 2.0)}
        for (start, end), frames in zip(pairwise(example.stretch.edges), example.stretch.frames, strict=True):
            assert cut[start].end == end
            assert end - start == 2
            [wanted] = WORLD.segment_frames(item, [cut[start]], 2.0, 4)
            assert frames.shape == (4, 16, 16, 3)
            np.testing.assert_array_equal(frames, wanted)


def test_every_time_a_thing_comes_is_its_moment() -> None:
    world = MomentClips(MomentsWorld("train", 6, 0, 180.0, size=16))
    records = [world.record(index) for index in range(len(world))]
    twice = [one for one in records if sum((one.path, one.texts) == (two.path, two.texts) for two in records) == 2]
    assert twice
    examples = examples_of(world)
    assert len(examples.times[twice[0].path, twice[0].texts]) == 2


@pytest.mark.parametrize("sampling", ["uniform", "random"])
def test_a_stretch_is_the_same_whenever_it_is_made(sampling: Any) -> None:
    how = {"augmentation": Augmentation(crop=0.5, flip=True), "size": (16, 16)}
    both = [examples_of(WORLD, Stretch(4, merge=0.3), sampling, **how) for _ in range(2)]
    others = 0
    for item in (3, len(WORLD) + 3):
        first, second = (examples[item] for examples in both)
        assert first.stretch.edges == second.stretch.edges
        assert len({len(frames) for frames in first.stretch.frames}) <= 2
        for one, two in zip(first.stretch.frames, second.stretch.frames, strict=True):
            np.testing.assert_array_equal(one, two)
        others += first.stretch.edges != both[0][3].stretch.edges
    assert others == 1  # another epoch


def test_a_batch_has_the_times_within_its_stretches() -> None:
    examples = examples_of(WORLD, Stretch(segments=32))
    few = [examples[0], examples[9]]
    batch = StretchCollator(tiny_processor(["a red square"]), 32)(few)
    assert batch["pixel_values"].shape == (2, 32, 4, 3, 16, 16)
    assert batch["frame_mask"].shape == (2, 32, 4)
    assert batch["input_ids"].shape[0] == 2
    assert batch["examples"] == 2
    for row, example in enumerate(few):
        edges = batch["edges"][row].tolist()
        assert edges == [*np.arange(31) * 2.0, 60.0, 60.0]  # a minute has thirty segments
        assert (batch["pixel_values"][row, 30] == batch["pixel_values"][row, 29]).all()
        shown = batch["moments"][row][: len(example.stretch.moments)]
        assert shown.flatten().tolist() == pytest.approx(np.ravel(example.stretch.moments), abs=1e-4)
    error = PerceiverVLError("x")
    assert StretchCollator(tiny_processor(["a"]), 4)(error) == {"error": error}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_clip(folder / f"v{number}.mp4", seed=number, frames=100)
    write_image(folder / "still.png", seed=9)
    return folder


def test_official_files_say_what_to_learn(videos: Path, tmp_path: Path) -> None:
    rows = [
        {"qid": 0, "query": "a square", "vid": "v0", "duration": 10, "relevant_windows": [[0, 2], [6, 8]]},
        {"qid": 1, "query": "a circle", "vid": "v1", "duration": 10, "relevant_windows": [[4, 2]]},
        {"qid": 2, "query": "a circle", "vid": "gone", "duration": 10, "relevant_windows": [[4, 6]]},
        {"qid": 3, "query": "a circle", "vid": "v1", "duration": 10, "relevant_windows": [[40, 46]]},
    ]
    annotations = tmp_path / "train.jsonl"
    annotations.write_text("\n".join(map(json.dumps, rows)))
    source, skipped = open_moments(videos, annotations, (16, 16), max_failed_fraction=1.0)
    assert [(source.record(n).file_name, source.record(n).start) for n in range(len(source))] == [
        ("v0.mp4", 0.0),
        ("v0.mp4", 6.0),
        ("v1.mp4", 40.0),
    ]
    assert [str(one) for one in skipped] == [
        "v1: query 1: a window from 4 to 2 s, left out",
        "gone: named in the annotations but not there",
    ]
    examples = examples_of(Mixture([source]))
    example = examples[1]
    assert example.stretch.moments == ((0.0, 2.0), (6.0, 8.0))
    segments, _ = find_segments(videos / "v0.mp4", "2")
    some = [one for one in segments if example.stretch.edges[0] <= one.start < example.stretch.edges[-1]]
    read = read_segments(videos / "v0.mp4", some, 2.0, 4, size=(16, 16))
    for frames, wanted in zip(example.stretch.frames, read, strict=True):
        np.testing.assert_array_equal(frames, wanted.frames)
    after = examples[2]  # another stands in
    assert "lasts 10 s, a moment begins at 40 s" in after.problems[0].reason
    with pytest.raises(PerceiverVLError, match="a moment begins at 40 s"):
        examples_of(source, strict=True)[2]
    for content, said in (
        ("unknown 0 5##a person sits", r"has none of the videos of .*train\.txt, such as unknown"),
        (json.dumps(rows[0] | {"relevant_windows": []}), "does not say when, give the annotations of a split"),
    ):
        (tmp_path / "train.txt").write_text(content)
        with pytest.raises(UsageError, match=said):
            open_moments(videos, tmp_path / "train.txt", (16, 16))
    with pytest.raises(PerceiverVLError, match="left out; leave out strict"):
        open_moments(videos, annotations, (16, 16), strict=True)


def test_what_is_no_moment_of_a_video_says_so() -> None:
    assert no_moment(Record("a.mp4", Path("a.mp4"), ("x",), start=0.0, end=2.0)) is None
    assert no_moment(Record("a.mp4", Path("a.mp4"), ("x",))) == "no start and end of a moment, in seconds"
    assert no_moment(Record("a.mp4", Path("a.mp4"), start=0.0, end=2.0)) == "no caption"
    assert no_moment(Record("a.png", Path("a.png"), ("x",), start=0.0, end=2.0)) == "no video, which has moments"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"segments": 1}, "data.stretch.segments=1: need 2 to 32"),
        ({"seconds": 0.0}, "data.stretch.seconds=0: need 0.1 to 600 s"),
        ({"merge": 1.0}, "data.stretch.merge=1: a probability"),
    ],
)
def test_stretches_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Stretch(**values)
