"""The generated world: what is drawn, said, shown and written."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_vl.data.synthetic.captions import caption, captions
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.render import frame_times, render
from perceiver_vl.data.synthetic.scene import (
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Background,
    Description,
    Scene,
    SceneObject,
    draw_scene,
    split_of,
)
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.utils.errors import UsageError

GREY = Background("plain", ((100, 100, 100), (100, 100, 100)), angle=0.0, period=0.4, phase=0.0)
seeds = st.integers(0, 2**31)


def thing(motion: str = "still", shape: str = "circle", size: str = "large", colour: str = "red") -> SceneObject:
    reach = 0.2 if MOTIONS[motion].along_x or MOTIONS[motion].along_y else 0.0
    return SceneObject(size, colour, shape, motion, 0.5, 0.5, SIZES[size], reach, phase=0.1, turn=1)


def scene_of(*things: SceneObject) -> Scene:
    return Scene(GREY, things, noise=0)


def pixels_of(frames: npt.NDArray[np.uint8], colour: str) -> npt.NDArray[np.bool_]:
    """The pixels (T, H, W) that are nearly of a colour."""
    return np.abs(frames.astype(int) - COLOURS[colour]).max(axis=-1) < 40


def centres(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The centre (T, 2) of the true pixels of each frame, x and y."""
    return np.array([[found.mean() for found in np.nonzero(frame)[::-1]] for frame in mask])


# A reader of captions that knows the words but not the grammar.

WORDS = {
    "size": {"small": "small", "little": "small", "large": "large", "big": "large"},
    "colour": {colour: colour for colour in COLOURS},
    "shape": {shape: shape for shape in SHAPES},
    "motion": {
        r"(?:moves|moving) left|(?:goes|going) to the left": "left",
        r"(?:moves|moving) right|(?:goes|going) to the right": "right",
        r"(?:moves|moving) up|rises|rising": "up",
        r"(?:moves|moving) down|sinks|sinking": "down",
        r"(?:moves|moving) in a circle|(?:goes|going) round and round": "circles",
        r"(?:swings|swinging)(?: from side to side)?": "swings",
        r"grows|growing|(?:gets|getting) bigger": "grows",
        r"shrinks|shrinking|(?:gets|getting) smaller": "shrinks",
        r"blinks|blinking|(?:flashes|flashing) on and off": "blinks",
        r"(?:stays|staying) still|does not move|not moving": "still",
    },
}
# Motions first: "in a circle" is not a shape, nor "bigger" a size.
MARKS = [
    (kind, re.compile(rf"\b(?:{words})\b"), value)
    for kind in ("motion", "size", "colour", "shape")
    for words, value in WORDS[kind].items()
]


def read(text: str) -> frozenset[Description]:
    """The description that a caption tells; fails if an attribute is missing, or told twice."""
    found: list[tuple[int, str, str]] = []
    for kind, words, value in MARKS:
        for match in words.finditer(text):
            found.append((match.start(), kind, value))
        text = words.sub(lambda match: "#" * len(match[0]), text)
    told = [(kind, value) for _, kind, value in sorted(found)]
    assert len(told) in (4, 8), text
    groups = [dict(told[start : start + 4]) for start in range(0, len(told), 4)]
    return frozenset(Description(**group) for group in groups)


# What is drawn


