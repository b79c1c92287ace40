"""Which thing a question is about, in words: "the red circle", "the thing left of the thing above the star"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perceiver_vl.data.synthetic.actions import ACTIONS, GridObject, TimedAction
from perceiver_vl.data.synthetic.grid import (
    HELD_OUT,
    RELATIONS,
    SEEN,
    Combination,
    draw_cells,
    draw_objects,
    draw_relations,
    is_held_out,
    pick,
    pick_some,
    resized,
)
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SIZES


@dataclass(frozen=True)
class Difficulty:
    """What sets the questions of a split apart.

    still, acting: the least and the most objects, where they stand still and where they do something. extra: those
    beside three kinds of which one is counted. depths: how many relations ("left of") a reference may have. held_out:
    whether the object asked about has a combination of colour and shape that training never shows.
    """

    still: tuple[int, int] = (5, 6)
    acting: tuple[int, int] = (4, 5)
    extra: int = 0
    depths: tuple[int, ...] = (0, 1)
    held_out: bool = False

    def from_fewer(self, fewest: int | None) -> "Difficulty":
        """The same with as few objects as `fewest`, where that is less."""
        if fewest is None:
            return self
        return replace(
            self,
            still=(min(fewest, self.still[0]), self.still[1]),
            acting=(min(fewest, self.acting[0]), self.acting[1]),
        )

    @property
    def deep(self) -> bool:
        """Whether every question is made of more parts than those of training."""
        return min(self.depths) > 1

    @property
    def crowded(self) -> bool:
        """Whether there are more things about than in training."""
        return self.still[0] > _STANDARD.still[1]


_STANDARD = Difficulty()
_OF_SPLIT = {
    "test-distractor": Difficulty(still=(7, 8), acting=(7, 8), extra=3),
    "test-systematic": Difficulty(held_out=True),
    "test-productive": Difficulty(depths=(2, 3)),
}


def difficulty_of(split: str) -> Difficulty:
    """Those of the three splits of generalisation, or of training, validation and test."""
    return _OF_SPLIT.get(split, _STANDARD)


@dataclass(frozen=True)
class Reference:
    """The objects of a scene, and the way to the first, which is asked about: from the one named by its looks or
    by what it does, the last of as many as there are `relations`, back over those between.
    """

    objects: tuple[GridObject, ...]
    relations: tuple[str, ...] = ()

    @property
    def named(self) -> GridObject:
        """The one that is named."""
        return self.objects[len(self.relations)]

    def with_actions(self, actions: Sequence[tuple[TimedAction, ...]]) -> "Reference":
        """The same objects, each with something to do."""
        pairs = zip(self.objects, actions, strict=True)
        return replace(self, objects=tuple(replace(one, actions=does) for one, does in pairs))


def draw_reference(
    rng: np.random.Generator,
    difficulty: Difficulty,
    acting: bool = False,
    depth: int | None = None,
    apart: bool = False,
) -> Reference:
    """Objects of different combinations of colour and shape; `depth`: how many relations (None: as the split has).

    The objects that a reference passes are drawn freely, so that its words do not tell what they are like; those it
    does not mention are like the one asked about in colour or in shape. `apart`: no two are alike in either, and as
    many are small as large, so that to know what there is does not tell what one of them is.
    """
    depth = pick(rng, difficulty.depths) if depth is None else depth
    relations = draw_relations(rng, depth)
    least, most = difficulty.acting if acting else difficulty.still
    count = max(int(rng.integers(least, most + 1)), depth + 1)
    if apart:
        combinations = draw_apart(rng, difficulty, count)
    else:
        combinations = _draw_alike(rng, difficulty, count, depth)
    objects = draw_objects(rng, draw_cells(rng, count, relations), combinations, acting)
    if apart and not acting:
        objects = balance_sizes(rng, objects)
    return Reference(tuple(objects), tuple(relations))


def _draw_alike(rng: np.random.Generator, difficulty: Difficulty, count: int, depth: int) -> list[Combination]:
    """All different; beyond those that a reference passes, most are like the first in colour or in shape."""
    combinations: list[Combination] = [pick(rng, HELD_OUT if difficulty.held_out else SEEN)]
    while len(combinations) < count:
        one = pick(rng, SEEN)
        if len(combinations) > depth:
            likeness = rng.random()
            if likeness < 0.4:
                one = one[0], combinations[0][1]
            elif likeness < 0.8:
                one = combinations[0][0], one[1]
        if one in SEEN and one not in combinations:
            combinations.append(one)
    return combinations


def draw_apart(rng: np.random.Generator, difficulty: Difficulty, count: int) -> list[Combination]:
    """Combinations of which no two have a colour or a shape in common."""
    while True:
        combinations: list[Combination] = [pick(rng, HELD_OUT if difficulty.held_out else SEEN)]
        for one in pick_some(rng, SEEN, len(SEEN)):
            if len(combinations) < count and not {part for other in combinations for part in other} & set(one):
                combinations.append(one)
        if len(combinations) == count:
            return combinations


def balance_sizes(rng: np.random.Generator, objects: Sequence[GridObject]) -> list[GridObject]:
    """As many small ones as large ones; of an odd number the first is of the more frequent size half of the time. A
    single one stays as it is.
    """
    if len(objects) == 1:
        return list(objects)
    first, other = pick_some(rng, tuple(SIZES), 2)
    more = (len(objects) - 1) // 2 - (len(objects) % 2 and int(rng.integers(2)))
    rest = [first] * more + [other] * (len(objects) - 1 - more)
    return [
        resized(rng, one, size) for one, size in zip(objects, (first, *pick_some(rng, rest, len(rest))), strict=True)
    ]


def reference_among(
    rng: np.random.Generator, difficulty: Difficulty, objects: Sequence[GridObject], depth: int | None = None
) -> Reference | None:
    """A way to any of the objects of a scene (of a split that holds combinations out: to one of those), or None where
    the one that was drawn has no neighbours to pass.
    """
    rest = pick_some(rng, objects, len(objects))
    chain = [next(one for one in rest if is_held_out(one.combination) == difficulty.held_out)]
    relations: list[str] = []
    for _ in range(pick(rng, difficulty.depths) if depth is None else depth):
        cell = chain[-1].cell
        steps = [
            (relation, one)
            for relation, (down, right) in RELATIONS.items()
            for one in rest
            if one not in chain and one.cell == (cell[0] - down, cell[1] - right)
        ]
        if not steps:
            return None
        relation, one = pick(rng, steps)
        relations.append(relation)
        chain.append(one)
    return Reference((*chain, *(one for one in rest if one not in chain)), tuple(relations))


def refer(
    rng: np.random.Generator, reference: Reference, without: str | None = None, by_action: bool = False
) -> str | None:
    """The words for the object asked about, not naming its attribute `without`; None if none are for it alone.

    `by_action`: at the end of relations an object may be named by the only action that it does and others do not.
    """
    named, direct = reference.named, not reference.relations
    names = names_of(named, reference.objects, without if direct else None)
    if by_action and not direct and len(named.actions) == 1:
        (action,) = named.action_names
        if sum(action in other.action_names for other in reference.objects) == 1:
            names.append(f"thing that {ACTIONS[action].does}")
    if not names:
        return None
    return "".join(f"the thing {relation} " for relation in reference.relations) + f"the {pick(rng, names)}"


def names_of(named: GridObject, objects: Sequence[GridObject], without: str | None = None) -> list[str]:
    """The nouns that fit this object alone and do not say its colour or shape if that is `without`."""
    nouns = Noun(named.colour, named.shape), Noun(None, named.shape), Noun(named.colour, None)
    allowed = [noun for noun in nouns if without is None or getattr(noun, without, None) is None]
    return [str(noun) for noun in allowed if sum(noun.fits(one.combination) for one in objects) == 1]


def plural(noun: str) -> str:
    """circles, crosses."""
    return noun + ("es" if noun.endswith("s") else "s")


def with_article(noun: str) -> str:
    """a circle, an orange circle."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclass(frozen=True)
