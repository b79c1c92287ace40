"""Instructions of gCOG as trees: what they mean and how they read (Ito et al. 2024, "On the generalization capacity of
neural networks during generic multimodal reasoning", section 2).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perceiver_vl.utils.errors import UsageError

SIDE = 10
"""Of the grid, in cells."""
SHAPES = tuple("abcdefghijklmnopqrstuvwxyz")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "pink", "cyan", "brown")
PARITIES = ("sumeven", "sumodd", "producteven", "productodd")
BOOLEANS = ("exist", *PARITIES)
"""Operators whose answer is yes or no: those that a switch can ask."""
OPERATORS = ("exist", "go", "getcolor", "getshape", "sumeven", "producteven", "productodd", "sumodd")
"""In the order of their numbers, from 1."""

Place = tuple[int, int]
Answer = bool | str | Place


@dataclass(frozen=True)
class Letter:
    """A coloured letter at a place of the grid; distractors make way for what an instruction speaks of."""

    place: Place
    colour: str
    shape: str
    distractor: bool = False


@dataclass(frozen=True)
class Selector:
    """All letters of a colour and shape, None: of any. What is drawn for it is put at `place` and, where it leaves its
    colour or shape open, has the one that is `drawn`; neither is part of the instruction.
    """

    colour: str | None
    shape: str | None
    place: Place = (0, 0)
    drawn: str = ""

    def of(self, letters: Iterable[Letter]) -> list[Letter]:
        """Those that it means, ordered by place, colour and shape."""
        found = (one for one in letters if self.colour in (None, one.colour) and self.shape in (None, one.shape))
        return sorted(found, key=lambda one: (one.place, one.colour, one.shape))

    def __str__(self) -> str:
        return " ".join(["current", *filter(None, [self.colour]), self.shape or "object"])


@dataclass(frozen=True)
class Node:
    """One operator of `OPERATORS`, with one selector, or (`PARITIES`) two."""

    operator: str
    selectors: tuple[Selector, ...]

    def answer(self, letters: Sequence[Letter]) -> Answer:
        """On a stimulus. Raises `ValueError` where it has none: nothing to tell of, or more than one to reckon with."""
        found = [selector.of(letters) for selector in self.selectors]
        if self.operator == "exist":
            return bool(found[0])
        if self.operator in PARITIES:
            if any(len(some) != 1 for some in found):
                raise ValueError(f"{self}: needs exactly one letter a selector, finds {[len(some) for some in found]}")
            numbers = [number for some in found for number in some[0].place]
            result = sum(numbers) if self.operator.startswith("sum") else math.prod(numbers)
            return result % 2 == (1 if self.operator.endswith("odd") else 0)
        if not found[0]:
            raise ValueError(f"{self}: no such letter")
        first = found[0][0]
        if self.operator == "go":
            return first.place
        return first.colour if self.operator == "getcolor" else first.shape

    def __str__(self) -> str:
        words = [str(selector) for selector in self.selectors]
        if self.operator == "exist":
            return f"{words[0]} exist"
        if self.operator in PARITIES:
            kind = "sum" if self.operator.startswith("sum") else "product"
            sign = " + " if kind == "sum" else " * "
            return f"{sign.join(words)} {kind} is {self.operator.removeprefix(kind)}"
        return f"{({'go': 'loc', 'getcolor': 'color', 'getshape': 'shape'})[self.operator]} of {words[0]}"


@dataclass(frozen=True)
class Switch:
    """One question decides which of two instructions is to be answered; the other one is not asked at all."""

    condition: Node
    then: "Tree"
    otherwise: "Tree"

    def answer(self, letters: Sequence[Letter]) -> Answer:
        """On a stimulus; raises as `Node.answer`."""
        return (self.then if self.condition.answer(letters) else self.otherwise).answer(letters)

    def __str__(self) -> str:
        return f"[ if {self.condition} , then {self.then} , else {self.otherwise} ]"


Tree = Node | Switch


def instruction(tree: Tree) -> str:
    """In words; a single operator is a question."""
    return f"{tree} ?" if isinstance(tree, Node) else str(tree)


def depth(tree: Tree) -> int:
    """As the paper counts it: a switch is a level of its own, so 1, 3, 5, …"""
    return 1 if isinstance(tree, Node) else 2 + max(depth(tree.then), depth(tree.otherwise))


def by_level(tree: Tree) -> list[Node | None]:
    """Operators as an instruction's tokens have them: level by level, after a condition its switch (None)."""
    rows: list[Node | None] = []
    level: list[Tree] = [tree]
    while level:
        rows += [one.condition if isinstance(one, Switch) else one for one in level]
        switches = [one for one in level if isinstance(one, Switch)]
        rows += [None] * len(switches)
        level = [child for one in switches for child in (one.then, one.otherwise)]
    return rows


def tree_from(told: Mapping[str, Any]) -> Tree:
    """`{"op": "switch", "if": …, "then": …, "else": …}` or `{"op": …, "select": [{"color": …, "shape": …}, …]}` → the
    tree. Raises `UsageError` for an operator that is unknown.
    """
    if told["op"] == "switch":
        condition = tree_from(told["if"])
        if not isinstance(condition, Node) or condition.operator not in BOOLEANS:
            raise UsageError(f"op={told['if']['op']}: is no yes or no, a switch needs one of {', '.join(BOOLEANS)}")
        return Switch(condition, tree_from(told["then"]), tree_from(told["else"]))
    if told["op"] not in OPERATORS:
        raise UsageError(f"op={told['op']}: unknown, choose from switch, {', '.join(OPERATORS)}")
    return Node(told["op"], tuple(Selector(one["color"], one["shape"]) for one in told["select"]))
