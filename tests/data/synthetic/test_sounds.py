"""The generated world's sounds: told apart by all that is heard, the same each time, in files as in memory."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from perceiver_vl import UsageError
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.open import open_dataset
from perceiver_vl.data.sources import kind_of
from perceiver_vl.data.synthetic.scene import SPLITS
from perceiver_vl.data.synthetic.sounds import (
    GROUP,
    GUESSERS,
    RATE,
    REGISTERS,
    Sound,
    SoundEvent,
    SoundWorld,
    guesser_recall,
    synthesise,
    write_sounds_world,
)
from perceiver_vl.data.validate import check_data
from perceiver_vl.layers.log_mel import log_mel


def test_the_same_arguments_give_the_same_sounds() -> None:
    world, again = SoundWorld("train", 6), SoundWorld("train", 3)
    for index in range(3):
        assert world.record(index) == again.record(index)
        np.testing.assert_array_equal(world.frames(index).values, again.frames(index).values)
    assert differ(world.frames(0).values, SoundWorld("train", 1, seed=1).frames(0).values)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return len(one) != len(other) or bool((one != other).any())


def test_no_split_has_what_another_has() -> None:
    heard = {}
    for split in SPLITS:
        world = SoundWorld(split, 80)
        heard[split] = {tuple(sorted(event.what for event in world.sound(index).events)) for index in range(80)}
        keys = [world.sound(index).key for index in range(80)]
        assert split == "train" or len(set(keys)) == 80
    assert not heard["train"] & heard["test"]
    assert not heard["train"] & heard["validation"]
    assert not heard["validation"] & heard["test"]


def test_of_four_in_a_row_two_differ_in_order_and_two_in_a_contour() -> None:
    world = SoundWorld("test", 40)
    for first in range(0, 40, GROUP):
        one, turned, other, other_turned = (world.sound(first + place).events for place in range(GROUP))
        assert turned == one[::-1]
        assert other_turned == other[::-1]
        assert sum(mine != theirs for mine, theirs in zip(one, other, strict=True)) == 1
        assert [event.what for event in one] == [event.what for event in other]


def test_who_does_not_hear_all_is_right_half_of_the_time_at_most() -> None:
    found = guesser_recall(SoundWorld("test", 64))
    assert found.keys() == GUESSERS.keys()
    assert found["hears nothing"] == pytest.approx(100 / 64)
    for name in ("all but where tones go", "all events, without their order", "which kinds, in order"):
        assert found["hears nothing"] < found[name] <= 50.0


def test_captions_tell_the_events_in_their_order() -> None:
    two = Sound((SoundEvent("flute", "low", "rises"), SoundEvent(noise="two clicks")), (0.4, 0.4))
    assert two.captions == (
        "a low flute tone rises, then two clicks",
        "first a low flute tone that rises, then two clicks",
        "two clicks after a low flute tone that rises",
    )
    three = Sound((*two.events, SoundEvent(noise="a hiss")), (0.4, 0.4, 0.4))
    assert three.captions[2] == "a low flute tone that rises, two clicks and at last a hiss"


@pytest.mark.parametrize("register", REGISTERS)
def test_what_is_told_is_heard(register: str) -> None:
    """The loudest bin of the spectrum is in the register, and goes where it is said to go."""
    low, high = REGISTERS[register]
    ways = {}
    for contour in ("rises", "falls", "stays"):
        sound = Sound((SoundEvent("flute", register, contour),), (0.6,))
        samples = synthesise(sound, np.random.default_rng(0))
        loudest = []
        for part in np.array_split(samples[1200:-1200], 3):
            spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
            loudest.append(np.fft.rfftfreq(len(part), 1 / RATE)[spectrum.argmax()])
        assert low / 1.4 < np.mean(loudest) < high * 1.4
        ways[contour] = loudest[2] / loudest[0]
    assert ways["rises"] > 1.1
    assert ways["falls"] < 1 / 1.1
    assert ways["stays"] == pytest.approx(1, abs=0.05)


def test_noises_are_where_they_are_said_to_be() -> None:
    def bins(noise: str) -> torch.Tensor:
        samples = synthesise(Sound((SoundEvent(noise=noise),), (0.5,)), np.random.default_rng(0))
        return log_mel(torch.from_numpy(samples), RATE, 256, 160, 20)

    assert bins("a hiss").mean(0).argmax() > 14
    assert bins("a rumble").mean(0).argmax() < 3
    for count, noise in enumerate(("a click", "two clicks", "three clicks"), 1):
        loud = bins(noise).mean(1)
        is_loud = (loud > (loud.max() + loud.min()) / 2).int()
        assert int((is_loud.diff() == 1).sum()) == count


def test_files_hold_what_memory_does(tmp_path: Path) -> None:
    counts = write_sounds_world(tmp_path / "sounds", 12, held_out=2)
    assert counts == {"train": 8, "validation": 2, "test": 2}
    before = {path: path.read_bytes() for path in sorted((tmp_path / "sounds").rglob("*.*"))}
    (tmp_path / "sounds" / "sounds" / "train" / "000001.wav").unlink()
    write_sounds_world(tmp_path / "sounds", 12, held_out=2)
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "sounds").rglob("*.*"))}
    source, problems = open_dataset(tmp_path / "sounds", (16, 16), split="train")
    assert (len(source), problems) == (8, [])
    world = SoundWorld("train", 8)
    for index in range(8):
        assert source.record(index).texts == world.record(index).texts
        assert kind_of(source.record(index)) == "audio"
        np.testing.assert_array_equal(source.frames(index, 1).values, world.frames(index).values)  # type: ignore[attr-defined]
    first = json.loads((tmp_path / "sounds" / "metadata.jsonl").read_text().splitlines()[0])
    assert [event["noise"] or event["contour"] for event in first["scene"]["events"]]
    assert Counter(record.split for record in read_folder(tmp_path / "sounds").records) == counts
    with pytest.raises(UsageError, match=r"holds something else, or a world made with other arguments"):
        write_sounds_world(tmp_path / "sounds", 13, held_out=2)


def test_a_folder_of_sounds_is_checked(tmp_path: Path) -> None:
    write_sounds_world(tmp_path / "sounds", 5, held_out=1)
    assert check_data("folder", tmp_path / "sounds", decode=True).complete
    (tmp_path / "sounds" / "sounds" / "test" / "000000.wav").write_text("no sound")
    found = check_data("folder", tmp_path / "sounds", decode=True)
    assert [problem.file_name for problem in found.problems] == ["sounds/test/000000.wav"]
    (tmp_path / "sounds" / "metadata.jsonl").unlink()
    assert len(read_folder(tmp_path / "sounds", need=None).records) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "extra"}, r"split='extra'"),
        ({"split": "test", "clips": 2001}, r"clips=2001: at most 2000 in test"),
        ({"clips": 0}, r"clips=0: need at least 1"),
    ],
)
def test_worlds_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SoundWorld(**arguments)  # type: ignore[arg-type]


def test_too_few_sounds_for_the_splits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"clips=2, held_out=1: need sounds in each"):
        write_sounds_world(tmp_path / "sounds", 2)
