"""What is in a clip: things with a size, a colour, a shape and a motion, on a background; and drawing one at random.

Lengths are fractions of the picture's side, x grows to the right, y grows downwards, and time runs from 0 to 1.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perceiver_vl.utils.errors import UsageError

Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

SPLITS = ("train", "validation", "test")


def media_folder(kind: str, split: str) -> str:
    """Where the media of a split lie, as in `clips/train`: what `datasets` looks for, which would take
    `clips/test-systematic` for a part of the test split.
    """
    return f"{kind}/{split.removeprefix('test-')}"


SIZES: dict[str, float] = {"small": 0.09, "large": 0.16}
"""The radius of a thing of each size (of a growing or shrinking one: its largest)."""
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS: dict[str, Colour] = {
    "red": (215, 25, 30),
    "orange": (240, 130, 20),
    "yellow": (238, 222, 35),
    "green": (25, 165, 45),
    "cyan": (45, 215, 225),
    "blue": (30, 60, 225),
    "purple": (135, 30, 175),
    "white": (240, 240, 240),
}
BACKGROUNDS = ("plain", "gradient", "stripes", "checkers", "blobs")


class Description(NamedTuple):
    """What a caption says about one thing, and all that it says."""

    size: str
    colour: str
    shape: str
    motion: str


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. The first four fields are told in captions; the rest is left to chance.

    `x, y` is the centre of its path, `reach` how far the path goes from there, `radius` its own largest radius,
    `phase` (in turns) where in its cycle a periodic motion begins, and `turn` (1 or -1) which way round it goes.
    """

    size: str
    colour: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float
    reach: float
    phase: float
    turn: int

    @property
    def description(self) -> Description:
        return Description(self.size, self.colour, self.shape, self.motion)

    def pose(self, times: Floats) -> "Pose":
        """Where it is, how large and how visible, at `times` (T,)."""
        return MOTIONS[self.motion].pose(self, times)


@dataclass(frozen=True)
class Background:
    """A still pattern between two muted colours; `angle` is in radians, `period` a length, `phase` in turns."""

    kind: str
    colours: tuple[Colour, Colour]
    angle: float
    period: float
    phase: float


@dataclass(frozen=True)
class Scene:
    """Everything there is to know about a clip; later things hide earlier ones, `noise` picks the pixel noise."""

    background: Background
    objects: tuple[SceneObject, ...]
    noise: int

    @property
    def key(self) -> frozenset[Description]:
        """What its captions say, whatever their words and order: two scenes of one key have the same captions."""
        return frozenset(thing.description for thing in self.objects)


class Pose(NamedTuple):
    """The trajectory of a thing: centre, radius and opacity (0 hidden, 1 visible), each (T,)."""

    x: Floats
    y: Floats
    radius: Floats
    opacity: Floats


class Motion(NamedTuple):
    """A motion as a function of time, and whether its path spreads (by the thing's reach) along x and along y."""

    pose: Callable[[SceneObject, Floats], Pose]
    along_x: bool = False
    along_y: bool = False


def _at(thing: SceneObject, times: Floats, dx: Floats | float = 0.0, dy: Floats | float = 0.0) -> Pose:
    """The pose `reach * (dx, dy)` away from the centre of the path, at full size and visible."""
    ones = np.ones_like(times)
    x, y = (thing.x + thing.reach * dx) * ones, (thing.y + thing.reach * dy) * ones
    return Pose(x, y, thing.radius * ones, ones)


def _circles(thing: SceneObject, times: Floats) -> Pose:
    angle = 2 * math.pi * (thing.turn * times + thing.phase)
    return _at(thing, times, np.cos(angle), np.sin(angle))


def _swings(thing: SceneObject, times: Floats) -> Pose:
    return _at(thing, times, dx=np.sin(2 * math.pi * (1.5 * times + thing.phase)))


def _scaled(thing: SceneObject, times: Floats, scale: Floats) -> Pose:
    return _at(thing, times)._replace(radius=thing.radius * scale)


def _blinks(thing: SceneObject, times: Floats) -> Pose:
    return _at(thing, times)._replace(opacity=((2 * times + thing.phase) % 1 < 0.5).astype(np.float64))


MOTIONS: dict[str, Motion] = {
    "left": Motion(lambda thing, times: _at(thing, times, dx=1 - 2 * times), along_x=True),
    "right": Motion(lambda thing, times: _at(thing, times, dx=2 * times - 1), along_x=True),
    "up": Motion(lambda thing, times: _at(thing, times, dy=1 - 2 * times), along_y=True),
    "down": Motion(lambda thing, times: _at(thing, times, dy=2 * times - 1), along_y=True),
    "circles": Motion(_circles, along_x=True, along_y=True),
    "swings": Motion(_swings, along_x=True),
    "grows": Motion(lambda thing, times: _scaled(thing, times, 0.35 + 0.65 * times)),
    "shrinks": Motion(lambda thing, times: _scaled(thing, times, 1 - 0.65 * times)),
    "blinks": Motion(_blinks),
    "still": Motion(_at),
}

