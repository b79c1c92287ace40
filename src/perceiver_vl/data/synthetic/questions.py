"""Questions about clips and pictures, of each kind that the paper's tasks ask, drawn together with what they are about.

The answer is drawn before the stage or by symmetry, so that the words of a question tell next to nothing about it; and
the stage is such that what there is, without which thing is meant, tells little more: no two things have the value, do
the act or do it as often that is asked about. Of five choices none is right by accident, and the wrong ones are what
other things of the clip do, as far as these go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from perceiver_vl.data.synthetic.actions import ACTIONS, OPPOSITES, REPEATABLE, GridObject
from perceiver_vl.data.synthetic.grid import (
    CELLS,
    HELD_OUT,
    PLACES,
    RELATIONS,
    SEEN,
    GridScene,
    draw_cells,
    draw_grid_scene,
    draw_objects,
    in_turn,
    is_held_out,
    pick,
    pick_some,
    repeated,
)
from perceiver_vl.data.synthetic.references import (
    Difficulty,
    Reference,
    draw_counted,
    draw_nouns,
    draw_reference,
    names_of,
    plural,
    refer,
    reference_among,
    with_article,
)
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SIZES

NUM_CHOICES = 5
MOST_TIMES = 5
NUMBERS = (1, 2, 3)
"""How many there are of three kinds of things, of which any may be the one to be counted."""
ANNOTATORS = 10
MOST_QUESTIONS = 20
"""That are asked about one stage."""
# Seen for a moment, or by somebody who is strict about words, one of these may pass for the other.
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

    scene: GridScene
    text: str
    kind: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    label: int | None = None
    depth: int = 0


Draw = Callable[[np.random.Generator, Difficulty], Question | None]
"""Draws a question of one form, or None where what was drawn does not make one: draw again."""


class Form(NamedTuple):
    """A form of question, how often it is asked, and whether it has references, that can be made deeper."""

    draw: Draw
    weight: float
    deepens: bool = True


def draw_question(rng: np.random.Generator, task: str, difficulty: Difficulty) -> Question:
    """A question of a task (a key of `QUESTIONS`): first its form, so that none is rarer for being harder to draw."""
    forms = [form for form in QUESTIONS[task] if form.deepens or not difficulty.deep]
    weights = np.cumsum([form.weight for form in forms])
    chosen = forms[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    while True:
        question = chosen.draw(rng, difficulty)
        if question is not None:
            return question


def _draw_action(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "what does the red circle do?": the wrong choices are what the others do, as far as there are others."""
    reference = draw_reference(rng, difficulty, acting=True)
    actions = _different_actions(rng, NUM_CHOICES)
    reference = _assign(rng, reference, [actions[0], *(actions[1:] * 2)[: len(reference.objects) - 1]])
    return _choice(rng, reference, f"what does {refer(rng, reference, by_action=True)} do?", "what", actions)


