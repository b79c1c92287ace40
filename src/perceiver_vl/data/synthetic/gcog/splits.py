"""The three splits of gCOG and the instructions of their parts, drawn as the reference draws them (IBM/gcog), with
10 colours and the first 10 shapes for what instructions speak of. Quirks that are kept:

- The two halves of combinations of the systematic split of depth 1 overlap: 25 of the 50 of each are in both, and 25 of
  all 100 in neither. So half of the test's combinations were trained with the same operators.
- A sum's or product's second selector is of any of the 26 shapes.
- The selectors of a tree are drawn with replacement, so two operators may speak of the same letter.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np

from perceiver_vl.data.synthetic.gcog.trees import (
    BOOLEANS,
    COLOURS,
    OPERATORS,
    PARITIES,
    SHAPES,
    SIDE,
    Node,
    Place,
    Selector,
    Switch,
    Tree,
)
from perceiver_vl.utils.errors import UsageError

FEATURES = 10  # colours, and shapes, that instructions speak of
MOST_DISTRACTORS = 5
ENDS = ("exist", "sumeven", "producteven", "sumodd", "productodd", "getcolor", "getshape", "go")
HALVES = (
    tuple(product(COLOURS[: FEATURES // 2], SHAPES[:FEATURES])),
    tuple(product(COLOURS[:FEATURES], SHAPES[FEATURES // 2 : FEATURES])),
)
"""Combinations of colour and shape of the systematic split of depth 1."""
OPERATORS_OF_HALF = (("exist", "sumeven", "producteven", "getshape"), ("sumodd", "productodd", "go", "getcolor"))
ROOTS = (("exist", "sumeven", "producteven"), ("sumodd", "productodd"))
LEAVES = (("sumeven", "producteven", "getcolor", "getshape"), ("exist", "sumodd", "productodd", "go"))
"""Of the systematic split of depth 3: trained are roots with leaves of the same place, tested those crossed."""

_T = TypeVar("_T")
_PLACES: tuple[Place, ...] = tuple(product(range(SIDE), range(SIDE)))


@dataclass(frozen=True)
class Part:
    """How trees of one part of a split are: their depth, and how many distractors a stimulus has, at least and at most.
    half: of the systematic splits, 0 what is trained, 1 what is not.
    """

    depth: int
    distractors: tuple[int, int] = (0, MOST_DISTRACTORS)
    half: int | None = None


SPLITS: dict[str, dict[str, Part]] = {
    "distractor": {"train": Part(1)} | {f"test_{number}": Part(1, (number, number)) for number in (10, 20, 30, 40)},
    "systematic_depth1": {"train": Part(1, half=0), "test": Part(1, half=1)},
    "systematic_depth3": {"train": Part(3, half=0), "test": Part(3, half=1)},
    "productive": {"train": Part(3), "test": Part(5)},
}


def part_of(split: str, part: str) -> Part:
    """Raises `UsageError` for one that there is not."""
    if split not in SPLITS:
        raise UsageError(f"split={split}: unknown, choose from {', '.join(SPLITS)}")
    if part not in SPLITS[split]:
        raise UsageError(f"part={part}: not of the split {split}, choose from {', '.join(SPLITS[split])}")
    return SPLITS[split][part]


def draw_trees(split: str, part: str, per_operator: int, rng: np.random.Generator) -> list[Tree]:
    """Eight times `per_operator` instructions (the paper: 5,000): of depth 1 so many of each operator, else of all
    together. Raises `UsageError` as `part_of`.
    """
    how = part_of(split, part)
    if how.depth > 1:
        return [_tree(how, rng) for _ in range(per_operator * len(OPERATORS))]
    if how.half is None:
        combinations = tuple(product(COLOURS[:FEATURES], SHAPES[:FEATURES]))
        return [
            _single(operator, _pick(combinations, rng), _pick(_PLACES, rng))
            for operator in OPERATORS
            for _ in range(per_operator)
        ]
    trees: list[Tree] = []
    for own, operators in enumerate(OPERATORS_OF_HALF):
        everything = list(product(HALVES[own ^ how.half], _PLACES))
        for operator in operators:
            some = rng.permutation(len(everything))[:per_operator]  # the paper has each combination at each place
            trees += [_single(operator, *everything[number]) for number in some]
    return trees


def _single(operator: str, combination: tuple[str, str], place: Place) -> Tree:
    return _node(operator, [Selector(combination[0], combination[1], place)])


def _node(operator: str, selectors: list[Selector]) -> Node:
    """With what the operator asks for left open."""
    if operator == "getcolor":
        selectors = [replace(one, colour=None, drawn=one.colour or "") for one in selectors]
    if operator == "getshape":
        selectors = [replace(one, shape=None, drawn=one.shape or "") for one in selectors]
    return Node(operator, tuple(selectors))


def _pick(some: tuple[_T, ...], rng: np.random.Generator) -> _T:
    return some[int(rng.integers(len(some)))]


# --- Deeper trees -----------------------------------------------------------------------------------------------------


def _tree(how: Part, rng: np.random.Generator) -> Tree:
    roots: tuple[str, ...] = BOOLEANS
    ends: tuple[str, ...] = ENDS
    if how.half is not None:
        own = int(rng.integers(2))
        roots, ends = ROOTS[own], LEAVES[own ^ how.half]
    return _Drawing(rng).tree(how.depth, roots, ends)


class _Drawing:
    """One tree: letters of different colour or shape and different places, of which each operator takes one."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        combinations = list(product(COLOURS[:FEATURES], SHAPES[:FEATURES]))
        places = rng.permutation(len(_PLACES))
        self.letters = [
            Selector(colour, shape, _PLACES[place]) for (colour, shape), place in zip(combinations, places, strict=True)
        ]
        self.taken: set[Place] = set()
        self.nodes: list[tuple[str, list[Selector]]] = []

    def tree(self, depth: int, roots: tuple[str, ...], ends: tuple[str, ...]) -> Tree:
        kinds = self._kinds(depth, roots, ends)
        self._part_what_is_asked()
        nodes = iter([_node(operator, selectors) for operator, selectors in self.nodes])

        def assembled(kind: "_Kind") -> Tree:
            node = next(nodes)
            return Switch(node, *(assembled(child) for child in kind)) if kind else node

        return assembled(kinds)

    def _kinds(self, depth: int, roots: tuple[str, ...], ends: tuple[str, ...]) -> "_Kind":
        """Draw the operators, conditions first; → the form of the tree."""
        self.nodes.append(self._operator(_pick(ends if depth == 1 else roots, self.rng)))
        return () if depth == 1 else tuple(self._kinds(depth - 2, roots, ends) for _ in range(2))

    def _operator(self, operator: str) -> tuple[str, list[Selector]]:
        number = int(self.rng.integers(1, 3)) if operator in PARITIES else 1
        first = self.letters[int(self.rng.integers(len(self.letters)))]
        if first.place in self.taken:
            first = replace(first, place=self._free_place())
        self.taken.add(first.place)
        if number == 1:
            return operator, [first]
        place = self._free_place()
        self.taken.add(place)
        return operator, [first, Selector(_pick(COLOURS, self.rng), _pick(SHAPES, self.rng), place=place)]

    def _free_place(self) -> Place:
        while (place := _pick(_PLACES, self.rng)) in self.taken:
            pass
        return place

    def _part_what_is_asked(self) -> None:
        """A colour that two `getcolor` are to find is no longer what a `getshape` goes by, nor a shape the other way
        round: it takes one that none is to find.
        """
        found = {
            "colour": [one.colour for operator, some in self.nodes if operator == "getcolor" for one in some],
            "shape": [one.shape for operator, some in self.nodes if operator == "getshape" for one in some],
        }
        free = {
            "colour": [one for one in COLOURS if one not in found["colour"]],
            "shape": [one for one in SHAPES if one not in found["shape"]],
        }
        for number, (operator, some) in enumerate(self.nodes):
            kind = {"getcolor": "shape", "getshape": "colour"}.get(operator)
            if kind is None or Counter(found[kind])[getattr(some[0], kind)] < 2:
                continue
            other = free[kind].pop(int(self.rng.integers(len(free[kind]))))
            found[kind].append(other)
            changed = replace(some[0], colour=other) if kind == "colour" else replace(some[0], shape=other)
            self.nodes[number] = operator, [changed]


_Kind = tuple["_Kind", ...]
