"""Frames of a scene: numpy only, antialiased, about a millisecond for 8 frames of 64 x 64 pixels."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.synthetic.scene import COLOURS, Background, Floats, Pose, Scene
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import UsageError

Array = npt.NDArray[np.float32]

NOISE_REACH = 12
"""The largest noise added to or taken from a value; all colours keep that far from 0 and 255, so nothing is clipped."""
_NOISE_VALUES = 2**18


class Drawable(Protocol):
    """A coloured shape that is somewhere at every time."""

    @property
    def colour(self) -> str: ...

    @property
    def shape(self) -> str: ...

    def pose(self, times: Floats) -> Pose:
        """Where it is, how large and how visible, at `times` (T,)."""


def frame_times(num_frames: int, rng: np.random.Generator | None = None) -> Floats:
    """One moment from each of `num_frames` equal parts of the clip, (T,) in [0, 1]: the middles, or random ones."""
    if num_frames < 1:
        raise UsageError(f"num_frames={num_frames}: need at least 1")
    within = 0.5 if rng is None else rng.random(num_frames)
    times: Floats = (np.arange(num_frames) + within) / num_frames
    return times


def render(scene: Scene, num_frames: int = 8, size: int = 64, times: Floats | None = None) -> Frames:
    """RGB bytes (T, size, size, 3) of a scene at `times` (T,), or at the middles of `num_frames` equal parts of it."""
    times = frame_times(num_frames) if times is None else times
    frames = _without_noise(scene.background, scene.objects, times, size)
    frames += _noise(scene.noise, frames.size).reshape(frames.shape)
    return frames


def paint(
    background: Background, objects: Sequence[Drawable], noises: Sequence[int], times: Floats, size: int
) -> Frames:
    """RGB bytes (T, size, size, 3) of objects at `times` (T,), with noise of its own for each frame."""
    frames = _without_noise(background, objects, times, size)
    for frame, noise in zip(frames, noises, strict=True):
        frame += _noise(noise, frame.size).reshape(frame.shape)
    return frames


def _without_noise(background: Background, objects: Sequence[Drawable], times: Floats, size: int) -> Frames:
    frames = np.repeat(_background(background, size)[None], len(times), axis=0)
    for thing in objects:
        _paint(frames, thing, times)
    return frames


def _paint(frames: Frames, thing: Drawable, times: Floats) -> None:
    """Lay a thing over frames (T, S, S, 3), computing only a window around it in each frame."""
    size = frames.shape[1]
    pose = thing.pose(times)
    x, y, radius = (np.asarray(values * size, dtype=np.float32)[:, None, None] for values in pose[:3])
    width = min(size, math.ceil(2 * float(radius.max())) + 2)
    rows, columns = _window(y, width, size)[:, :, None], _window(x, width, size)[:, None, :]
    u, v = (columns + np.float32(0.5) - x) / radius, (rows + np.float32(0.5) - y) / radius
    distance = _DISTANCES[thing.shape](*np.broadcast_arrays(u, v)) * radius
    opacity = np.asarray(pose.opacity, dtype=np.float32)[:, None, None]
    cover = (np.clip(np.float32(0.5) - distance, 0, 1) * opacity)[..., None]
    where = np.arange(len(times))[:, None, None], rows, columns
    below = frames[where].astype(np.float32)
    frames[where] = below + cover * (np.array(COLOURS[thing.colour], dtype=np.float32) - below) + np.float32(0.5)


def _window(centre: Array, width: int, size: int) -> npt.NDArray[np.int64]:
    """Pixel positions (T, width) around the centres (T, 1, 1), moved to lie inside the picture."""
    first = np.clip(np.floor(centre[:, :, 0] - width / 2 + 0.5).astype(np.int64), 0, size - width)
    positions: npt.NDArray[np.int64] = first + np.arange(width)
    return positions


def _background(background: Background, size: int) -> Frames:
    """The still pattern behind the things, (S, S, 3)."""
    place = np.asarray((np.arange(size) + 0.5) / size - 0.5, dtype=np.float32)
    cosine, sine = np.float32(math.cos(background.angle)), np.float32(math.sin(background.angle))
    along = place[None, :] * cosine + place[:, None] * sine
    across = place[:, None] * cosine - place[None, :] * sine
    mix = _mix(background, along, across).astype(np.float32)[..., None]
    first, second = (np.array(colour, dtype=np.float32) for colour in background.colours)
    return np.asarray(first + mix * (second - first), dtype=np.uint8)


def _mix(background: Background, along: Array, across: Array) -> Array:
    """How much of the second colour there is at each place, 0 to 1, the shape of the inputs."""
    turns = 2 * math.pi / background.period
    start = 2 * math.pi * background.phase
    if background.kind == "plain":
        return np.zeros_like(along)
    if background.kind == "gradient":
        return np.clip(along + 0.5, 0, 1)
    if background.kind == "stripes":
        return np.clip(4 * np.sin(turns * along + start) + 0.5, 0, 1)
    if background.kind == "checkers":
        return np.clip(8 * np.sin(turns * along + start) * np.sin(turns * across + start) + 0.5, 0, 1)
    if background.kind == "blobs":
        waves = np.sin(turns * along + 2 * np.sin(turns * across / 2 + start))
        return np.asarray(0.5 + 0.5 * waves * np.cos(turns * across / 2), dtype=np.float32)
    raise ValueError(f"background kind {background.kind!r} is not drawn here")


@lru_cache(maxsize=1)
def _noise_bank() -> Frames:
    """Bell-shaped noise within +-`NOISE_REACH`, as bytes to add modulo 256."""
    third = NOISE_REACH // 3
    draws = np.random.default_rng(0).integers(-third, third + 1, size=(3, _NOISE_VALUES), dtype=np.int8)
    return draws.sum(axis=0, dtype=np.int8).view(np.uint8)


def _noise(which: int, values: int) -> Frames:
    """`values` bytes of noise from the bank, from a place of the scene's own."""
    start = which % _NOISE_VALUES
    copies = math.ceil((start + values) / _NOISE_VALUES)
    return np.tile(_noise_bank(), copies)[start : start + values]


