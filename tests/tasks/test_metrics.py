"""The official metrics on cases worked by hand from the official scripts, whose names stand beside them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import UsageError
from perceiver_vl.tasks.metrics import (
    by_kind,
    counting_error,
    majority_word_accuracy,
    masked_word_accuracy,
    matching_accuracy,
    nlvr2_consistency,
    per_cent,
    question_word,
    rounded_count,
    top_k_hits,
    vqa_accuracy,
)

# VQA: github.com/GT-Vision-Lab/VQA, vqaEval.py


@pytest.mark.parametrize(
    ("agreeing", "wanted"),
    # of 10 sets of 9 annotators n hold n - 1 that agree, the others n: (n·min((n-1)/3, 1) + (10-n)·min(n/3, 1)) / 10
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_by_the_number_of_ten_annotators_who_agree(agreeing: int, wanted: float) -> None:
    answers = ["net"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("net", answers) == pytest.approx(wanted)


def test_vqa_accuracy_of_a_question_of_the_training_set() -> None:
    """Question 458752000 of VQAv2 and its annotators."""
    answers = ["net", "net", "net", "netting", "net", "net", "mesh", "net", "pitcher", "orange"]
    wanted = {"net": 1.0, "netting": 0.3, "mesh": 0.3, "orange": 0.3, "fence": 0.0, "the net.": 1.0}
    assert {answer: vqa_accuracy(answer, answers) for answer in wanted} == pytest.approx(wanted)


def test_vqa_accuracy_normalises_both_sides_only_where_annotators_differ() -> None:
    assert vqa_accuracy("two dogs", ["2 dogs"] * 2 + ["The two dogs"] * 2 + ["cat"] * 6) == pytest.approx(1.0)
    assert vqa_accuracy("Yes!", ["yes"] * 9 + ["no"]) == pytest.approx(1.0)
    assert vqa_accuracy("net", ["The net"] * 10) == 0.0  # the script compares as it is where all say the same
    assert vqa_accuracy("The net\n", ["The net"] * 10) == 1.0  # but for spaces and line ends around it


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=2, max_size=12))
def test_vqa_accuracy_is_the_mean_over_the_sets_that_leave_one_out(answers: list[str]) -> None:
    for said in ("red", "blue"):
        scores = []
        for left_out in range(len(answers)):
            others = answers[:left_out] + answers[left_out + 1 :]
            scores.append(min(1.0, others.count(said) / 3))
        assert vqa_accuracy(said, answers) == pytest.approx(sum(scores) / len(scores))


def test_vqa_accuracy_needs_annotators() -> None:
    with pytest.raises(UsageError, match=r"^1 answers to a question: [^\n]+$"):
        vqa_accuracy("net", ["net"])


def test_vqa_accuracy_of_three_questions_is_the_mean_of_theirs() -> None:
    """The annotators of picture 458752, and what the script gives three answers: 1, 0.9 (three of ten), 0."""
    annotated = [
        ("net", ["net", "net", "net", "netting", "net", "net", "mesh", "net", "pitcher", "orange"]),
        ("catcher", ["pitcher"] * 7 + ["catcher"] * 3),
        ("blue", ["orange"] * 10),
    ]
    scores = [vqa_accuracy(said, answers) for said, answers in annotated]
    # three of ten: of the ten sets that leave one out seven hold all three (1), three hold two (2/3): (7 + 2) / 10
    assert scores == pytest.approx([1.0, 0.9, 0.0])
    assert per_cent(scores) == pytest.approx(190 / 3)


# TGIF-QA: github.com/YunseokJANG/tgif-qa, count_base.py: tf.clip_by_value(tf.round(logits), 1, 10)


@pytest.mark.parametrize(
    ("number", "count"),
    [(-3.0, 1), (0.4, 1), (1.5, 2), (2.5, 2), (3.5, 4), (4.49, 4), (9.7, 10), (10.6, 10), (1e30, 10)],
)
def test_a_number_is_read_as_a_count_as_tensorflow_rounds(number: float, count: int) -> None:
    assert rounded_count(number) == count


def test_the_error_of_counting_is_squared_and_of_rounded_numbers() -> None:
    # 2.4 → 2, 7.6 → 8, 0.2 → 1, 12 → 10
    cases = [(2.4, 3, 1), (7.6, 8, 0), (0.2, 2, 1), (12.0, 7, 9)]
    assert [counting_error(number, count) for number, count, _ in cases] == [error for _, _, error in cases]


# NLVR2: github.com/lil-lab/nlvr, nlvr2/eval/metrics.py


def test_a_sentence_is_consistent_if_it_is_judged_right_of_all_its_pairs() -> None:
    verdicts = {
        "dev-850-0-0": True,
        "dev-850-1-0": True,
        "dev-850-0-1": True,  # another sentence of the same set
        "dev-850-1-1": False,
        "dev-851-3-0": True,
        "test1-850-0-0": False,  # another split
    }
    # sentences (850, 0): right, (850, 1): not, (851, 0): right, (test1 850, 0): not
    assert nlvr2_consistency(list(verdicts), list(verdicts.values())) == pytest.approx(50.0)
    with pytest.raises(UsageError, match=r"^identifier 7: [^\n]+$"):
        nlvr2_consistency(["7"], [True])


# Open questions, classes, pre-training


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what is a man doing", "what"),
        ("Who sat?", "who"),
        ("is it red", "other"),
        ("whatever", "other"),
        ("", "other"),
    ],
)
def test_the_type_of_a_question_is_its_first_word(question: str, kind: str) -> None:
    assert question_word(question) == kind


def test_top_k() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert top_k_hits(logits, torch.tensor([1, 2]), 1).tolist() == [True, False]
    assert top_k_hits(logits, torch.tensor([2, 2]), 2).tolist() == [True, False]
    assert top_k_hits(logits, torch.tensor([0, 2]), 5).all()


def test_masked_words_and_matches() -> None:
    said = torch.tensor([[1, 2, 0], [0, 0, 3]])
    labels = torch.tensor([[1, 3, -100], [-100, -100, 3]])
    assert masked_word_accuracy(said, labels) == pytest.approx(200 / 3)
    assert majority_word_accuracy(labels) == pytest.approx(200 / 3)  # the word 3
    nothing = torch.full((2, 3), -100)
    with pytest.raises(UsageError, match=r"^no scores: [^\n]+$"):
        masked_word_accuracy(said, nothing)
    with pytest.raises(UsageError, match=r"^no scores: [^\n]+$"):
        majority_word_accuracy(nothing)
    assert matching_accuracy(torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 1, 0, 0])) == 50.0


def test_means_and_kinds() -> None:
    assert per_cent([1.0, 0.3, 0.0]) == pytest.approx(130 / 3)
    found = by_kind([(1.0, "who"), (0.0, "what"), (0.5, "what")])
    assert found == {"what": (2, 0.25), "who": (1, 1.0)}
    assert math.isclose(per_cent([True, False]), 50.0)
