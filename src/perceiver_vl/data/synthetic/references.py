"""Which thing a question is about, in words: "the red circle", "the thing left of the thing above the star"."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perceiver_vl.data.synthetic.acts import ACTS, Actor, Doing
from perceiver_vl.data.synthetic.storyboard import (
    HELD_OUT,
    USUAL,
    Combination,
    draw_cells,
    draw_relations,
    draw_things,
    pick,
)


@dataclass(frozen=True)
class Demands:
    """What a split asks of a question: how many things there may be, how many of them still or acting, how many steps
    ("left of") a reference may have, and whether the thing asked about has a combination that training never shows.
    """

    still: tuple[int, int] = (2, 5)
    acting: tuple[int, int] = (2, 4)
    extra: tuple[int, int] = (0, 2)
    depths: tuple[int, ...] = (0, 1)
    held_out: bool = False

    @property
    def deep(self) -> bool:
        """Whether every question is made of more parts than those of training."""
        return min(self.depths) > 1

    @property
    def crowded(self) -> bool:
        """Whether there are more things about than in training."""
        return self.still[0] > _USUAL_DEMANDS.still[1]


_USUAL_DEMANDS = Demands()
_OF_SPLIT = {
    "test-distractor": Demands(still=(7, 8), acting=(6, 7), extra=(3, 4)),
    "test-systematic": Demands(held_out=True),
    "test-productive": Demands(depths=(2, 3)),
}


def demands_of(split: str) -> Demands:
    """Those of the three splits of generalisation, or of training, validation and test."""
    return _OF_SPLIT.get(split, _USUAL_DEMANDS)


@dataclass(frozen=True)
class Cast:
    """Things of which the first is asked about; `relations` lead from it along the next ones to the thing named."""

    actors: tuple[Actor, ...]
    relations: tuple[str, ...]

    @property
    def named(self) -> Actor:
        return self.actors[len(self.relations)]

    def with_doings(self, doings: Sequence[tuple[Doing, ...]]) -> "Cast":
        """The same things, each with something to do."""
        pairs = zip(self.actors, doings, strict=True)
        return replace(self, actors=tuple(replace(actor, doings=does) for actor, does in pairs))


def draw_cast(rng: np.random.Generator, demands: Demands, acting: bool = False, depth: int | None = None) -> Cast:
    """Things of different combinations of colour and shape; `depth`: steps of the reference (None: as the split has).

    The things that a reference passes are drawn freely, so that its words do not tell what they are like; those it
    does not mention are like the thing asked about in colour or in shape.
    """
    depth = pick(rng, demands.depths) if depth is None else depth
    relations = draw_relations(rng, depth)
    least, most = demands.acting if acting else demands.still
    count = max(int(rng.integers(least, most + 1)), depth + 1)
    combinations: list[Combination] = [pick(rng, HELD_OUT if demands.held_out else USUAL)]
    while len(combinations) < count:
        one = pick(rng, USUAL)
        if len(combinations) > depth:
            likeness = rng.random()
            if likeness < 0.4:
                one = one[0], combinations[0][1]
            elif likeness < 0.8:
                one = combinations[0][0], one[1]
        if one in USUAL and one not in combinations:
            combinations.append(one)
    actors = draw_things(rng, draw_cells(rng, count, relations), combinations, acting)
    return Cast(tuple(actors), tuple(relations))


def refer(rng: np.random.Generator, cast: Cast, without: str | None = None, by_act: bool = False) -> str | None:
    """The words for the first of the cast, not naming the attribute `without`; None if there are none for it alone.

    `by_act`: the thing at the end of the way may be named by the only act that it does and others do not.
    """
    direct = not cast.relations
    names = names_of(cast.named, cast.actors, without if direct else None)
    acts = cast.named.acts
    if by_act and len(acts) == 1 and sum(acts[0] in other.acts for other in cast.actors) == 1 and not direct:
        names.append(f"thing that {ACTS[acts[0]].does}")
    if not names:
        return None
    return "".join(f"the thing {relation} " for relation in cast.relations) + f"the {pick(rng, names)}"


def names_of(actor: Actor, actors: Sequence[Actor], without: str | None = None) -> list[str]:
    """The nouns, with or without a colour, that fit this thing alone."""
    tests: dict[str, Callable[[Actor], object]] = {}
    if without not in ("colour", "shape"):
        tests[f"{actor.colour} {actor.shape}"] = lambda one: (one.colour, one.shape) == (actor.colour, actor.shape)
    if without != "shape":
        tests[actor.shape] = lambda one: one.shape == actor.shape
    if without != "colour":
        tests[f"{actor.colour} thing"] = lambda one: one.colour == actor.colour
    return [name for name, test in tests.items() if sum(bool(test(one)) for one in actors) == 1]


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


def draw_noun(rng: np.random.Generator, demands: Demands) -> Noun:
    """Any of the three forms, or a combination that training never shows."""
    colour, shape = pick(rng, HELD_OUT if demands.held_out else USUAL)
    if demands.held_out:
        return Noun(colour, shape)
    return pick(rng, (Noun(colour, None), Noun(None, shape), Noun(colour, shape)))


def draw_counted(rng: np.random.Generator, numbers: Mapping[Noun, int], extra: int) -> list[Combination]:
    """So many things of each noun (none is of two), and `extra` of none, but like them in colour or in shape."""
    combinations: list[Combination] = []
    for noun, number in numbers.items():
        inside = [one for one in (*USUAL, *HELD_OUT) if noun.fits(one) and (one in USUAL or None not in _parts(noun))]
        combinations += [pick(rng, inside) for _ in range(number)]
    outside = [one for one in USUAL if not any(noun.fits(one) for noun in numbers)]
    like = [one for one in outside if any(part in one for noun in numbers for part in _parts(noun))]
    return combinations + [pick(rng, like or outside) for _ in range(extra)]


def _parts(noun: Noun) -> tuple[str | None, str | None]:
    return noun.colour, noun.shape