# The shapes: signed distance (negative inside) to an outline of about unit radius from (u, v), v downwards.


def _circle(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - np.float32(0.92)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)


def _triangle(u: Array, v: Array) -> Array:
    """Corners (0, -1) and (+-1, 0.8)."""
    slant = (np.float32(1.8) * np.abs(u) - v - 1) / np.float32(math.hypot(1.8, 1))
    return np.maximum(v - np.float32(0.8), slant)


def _star(u: Array, v: Array) -> Array:
    """Five points of radius 1 about an inner radius of 0.42, folded onto the one upright half-point."""
    fifth = np.float32(2 * math.pi / 5)
    angle = np.arctan2(u, -v)
    angle = np.abs(angle - fifth * np.round(angle / fifth))
    radius = np.hypot(u, v)
    inner_x, inner_y = 0.42 * math.sin(math.pi / 5), 0.42 * math.cos(math.pi / 5)
    length = math.hypot(inner_x, 1 - inner_y)
    normal_x, normal_y = np.float32((1 - inner_y) / length), np.float32(inner_x / length)
    return normal_x * radius * np.sin(angle) + normal_y * (radius * np.cos(angle) - np.float32(1))


def _cross(u: Array, v: Array) -> Array:
    wide, high = np.abs(u), np.abs(v)
    arm, half = np.float32(0.95), np.float32(0.28)
    return np.minimum(np.maximum(wide - arm, high - half), np.maximum(high - arm, wide - half))


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.hypot(u, v) - np.float32(0.76)) - np.float32(0.2)


def _diamond(u: Array, v: Array) -> Array:
    """Tall: half as wide as high, so that it is no square on its corner."""
    return (np.abs(u) + np.float32(0.55) * np.abs(v) - np.float32(0.55)) / np.float32(math.hypot(1, 0.55))


def _heart(u: Array, v: Array) -> Array:
    """Two half discs on the upper sides of a square that stands on its corner."""
    x, y = np.abs(u) / np.float32(1.6), (np.float32(0.95) - v) / np.float32(1.6)
    disc = np.hypot(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(math.sqrt(2) / 4)
    corner = np.maximum(x - y, x + y - 1) / np.float32(math.sqrt(2))
    return np.minimum(disc, corner) * np.float32(1.6)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "heart": _heart,
}