class Noun:
    """What may be counted: "circle", "red thing" or "red circle"."""

    colour: str | None
    shape: str | None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.colour, self.shape or "thing")))

    def fits(self, combination: Combination) -> bool:
        """Whether a thing of this colour and shape is one."""
        return self.colour in (None, combination[0]) and self.shape in (None, combination[1])


def draw_noun(rng: np.random.Generator, difficulty: Difficulty) -> Noun:
    """Any of the three forms, or a combination that training never shows."""
    colour, shape = pick(rng, HELD_OUT if difficulty.held_out else SEEN)
    if difficulty.held_out:
        return Noun(colour, shape)
    return pick(rng, (Noun(colour, None), Noun(None, shape), Noun(colour, shape)))


def draw_nouns(rng: np.random.Generator, difficulty: Difficulty, count: int) -> list[Noun]:
    """Nouns of one form, of which no thing is two; of combinations the others are like the first in a part."""
    nouns = [draw_noun(rng, difficulty)]
    while len(nouns) < count:
        colour, shape = pick(rng, tuple(COLOURS)), pick(rng, SHAPES)
        first = nouns[0]
        one = Noun(colour if first.colour else None, shape if first.shape else None)
        if first.colour and first.shape:
            one = Noun(colour, first.shape) if rng.random() < 0.5 else Noun(first.colour, shape)
            if (one.colour, one.shape) not in SEEN:
                continue
        if one not in nouns:
            nouns.append(one)
    return nouns


def draw_counted(rng: np.random.Generator, numbers: Mapping[Noun, int], extra: int) -> list[Combination]:
    """So many things of each noun (none is of two), and `extra` of none, but like them in colour or in shape."""
    combinations: list[Combination] = []
    for noun, number in numbers.items():
        inside = [one for one in (*SEEN, *HELD_OUT) if noun.fits(one) and (one in SEEN or None not in _parts(noun))]
        combinations += [pick(rng, inside) for _ in range(number)]
    outside = [one for one in SEEN if not any(noun.fits(one) for noun in numbers)]
    like = [one for one in outside if any(part in one for noun in numbers for part in _parts(noun))]
    return combinations + [pick(rng, like or outside) for _ in range(extra)]


def _parts(noun: Noun) -> tuple[str | None, str | None]:
    return noun.colour, noun.shape
