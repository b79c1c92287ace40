"""MonoXiver's head computes what the authors' code computes: scores, corrections and gradients."""

import torch
from parity import Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.models.monoxiver import MonoXiverModel
from perceiver_vl.models.monoxiver.convert import converted

PARITY = Parity("monoxiver")


def model_of(case: str, state: dict[str, Tensor]) -> MonoXiverModel:
    return converted(state, num_attention_heads=PARITY.config(case)["num_heads"])


def run(case: str, model: MonoXiverModel) -> dict[str, Tensor]:
    given = PARITY.tensors(case, "in")
    output = model(*(given[name].to(model.dtype) for name in ("points", "geometry", "roi")), given["per_image"])
    probes = {"class_score": "probe_cls", "xyz": "probe_xyz", "size": "probe_dim"}
    found = {"class_score": output.logits, "xyz": output.position, "size": output.size}
    terms = torch.cat([(value * given[probes[name]]).flatten() for name, value in found.items()])
    return found | {"loss": terms.sum(), "terms": terms.abs().sum()}


@PARITY.every_case
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run)


@PARITY.every_case
def test_the_head_is_found_in_a_whole_detector(case: str) -> None:
    weights = PARITY.weights(case)
    whole = {f"roi_head.{name}": weight for name, weight in weights.items()} | {"backbone.conv.weight": torch.zeros(1)}
    for name, weight in model_of(case, whole).state_dict().items():
        assert torch.equal(weight, model_of(case, weights).state_dict()[name])
