"""Sounds of the generated world: two or three events one after the other, in noise, and captions that tell them.

An event is a tone (of a flute, reed, string or bell, low to high, that rises, falls, stays or wobbles), clicks, a hiss
or a rumble. What tells two sounds apart is what is heard, how high it is and where it goes, and in which order.
Shapes: S samples.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.metadata import record_to_row
from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.collection import check_index, check_world
from perceiver_vl.data.synthetic.scene import SPLITS, generator, hash_split
from perceiver_vl.data.synthetic.writing import claim_folder
from perceiver_vl.media.recording import Recording
from perceiver_vl.media.sound import as_16_bit, write_wav
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.jsonl import write_lines

Floats = npt.NDArray[np.float64]

RATE = 8000
MOST_HELD_OUT = 2000
GROUP = 4
"""Sounds in a row that are much alike, in validation and test."""
TIMBRES = ("flute", "reed", "string", "bell")
REGISTERS = {"low": (150.0, 220.0), "middle": (420.0, 600.0), "high": (1200.0, 1700.0)}
"""Hz that a tone stays at or goes about."""
CONTOURS = {"rises": "that rises", "falls": "that falls", "stays": "that stays", "wobbles": "that wobbles"}
NOISES = ("a click", "two clicks", "three clicks", "a hiss", "a rumble")
VERSION = 1
MANIFEST = "sounds.json"
_SOUNDS_STREAM, _CAPTIONS_STREAM = 8, 9  # of chance
_FAR = 1.5  # from where a tone begins to where it ends, as a factor
_PARTIALS = {  # of a timbre: factors of the fundamental, and how loud each is
    "flute": ((1.0, 1.0), (2.0, 0.08)),
    "reed": tuple((float(n), 1 / n) for n in (1, 3, 5, 7)),
    "string": tuple((float(n), 1 / n) for n in range(1, 9)),
    "bell": ((1.0, 1.0), (2.76, 0.6), (5.4, 0.35)),
}


@dataclass(frozen=True)
class SoundEvent:
    """What is heard: a tone of one of `TIMBRES` in one of `REGISTERS` that does one of `CONTOURS`; or one of `NOISES`
    as `noise`, all else being empty.
    """

    timbre: str = ""
    register: str = ""
    contour: str = ""
    noise: str = ""

    @property
    def what(self) -> str:
        """What is heard, without where it goes: "low flute"."""
        return self.noise or f"{self.register} {self.timbre}"

    @property
    def clause(self) -> str:
        """As a clause of its own: "a low flute tone rises"."""
        return self.noise or f"a {self.register} {self.timbre} tone {self.contour}"

    @property
    def noun(self) -> str:
        """As what something comes after: "a low flute tone that rises"."""
        return self.noise or f"a {self.register} {self.timbre} tone {CONTOURS[self.contour]}"


@dataclass(frozen=True)
class Sound:
    """Events in their order, each with the seconds that it lasts."""

    events: tuple[SoundEvent, ...]
    seconds: tuple[float, ...]

    @property
    def key(self) -> str:
        """What is told of it."""
        return ", then ".join(event.clause for event in self.events)

    @property
    def captions(self) -> tuple[str, ...]:
        """Three wordings, of two events one the wrong way round."""
        first, *others = self.events
        told = f"first {first.noun}, " + ", ".join(f"then {event.noun}" for event in others)
        if len(others) == 1:
            return self.key, told, f"{others[0].noun} after {first.noun}"
        return self.key, told, f"{first.noun}, {others[0].noun} and at last {others[1].noun}"


@dataclass(frozen=True)
class SoundWorld:
    """`clips` sounds of one split, drawn when they are asked for; each depends on (seed, split, index) alone.

    What is heard together, but for where tones go, is so in one split alone, in every world. In validation and test no
    two sounds are told alike, and of every four in a row two have the same events in the other order, and two of them
    another contour of one tone: who does not hear that is right half of the time.
    Raises `UsageError` for a value that cannot work.
    """

    split: str = "train"
    clips: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_world(self, SPLITS)
        if self.split != "train" and self.clips > MOST_HELD_OUT:
            raise UsageError(f"clips={self.clips}: at most {MOST_HELD_OUT} in {self.split}, where each is told once")

    def __len__(self) -> int:
        return self.clips

    def record(self, index: int) -> Record:
        """Its captions; the file is the one that `write_sounds_world` would write."""
        name = f"sounds/{self.split}/{check_index(self, index):06d}.wav"
        return Record(name, Path(name), self.sound(index).captions, self.split)

    def sound(self, index: int) -> Sound:
        """All that is known of sound `index` (0..len-1)."""
        return _draw(self.seed, self.split, self._draws[check_index(self, index)])

    def frames(self, index: int, num_frames: int | None = None, rng: np.random.Generator | None = None) -> Any:
        """The whole sound as a `Recording`, samples `(S,)` as its file has them; the rest is of clips."""
        rng = generator(self.seed, self.split, self._draws[index], _SOUNDS_STREAM, 1)
        samples = as_16_bit(synthesise(self.sound(index), rng)).astype(np.float32) / np.float32(32768)
        return Recording("audio", samples, RATE)

    @cached_property
    def _draws(self) -> Sequence[int]:
        """Which draw of the split each sound is: all of them, or the groups that tell something new."""
        if self.split == "train":
            return range(self.clips)
        draws: list[int] = []
        seen: set[str] = set()
        group = 0
        while len(draws) < self.clips:
            four = range(GROUP * group, GROUP * (group + 1))
            keys = {_draw(self.seed, self.split, draw).key for draw in four}
            if not keys & seen:
                seen |= keys
                draws += four
            group += 1
        return draws[: self.clips]


@lru_cache(maxsize=8192)
def _draw(seed: int, split: str, draw: int) -> Sound:
    """Of groups of four the second has the events of the first in the other order, and the others those with another
    contour of one tone.
    """
    group, place = (draw, 0) if split == "train" else divmod(draw, GROUP)
    rng = generator(seed, split, group, _SOUNDS_STREAM)
    while True:
        events = [_draw_event(rng) for _ in range(int(rng.integers(2, 4)))]
        tone = next((number for number, event in enumerate(events) if event.timbre), None)
        key = "|".join(sorted(event.what for event in events))
        if tone is None or hash_split(key) != split:
            continue
        others = [contour for contour in CONTOURS if contour != events[tone].contour]
        changed = [*events]
        changed[tone] = replace(events[tone], contour=others[int(rng.integers(len(others)))])
        if len(set(events)) == len(set(changed)) == len(events):
            break
    chosen = changed if place >= 2 else events
    rng = generator(seed, split, draw, _SOUNDS_STREAM, 0)
    seconds = tuple(float(rng.uniform(0.35, 0.6)) for _ in chosen)
    return Sound(tuple(chosen[::-1] if place % 2 else chosen), seconds)


def _draw_event(rng: np.random.Generator) -> SoundEvent:
    """A tone, or one time in four a noise."""
    if rng.random() < 0.25:
        return SoundEvent(noise=NOISES[int(rng.integers(len(NOISES)))])
    kinds = TIMBRES, tuple(REGISTERS), tuple(CONTOURS)
    return SoundEvent(*(some[int(rng.integers(len(some)))] for some in kinds))


def synthesise(sound: Sound, rng: np.random.Generator) -> Floats:
    """`(S,)` at `RATE`, from -1 to 1: the events with short rests between, in faint noise."""
    parts = [np.zeros(int(RATE * rng.uniform(0.02, 0.1)))]
    for event, seconds in zip(sound.events, sound.seconds, strict=True):
        made = _tone(event, seconds, rng) if event.timbre else _noise(event.noise, seconds, rng)
        parts += [made * rng.uniform(0.3, 0.8) / max(float(np.abs(made).max()), 1e-9)]
        parts += [np.zeros(int(RATE * rng.uniform(0.03, 0.1)))]
    whole = np.concatenate(parts)
    return (whole + rng.uniform(0.001, 0.01) * rng.standard_normal(len(whole))).clip(-1, 1)


def _tone(event: SoundEvent, seconds: float, rng: np.random.Generator) -> Floats:
    time = np.arange(int(RATE * seconds)) / RATE
    share = time / seconds
    way = {"rises": share - 0.5, "falls": 0.5 - share, "stays": 0 * share}
    bend = way.get(event.contour, 0.12 * np.sin(2 * np.pi * 6 * time) / np.log(_FAR))
    pitch = rng.uniform(*REGISTERS[event.register]) * _FAR**bend
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    partials = [
        loudness * np.sin(factor * phase + rng.uniform(0, 2 * np.pi))
        for factor, loudness in _PARTIALS[event.timbre]
        if factor * float(pitch.max()) < RATE / 2
    ]
    fading = np.exp(-4 * share) if event.timbre == "bell" else np.minimum(1, np.minimum(share, 1 - share) * 12)
    return np.sum(partials, axis=0) * fading


def _noise(name: str, seconds: float, rng: np.random.Generator) -> Floats:
    length = int(RATE * seconds)
    white = rng.standard_normal(length)
    if name.endswith(("click", "clicks")):
        count = ("a click", "two clicks", "three clicks").index(name) + 1
        clicks = np.zeros(length)
        for number in range(count):
            start = int(length * (number + 0.2) / 3)
            clicks[start : start + 80] = white[start : start + 80] * np.exp(-np.arange(80) / 15)
        return clicks
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    kept = frequencies > 2200 if name == "a hiss" else (frequencies > 40) & (frequencies < 180)
    return np.fft.irfft(np.fft.rfft(white) * kept, length) * np.sin(np.pi * np.arange(length) / length) ** 0.3


def write_sounds_world(
    out: Path, clips: int = 2000, seed: int = 0, *, held_out: int | None = None, progress: bool = False
) -> dict[str, int]:
    """Write `sounds/SPLIT/000000.wav` and a `metadata.jsonl` with their captions, splits and the whole truth as
    `scene`; how many sounds each split has.

    Validation and test get `held_out` sounds each (an eighth of all, at most 256, unless given), training the rest. The
    same arguments give the same bytes; called again it writes what is missing. Raises `UsageError` for values that
    cannot be, and for a folder that holds something else.
    """
    held_out = max(1, min(256, clips // 8)) if held_out is None else held_out
    if clips < len(SPLITS) or not 1 <= held_out <= (clips - 1) // 2:
        raise UsageError(f"clips={clips}, held_out={held_out}: need sounds in each of {', '.join(SPLITS)}")
    counts = {"train": clips - 2 * held_out, "validation": held_out, "test": held_out}
    worlds = [SoundWorld(split, count, seed) for split, count in counts.items()]
    arguments = {"version": VERSION, "worlds": [asdict(world) for world in worlds]}
    claim_folder(out, MANIFEST, arguments)
    rows: list[dict[str, Any]] = []
    with ProgressBars(progress) as bar:
        advance = bar.stage("Writing sounds", clips)
        for world in worlds:
            for index in range(len(world)):
                record = world.record(index)
                if not (path := out / record.file_name).exists():
                    write_wav(path, world.frames(index).values, RATE)
                rows.append({**record_to_row(record), "text": record.texts, "scene": asdict(world.sound(index))})
                advance()
    write_lines(out / "metadata.jsonl", rows)
    return counts


GUESSERS: dict[str, Callable[[Sound], Hashable]] = {
    "hears nothing": lambda sound: 0,
    "how many events": lambda sound: len(sound.events),
    "the last event": lambda sound: sound.events[-1],
    "which kinds, in order": lambda sound: tuple(event.timbre or event.noise for event in sound.events),
    "all but where tones go": lambda sound: tuple(event.what for event in sound.events),
    "all events, without their order": lambda sound: frozenset(sound.events),
}
"""Listeners who hear so much of a sound, and that without a mistake."""


def guesser_recall(world: SoundWorld) -> dict[str, float]:
    """R@1 in per cent, of sounds for a caption, of each of `GUESSERS`, who takes any of the sounds that are alike to
    them.
    """
    sounds = [world.sound(index) for index in range(len(world))]
    found = {}
    for name, heard in GUESSERS.items():
        alike = Counter(map(heard, sounds))
        found[name] = 100.0 * sum(1 / alike[heard(sound)] for sound in sounds) / len(sounds)
    return found
