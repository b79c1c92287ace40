"""gCOG as it is drawn here: the same again, of its split, and with the quirks that its pages name."""

from collections import Counter

import numpy as np
import pytest

from perceiver_vl.data.synthetic.gcog import (
    GCOG,
    SPLITS,
    Letter,
    Node,
    Selector,
    Switch,
    collate,
    draw_stimulus,
    tree_from,
)
from perceiver_vl.data.synthetic.gcog.splits import HALVES, OPERATORS_OF_HALF
from perceiver_vl.data.synthetic.gcog.trees import OPERATORS, SHAPES, by_level, depth
from perceiver_vl.utils.errors import UsageError

PARTS = [(split, part) for split, parts in SPLITS.items() for part in parts]


@pytest.mark.parametrize(("split", "part"), PARTS)
def test_the_same_arguments_draw_the_same(split: str, part: str) -> None:
    data, again = (GCOG(split, part, per_operator=3, seed=1) for _ in range(2))
    assert len(data) == 3 * len(OPERATORS)
    assert data[5] == again[5]
    assert data.trees == again.trees
    assert data.trees != GCOG(split, part, per_operator=3, seed=2).trees
    assert any(data.draw(number, 1).letters != data[number].letters for number in range(len(data)))
    batch = collate([data[number] for number in range(4)])
    assert batch.rules.shape[::2] == (4, 8)
    assert batch.stimuli.shape == (4, 101, 3)
    assert batch.mask.sum(1).tolist() == [len(by_level(data.trees[number])) + 1 for number in range(4)]


def test_every_operator_of_depth_one_comes_as_often() -> None:
    found = Counter(
        tree.operator for tree in GCOG("distractor", "train", per_operator=7).trees if isinstance(tree, Node)
    )
    assert found == dict.fromkeys(OPERATORS, 7)


def test_the_systematic_halves_are_crossed_in_the_test() -> None:
    for part, crossed in (("train", False), ("test", True)):
        for tree in GCOG("systematic_depth1", part, per_operator=20).trees:
            assert isinstance(tree, Node)
            own = next(half for half, some in enumerate(OPERATORS_OF_HALF) if tree.operator in some)
            one = tree.selectors[0]
            pair = (one.colour or one.drawn, one.shape or one.drawn)
            assert pair in HALVES[own ^ crossed]
    assert len(set(HALVES[0]) & set(HALVES[1])) == 25


def test_productive_trees_are_deeper() -> None:
    assert {depth(tree) for tree in GCOG("productive", "train", per_operator=2).trees} == {3}
    deeper = GCOG("productive", "test", per_operator=2).trees
    assert {depth(tree) for tree in deeper} == {5}
    assert {len(by_level(tree)) for tree in deeper} == {10}


def test_distractors_spare_what_is_asked_for_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    asks = Node("getcolor", (Selector(None, "f", (3, 4), "red"),))
    exists = Node("exist", (Selector("red", "f", (3, 4)),))
    found = [letter for _ in range(60) for letter in draw_stimulus(asks, 40, rng)]
    own = [letter for letter in found if letter.shape == "f"]
    assert {(letter.colour, letter.distractor) for letter in own} == {("red", False)}
    assert len(own) == 60
    assert any(
        letter.distractor and (letter.colour, letter.shape) == ("red", "f")
        for _ in range(60)
        for letter in draw_stimulus(exists, 40, rng)
    )


def test_no_two_letters_share_a_place_and_no_two_distractors_are_alike() -> None:
    data = GCOG("distractor", "test_40", per_operator=5)
    for number in range(len(data)):
        letters = data[number].letters
        assert len({letter.place for letter in letters}) == len(letters)
        alike = Counter((letter.colour, letter.shape) for letter in letters)
        assert max(alike.values()) == 1
        assert 30 < len(letters) <= 41


def test_sums_speak_of_any_letter_second() -> None:
    seconds = {
        node.selectors[1].shape
        for tree in GCOG("productive", "train", per_operator=60).trees
        for node in by_level(tree)
        if node is not None and len(node.selectors) == 2
    }
    assert set(SHAPES[10:]) & seconds


def test_what_has_no_answer_is_said() -> None:
    tree = Node("sumeven", (Selector("red", "a"),))
    with pytest.raises(ValueError, match="needs exactly one letter a selector"):
        tree.answer([])
    with pytest.raises(ValueError, match="no such letter"):
        Node("go", (Selector("red", "a"),)).answer([])
    both = [Letter((1, 2), "red", "a"), Letter((0, 5), "red", "a")]
    assert Node("go", (Selector("red", "a"),)).answer(both) == (0, 5)  # the first of the grid
    assert Switch(Node("exist", (Selector("blue", "a"),)), tree, Node("getcolor", (Selector(None, "a"),))).answer(
        both
    ) == ("red")


def test_what_there_is_not_is_refused_in_a_line() -> None:
    with pytest.raises(UsageError, match="split=none: unknown, choose from distractor"):
        GCOG("none", "train")
    with pytest.raises(UsageError, match="part=test: not of the split distractor"):
        GCOG("distractor", "test")
    with pytest.raises(UsageError, match="per_operator=0: need at least 1"):
        GCOG("distractor", "train", per_operator=0)
    with pytest.raises(UsageError, match="op=is: unknown, choose from switch, exist"):
        tree_from({"op": "is", "select": []})
    leaf = {"op": "go", "select": [{"color": "red", "shape": "a"}]}
    with pytest.raises(UsageError, match="op=go: is no yes or no"):
        tree_from({"op": "switch", "if": leaf, "then": leaf, "else": leaf})
