"""Statements about two pictures, true or false, as in NLVR2: each is said of four pairs, and true of two of them.

Of each pair it would be true of one noun and false of another, of which one is asked about: numbers alone say nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from perceiver_vl.data.synthetic.grid import GridScene, draw_cells, draw_grid_scene, draw_objects, is_of_split, pick
from perceiver_vl.data.synthetic.references import (
    Difficulty,
    Noun,
    difficulty_of,
    draw_counted,
    draw_nouns,
    plural,
    with_article,
)

PAIRS_PER_STATEMENT = 4
_MOST = 2
_EXTRA, _MORE_EXTRA = (1, 1), (4, 5)


@dataclass(frozen=True)
class Statement:
    """A statement about how many things of a noun there are: `holds(left, right)`; kind: its form. other: a noun of
    which it would be true where it is false of its own, and false where it is true.
    """

    text: str
    kind: str
    noun: Noun
    other: Noun
    holds: Callable[[int, int], bool]


@dataclass(frozen=True)
class Pair:
    """Two pictures, what is said of them, and whether it is true."""

    left: GridScene
    right: GridScene
    text: str
    kind: str
    truth: bool


def draw_statements(rng: np.random.Generator, split: str) -> tuple[Statement, ...]:
    """One statement, or (test-productive) two of different nouns, which "and" will join."""
    difficulty = difficulty_of(split)
    if not difficulty.deep:
        return (_draw_statement(rng, *draw_nouns(rng, difficulty, 2)),)
    nouns = draw_nouns(rng, difficulty, 4)
    return _draw_statement(rng, nouns[0], nouns[2]), _draw_statement(rng, nouns[1], nouns[3])


def _draw_statement(rng: np.random.Generator, noun: Noun, other: Noun) -> Statement:
    one, many = with_article(str(noun)), plural(str(noun))
    side, number = int(rng.integers(2)), int(rng.integers(1, _MOST + 1))
    where = ("left", "right")[side]
    counted = f"{number} {many if number > 1 else noun}"
    are = "are" if number > 1 else "is"
    return pick(
        rng,
        (
            Statement(f"there are more {many} in the {where} picture", "more", noun, other, _more_on(side)),
            Statement(f"both pictures hold {one}", "both", noun, other, lambda left, right: bool(left and right)),
            Statement(
                f"only one picture holds {one}", "one", noun, other, lambda left, right: bool(left) != bool(right)
            ),
            Statement(
                f"the {where} picture holds exactly {counted}", "exactly", noun, other, _exactly_on(side, number)
            ),
            Statement(f"the pictures hold equally many {many}", "same", noun, other, lambda left, right: left == right),
            Statement(
                f"there {are} {counted} in all", "total", noun, other, lambda left, right: left + right == number
            ),
        ),
    )


def _more_on(side: int) -> Callable[[int, int], bool]:
    return lambda left, right: left > right if side == 0 else right > left


def _exactly_on(side: int, number: int) -> Callable[[int, int], bool]:
    return lambda left, right: (left, right)[side] == number


def draw_pair(rng: np.random.Generator, split: str, statements: tuple[Statement, ...], truth: bool) -> Pair:
    """Two pictures of a split, of which the statements are true; or of which one statement, no matter which, is not."""
    difficulty = difficulty_of(split)
    wanted = [True] * len(statements)
    wanted[rng.integers(len(statements))] = truth
    left: dict[Noun, int] = {}
    right: dict[Noun, int] = {}
    for statement, holds in zip(statements, wanted, strict=True):
        for noun, its in ((statement.noun, holds), (statement.other, not holds)):
            numbers = product(range(_MOST + 1), repeat=2)
            left[noun], right[noun] = pick(rng, [(a, b) for a, b in numbers if statement.holds(a, b) == its])
    text = " and ".join(statement.text for statement in statements)
    kind = "and" if difficulty.deep else statements[0].kind
    return Pair(_picture(rng, difficulty, split, left), _picture(rng, difficulty, split, right), text, kind, truth)


def _picture(rng: np.random.Generator, difficulty: Difficulty, split: str, numbers: dict[Noun, int]) -> GridScene:
    least, most = _MORE_EXTRA if difficulty.crowded else _EXTRA
    while True:
        combinations = draw_counted(rng, numbers, int(rng.integers(least, most + 1)))
        scene = draw_grid_scene(rng, draw_objects(rng, draw_cells(rng, len(combinations)), combinations))
        if is_of_split(scene, split):
            return scene
