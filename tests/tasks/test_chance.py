"""Chance and the most frequent answer, worked by hand, for every task."""

from pathlib import Path
from typing import Any

import pytest

from perceiver_vl.data.records import Record
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.chance import chance_metrics, majority_metrics
from tiny import tiny_config


def record(**of_it: Any) -> Record:
    return Record("a.mp4", Path("a.mp4"), **of_it)


def head(names: str, **more: Any) -> dict[str, Any]:
    words = names.split()
    return {"id2label": dict(enumerate(words)), "label2id": {word: place for place, word in enumerate(words)}} | more


COLOURS = [record(question="which?", answers=(answer,)) for answer in ("red", "red", "red", "blue", "green")]
ASKED = [record(question="which?", answers=(answer,)) for answer in ("red", "blue", "mauve", "red")]
CHOOSING = [record(question="q", choices=("a", "b", "c"), label=label) for label in (2, 2, 0)]
CHOSEN = [
    record(question="q", choices=("a", "b", "c", "d"), label=2),
    record(question="q", choices=("a", "b"), label=0),
]
COUNTS = [record(question="how many?", answers=(str(number),)) for number in (3, 3, 7)]
PAIRS = [record(texts=("x",), label=label, example_id=f"train-{label}-0-0") for label in (1, 1, 0)]
SAID = [record(texts=("a red dog", "a cat")), record(texts=("a red dog.",)), record(question="what?", answers=("no",))]
SAID_OF = [record(texts=("A red dog!",)), record(texts=("the blue cat",))]
CLASSES = [record(label=label) for label in (6, 6, 2, 0, 0, 0, 1)]


@pytest.mark.parametrize(
    ("task", "config", "training", "asked", "chance", "majority"),
    [
        ("question-answering", head("red blue green"), COLOURS, ASKED, {"accuracy": 25.0}, {"accuracy": 50.0}),
        (  # choices beside answers that a head has
            "question-answering",
            head("red blue green tan"),
            COLOURS[:3],
            [record(question="which?", answers=("tan",), choices=("red", "blue", "green", "tan")), *COLOURS[:1]],
            {"accuracy": 25.0, "accuracy_of_choices": 25.0},
            {"accuracy": 50.0, "accuracy_of_choices": 0.0},
        ),
        (
            "vqa",
            head("yes no", problem_type="multi_label_classification"),
            [record(question="is it?", answers=("no",) * 9 + ("yes",))],
            [record(question="is it?", answers=("no",) * 10), record(question="is it?", answers=("yes",) * 10)],
            {"vqa_accuracy": 50.0},
            {"vqa_accuracy": 50.0},
        ),
        (
            "counting",
            {"num_labels": 1, "problem_type": "regression"},
            COUNTS,
            COUNTS,
            {"accuracy": 10.0, "mean_squared_error": sum((n - m) ** 2 for n in (3, 3, 7) for m in range(1, 11)) / 30},
            {"accuracy": 200 / 3, "mean_squared_error": 16 / 3},
        ),
        ("multiple-choice", {}, CHOOSING, CHOSEN, {"accuracy": (25 + 50) / 2}, {"accuracy": 100.0}),
        ("nlvr2", {"num_labels": 2}, PAIRS, PAIRS, {"accuracy": 50.0}, {"accuracy": 200 / 3, "consistency": 50.0}),
        (
            "image-classification",
            {"num_labels": 7},
            CLASSES,
            CLASSES,
            {"top1": 100 / 7, "top5": 500 / 7},
            {"top1": 300 / 7, "top5": 100.0},
        ),
        (
            "captioning",
            {},
            [SAID[0], SAID[0], *SAID[1:]],
            SAID_OF,
            {},
            {  # of the words and pairs and threes one half each, of no fours the script's 1e-15 of 1e-9; no fours: ¾
                "cider_d": 100 * 10 * 3 / 4 / 2,
                "bleu_4": 100 * (1e-6 / 8) ** 0.25,
                "rouge_l": 50.0,
                "exact_match": 50.0,
            },
        ),
    ],
)
def test_worked_by_hand(
    task: str,
    config: dict[str, Any],
    training: list[Record],
    asked: list[Record],
    chance: dict[str, float],
    majority: dict[str, float],
) -> None:
    one = example_task_of(task)
    made = tiny_config(**config)
    assert chance_metrics(one, made, asked) == pytest.approx(chance)
    assert majority_metrics(one, made, training, asked) == pytest.approx(majority)


def test_of_many_answers_some_are_drawn_for_each_example() -> None:
    names = " ".join(f"a{number}" for number in range(1000))
    asked = [record(question="which?", answers=(f"a{number}",)) for number in range(1000)]
    found = chance_metrics(example_task_of("question-answering"), tiny_config(**head(names)), asked)
    assert found["accuracy"] == pytest.approx(0.1, abs=0.05)