@given(seed=seeds, split=st.sampled_from(SPLITS), index=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_scene_is_decided_by_seed_split_and_index(seed: int, split: str, index: int) -> None:
    scene = draw_scene(seed, split, index)
    assert scene == draw_scene(seed, split, index)
    assert scene != draw_scene(seed + 1, split, index)
    assert scene != draw_scene(seed, split, index + 1)
    assert split_of(scene.key) == split
    assert split_of(reversed([thing.description for thing in scene.objects])) == split


@given(seed=seeds, index=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_things_differ_and_stay_in_the_picture_and_apart(seed: int, index: int) -> None:
    scene = draw_scene(seed, "train", index, singles=0.0)
    first, second = scene.objects
    assert first.shape != second.shape
    assert first.colour != second.colour
    poses = [thing.pose(frame_times(50)) for thing in scene.objects]
    for pose in poses:
        for centre in (pose.x, pose.y):
            assert np.all(centre - pose.radius >= -1e-9)
            assert np.all(centre + pose.radius <= 1 + 1e-9)
    apart = [np.abs(a - b) for a, b in zip(poses[0][:2], poses[1][:2], strict=True)]
    assert np.all(np.maximum(*apart) >= poses[0].radius + poses[1].radius - 1e-9)


def test_the_splits_share_no_description_for_any_seed() -> None:
    keys = {split: {draw_scene(seed, split, i).key for seed in range(3) for i in range(1000)} for split in SPLITS}
    assert all(len(found) > 500 for found in keys.values())
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]


def test_the_splits_hold_eight_one_and_one_tenth_of_the_descriptions() -> None:
    descriptions = [
        Description(size, colour, shape, motion)
        for size in SIZES
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
    ]
    counts = Counter(split_of([description]) for description in descriptions)
    assert counts["train"] == pytest.approx(0.8 * len(descriptions), rel=0.1)
    assert counts["validation"] == pytest.approx(0.1 * len(descriptions), rel=0.3)
    assert counts["test"] == pytest.approx(0.1 * len(descriptions), rel=0.3)


def test_the_split_of_a_description_never_changes() -> None:
    """Files written long ago and worlds drawn today must agree on what is held out."""
    star = Description("large", "blue", "star", "left")
    assert split_of([star]) == "validation"
    assert split_of([star._replace(shape="circle")]) == "test"
    assert split_of([star._replace(shape="square")]) == "train"
    assert split_of([star, Description("small", "cyan", "circle", "up")]) == "validation"


def test_every_attribute_occurs_about_equally_often() -> None:
    things = [thing for i in range(2000) for thing in draw_scene(0, "train", i).objects]
    for name, values in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS)):
        counts = Counter(getattr(thing, name) for thing in things)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.7 * len(things) / len(values)


@pytest.mark.parametrize("split", SPLITS)
def test_about_the_asked_share_of_scenes_has_one_thing(split: str) -> None:
    assert sum(len(draw_scene(0, split, i).objects) == 1 for i in range(800)) == pytest.approx(200, abs=50)
    assert all(len(draw_scene(0, split, i, singles=1.0).objects) == 1 for i in range(20))
    assert all(len(draw_scene(0, split, i, singles=0.0).objects) == 2 for i in range(20))


# What is said


@given(seed=seeds, index=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
@settings(max_examples=300, deadline=None)
def test_every_caption_tells_everything(seed: int, index: int, split: str) -> None:
    scene = draw_scene(seed, split, index)
    text = caption(scene, np.random.default_rng(seed))
    assert read(text) == scene.key
    assert len(re.findall(r"\w+|[^\w\s]", text)) <= 32


@pytest.mark.parametrize("motion", MOTIONS)
def test_captions_are_many_and_different(motion: str) -> None:
    wordings = captions(scene_of(thing(motion, colour="orange")), 20, np.random.default_rng(0))
    assert len(set(wordings)) == 20
    assert {read(text) for text in wordings} == {frozenset({Description("large", "orange", "circle", motion)})}
    assert not any(re.search(r"\ba orange|\ban [^aeiou]", text) for text in wordings)


def test_either_thing_may_come_first() -> None:
    scene = scene_of(thing(colour="red"), thing(colour="blue", shape="star"))
    wordings = captions(scene, 20, np.random.default_rng(0))
    assert len({text.index("red") < text.index("blue") for text in wordings}) == 2


# What is shown


@pytest.mark.parametrize(("motion", "step"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))])
@pytest.mark.parametrize("shape", SHAPES)
def test_things_move_the_way_they_are_said_to(motion: str, step: tuple[int, int], shape: str) -> None:
    steps = np.diff(centres(pixels_of(render(scene_of(thing(motion, shape, "small"))), "red")), axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(np.array(step) * 0.4 * 64 / 8, (7, 2)), atol=0.7)


