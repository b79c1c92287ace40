"""Questions about clips and pictures, of each kind that the paper's tasks ask, drawn together with what they are about.

The answer is drawn before the stage or by symmetry, so that the words of a question tell next to nothing about it; of
five choices none is right by accident, and the wrong ones are what other things of the clip do, as far as these go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from perceiver_vl.data.synthetic.acts import ACTS, OPPOSITES, REPEATABLE, Actor
from perceiver_vl.data.synthetic.references import (
    Cast,
    Demands,
    draw_cast,
    draw_counted,
    draw_noun,
    names_of,
    plural,
    refer,
    with_article,
)
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SIZES
from perceiver_vl.data.synthetic.storyboard import (
    CELLS,
    HELD_OUT,
    PLACES,
    RELATIONS,
    USUAL,
    Combination,
    Storyboard,
    draw_cells,
    draw_storyboard,
    draw_things,
    in_turn,
    is_held_out,
    pick,
    pick_some,
    repeated,
)

NUM_CHOICES = 5
MOST_COUNTED = 5
ANNOTATORS = 10
# VisionBatch for a moment, or by somebody who is strict about words, one of these may pass for the other.
_ALIKE = {
    *(frozenset((one, other)) for one in ("jumps", "dips") for other in ("up", "down")),
    *(frozenset(("shakes", other)) for other in ("left", "right")),
    *(frozenset(("swells", other)) for other in ("grows", "shrinks")),
}
_TIMES = {1: "once", 2: "2 times", 3: "3 times"}


@dataclass(frozen=True)
class Question:
    """A question, what it is about, and the truth.

    kind: which form of question within its task. answers: one, or one of each annotator; of several, the first is the
    truth. choices, label: of multiple choice, with the place of the right one. depth: steps of its longest reference.
    """

    storyboard: Storyboard
    text: str
    kind: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    label: int | None = None
    depth: int = 0


Draw = Callable[[np.random.Generator, Demands], Question | None]
"""Draws a question of one form, or None where what was drawn does not make one: draw again."""


class Form(NamedTuple):
    """A form of question, how often it is asked, and whether it has references, that can be made deeper."""

    draw: Draw
    weight: float
    deepens: bool = True


def draw_question(rng: np.random.Generator, task: str, demands: Demands) -> Question:
    """A question of a task (a key of `QUESTIONS`): first its form, so that none is rarer for being harder to draw."""
    forms = [form for form in QUESTIONS[task] if form.deepens or not demands.deep]
    weights = np.cumsum([form.weight for form in forms])
    chosen = forms[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    while True:
        question = chosen.draw(rng, demands)
        if question is not None:
            return question


def _draw_action(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "what does the red circle do?": the wrong choices are what the others do, as far as there are others."""
    cast = draw_cast(rng, demands, acting=True)
    acts = _different_acts(rng, NUM_CHOICES)
    chosen = [acts[0], *(acts[1:] * 2)[: len(cast.actors) - 1]]
    cast = _acting(rng, cast, chosen)
    return _choice(rng, cast, f"what does {refer(rng, cast, by_act=True)} do?", "what", acts)


