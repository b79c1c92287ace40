"""The Dynamic Perceiver computes what the authors' code computes: four exits, loss, gradients, a training step's batch
statistics, and the search for thresholds.
"""

from typing import Any

import pytest
import torch
from parity import DTYPES, Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.models.dynamic_perceiver import DynamicPerceiverForImageClassification
from perceiver_vl.models.dynamic_perceiver.convert import RULES, converted
from perceiver_vl.models.early_exit import exit_shares, exits_taken, solve_thresholds
from perceiver_vl.models.renaming import renamed

PARITY = Parity("dynamic_perceiver")
OF_MODELS = [case for case in PARITY.cases if "in.image" in PARITY.manifest["cases"][case]["tensors"]]
SEARCHES = [case for case in PARITY.cases if case not in OF_MODELS]
without = pytest.mark.skipif(not PARITY.cases, reason=f"no folder {PARITY.folder}")


def model_of(case: str, state: dict[str, Tensor]) -> DynamicPerceiverForImageClassification:
    """Our model of `state`, whose names are the reference's, with what its shapes do not tell from the manifest."""
    given = PARITY.config(case)
    heads, ratio = given["num_SA_heads"], given["backbone"]["se_ratio"]
    return converted(state, num_attention_heads=heads, se_ratio=ratio)


def run(case: str, model: DynamicPerceiverForImageClassification) -> dict[str, Tensor]:
    given = PARITY.tensors(case, "in")
    trains = any(name.startswith("after_step.") for name in PARITY.tensors(case, "out.f64"))
    output = model.train(trains)(given["image"].to(model.dtype), given["labels"])
    found = {"loss": output.loss}
    for name, logits in zip(PARITY.manifest["exit_order"], output.exit_logits, strict=True):
        found |= {f"exit.{name}": logits, f"confidence.{name}": logits.softmax(-1).amax(-1)}
    theirs: Any = renamed({name: name for name in PARITY.weights(case)}, RULES)  # type: ignore[dict-item]
    state = model.state_dict()
    return found | {f"after_step.{name}": state[ours] for ours, name in theirs.items()}


@without
@pytest.mark.parametrize("case", OF_MODELS)
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run)


@without
@pytest.mark.parametrize("case", OF_MODELS)
def test_examples_that_leave_one_by_one_find_the_same(case: str) -> None:
    """The exit that each example takes says what it says when nobody leaves."""
    model, given = model_of(case, PARITY.weights(case)).double(), PARITY.tensors(case, "in")
    image = given["image"].double()
    every = model(image).exit_logits
    confidences = torch.stack([logits.softmax(-1).amax(-1) for logits in every])
    for shares in exit_shares(len(every)):
        thresholds = solve_thresholds(confidences, shares) - 1e-9  # as smaller batches round otherwise
        output = model(image, thresholds=thresholds.tolist())
        taken = exits_taken(confidences, thresholds)
        assert torch.equal(output.exits, taken)
        wanted = torch.stack([every[exit][example] for example, exit in enumerate(taken.tolist())])
        assert (output.logits - wanted).abs().max() <= 1e-9


@without
@pytest.mark.parametrize("case", SEARCHES)
@pytest.mark.parametrize("precision", DTYPES)
def test_thresholds_are_the_reference_s(case: str, precision: str) -> None:
    """Of the family of budgets, searched on the first half of the scores and used on both. Its shares are of single
    precision in both.
    """
    given, wanted = PARITY.tensors(case, "in"), PARITY.tensors(case, f"out.{precision}")
    confidences, answers = given["scores"].max(-1)
    half = confidences.shape[1] // 2
    shares = exit_shares(len(confidences), (0.85, 1.0, 0.5))
    assert (shares - wanted["exit_probabilities"]).abs().max() <= 2e-7
    for row, own in enumerate(wanted["exit_probabilities"]):
        thresholds = solve_thresholds(confidences[:, :half], own)
        assert torch.equal(thresholds, wanted["thresholds"][row])
        for column, some in enumerate((slice(0, half), slice(half, None))):
            taken = exits_taken(confidences[:, some], thresholds)
            right = answers[:, some].gather(0, taken[None])[0] == given["labels"][some]
            assert abs(100 * right.double().mean() - wanted["accuracy"][row, column]) <= 1e-9
            cost = given["flops"].double()[taken].mean()
            assert abs(cost - wanted["expected_flops"][row, column]) <= 1e-6