_SIZES, _COLOURS, _MOTIONS = tuple(SIZES), tuple(COLOURS), tuple(MOTIONS)
# One draw of this describes two things; the second shape and colour are steps away from the first, never none.
_CHOICES = np.array([len(_SIZES), len(_COLOURS), len(SHAPES), len(_MOTIONS)] * 2) - [0, 0, 0, 0, 0, 1, 1, 0]


def split_of(key: Iterable[Description]) -> str:
    """The split to which a description belongs, in every world."""
    return hash_split("|".join(sorted(" ".join(description) for description in key)))


def hash_split(text: str) -> str:
    """A split by the hash of a text: of 10 about 8 train, 1 validation, 1 test."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return SPLITS[max(0, bucket - 7)]


def generator(seed: int, split: str, *path: int) -> np.random.Generator:
    """The source of chance for one clip, or for one aspect of it."""
    return np.random.default_rng([seed, SPLITS.index(split), *path])


def draw_scene(seed: int, split: str, index: int, singles: float = 0.25) -> Scene:
    """Clip number `index` of a split: the same for the same arguments, and described as no clip of another split.

    `singles` is the share of clips with one thing; the others have two, of different shape and colour, whose paths
    stay in different parts of the picture.
    """
    if split not in SPLITS:
        raise UsageError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    rng = generator(seed, split, index)
    single = bool(rng.random() < singles)
    descriptions = _describe(rng, single)
    while split_of(descriptions) != split:
        descriptions = _describe(rng, single)
    regions = _regions(rng, descriptions)
    objects = tuple(_place(rng, *pair) for pair in zip(descriptions, regions, strict=True))
    return Scene(draw_background(rng), objects, noise=int(rng.integers(2**31)))


def _describe(rng: np.random.Generator, single: bool) -> tuple[Description, ...]:
    size, colour, shape, motion, size2, colour_step, shape_step, motion2 = rng.integers(_CHOICES).tolist()
    first = Description(_SIZES[size], _COLOURS[colour], SHAPES[shape], _MOTIONS[motion])
    if single:
        return (first,)
    colour2 = (colour + 1 + colour_step) % len(_COLOURS)
    shape2 = (shape + 1 + shape_step) % len(SHAPES)
    return first, Description(_SIZES[size2], _COLOURS[colour2], SHAPES[shape2], _MOTIONS[motion2])


Region = tuple[float, float, float, float]
"""Left, top, right, bottom."""
_RADIUS_VARIES = 0.05


def _regions(rng: np.random.Generator, descriptions: tuple[Description, ...]) -> tuple[Region, ...]:
    """A part of the picture for each thing: all of it, or two parts, cut so that the movers have room."""
    if len(descriptions) == 1:
        return ((0.0, 0.0, 1.0, 1.0),)
    motions = [MOTIONS[description.motion] for description in descriptions]
    sideways = sum(motion.along_x - motion.along_y for motion in motions)
    stacked = sideways > 0 or (sideways == 0 and rng.random() < 0.5)
    widths = [2 * SIZES[description.size] * (1 + _RADIUS_VARIES) for description in descriptions]
    # What the things themselves leave free goes mostly to those that move across the cut.
    shares = [3 if (motion.along_y if stacked else motion.along_x) else 1 for motion in motions]
    first = widths[0] + (1 - sum(widths)) * shares[0] / sum(shares)
    low, high = (0.0, first), (first, 1.0)
    if rng.random() < 0.5:
        low, high = (1 - first, 1.0), (0.0, 1 - first)
    return tuple((0.0, start, 1.0, end) if stacked else (start, 0.0, end, 1.0) for start, end in (low, high))


def _place(rng: np.random.Generator, description: Description, region: Region) -> SceneObject:
    """Give a described thing a size and a path that keep it inside the region."""
    left, top, right, bottom = region
    motion = MOTIONS[description.motion]
    radius = SIZES[description.size] * rng.uniform(1 - _RADIUS_VARIES, 1 + _RADIUS_VARIES)
    room_x, room_y = (right - left) / 2 - radius, (bottom - top) / 2 - radius
    rooms = [room for room, used in ((room_x, motion.along_x), (room_y, motion.along_y)) if used]
    longest = 0.2 if motion.pose in (_circles, _swings) else 0.36
    reach = min([longest, *rooms]) * rng.uniform(0.75, 1.0) if rooms else 0.0
    slack_x, slack_y = room_x - reach * motion.along_x, room_y - reach * motion.along_y
    return SceneObject(
        *description,
        x=(left + right) / 2 + slack_x * rng.uniform(-1, 1),
        y=(top + bottom) / 2 + slack_y * rng.uniform(-1, 1),
        radius=radius,
        reach=reach,
        phase=rng.random(),
        turn=1 if rng.random() < 0.5 else -1,
    )


def draw_background(rng: np.random.Generator) -> Background:
    """Any kind, in any of the muted colours."""
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Background(
        kind=kind,
        colours=(_muted(rng), _muted(rng)),
        angle=rng.uniform(0, math.pi),
        period=rng.uniform(0.2, 0.6),
        phase=rng.random(),
    )


def _muted(rng: np.random.Generator) -> Colour:
    """Nearly grey, neither bright nor dark: far from every colour of `COLOURS`."""
    red, green, blue = (rng.integers(65, 145) + rng.integers(-12, 13, size=3)).tolist()
    return red, green, blue