def _draw_action_by_number(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "what does the red circle do 2 times?", of a thing that does one thing 2 times and another 3 times; each other
    thing, too, does one of the choices 2 times, none the same, and another choice otherwise.
    """
    reference = draw_reference(rng, difficulty, acting=True)
    actions = _different_actions(rng, NUM_CHOICES, REPEATABLE)
    times, *other_times = pick_some(rng, tuple(_TIMES), 3)
    done = _in_a_circle(actions, len(reference.objects))
    seconds = [actions[1], *_elsewhere(rng, done[1:], done[0])]
    timed = []
    for first, second in zip(done, seconds, strict=True):
        order = pick_some(rng, ((first, times), (second, pick(rng, other_times))), 2)
        timed.append(in_turn(rng, [name for name, _ in order], [count for _, count in order]))
    reference = reference.with_actions(timed)
    return _choice(rng, reference, f"what does {refer(rng, reference)} do {_TIMES[times]}?", "times", actions)


def _draw_transition(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "what does the red circle do before it jumps?", of a thing that does three things in turn; the others jump, too,
    but do something else before and after.
    """
    reference = draw_reference(rng, difficulty, acting=True)
    asked, *actions = _different_actions(rng, NUM_CHOICES + 1)
    done = _in_a_circle(actions, len(reference.objects))
    following = _in_a_circle(actions, len(reference.objects), start=1)
    if any(frozenset((asked, action)) in OPPOSITES for action in actions):
        return None
    before = rng.random() < 0.5
    orders = [
        [first, asked, last] if before else [last, asked, first] for first, last in zip(done, following, strict=True)
    ]
    reference = reference.with_actions([in_turn(rng, order) for order in orders])
    when = "before" if before else "after"
    text = f"what does {refer(rng, reference)} do {when} it {ACTIONS[asked].does}?"
    return _choice(rng, reference, text, when, actions)


def _in_a_circle(actions: Sequence[str], count: int, start: int = 0) -> list[str]:
    """`count` of the actions in turn, from the one at `start` on; of fewer than all of them only so many are used."""
    used = actions[: min(count, len(actions))]
    return [used[(start + place) % len(used)] for place in range(count)]


def _elsewhere(rng: np.random.Generator, own: Sequence[str], first: str) -> list[str]:
    """For things that do one act each, all of `own`, another: those in another order, with `first` for the first's."""
    while True:
        others = pick_some(rng, (first, *own[1:]), len(own))
        if all(one != other for one, other in zip(own, others, strict=True)):
            return others


def _frame(kind: str) -> Draw:
    """What a single frame shows: the colour, the shape, the size of a thing, or where it is."""

    def draw(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
        return _ask_of_frame(rng, kind, draw_reference(rng, difficulty, depth=_depth(kind), apart=True))

    return draw


def _depth(kind: str) -> int | None:
    """Words that say what a thing is next to half tell where it is."""
    return 0 if kind == "where" else None


def _ask_of_frame(rng: np.random.Generator, kind: str, reference: Reference) -> Question | None:
    thing = refer(rng, reference, without=kind)
    if thing is None:
        return None
    one = reference.objects[0]
    text, answer = {
        "colour": (f"what colour is {thing}?", one.colour),
        "shape": (f"what shape is {thing}?", one.shape),
        "size": (f"how big is {thing}?", one.size),
        "where": (f"where is {thing}?", PLACES[CELLS.index(one.cell)]),
    }[kind]
    return _ask(rng, reference, text, kind, answer)


def draw_questions(rng: np.random.Generator, task: str, difficulty: Difficulty, number: int) -> list[Question]:
    """`number` different questions about one stage, for `task="frame"`; for another task there is one.

    A stage that has not so many is drawn again.
    """
    while True:
        asked = {(one := draw_question(rng, task, difficulty)).text: one}
        kinds, weights = tuple(_FRAME_WEIGHTS), np.array(list(_FRAME_WEIGHTS.values()))
        for _ in range(20 * number):
            if len(asked) == number:
                return list(asked.values())
            kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            if difficulty.deep and kind == "where":
                continue
            reference = reference_among(rng, difficulty, one.scene.objects, _depth(kind))
            again = None if reference is None else _ask_of_frame(rng, kind, reference)
            if again is not None:
                asked.setdefault(again.text, replace(again, scene=one.scene))


def _draw_number_of_times(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "how many times does the red circle jump?", where all jump, none as often as another as far as that goes."""
    reference = draw_reference(rng, difficulty, acting=True)
    action = pick(rng, REPEATABLE)
    numbers = pick_some(rng, range(1, MOST_TIMES + 1), MOST_TIMES) * 2
    timed = [repeated(rng, action, times) for times, _ in zip(numbers, reference.objects, strict=False)]
    reference = reference.with_actions(timed)
    text = f"how many times does {refer(rng, reference)} {ACTIONS[action].do}?"
    return _ask(rng, reference, text, "times", str(numbers[0]))


def _draw_number_of_things(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "how many circles are there?", where there is one star, say, and two squares and three circles."""
    nouns = draw_nouns(rng, difficulty, len(NUMBERS))
    numbers = pick_some(rng, NUMBERS, len(NUMBERS))
    combinations = draw_counted(rng, dict(zip(nouns, numbers, strict=True)), difficulty.extra)
    objects = draw_objects(rng, draw_cells(rng, len(combinations)), combinations)
    asked = 0 if difficulty.held_out else int(rng.integers(len(nouns)))
    text = f"how many {plural(str(nouns[asked]))} are there?"
    return Question(draw_grid_scene(rng, objects), text, "things", (str(numbers[asked]),))


def _draw_number_of_doers(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "how many things jump?", where one thing does something, two do something else and three something else."""
    numbers = pick_some(rng, NUMBERS, len(NUMBERS)) + [1] * difficulty.extra
    actions = _different_actions(rng, len(numbers))
    doing = [action for action, number in zip(actions, numbers, strict=True) for _ in range(number)]
    combinations = [pick(rng, HELD_OUT if difficulty.held_out else SEEN) for _ in doing]
    objects = draw_objects(rng, draw_cells(rng, len(doing)), combinations, acting=True)
    scene = draw_grid_scene(rng, _assign(rng, Reference(tuple(objects)), doing).objects)
    return Question(scene, f"how many things {ACTIONS[actions[0]].do}?", "doers", (str(numbers[0]),))


def _draw_exists(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "is there a red circle?"; whether or not, two things are red and two are circles, if there are so many."""
    truth = rng.random() < 0.5
    colour, shape = pick(rng, HELD_OUT if difficulty.held_out else SEEN)
    like = [one for one in SEEN if (one[0] == colour) != (one[1] == shape)]
    red, circles = ([one for one in like if one[place] == part] for place, part in enumerate((colour, shape)))
    likely = pick_some(rng, red, 2 - truth) + pick_some(rng, circles, 2 - truth)
    least, most = difficulty.still
    number = int(rng.integers(least, most + 1))
    if number < len(likely) + truth:
        likely = pick_some(rng, likely, number - truth)
    combinations = likely + [(colour, shape)] * truth
    unlike = [one for one in SEEN if one[0] != colour and one[1] != shape]
    combinations += pick_some(rng, unlike, number - len(combinations))
    objects = draw_objects(rng, draw_cells(rng, len(combinations)), combinations)
    text = f"is there {with_article(f'{colour} {shape}')}?"
    return _ask(rng, Reference(tuple(objects)), text, "exists", _word(truth))


def _draw_does(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "does the red circle jump?"; whether or not, one of the things does, and another, if there is one, does not."""
    truth = rng.random() < 0.5
    reference = draw_reference(rng, difficulty, acting=True)
    asked, instead, *_ = actions = _different_actions(rng, 4)
    chosen = [asked, instead] if truth else [instead, asked]
    done = chosen + [pick(rng, actions) for _ in reference.objects[2:]]
    reference = _assign(rng, reference, done[: len(reference.objects)])
    text = f"does {refer(rng, reference)} {ACTIONS[asked].do}?"
    return _ask(rng, reference, text, "does", _word(truth))


def _draw_is(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "is the circle red?": if it is not, then another thing is, unless there is none."""
    truth = rng.random() < 0.5
    reference = draw_reference(rng, difficulty, apart=True)
    one, kind = reference.objects[0], pick(rng, ("colour", "shape"))
    thing = refer(rng, reference, without=kind)
    words = {getattr(other, kind) for other in reference.objects[1:]} or {*(COLOURS if kind == "colour" else SHAPES)}
    wrong = sorted(words - {getattr(one, kind)})
    # A combination that is asked about must be one that could be shown, or it would tell the answer.
    wrong = [word for word in wrong if is_held_out(replace(one, **{kind: word}).combination) == difficulty.held_out]
    if thing is None or not wrong:
        return None
    asked = getattr(one, kind) if truth else pick(rng, wrong)
    text = f"is {thing} {asked if kind == 'colour' else with_article(asked)}?"
    return _ask(rng, reference, text, "is", _word(truth))


def _draw_is_next_to(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
    """ "is the red circle left of the star?", of two things in one row or column."""
    truth = rng.random() < 0.5
    reference = draw_reference(rng, difficulty)
    one, thing = reference.objects[0], refer(rng, reference)
    known = len(reference.relations) + 1
    for other in reference.objects[known:]:
        relation = _relation(one, other)
        if relation:
            asked = relation if truth else pick(rng, [name for name in RELATIONS if name != relation])
            text = f"is {thing} {asked} the {pick(rng, names_of(other, reference.objects))}?"
            return _ask(rng, reference, text, "where", _word(truth))
    return None


def _relation(one: GridObject, other: GridObject) -> str | None:
    """How the first stands to the second, if they share a row or a column."""
    step = one.cell[0] - other.cell[0], one.cell[1] - other.cell[1]
    if 0 not in step:
        return None
    sign = (step[0] > 0) - (step[0] < 0), (step[1] > 0) - (step[1] < 0)
    return next(name for name, towards in RELATIONS.items() if towards == sign)


def _about_picture(kind: str, draw: Draw) -> Draw:
    """The question with VQAv2's kind and with ten answers, of which up to two are mistaken."""

    def draw_answered(rng: np.random.Generator, difficulty: Difficulty) -> Question | None:
        question = draw(rng, difficulty)
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
    tuple(str(number) for number in range(1, MOST_TIMES + 1)),
    tuple(COLOURS),
    SHAPES,
    tuple(SIZES),
    PLACES,
)
_FRAME_WEIGHTS = {"colour": 0.3, "shape": 0.3, "size": 0.1, "where": 0.3}
_FRAME = tuple(Form(_frame(kind), weight, deepens=kind != "where") for kind, weight in _FRAME_WEIGHTS.items())
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


def _different_actions(rng: np.random.Generator, count: int, among: Sequence[str] = tuple(ACTIONS)) -> list[str]:
    """Acts of which none could be taken for another."""
    while True:
        actions = pick_some(rng, among, count)
        if not any(frozenset((one, other)) in _ALIKE for one in actions for other in actions):
            return actions


def _assign(rng: np.random.Generator, reference: Reference, actions: Sequence[str]) -> Reference:
    """Each object does one of the actions, those that can be repeated up to three times."""
    timed = []
    for action in actions:
        times = int(rng.integers(1, 4)) if ACTIONS[action].returns else 1
        timed.append(repeated(rng, action, times))
    return reference.with_actions(timed)


def _choice(rng: np.random.Generator, reference: Reference, text: str, kind: str, actions: Sequence[str]) -> Question:
    """The first action is right."""
    order = rng.permutation(len(actions)).tolist()
    choices = tuple(ACTIONS[actions[place]].does for place in order)
    question = _ask(rng, reference, text, kind, ACTIONS[actions[0]].does)
    return replace(question, choices=choices, label=order.index(0))


def _ask(rng: np.random.Generator, reference: Reference, text: str, kind: str, answer: str) -> Question:
    """A question about the objects, which lie over each other in random order."""
    scene = draw_grid_scene(rng, pick_some(rng, reference.objects, len(reference.objects)))
    return Question(scene, text, kind, (answer,), depth=len(reference.relations))


def _word(truth: bool) -> str:
    return "yes" if truth else "no"
