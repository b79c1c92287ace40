"""Where the objects of a question are: in some of the nine cells of a grid, each within its own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from perceiver_vl.data.synthetic.actions import GridObject, TimedAction
from perceiver_vl.data.synthetic.render import paint
from perceiver_vl.data.synthetic.scene import (
    COLOURS,
    SHAPES,
    SIZES,
    SPLITS,
    Background,
    Floats,
    draw_background,
    hash_split,
)
from perceiver_vl.media.sampling import Frames

GENERALISATION = ("test-distractor", "test-systematic", "test-productive")
"""Splits that differ from training in one respect each, as gCOG's do: more things about; combinations of colour and
shape that training never shows; a question that is made of more parts than any in training (arXiv 2401.15030)."""
TASK_SPLITS = (*SPLITS, *GENERALISATION)
T = TypeVar("T")
GRID = 3
Cell = tuple[int, int]
"""Row and column."""
CELLS: tuple[Cell, ...] = tuple((row, column) for row in range(GRID) for column in range(GRID))
RELATIONS: dict[str, Cell] = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""In words, and the step from the other thing's cell: "the thing left of X" stands in the next cell, in X's row."""
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""The cells in words, in the order of `CELLS`."""
_RADII = {"small": 0.075, "large": 0.14}
_ACTING_RADIUS = 0.08
_APART = 0.32
_JITTER = 0.015
_LONGEST_WAY = 0.22
_VARIES = 0.06
Combination = tuple[str, str]
"""Colour and shape."""
_COMBINATIONS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def is_held_out(combination: Combination) -> bool:
    """Whether a colour and shape are kept for `test-systematic`: 16 of the 64, each colour and each shape in two."""
    colour, shape = combination
    return (tuple(COLOURS).index(colour) + SHAPES.index(shape)) % 4 == 3


HELD_OUT = tuple(one for one in _COMBINATIONS if is_held_out(one))
SEEN = tuple(one for one in _COMBINATIONS if not is_held_out(one))


@dataclass(frozen=True)
class GridScene:
    """A background and the objects on it; later ones hide earlier ones, `noise` picks the pixel noise."""

    background: Background
    objects: tuple[GridObject, ...]
    noise: int

    def render(self, times: Floats, size: int) -> Frames:
        """RGB bytes (T, size, size, 3) at `times` (T,) in [0, 1]; a frame does not depend on the others."""
        # A number for each moment, spread over the bank of noise.
        noises = (self.noise + np.round(times * 1e7).astype(np.int64) * 40_503).tolist()
        return paint(self.background, self.objects, noises, times, size)

    @property
    def key(self) -> str:
        """All that can be asked about it."""
        objects = (
            f"{one.size} {one.colour} {one.shape} {one.cell} "
            + ",".join(f"{action.action}*{action.times}" for action in one.actions)
            for one in self.objects
        )
        return "|".join(sorted(objects))


def is_of_split(scene: GridScene, split: str) -> bool:
    """Whether a scene may occur in `split`: in training, or validation, or the test splits, in every world."""
    return hash_split(scene.key) == split.partition("-")[0]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def pick_some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones of `options`, in random order."""
    return [options[place] for place in rng.permutation(len(options))[:count].tolist()]


def draw_cells(rng: np.random.Generator, count: int, relations: Sequence[str] = ()) -> list[Cell]:
    """`count` different cells, of which each is in the next one's relation: cell 0 `relations[0]` cell 1, and so on."""
    steps = [RELATIONS[relation] for relation in relations]
    chains = []
    for cell in CELLS:
        chain = [cell]
        for down, right in steps:
            chain.append((chain[-1][0] - down, chain[-1][1] - right))
        if set(chain) <= set(CELLS) and len(set(chain)) == len(chain):
            chains.append(chain)
    chain = pick(rng, chains)
    return chain + pick_some(rng, [cell for cell in CELLS if cell not in chain], count - len(chain))


def draw_relations(rng: np.random.Generator, depth: int) -> list[str]:
    """`depth` relations that can follow each other within the grid, without coming back to a cell."""
    while True:
        relations = [pick(rng, tuple(RELATIONS)) for _ in range(depth)]
        row = column = 0
        visited = [(0, 0)]
        for relation in relations:
            row, column = row - RELATIONS[relation][0], column - RELATIONS[relation][1]
            visited.append((row, column))
        spans = (max(one[axis] for one in visited) - min(one[axis] for one in visited) for axis in (0, 1))
        if len(set(visited)) == len(visited) and max(spans) < GRID:
            return relations


def draw_objects(
    rng: np.random.Generator, cells: Sequence[Cell], combinations: Sequence[Combination], acting: bool = False
) -> list[GridObject]:
    """An object of each combination in each cell; those that are to act are of one size, which leaves them room."""
    return [_draw_object(rng, cell, one, acting) for cell, one in zip(cells, combinations, strict=True)]


def _draw_object(rng: np.random.Generator, cell: Cell, combination: Combination, acting: bool) -> GridObject:
    size = pick(rng, tuple(SIZES))
    colour, shape = combination
    y, x = (0.5 + _APART * (place - 1) + rng.uniform(-_JITTER, _JITTER) for place in cell)
    radius = (_ACTING_RADIUS if acting else _RADII[size]) * rng.uniform(1 - _VARIES, 1 + _VARIES)
    return GridObject("" if acting else size, colour, shape, cell, x, y, radius)


def resized(rng: np.random.Generator, one: GridObject, size: str) -> GridObject:
    """The object in another size."""
    return replace(one, size=size, radius=_RADII[size] * rng.uniform(1 - _VARIES, 1 + _VARIES))


def settled(scene: GridScene) -> GridScene:
    """The scene with each object's way moved so that its middle is where it stood, and made to fit its cell."""
    return replace(scene, objects=tuple(_settled(one) if one.actions else one for one in scene.objects))


def _settled(one: GridObject) -> GridObject:
    ways = one.pose(np.linspace(0, 1, 101))[:2]
    longest = max(float(np.ptp(way)) for way in ways)
    shorter = min(1.0, _LONGEST_WAY / max(longest, 1e-9))
    middles = [(float(way.min()) + float(way.max())) / 2 for way in ways]
    x, y = (stood + shorter * (stood - middle) for stood, middle in zip((one.x, one.y), middles, strict=True))
    return replace(one, x=x, y=y, travel=one.travel * shorter)


def draw_grid_scene(rng: np.random.Generator, objects: Iterable[GridObject]) -> GridScene:
    """The objects before a random background."""
    return GridScene(draw_background(rng), tuple(objects), int(rng.integers(2**31)))


def repeated(rng: np.random.Generator, action: str, times: int = 1) -> tuple[TimedAction, ...]:
    """One action that takes most of a clip."""
    return (TimedAction(action, rng.uniform(0.02, 0.08), rng.uniform(0.9, 0.97), times),)


def in_turn(rng: np.random.Generator, actions: Sequence[str], times: Sequence[int] = ()) -> tuple[TimedAction, ...]:
    """Acts one after the other, each in its part of the clip, with a rest between."""
    shares = np.array(times or [1] * len(actions)) + 0.5 + rng.uniform(0, 0.2, size=len(actions))
    ends = np.cumsum(shares) / shares.sum()
    starts = [0.0, *ends[:-1].tolist()]
    return tuple(
        TimedAction(action, start + 0.03, end - 0.03, count)
        for action, start, end, count in zip(actions, starts, ends.tolist(), times or [1] * len(actions), strict=True)
    )