def test_in_drawn_scenes_movers_move_enough_to_be_seen() -> None:
    axes = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
    seen = Counter[str]()
    for index in range(300):
        scene = draw_scene(5, "train", index)
        frames = render(scene)
        for mover in scene.objects:
            if mover.motion in axes and mover.colour not in ("white", "purple"):
                axis, sign = axes[mover.motion]
                trajectory = centres(pixels_of(frames, mover.colour))[:, axis]
                assert sign * (trajectory[-1] - trajectory[0]) > 7
                seen[mover.motion] += 1
    assert set(seen) == set(axes)


def test_circling_goes_round_once_and_swinging_keeps_its_height() -> None:
    round_course = centres(pixels_of(render(scene_of(thing("circles"))), "red")) - 31.5
    np.testing.assert_allclose(np.hypot(*round_course.T), 0.2 * 64, atol=0.7)
    turns = np.unwrap(np.arctan2(*round_course.T[::-1])) / (2 * np.pi)
    np.testing.assert_allclose(np.diff(turns), 1 / 8, atol=0.02)

    swing = centres(pixels_of(render(scene_of(thing("swings")), num_frames=16), "red")) - 31.5
    assert np.ptp(swing[:, 1]) < 1
    assert np.ptp(swing[:, 0]) > 0.35 * 64
    assert np.count_nonzero(np.diff(np.sign(np.diff(swing[:, 0])))) >= 2


@pytest.mark.parametrize("shape", SHAPES)
def test_growing_and_shrinking_change_the_area(shape: str) -> None:
    growing, shrinking = (
        pixels_of(render(scene_of(thing(motion, shape)), size=128), "red").sum(axis=(1, 2))
        for motion in ("grows", "shrinks")
    )
    assert np.all(np.diff(growing) > 0)
    assert np.all(np.diff(shrinking) < 0)
    assert growing[-1] > 4 * growing[0]
    assert shrinking[0] > 4 * shrinking[-1]


def test_blinking_things_come_and_go_and_still_ones_stay() -> None:
    blinking = pixels_of(render(scene_of(thing("blinks"))), "red").any(axis=(1, 2))
    assert Counter(blinking.tolist()) == {True: 4, False: 4}
    still = centres(pixels_of(render(scene_of(thing("still"))), "red"))
    assert np.ptp(still, axis=0).max() < 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_larger_than_small(shape: str) -> None:
    areas = [pixels_of(render(scene_of(thing(size=size, shape=shape))), "red")[0].sum() for size in ("small", "large")]
    assert areas[1] > 2 * areas[0] > 0


