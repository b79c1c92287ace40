"""Perceiver-VL's answers after each block: examples that leave one by one, and what they have cost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
    UsageError,
)
from perceiver_vl.models.budget import EarlyExitBudget
from perceiver_vl.models.early_exit import ALWAYS, NEVER, exits_taken, solve_thresholds
from perceiver_vl.models.perceiver_vl.exit_flops import exit_flops
from tiny import AGGREGATIONS, Kind, assert_same, inputs_of, tiny_config, tiny_encoders, tiny_model

KINDS = (PerceiverVLForQuestionAnswering, PerceiverVLForImageClassification)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dials", [{}, {"latents": 3, "latent_choice": "diverse", "cross_attentions": 1}])
def test_each_example_leaves_with_what_its_block_says(kind: Kind, aggregation: str, dials: dict[str, Any]) -> None:
    model = tiny_model(kind, modality_aggregation=aggregation, num_labels=5)
    inputs = inputs_of(kind, padded=True, batch=6)
    budgets = [ComputeBudget(**(dials | {"blocks": blocks})) for blocks in (1, 2, 3)]
    every = torch.stack([model(**inputs, budget=budget).logits for budget in budgets])
    confidences = every.softmax(-1).amax(-1)
    thresholds = solve_thresholds(confidences, torch.full((3,), 1 / 3)) - 1e-9  # as smaller batches round otherwise
    budget = EarlyExitBudget(**dials, thresholds=tuple(thresholds.tolist()))
    batches: list[int] = []
    for block in model.perceiver_vl.encoder.blocks:
        block.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
    found = model(**inputs, budget=budget).logits
    taken = exits_taken(confidences, thresholds)
    assert_same(found, every[taken, torch.arange(6)])
    assert [blocks for blocks, _ in budget.taken] == (taken + 1).tolist()
    assert sorted(taken.tolist()) == [0, 0, 1, 1, 2, 2]
    each = len(batches) // 3
    assert batches == [number for number in (6, 4, 2) for _ in range(each)]


def test_over_pretrained_encoders_what_these_say_leaves_with_its_example() -> None:
    model = tiny_model(PerceiverVLForQuestionAnswering, **tiny_encoders(), num_labels=5)
    inputs = inputs_of(PerceiverVLForQuestionAnswering, batch=6)
    every = torch.stack([model(**inputs, budget=ComputeBudget(blocks=blocks)).logits for blocks in (1, 2, 3)])
    thresholds = solve_thresholds(every.softmax(-1).amax(-1), torch.full((3,), 1 / 3)) - 1e-9
    budget = EarlyExitBudget(thresholds=tuple(thresholds.tolist()))
    found = model(**inputs, budget=budget).logits
    blocks = torch.tensor([blocks for blocks, _ in budget.taken])
    assert len(blocks.unique()) == 3
    assert_same(found, every[blocks - 1, torch.arange(6)])


@every_kind
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("answers", ["query", "mean_latents"])
@pytest.mark.parametrize("exit", range(3))
def test_leaving_after_a_block_costs_what_the_formula_says(
    kind: Kind, aggregation: str, answers: str, exit: int
) -> None:
    changes = {"modality_aggregation": aggregation, "answers_from": answers, "num_labels": 5}
    model, inputs = tiny_model(kind, **changes).requires_grad_(False), inputs_of(kind, batch=1)
    budget = EarlyExitBudget(latents=5, thresholds=tuple(ALWAYS if one == exit else NEVER for one in range(3)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs, budget=budget)
    words = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    assert budget.taken == [(exit + 1, words)]
    wanted = exit_flops(model.config, 3, words, replace(budget, taken=[]))
    assert counter.get_total_flops() == wanted[exit]


def test_what_cannot_leave_early_is_refused_in_a_line() -> None:
    inputs = inputs_of(PerceiverVLForQuestionAnswering)
    model = tiny_model(PerceiverVLForQuestionAnswering, num_labels=5)
    with pytest.raises(UsageError, match=r"^early exit: 2 thresholds for a model of 3 blocks, solve them again"):
        model(**inputs, budget=EarlyExitBudget(thresholds=(0.5, 0.5)))
    counting = tiny_model(PerceiverVLForQuestionAnswering, num_labels=1, problem_type="regression")
    with pytest.raises(UsageError, match=r"^early exit: a model that counts says no probability"):
        counting(**inputs, budget=EarlyExitBudget(thresholds=(0.5, 0.5, 0.5)))


def test_a_budget_with_exits_is_told_in_words() -> None:
    budget = EarlyExitBudget(latents=8, thresholds=(0.871, NEVER, ALWAYS))
    assert str(budget) == "latents=8, early exit at 0.87/–"
    assert budget == replace(budget, taken=[(1, 4)])
    assert tiny_config().blocks_of(budget) == 3
