"""The types of VQA's questions: the longest that a question begins with."""

import pytest

from perceiver_vl.tasks.question_types import NO_TYPE, VQA_QUESTION_TYPES, vqa_question_type


@pytest.mark.parametrize(
    ("question", "kind"),
    [  # the first three are the questions of VQAv2's picture 458752
        ("What is this photo taken looking through?", "what is this …"),
        ("What position is this man playing?", "what …"),
        ("What color is the players shirt?", "what color is the …"),
        ("How many people are in the boat?", "how many people are in …"),
        ("How many people are there?", "how many people are …"),
        ("How many?", "how many …"),
        ("IS  THIS a dog", "is this a …"),
        ("Whatever is it?", NO_TYPE),
        ("", NO_TYPE),
    ],
)
def test_the_longest_beginning_counts(question: str, kind: str) -> None:
    assert vqa_question_type(question) == kind


def test_every_type_is_its_own() -> None:
    assert len(VQA_QUESTION_TYPES) == 64
    for kind in VQA_QUESTION_TYPES:
        assert vqa_question_type(f"{kind} xyz?") == f"{kind} …"
