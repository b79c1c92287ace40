"""Blind baselines: worked by hand, drawn at random, and learned from words alone."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl.bench.learning.blind_baselines import (
    accuracy,
    bag_of_words,
    chance_accuracy,
    majority,
    majority_by_kind,
)
from perceiver_vl.data.records import Record
from perceiver_vl.tasks.chance import chance_recall
from perceiver_vl.utils.errors import UsageError


def asked(question: str, *answers: str) -> Record:
    return Record("a.jpg", Path("a.jpg"), question=question, answers=answers)


COLOURS = [
    *[asked("what colour is the sky", "blue")] * 3,
    *[asked("what colour is the grass", "green")] * 2,
    *[asked("who is there", "man")] * 2,
    *[asked("who is singing there", "woman")] * 3,
]


class TestChanceRecall:
    def test_worked_by_hand(self) -> None:
        # Two clips, 1 and 3 captions: the first of four texts in any order is the one clip's in a quarter of the
        # orders, the other's in three; both among the first two in 1 - 3/6 and 1 - 0
        assert chance_recall([1, 3], 1) == (50.0, pytest.approx((25 + 75) / 2))
        assert chance_recall([1, 3], 2) == (100.0, pytest.approx((50 + 100) / 2))

    def test_one_caption_each_is_k_of_n_both_ways(self) -> None:
        assert chance_recall([1] * 200, 5) == (pytest.approx(2.5), pytest.approx(2.5))

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 8))
    def test_is_what_random_orders_give(self, captions: list[int], k: int) -> None:
        texts = [clip for clip, count in enumerate(captions) for _ in range(count)]
        rng = random.Random(0)
        orders = [rng.sample(texts, len(texts)) for _ in range(400)]
        found = [len(set(order[:k])) / len(captions) for order in orders]
        assert chance_recall(captions, k)[1] == pytest.approx(100 * sum(found) / len(found), abs=8)

    @pytest.mark.parametrize(("captions", "k"), [([], 1), ([0, 2], 1), ([1], 0)])
    def test_refuses_what_has_no_chance(self, captions: list[int], k: int) -> None:
        with pytest.raises(UsageError, match="at least one caption"):
            chance_recall(captions, k)


class TestGuessers:
    def test_majority_of_all_and_of_each_kind(self) -> None:
        records = [asked("what colour is it", "blue"), asked("who sings", "woman"), asked("is it", "blue", "red")]
        assert accuracy(majority(COLOURS), records) == pytest.approx(200 / 3)
        assert accuracy(majority_by_kind(COLOURS), records) == pytest.approx(100)

    def test_chance_counts_every_right_answer_that_is_known(self) -> None:
        assert chance_accuracy(COLOURS, [asked("?", "blue", "red"), asked("?", "blue", "man")]) == pytest.approx(37.5)

    def test_words_tell_what_the_kind_does_not(self) -> None:
        answer = bag_of_words(COLOURS, COLOURS)
        assert [answer(asked(question)) for question in ("the sky", "the grass", "who sings, singing", "who")] == [
            "blue",
            "green",
            "woman",
            "man",
        ]

    def test_words_never_met_change_nothing(self) -> None:
        answer = bag_of_words(COLOURS, COLOURS)
        assert answer(asked("xyzzy")) == answer(asked("")) in {record.answers[0] for record in COLOURS}
        assert answer(asked("the xyzzy grass")) == "green"

    def test_is_the_same_every_time(self) -> None:
        questions = [asked(" ".join(words)) for words in (("the", "there"), ("who", "sky"), ("grass", "man"))]
        first, second = (bag_of_words(COLOURS, COLOURS[:1]) for _ in range(2))
        assert [first(one) for one in questions] == [second(one) for one in questions]

    @pytest.mark.parametrize("guesser", [majority, majority_by_kind, lambda records: bag_of_words(records, records)])
    def test_needs_answers(self, guesser: object) -> None:
        with pytest.raises(UsageError, match="answer"):
            guesser([asked("what")])  # type: ignore[operator]
