"""What there is in a clip tells little of an answer to who does not know which thing is meant."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perceiver_vl.bench.learning.seeing_guessers import (
    SEEING,
    Asked,
    guess,
    guessers_section,
    numbers_seen,
    what_things_say,
)
from perceiver_vl.data.synthetic.actions import GridObject, TimedAction
from perceiver_vl.data.synthetic.grid import GridScene
from perceiver_vl.data.synthetic.questions import Question
from perceiver_vl.data.synthetic.scene import Background
from perceiver_vl.data.synthetic.tasks import LongWorld, PairWorld, QuestionWorld


def thing(colour: str, shape: str, column: int, *actions: tuple[str, int]) -> GridObject:
    doing = tuple(TimedAction(name, place / 9, (place + 1) / 9, times) for place, (name, times) in enumerate(actions))
    return GridObject("small", colour, shape, (1, column), 0.5, 0.5, 0.1, actions=doing)


def asked(text: str, answer: str, *things: GridObject, choices: tuple[str, ...] = ()) -> Question:
    scene = GridScene(Background("plain", ((90, 90, 90), (90, 90, 90)), 0.0, 1.0, 0.0), things, 0)
    return Question(scene, text, "kind", (answer,), choices)


STILL = thing("red", "star", 0), thing("red", "cross", 1), thing("blue", "ring", 2)
ACTING = (
    thing("red", "star", 0, ("jumps", 2), ("dips", 1)),
    thing("blue", "star", 1, ("dips", 2), ("shakes", 1)),
    thing("white", "cross", 2, ("jumps", 1), ("shakes", 2)),
)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (asked("what colour is the ring?", "blue", *STILL), ["red", "red", "blue"]),
        (asked("what shape is the blue thing?", "ring", *STILL), ["star", "cross", "ring"]),
        (asked("how big is the ring?", "small", *STILL), ["small"] * 3),
        (asked("where is the ring?", "right", *STILL), ["left", "middle", "right"]),
        (asked("how many times does the cross jump?", "1", *ACTING), ["2", "1"]),
        (asked("how many things jump?", "2", *ACTING), ["2", "2", "2"]),
        (asked("how many red things are there?", "2", *STILL), ["2", "1", "1", "1", "1", "1", "1", "1"]),
        (
            asked("what does the cross do 2 times?", "shakes", *ACTING, choices=("shakes", "jumps", "grows")),
            ["jumps", "shakes"],
        ),
        (asked("what does the red star do before it dips?", "jumps", *ACTING, choices=("jumps",)), ["jumps"]),
        (
            asked("what does the red star do after it jumps?", "dips", *ACTING, choices=("dips", "shakes")),
            ["dips", "shakes"],
        ),
        (asked("is the ring red?", "no", *STILL), []),
    ],
)
def test_each_thing_says_what_would_be_right_if_it_were_meant(question: Question, said: list[str]) -> None:
    assert what_things_say(question) == said


def test_guessers_take_what_most_few_or_any_say() -> None:
    said = ["red", "red", "blue", "green"]
    assert SEEING["what most things say"](said) == {"red": 1}
    assert SEEING["what fewest say"](said) == {"blue": 0.5, "green": 0.5}
    assert SEEING["what any thing says"](said) == {"red": 0.5, "blue": 0.25, "green": 0.25}


def test_numbers_are_of_the_words_that_a_question_ends_with() -> None:
    assert numbers_seen(asked("is the ring red?", "no", *STILL)) == ("kind", 3, 1, 2, None)
    assert numbers_seen(asked("does the cross jump?", "yes", *ACTING)) == ("kind", 3, 1, 0, 2)


def test_a_shortcut_is_found_where_there_is_one() -> None:
    """In a clip whose things all have one colour, what most things have is right."""
    question = QuestionWorld("frame", clips=40).question(0)
    things = tuple(replace(one, colour=question.scene.objects[0].colour) for one in question.scene.objects)
    same = asked("what colour is the star?", things[0].colour, *things)
    assert all(share(what_things_say(same)) == {things[0].colour: 1} for share in SEEING.values())


@pytest.mark.parametrize("task", ["frame", "image", "yesno", "count", "action", "transition", "pairs", "long"])
def test_no_kind_is_told_by_what_there_is(task: str) -> None:
    """At most 10 points above the best of words, beyond three standard errors of so few questions."""
    for one in guess(task, 500, 400):
        name, share = one.best_seeing
        error = 100 * np.sqrt(0.25 / one.questions)
        assert share < max(one.best_blind, 100 / 9) + 10 + 3 * error, (one.kind, name)


ALL_ALIKE: dict[str, Callable[[], Asked]] = {
    "pairs": lambda: PairWorld(clips=4).pair(0),
    "long": lambda: LongWorld(clips=1).clip(0),
}


@pytest.mark.parametrize("task", ALL_ALIKE)
def test_what_is_asked_of_no_thing_has_numbers_alone(task: str) -> None:
    found = ALL_ALIKE[task]()
    assert numbers_seen(found)[0] == found.kind
    if task == "pairs":
        assert what_things_say(found) == []


def test_the_table_has_every_kind_and_is_made_once(tmp_path: Path) -> None:
    section = guessers_section(tmp_path, 200, 100, ("frame",))
    assert [row[0] for row in section.rows] == ["frame, colour", "frame, shape", "frame, size", "frame, where"]
    (kept,) = (tmp_path / "guessers").iterdir()
    written = kept.stat().st_mtime_ns
    assert guessers_section(tmp_path, 200, 100, ("frame",)) == section
    assert kept.stat().st_mtime_ns == written
    guessers_section(tmp_path, 200, 101, ("frame",))
    assert len(list((tmp_path / "guessers").iterdir())) == 2
