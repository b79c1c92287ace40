"""Answers: normalisation by the official script's rules worked out by hand, label sets, scores."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl.data.answers import frequent_answers, majority_answer, normalise_answer, soft_scores, vqa_vocabulary

BY_HAND = [  # each worked out from vqaEval.py, step by step
    ("Yes", "yes"),
    ("  yes\t\n", "yes"),
    ("the Red  dog", "red dog"),  # articles go, spaces are made one
    ("a an the", ""),
    ("none", "0"),
    ("Two dogs and ten", "2 dogs and 10"),
    ("eleven", "eleven"),  # the numbers end at ten
    ("dont know", "don't know"),
    ("it's", "it's"),
    ("couldntve", "couldntve"),  # one apostrophe of several must be there
    ("couldn'tve", "couldn't've"),
    ("couldnt've", "couldn't've"),
    ("yall'd've", "y'all'd've"),
    ("twas 5 oclock", "'twas 5 o'clock"),
    ("im", "im"),  # the script has Im, which lower case never meets
    ("somebody'd", "somebodyd"),  # and this one the wrong way round
    ("black/white", "black white"),  # no space beside the mark: a space in its place
    ("black / white", "black white"),
    ("salt- pepper", "salt pepper"),
    ("t-shirt", "t shirt"),
    ("t-shirt - blue", "tshirt blue"),  # a space beside one dash: all dashes go
    ("yes.", "yes"),
    ("st. john", "st john"),
    ("4.5", "4.5"),  # no full stop before a digit
    (".5.", ".5"),
    ("1,000", "1000"),  # a comma within a number: every mark goes
    ("1,000 t-shirts", "1000 tshirts"),
    ("red,white", "red white"),
    ("red, white", "red white"),
    ("what?", "what"),
    ("(left)", "left"),
    ("50%", "50%"),  # not among the script's marks
    ("a: b", "a: b"),  # nor is the colon; and so the article is none
]


@pytest.mark.parametrize(("said", "written"), BY_HAND)
def test_normalisation_by_hand(said: str, written: str) -> None:
    assert normalise_answer(said) == written


def test_no_more_full_stops_go_than_in_the_script() -> None:
    assert normalise_answer("." * 40 + "x") == "." * 8 + "x"


@given(st.text("aA1,.'-/ thenodt", max_size=20))
def test_normalised_answers_are_in_lower_case_and_single_spaced(said: str) -> None:
    written = normalise_answer(said)
    assert written == " ".join(written.lower().split())
    assert not {"a", "an", "the"} & set(written.split())


def test_the_label_set_of_vqav2_counts_normalised_answers_and_keeps_the_order_of_their_coming() -> None:
    answers = ["net", *["pitcher"] * 9, *["Two"] * 5, *["2"] * 4, *["net"] * 7, "the net", *["rare"] * 8]
    assert vqa_vocabulary(answers) == ("net", "pitcher", "2")
    assert vqa_vocabulary(answers, at_least=10) == ()
    assert vqa_vocabulary(answers, at_least=1) == ("net", "pitcher", "2", "rare")


def test_the_label_set_of_open_questions_is_by_frequency_then_by_coming() -> None:
    answers = ["b", "a", "c", "a", "c", "d"]
    assert frequent_answers(answers, 3) == ("a", "c", "b")
    assert frequent_answers(answers, 9) == ("a", "c", "b", "d")


def test_the_answer_of_most() -> None:
    assert majority_answer(["b", "a", "a"]) == "a"
    assert majority_answer(["b", "a"]) == "b"
    assert majority_answer([]) == ""


def leave_one_out(answer: str, answers: Sequence[str]) -> float:
    """The published accuracy, over every choice of all people but one."""
    scores = []
    for left_out in range(len(answers)):
        others = [other for place, other in enumerate(answers) if place != left_out]
        scores.append(min(1, others.count(answer) / 3))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("count", range(1, 11))
def test_a_target_is_the_accuracy_that_the_metric_gives(count: int) -> None:
    answers = ["yes"] * count + [f"other {number}" for number in range(10 - count)]
    scores = soft_scores(answers, {"yes": 4})
    assert scores == {4: pytest.approx(leave_one_out("yes", answers))}
    assert scores[4] == pytest.approx([0.3, 0.6, 0.9, 1.0][min(count, 4) - 1])


def test_targets_are_of_normalised_answers_that_have_a_label() -> None:
    answers = ["two", "2", "Two.", "a pair", *["some"] * 6]
    assert soft_scores(answers, {"2": 0, "pair": 1}) == {0: pytest.approx(0.9), 1: pytest.approx(0.3)}
    assert soft_scores([], {"2": 0}) == {}
