"""Instances of gCOG that the reference drew: their answers, words and tokens are ours, and so are the sets and the form
of its splits. What is drawn here is of the same kinds.
"""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from parity import Parity
from safetensors.torch import load_file
from torch import Tensor

from perceiver_vl.data.synthetic.gcog import GCOG, SPLITS, Letter, Switch, instruction, tree_from
from perceiver_vl.data.synthetic.gcog.splits import HALVES, LEAVES, OPERATORS_OF_HALF, ROOTS
from perceiver_vl.data.synthetic.gcog.tokens import answer_class, instruction_tokens, stimulus_tokens
from perceiver_vl.data.synthetic.gcog.trees import COLOURS, OPERATORS, depth

PARITY = Parity("gcog")
pytestmark = pytest.mark.skipif(not PARITY.folder.exists(), reason=f"no folder {PARITY.folder}")


@cache
def instances() -> list[dict[str, Any]]:
    lines = (PARITY.folder / PARITY.manifest["instances"]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@cache
def tokens() -> dict[str, Tensor]:
    return load_file(PARITY.folder / "tokens.safetensors")


def letters_of(told: dict[str, Any]) -> list[Letter]:
    return [
        Letter((one["loc"][0], one["loc"][1]), one["color"], one["shape"], one["distractor"]) for one in told["objects"]
    ]


def test_every_answer() -> None:
    assert len(instances()) == PARITY.manifest["count"]
    for told in instances():
        answer = tree_from(told["tree"]).answer(letters_of(told))
        assert answer == (tuple(told["answer"]) if isinstance(told["answer"], list) else told["answer"])
        assert answer_class(answer) == told["answer_class"]


def test_every_instruction_in_words() -> None:
    for told in instances():
        assert instruction(tree_from(told["tree"])) == told["instruction"]


def test_every_token() -> None:
    for row, told in enumerate(instances()):
        length = int(tokens()["rule_length"][row])
        own = torch.from_numpy(instruction_tokens(tree_from(told["tree"])))
        assert torch.equal(own, tokens()["rule_tokens"][row, :length].to(own.dtype))
        assert not tokens()["rule_tokens"][row, length:].any()
        own = torch.from_numpy(stimulus_tokens(letters_of(told)))
        assert torch.equal(own, tokens()["stimulus_tokens"][row].to(own.dtype))
        assert int(tokens()["answer_class"][row]) == told["answer_class"]


def test_the_sets_of_the_splits() -> None:
    objects = PARITY.manifest["systematic_depth1_objects"]
    for number, half in enumerate(("half_1", "half_2")):
        assert {tuple(one) for one in objects[half]} == set(HALVES[number])
        assert set(objects[f"operators_{number + 1}"]) == set(OPERATORS_OF_HALF[number])
        deeper = PARITY.manifest["systematic_depth3_operators"]
        assert set(deeper[f"roots_{number + 1}"]) == set(ROOTS[number])
        assert set(deeper[f"leaves_{number + 1}"]) == set(LEAVES[number])
    assert len(set(HALVES[0]) & set(HALVES[1])) == objects["in_both"]
    assert tuple(PARITY.manifest["colors"]) == COLOURS
    numbers = PARITY.manifest["operator_ids"]
    assert [numbers[operator] for operator in (*OPERATORS, "switch")] == list(range(1, len(OPERATORS) + 2))


@pytest.mark.parametrize(("split", "part"), [(split, part) for split, parts in SPLITS.items() for part in parts])
def test_what_is_drawn_here_is_of_the_kind_of_what_was_drawn_there(split: str, part: str) -> None:
    """Depth, operators, and how many letters there are, within four standard errors."""
    theirs = [told for told in instances() if (told["split"], told["part"]) == (split, part)]
    if not theirs:
        pytest.skip(f"the set holds no instance of {split}, {part}")
    data = GCOG(split, part, per_operator=25, seed=3)
    ours = [data[number] for number in range(len(data))]
    trees = [tree_from(told["tree"]) for told in theirs]
    assert {depth(tree) for tree in trees} == {depth(one.tree) for one in ours} == {data.part.depth}
    if split == "systematic_depth3":
        both = [[pairs(tree) for tree in some] for some in (trees, [one.tree for one in ours])]
        for found in both:
            crossed = {(root in ROOTS[0]) != (leaf in LEAVES[0]) for some in found for root, leaf in some}
            assert crossed == {part == "test"}
    counts = [
        np.array(counted) for counted in ([len(one["objects"]) for one in theirs], [len(o.letters) for o in ours])
    ]
    error = np.hypot(*(some.std() / np.sqrt(len(some)) for some in counts))
    assert abs(counts[0].mean() - counts[1].mean()) <= 4 * error + 1e-9


def pairs(tree: Any) -> list[tuple[str, str]]:
    assert isinstance(tree, Switch)
    return [(tree.condition.operator, child.operator) for child in (tree.then, tree.otherwise)]
