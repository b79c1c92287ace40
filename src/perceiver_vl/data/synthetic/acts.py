"""What a thing can do for a part of a clip, once or several times, one act after the other.

As in `scene`: lengths are fractions of the picture's side, y grows downwards, a clip's time runs from 0 to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perceiver_vl.data.synthetic.scene import Floats, Pose

TRAVEL = 0.15
"""How far a move goes, where there is room."""
_SCALING = math.log(1.7)


class Course(NamedTuple):
    """What an act does to a thing: its way in units of its `travel`, the logarithm of its growth, its opacity; (T,)."""

    dx: Floats | float = 0.0
    dy: Floats | float = 0.0
    growth: Floats | float = 0.0
    opacity: Floats | float = 1.0


class Act(NamedTuple):
    """An act in words, "what does it do?" and "does it …?", and its course over the progress p (T,) from 0 to 1.

    `returns`: it ends as it began, and so can be done several times, which the course is asked for p in [0, 1).
    """

    does: str
    do: str
    course: Callable[[Floats], Course]
    returns: bool = False


def _bump(p: Floats) -> Floats:
    return np.sin(math.pi * p)


def _shown(p: Floats) -> Floats:
    """All but the middle half."""
    return (np.abs(p - 0.5) > 0.25).astype(np.float64)


def _during(p: Floats) -> Floats:
    return ((p > 0) & (p < 1)).astype(np.float64)


ACTS: dict[str, Act] = {
    "left": Act("moves left", "move left", lambda p: Course(dx=-p)),
    "right": Act("moves right", "move right", lambda p: Course(dx=p)),
    "up": Act("moves up", "move up", lambda p: Course(dy=-p)),
    "down": Act("moves down", "move down", lambda p: Course(dy=p)),
    "grows": Act("grows", "grow", lambda p: Course(growth=_SCALING * p)),
    "shrinks": Act("shrinks", "shrink", lambda p: Course(growth=-_SCALING * p)),
    "jumps": Act("jumps", "jump", lambda p: Course(dy=-_bump(p)), returns=True),
    "dips": Act("dips", "dip", lambda p: Course(dy=_bump(p)), returns=True),
    "shakes": Act("shakes", "shake", lambda p: Course(dx=0.6 * np.sin(2 * math.pi * p)), returns=True),
    "swells": Act("swells", "swell", lambda p: Course(growth=_SCALING * _bump(p)), returns=True),
    "blinks": Act("blinks", "blink", lambda p: Course(opacity=_shown(p)), returns=True),
    "circles": Act(
        "goes round",
        "go round",
        lambda p: Course(0.5 * np.sin(2 * math.pi * p), 0.5 * np.cos(2 * math.pi * p) - 0.5),
        returns=True,
    ),
}
REPEATABLE = tuple(name for name, act in ACTS.items() if act.returns)
EVENTS: dict[str, Act] = {
    "appears": Act("appears", "appear", lambda p: Course(opacity=_during(p))),
    "vanishes": Act("vanishes", "vanish", lambda p: Course(opacity=1 - _during(p))),
    "grows": Act("grows", "grow", lambda p: Course(growth=_SCALING * np.minimum(1, 4 * _bump(p)))),
}
"""What happens once for a moment of a long clip, after which all is as before."""
OPPOSITES = {frozenset(pair) for pair in (("left", "right"), ("up", "down"), ("grows", "shrinks"))}
"""Done one after the other, these look like a third act."""


@dataclass(frozen=True)
class Doing:
    """An act (or, `event`, one of `EVENTS`) from `start` to `end` of the clip, `times` in a row."""

    act: str
    start: float
    end: float
    times: int = 1
    event: bool = False

    def course(self, times: Floats) -> Course:
        """At `times` (T,): as the act found the thing before it, as the act left the thing after it."""
        p = np.clip((times - self.start) / (self.end - self.start), 0, 1)
        if self.event:
            return EVENTS[self.act].course(p)
        act = ACTS[self.act]
        return act.course((p * self.times) % 1 if act.returns else p)


@dataclass(frozen=True)
class Actor:
    """A coloured shape at home in a cell, its row and column of the 3 x 3 grid, that does things there.

    `x, y` is where it starts, `radius` its radius there, `travel` how far its moves go.
    """

    size: str
    colour: str
    shape: str
    cell: tuple[int, int]
    x: float
    y: float
    radius: float
    travel: float = TRAVEL
    doings: tuple[Doing, ...] = ()

    def pose(self, times: Floats) -> Pose:
        """Where it is, how large and how visible, at `times` (T,)."""
        courses = [doing.course(times) for doing in self.doings]
        zeros = np.zeros_like(times)
        dx, dy, growth, opacity = zeros, zeros, zeros, zeros + 1
        for course in courses:
            dx, dy, growth = dx + course.dx, dy + course.dy, growth + course.growth
            opacity = opacity * course.opacity
        return Pose(self.x + self.travel * dx, self.y + self.travel * dy, self.radius * np.exp(growth), opacity)

    @property
    def acts(self) -> tuple[str, ...]:
        """The names of what it does, in the order of time."""
        return tuple(doing.act for doing in self.doings)