def test_shapes_are_told_apart_even_when_small() -> None:
    masks = [pixels_of(render(scene_of(thing(shape=shape, size="small"))), "red")[0] for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() > 0.1 * (one | other).sum()


@given(seed=seeds, index=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_backgrounds_are_never_mistaken_for_things(seed: int, index: int) -> None:
    scene = draw_scene(seed, "train", index)
    frames = render(replace(scene, objects=()))
    assert frames.min() > 20
    assert frames.max() < 185
    assert not any(pixels_of(frames, colour).any() for colour in COLOURS)


def test_colours_are_far_apart() -> None:
    values = np.array(list(COLOURS.values()))
    distances = np.abs(values[:, None] - values[None]).max(axis=-1)
    assert distances[~np.eye(len(values), dtype=bool)].min() > 85


def test_every_kind_of_background_is_drawn_its_own_way() -> None:
    kinds = ("plain", "gradient", "stripes", "checkers", "blobs")
    pictures = [render(Scene(Background(kind, ((70,) * 3, (140,) * 3), 0.3, 0.4, 0.1), (), 0))[0] for kind in kinds]
    assert len({picture.tobytes() for picture in pictures}) == len(kinds)
    assert pictures[0].std() < 6
    assert all(picture.std() > 15 for picture in pictures[1:])


def test_noise_differs_between_frames_and_scenes() -> None:
    frames = render(scene_of())
    assert np.abs(frames.astype(int) - 100).max() <= 12
    assert np.any(frames[0] != frames[1])
    assert np.any(frames != render(replace(scene_of(), noise=1)))


@pytest.mark.parametrize(("num_frames", "size"), [(1, 16), (3, 63), (16, 128), (2, 300)])
def test_any_size_and_number_of_frames(num_frames: int, size: int) -> None:
    scene = draw_scene(0, "train", 0)
    frames = render(scene, num_frames, size)
    assert frames.shape == (num_frames, size, size, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, render(scene, num_frames, size))


def test_a_thing_may_lie_partly_or_wholly_outside() -> None:
    partly, wholly = replace(thing(), x=1.0), replace(thing(), x=1.5)
    half = pixels_of(render(scene_of(partly)), "red")[0].sum()
    assert half == pytest.approx(pixels_of(render(scene_of(thing())), "red")[0].sum() / 2, rel=0.1)
    assert not pixels_of(render(scene_of(wholly)), "red").any()


def test_moments_come_from_equal_parts_of_the_clip() -> None:
    assert frame_times(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    random = frame_times(4, np.random.default_rng(0))
    assert np.floor(random * 4).tolist() == [0, 1, 2, 3]
    assert random.tolist() != frame_times(4).tolist()


# The collection


@pytest.mark.parametrize("split", SPLITS)
def test_a_world_is_decided_by_its_seed_and_begins_like_a_smaller_one(split: str) -> None:
    world, same, smaller, other = (World(split, clips, seed) for clips, seed in ((60, 1), (60, 1), (20, 1), (60, 2)))
    for index in (0, 7, 19):
        assert world.scene(index) == same.scene(index) == smaller.scene(index)
        assert world.captions(index) == same.captions(index) == smaller.captions(index)
        assert np.array_equal(world.frames(index), smaller.frames(index))
    assert [world.scene(i) for i in range(60)] != [other.scene(i) for i in range(60)]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_clips_all_have_their_own_description(split: str) -> None:
    world = World(split, clips=600)
    keys = {world.scene(index).key for index in range(len(world))}
    assert len(keys) == 600
    assert all(split_of(key) == split for key in keys)


def test_a_world_gives_frames_and_captions_of_its_clips() -> None:
    world = World(clips=5, num_frames=4, size=32, captions_per_clip=3)
    assert len(world) == 5
    assert world.frames(0).shape == (4, 32, 32, 3)
    assert np.array_equal(world.frames(0), render(world.scene(0), 4, 32))
    assert world.frames(0, num_frames=2).shape == (2, 32, 32, 3)
    assert np.any(world.frames(0, rng=np.random.default_rng(0)) != world.frames(0))
    assert len(set(world.captions(2))) == 3
    assert {read(text) for text in world.captions(2)} == {world.scene(2).key}
    with pytest.raises(IndexError):
        world.scene(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split='dev': choose one of train, validation, test"),
        ({"clips": 0}, "clips=0: need at least 1"),
        ({"seed": -1}, "seed=-1: need at least 0"),
        ({"num_frames": 0}, "num_frames=0: need at least 1"),
        ({"size": 8}, "size=8: need at least 16"),
        ({"captions_per_clip": 21}, "captions_per_clip=21: choose 1 to 20"),
        ({"singles": 1.5}, "singles=1.5: the share"),
        ({"split": "test", "clips": 20_001}, "clips=20001: at most 20000"),
    ],
)
def test_a_world_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(message)):
        World(**arguments)  # type: ignore[arg-type]


def test_running_out_of_descriptions_is_said() -> None:
    with pytest.raises(UsageError, match=r"clips=300: found only 1\d\d different descriptions in test"):
        World("test", clips=300, singles=1.0).scene(0)


# The folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    assert write_world(out, clips=12, seed=4, held_out=2) == {"train": 8, "validation": 2, "test": 2}
    return out


def metadata(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def decode(path: Path) -> npt.NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_folder_holds_what_the_world_holds(written: Path) -> None:
    lines = metadata(written)
    assert Counter(line["split"] for line in lines) == {"train": 8, "validation": 2, "test": 2}
    for number, line in enumerate(lines):
        split = str(line["split"])
        index = number - {"train": 0, "validation": 8, "test": 10}[split]
        world = World(split, clips=8, seed=4)
        assert line["file_name"] == f"clips/{split}/{index:06d}.mp4"
        assert tuple(line["text"]) == world.captions(index)  # type: ignore[arg-type]
        told = line["scene"]["objects"]  # type: ignore[index]
        names = ("size", "colour", "shape", "motion")
        assert frozenset(Description(*(one[name] for name in names)) for one in told) == world.scene(index).key
        frames = decode(written / str(line["file_name"]))
        assert frames.shape == (8, 64, 64, 3)
        assert np.abs(frames.astype(int) - world.frames(index)).mean() < 6


def test_colours_survive_the_encoding(written: Path) -> None:
    for index in range(8):
        world = World("train", clips=8, seed=4)
        drawn, decoded = world.frames(index), decode(written / f"clips/train/{index:06d}.mp4")
        for colour in {thing.colour for thing in world.scene(index).objects}:
            where = pixels_of(drawn, colour)
            assert np.abs(drawn[where].mean(axis=0) - decoded[where].mean(axis=0)).max() < 10


def test_the_decoder_of_the_library_reads_the_clips(written: Path) -> None:
    media = pytest.importorskip("perceiver_vl.media.decode")
    frames = media.load_frames(written / "clips" / "train" / "000000.mp4", num_frames=8)
    drawn = World("train", clips=8, seed=4).frames(0)
    assert frames.shape == drawn.shape
    assert np.abs(frames.astype(int) - drawn).mean() < 6


def test_the_same_arguments_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    for again in range(10):  # with memory in another state each time, which an encoder must not see
        write_world(tmp_path / str(again), clips=12, seed=4, held_out=2)
        assert contents(tmp_path / str(again)) == contents(written)


def test_an_interrupted_world_is_completed(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "torn"
    write_world(out, clips=12, seed=4, held_out=2)
    (out / "metadata.jsonl").unlink()
    (out / "clips" / "test" / "000001.mp4").unlink()
    kept = (out / "clips" / "train" / "000000.mp4").stat().st_mtime_ns
    write_world(out, clips=12, seed=4, held_out=2, progress=True)
    assert contents(out) == contents(written)
    assert (out / "clips" / "train" / "000000.mp4").stat().st_mtime_ns == kept


def test_a_folder_of_something_else_is_left_alone(written: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a generated world; name a new or empty folder"):
        write_world(tmp_path, clips=4)
    assert contents(tmp_path) == {"holiday.txt": b"mine"}
    with pytest.raises(UsageError, match="is a file"):
        write_world(tmp_path / "holiday.txt", clips=4)
    before = contents(written)
    with pytest.raises(UsageError, match="a world made with other arguments"):
        write_world(written, clips=12, seed=5, held_out=2)
    assert contents(written) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 0}, "clips=0: need at least 3"),
        ({"clips": 10, "held_out": 5}, "held_out=5: choose 1 to 4"),
        ({"clips": 10, "held_out": 0}, "held_out=0: choose 1 to 4"),
        ({"size": 65}, "size=65: video needs an even number of pixels, take 66"),
        ({"size": 2}, "size=2: need at least 16"),
        ({"num_frames": 0}, "num_frames=0: need at least 1"),
        ({"clips": 90_000, "held_out": 40_000}, "clips=40000: at most 20000 in validation"),
        ({"clips": 1000, "held_out": 300, "singles": 1.0}, "clips=300: found only"),
    ],
)
def test_arguments_that_cannot_work_write_nothing(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(message)):
        write_world(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