def _draw_action_by_number(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "what does the red circle do 2 times?", of a thing that does one thing 2 times and another 3 times."""
    cast = draw_cast(rng, demands, acting=True)
    acts = _different_acts(rng, NUM_CHOICES, REPEATABLE)
    times = pick_some(rng, tuple(_TIMES), 2)
    first = int(rng.integers(2))
    doings = [in_turn(rng, [acts[first], acts[1 - first]], [times[first], times[1 - first]])]
    for _ in cast.actors[1:]:
        doings.append(in_turn(rng, pick_some(rng, acts[2:], 2), pick_some(rng, tuple(_TIMES), 2)))
    cast = cast.with_doings(doings)
    return _choice(rng, cast, f"what does {refer(rng, cast)} do {_TIMES[times[0]]}?", "times", acts)


def _draw_transition(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "what does the red circle do before it jumps?", of a thing that does three things in turn."""
    cast = draw_cast(rng, demands, acting=True)
    asked, *acts = _different_acts(rng, NUM_CHOICES + 1)
    if any(frozenset((asked, act)) in OPPOSITES for act in acts):
        return None
    before = rng.random() < 0.5
    order = [acts[0], asked, acts[1]] if before else [acts[1], asked, acts[0]]
    others = [in_turn(rng, pick_some(rng, acts[2:], 3)) for _ in cast.actors[1:]]
    cast = cast.with_doings([in_turn(rng, order), *others])
    when = "before" if before else "after"
    return _choice(rng, cast, f"what does {refer(rng, cast)} do {when} it {ACTS[asked].does}?", when, acts)


def _frame(kind: str) -> Draw:
    """What a single frame shows: the colour, the shape, the size of a thing, or where it is."""

    def draw(rng: np.random.Generator, demands: Demands) -> Question | None:
        # Words that say what a thing is next to half tell where it is.
        cast = draw_cast(rng, demands, depth=0 if kind == "where" else None)
        thing = refer(rng, cast, without=kind)
        if thing is None:
            return None
        one = cast.actors[0]
        text, answer = {
            "colour": (f"what colour is {thing}?", one.colour),
            "shape": (f"what shape is {thing}?", one.shape),
            "size": (f"how big is {thing}?", one.size),
            "where": (f"where is {thing}?", PLACES[CELLS.index(one.cell)]),
        }[kind]
        return Question(
            draw_storyboard(rng, _shuffled(rng, cast.actors)), text, kind, (answer,), depth=len(cast.relations)
        )

    return draw


def _draw_number_of_times(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "how many times does the red circle jump?" """
    cast = draw_cast(rng, demands, acting=True)
    act, *others = pick_some(rng, REPEATABLE, 3)
    times = int(rng.integers(1, MOST_COUNTED + 1))
    doings = [repeated(rng, act, times)]
    for _ in cast.actors[1:]:
        doings.append(repeated(rng, pick(rng, (act, *others)), int(rng.integers(1, MOST_COUNTED + 1))))
    cast = cast.with_doings(doings)
    text = f"how many times does {refer(rng, cast)} {ACTS[act].do}?"
    storyboard = draw_storyboard(rng, _shuffled(rng, cast.actors))
    return Question(storyboard, text, "times", (str(times),), depth=len(cast.relations))


def _draw_number_of_things(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "how many circles are there?" """
    number, extra = int(rng.integers(1, MOST_COUNTED + 1)), int(rng.integers(demands.extra[0], demands.extra[1] + 1))
    noun = draw_noun(rng, demands)
    combinations = draw_counted(rng, {noun: number}, extra)
    actors = draw_things(rng, draw_cells(rng, len(combinations)), combinations)
    return Question(draw_storyboard(rng, actors), f"how many {plural(str(noun))} are there?", "things", (str(number),))


def _draw_number_of_doers(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "how many things jump?" """
    number, extra = int(rng.integers(1, MOST_COUNTED + 1)), int(rng.integers(demands.extra[0], demands.extra[1] + 1))
    act, *others = _different_acts(rng, 3)
    combinations = [pick(rng, HELD_OUT if demands.held_out else USUAL) for _ in range(number + extra)]
    things = draw_things(rng, draw_cells(rng, number + extra), combinations, acting=True)
    acts = [act] * number + [pick(rng, others) for _ in range(extra)]
    storyboard = draw_storyboard(rng, _acting(rng, Cast(tuple(things), ()), acts).actors)
    return Question(storyboard, f"how many things {ACTS[act].do}?", "doers", (str(number),))


def _draw_exists(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "is there a red circle?"; whether or not, there is a thing of the colour and another of the shape."""
    truth = rng.random() < 0.5
    colour, shape = pick(rng, HELD_OUT if demands.held_out else USUAL)
    combinations = [(pick(rng, tuple(COLOURS)), shape), (colour, pick(rng, SHAPES))]
    if (colour, shape) in combinations or not set(combinations) <= set(USUAL):
        return None
    if truth:
        combinations.append((colour, shape))
    least, most = demands.still
    while len(combinations) < max(least, 3) or (len(combinations) < most and rng.random() < 0.5):
        one = pick(rng, USUAL)
        if one != (colour, shape):
            combinations.append(one)
    actors = draw_things(rng, draw_cells(rng, len(combinations)), combinations)
    storyboard = draw_storyboard(rng, _shuffled(rng, actors))
    return Question(storyboard, f"is there {with_article(f'{colour} {shape}')}?", "exists", (_word(truth),))


def _draw_does(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "does the red circle jump?"; whether or not, one of the things does, and one does something else."""
    truth = rng.random() < 0.5
    cast = draw_cast(rng, demands, acting=True)
    asked, instead, *_ = acts = _different_acts(rng, 4)
    chosen = [asked, instead] if truth else [instead, asked]
    cast = _acting(rng, cast, chosen + [pick(rng, acts) for _ in cast.actors[2:]])
    text = f"does {refer(rng, cast)} {ACTS[asked].do}?"
    storyboard = draw_storyboard(rng, _shuffled(rng, cast.actors))
    return Question(storyboard, text, "does", (_word(truth),), depth=len(cast.relations))


def _draw_is(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "is the circle red?": if it is not, then another thing is."""
    truth = rng.random() < 0.5
    cast = draw_cast(rng, demands)
    one, kind = cast.actors[0], pick(rng, ("colour", "shape"))
    thing = refer(rng, cast, without=kind)
    wrong = sorted({getattr(other, kind) for other in cast.actors} - {getattr(one, kind)})
    # A combination that is asked about must be one that could be shown, or it would tell the answer.
    wrong = [word for word in wrong if is_held_out(_combination(replace(one, **{kind: word}))) == demands.held_out]
    if thing is None or not wrong:
        return None
    asked = getattr(one, kind) if truth else pick(rng, wrong)
    text = f"is {thing} {asked if kind == 'colour' else with_article(asked)}?"
    storyboard = draw_storyboard(rng, _shuffled(rng, cast.actors))
    return Question(storyboard, text, "is", (_word(truth),), depth=len(cast.relations))


def _draw_is_next_to(rng: np.random.Generator, demands: Demands) -> Question | None:
    """ "is the red circle left of the star?", of two things in one row or column."""
    truth = rng.random() < 0.5
    cast = draw_cast(rng, demands)
    one, thing = cast.actors[0], refer(rng, cast)
    known = len(cast.relations) + 1
    for other in cast.actors[known:]:
        relation = _relation(one, other)
        if relation:
            asked = relation if truth else pick(rng, [name for name in RELATIONS if name != relation])
            text = f"is {thing} {asked} the {pick(rng, names_of(other, cast.actors))}?"
            storyboard = draw_storyboard(rng, _shuffled(rng, cast.actors))
            return Question(storyboard, text, "where", (_word(truth),), depth=len(cast.relations))
    return None


def _combination(actor: Actor) -> Combination:
    return actor.colour, actor.shape


def _relation(one: Actor, other: Actor) -> str | None:
    """How the first stands to the second, if they share a row or a column."""
    step = one.cell[0] - other.cell[0], one.cell[1] - other.cell[1]
    if 0 not in step:
        return None
    sign = (step[0] > 0) - (step[0] < 0), (step[1] > 0) - (step[1] < 0)
    return next(name for name, towards in RELATIONS.items() if towards == sign)


def _about_picture(kind: str, draw: Draw) -> Draw:
    """The question with VQAv2's kind and with ten answers, of which up to two are mistaken."""

    def draw_answered(rng: np.random.Generator, demands: Demands) -> Question | None:
        question = draw(rng, demands)
        if question is None:
            return None
        truth = question.answers[0]
        like = next(words for words in _ANSWERS if truth in words)
        mistaken = [pick(rng, [word for word in like if word != truth]) for _ in range(rng.integers(3))]
        others = [truth] * (ANNOTATORS - 1 - len(mistaken)) + mistaken
        return replace(question, kind=kind, answers=(truth, *pick_some(rng, others, len(others))))

    return draw_answered


_ANSWERS: tuple[tuple[str, ...], ...] = (
    ("yes", "no"),
    tuple(str(number) for number in range(1, MOST_COUNTED + 1)),
    tuple(COLOURS),
    SHAPES,
    tuple(SIZES),
    PLACES,
)
_FRAME = (
    Form(_frame("colour"), 0.4),
    Form(_frame("shape"), 0.4),
    Form(_frame("size"), 0.1),
    Form(_frame("where"), 0.1, deepens=False),
)
_YES_NO = (Form(_draw_exists, 0.2, deepens=False), Form(_draw_is, 0.2), Form(_draw_is_next_to, 0.2))
_THINGS = Form(_draw_number_of_things, 0.4, deepens=False)
QUESTIONS: dict[str, tuple[Form, ...]] = {
    "action": (Form(_draw_action, 0.5), Form(_draw_action_by_number, 0.5)),
    "transition": (Form(_draw_transition, 1.0),),
    "frame": _FRAME,
    "count": (_THINGS, Form(_draw_number_of_doers, 0.2, deepens=False), Form(_draw_number_of_times, 0.4)),
    "yesno": (*_YES_NO, Form(_draw_does, 0.4)),
    "image": (
        *(form._replace(draw=_about_picture("yes/no", form.draw)) for form in _YES_NO),
        _THINGS._replace(draw=_about_picture("number", _THINGS.draw)),
        *(form._replace(draw=_about_picture("other", form.draw)) for form in _FRAME),
    ),
}
"""The tasks that ask a question about one clip or picture, in their forms."""


def _different_acts(rng: np.random.Generator, count: int, among: Sequence[str] = tuple(ACTS)) -> list[str]:
    """Acts of which none could be taken for another."""
    while True:
        acts = pick_some(rng, among, count)
        if not any(frozenset((one, other)) in _ALIKE for one in acts for other in acts):
            return acts


def _acting(rng: np.random.Generator, cast: Cast, acts: Sequence[str]) -> Cast:
    """Each of the cast does one of the acts, those that can be repeated up to three times."""
    return cast.with_doings([repeated(rng, act, _any_times(rng, act)) for act in acts])


def _any_times(rng: np.random.Generator, act: str) -> int:
    return int(rng.integers(1, 4)) if ACTS[act].returns else 1


def _choice(rng: np.random.Generator, cast: Cast, text: str, kind: str, acts: Sequence[str]) -> Question:
    """The first act is right."""
    order = rng.permutation(len(acts)).tolist()
    choices = tuple(ACTS[acts[place]].does for place in order)
    storyboard = draw_storyboard(rng, _shuffled(rng, cast.actors))
    return Question(storyboard, text, kind, (ACTS[acts[0]].does,), choices, order.index(0), len(cast.relations))


def _shuffled(rng: np.random.Generator, actors: Sequence[Actor]) -> list[Actor]:
    return pick_some(rng, actors, len(actors))


def _word(truth: bool) -> str:
    return "yes" if truth else "no"
