"""What a thing can do for a part of a clip, once or several times, one action after the other.

As in `scene`: lengths are fractions of the picture's side, y grows downwards, a clip's time runs from 0 to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perceiver_vl.data.synthetic.scene import Floats, Pose

TRAVEL = 0.2
"""How far a move goes, where there is room: 13 of 64 pixels, most of a patch of 16."""
_SCALING = math.log(1.7)


class Trajectory(NamedTuple):
    """What an action does to an object, (T,): its way in units of its `travel`, log growth, opacity."""

    dx: Floats | float = 0.0
    dy: Floats | float = 0.0
    growth: Floats | float = 0.0
    opacity: Floats | float = 1.0


class Action(NamedTuple):
    """An action in words, "what does it do?" and "does it …?", and its trajectory over the progress p (T,) from 0 to 1.

    `returns`: it ends as it began, and so can be done several times, which the trajectory is asked for p in [0, 1).
    """

    does: str
    do: str
    trajectory: Callable[[Floats], Trajectory]
    returns: bool = False


def _bump(p: Floats) -> Floats:
    return np.sin(math.pi * p)


def _shown(p: Floats) -> Floats:
    """All but the middle half."""
    return (np.abs(p - 0.5) > 0.25).astype(np.float64)


def _during(p: Floats) -> Floats:
    return ((p > 0) & (p < 1)).astype(np.float64)


ACTIONS: dict[str, Action] = {
    "left": Action("moves left", "move left", lambda p: Trajectory(dx=-p)),
    "right": Action("moves right", "move right", lambda p: Trajectory(dx=p)),
    "up": Action("moves up", "move up", lambda p: Trajectory(dy=-p)),
    "down": Action("moves down", "move down", lambda p: Trajectory(dy=p)),
    "grows": Action("grows", "grow", lambda p: Trajectory(growth=_SCALING * p)),
    "shrinks": Action("shrinks", "shrink", lambda p: Trajectory(growth=-_SCALING * p)),
    "jumps": Action("jumps", "jump", lambda p: Trajectory(dy=-_bump(p)), returns=True),
    "dips": Action("dips", "dip", lambda p: Trajectory(dy=_bump(p)), returns=True),
    "shakes": Action("shakes", "shake", lambda p: Trajectory(dx=0.6 * np.sin(2 * math.pi * p)), returns=True),
    "swells": Action("swells", "swell", lambda p: Trajectory(growth=_SCALING * _bump(p)), returns=True),
    "blinks": Action("blinks", "blink", lambda p: Trajectory(opacity=_shown(p)), returns=True),
    "circles": Action(
        "goes round",
        "go round",
        lambda p: Trajectory(0.5 * np.sin(2 * math.pi * p), 0.5 * np.cos(2 * math.pi * p) - 0.5),
        returns=True,
    ),
}
REPEATABLE = tuple(name for name, action in ACTIONS.items() if action.returns)
EVENTS: dict[str, Action] = {
    "appears": Action("appears", "appear", lambda p: Trajectory(opacity=_during(p))),
    "vanishes": Action("vanishes", "vanish", lambda p: Trajectory(opacity=1 - _during(p))),
    "grows": Action("grows", "grow", lambda p: Trajectory(growth=_SCALING * np.minimum(1, 4 * _bump(p)))),
}
"""What happens once for a moment of a long clip, after which all is as before."""
OPPOSITES = {frozenset(pair) for pair in (("left", "right"), ("up", "down"), ("grows", "shrinks"))}
"""Done one after the other, these look like a third action."""


@dataclass(frozen=True)
class TimedAction:
    """An action (or, `event`, one of `EVENTS`) from `start` to `end` of the clip, `times` in a row."""

    action: str
    start: float
    end: float
    times: int = 1
    event: bool = False

    def trajectory(self, times: Floats) -> Trajectory:
        """At `times` (T,): as the action found the thing before it, as the action left the thing after it."""
        p = np.clip((times - self.start) / (self.end - self.start), 0, 1)
        if self.event:
            return EVENTS[self.action].trajectory(p)
        action = ACTIONS[self.action]
        return action.trajectory((p * self.times) % 1 if action.returns else p)


@dataclass(frozen=True)
class GridObject:
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
    actions: tuple[TimedAction, ...] = ()

    @property
    def combination(self) -> tuple[str, str]:
        """Its colour and shape."""
        return self.colour, self.shape

    def pose(self, times: Floats) -> Pose:
        """Where it is, how large and how visible, at `times` (T,)."""
        zeros = np.zeros_like(times)
        dx, dy, growth, opacity = zeros, zeros, zeros, zeros + 1
        for action in self.actions:
            trajectory = action.trajectory(times)
            dx, dy, growth = dx + trajectory.dx, dy + trajectory.dy, growth + trajectory.growth
            opacity = opacity * trajectory.opacity
        return Pose(self.x + self.travel * dx, self.y + self.travel * dy, self.radius * np.exp(growth), opacity)

    @property
    def action_names(self) -> tuple[str, ...]:
        """The names of what it does, in the order of time."""
        return tuple(action.action for action in self.actions)
