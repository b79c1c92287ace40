"""gCOG's and Uni-Perceiver's benches: what their figures are of."""

import pytest
import torch

from perceiver_vl import UsageError
from perceiver_vl.bench.siblings.gcog import SEEN, measure_gcog, models
from perceiver_vl.bench.siblings.label_words import (
    ANSWERS,
    NAMES,
    TASKS,
    WORDS,
    accuracy_of,
    build,
    draw_examples,
    encode,
    loss_of,
    measure_label_words,
)
from perceiver_vl.data.synthetic.grid import HELD_OUT


def test_every_family_is_tested_on_every_part() -> None:
    report = measure_gcog(["distractor", "systematic_depth3"], steps=1, per_operator=2, tested=32, width=8)
    names = list(models(8, 0))
    assert [(one.split, one.model) for one in report.answered] == [
        (split, name) for split in ("distractor", "systematic_depth3") for name in names
    ]
    assert list(report.answered[0].accuracies) == [SEEN, "test_10", "test_20", "test_30", "test_40"]
    assert all(0 <= value <= 1 for one in report.answered for value in one.accuracies.values())
    assert report.guesser["systematic_depth3"][SEEN] > 0.05  # half of its questions are yes or no
    assert len(report.sections()) == 2


def test_what_can_be_learned_of_the_operators_alone_is_what_the_guesser_knows() -> None:
    """A model that learns at all is soon as good as it."""
    report = measure_gcog(["distractor"], ["cross-attention"], steps=40, per_operator=50, tested=128, width=16)
    assert list(report.answered[0].curve) == [5, 10, 15, 20, 25, 30, 35]
    assert report.answered[0].accuracies[SEEN] > 0.5 * report.guesser["distractor"][SEEN]


def test_splits_and_models_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match="splits=none: unknown, choose from distractor"):
        measure_gcog(["none"])
    with pytest.raises(UsageError, match="only=none: unknown, choose from RNN"):
        measure_gcog(["distractor"], ["none"])


@pytest.mark.parametrize("task", TASKS)
def test_what_is_kept_for_the_test_is_neither_shown_nor_told(task: str) -> None:
    names = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    train, unseen = draw_examples(task, 60, 0), draw_examples(task, 20, 0, 2)
    assert not any(name in text for name in names for text in train.texts)
    known = ANSWERS if task == "questions" else NAMES
    if task in ("names", "questions"):
        assert not names & {known[place] for place in train.right.tolist()}
        assert {known[place] for place in unseen.right.tolist()} <= names
    assert torch.equal(train.pixels, draw_examples(task, 60, 0).pixels)
    assert not torch.equal(train.pixels[:20], draw_examples(task, 20, 0, 1).pixels)
    ids, mask = encode(train.texts)
    assert ids.max() < len(WORDS) + 2
    assert torch.equal(mask.bool(), ids != 0)


@pytest.mark.parametrize("experts", [0, 4])
def test_a_model_learns_what_it_is_shown_again_and_again(experts: int) -> None:
    for task in ("names", "captions", "pairs"):
        torch.manual_seed(0)
        model, examples = build(experts, 16), draw_examples(task, 4, 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        first = loss_of(model, task, examples).item()
        for _ in range(50):  # of five seeds some need more than 25, none 50
            optimizer.zero_grad()
            loss_of(model, task, examples).backward()
            optimizer.step()
        assert loss_of(model.eval(), task, examples).item() < 0.5 * first
        assert 0 <= accuracy_of(model, task, examples) <= 1


def test_every_way_of_training_is_in_the_report() -> None:
    report = measure_label_words(steps=1, tested=32, width=8)
    assert [one.way for one in report.learned] == ["each alone", "all in turns", "with experts", "balanced"]
    assert all(set(one.seen) == set(one.unseen) == set(TASKS) for one in report.learned)
    assert report.learned[2].parameters > report.learned[1].parameters
    assert measure_label_words(steps=1, tested=32, width=8, alone=False).learned[0].way == "all in turns"
