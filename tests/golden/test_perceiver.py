"""Perceivers with repeated reads compute what lucidrains' and krasserm's code computes: every sharing of weights, both
orders of the Fourier features, masks, latents, logits, losses and gradients.
"""

from typing import Any

import torch
from parity import Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.models.perceiver import IterativePerceiverForClassification
from perceiver_vl.models.perceiver.convert import converted

PARITY = Parity("perceiver")


def model_of(case: str, state: dict[str, Tensor]) -> IterativePerceiverForClassification:
    """Our model of `state`, whose names are the reference's, with what its shapes do not tell from the manifest."""
    given = PARITY.config(case)
    if given["variant"] == "lucidrains":
        return converted(
            state,
            num_attention_heads=given["latent_heads"],
            num_cross_attention_heads=given["cross_heads"],
            num_channels=given["input_channels"],
            input_shape=list(PARITY.tensors(case, "in")["data"].shape[1:-1]),
            num_bands=given["num_freq_bands"],
            max_resolution=[given["max_freq"]] * given["input_axis"],
        )
    encoder = given["encoder"]
    return converted(
        state,
        num_attention_heads=encoder["num_self_attention_heads"],
        num_cross_attention_heads=encoder["num_cross_attention_heads"],
        num_blocks=encoder["num_self_attention_blocks"],
        num_cross_attentions=encoder["num_cross_attention_layers"],
        num_query_attention_heads=given["decoder"]["num_cross_attention_heads"],
    )


def run(case: str, model: IterativePerceiverForClassification) -> dict[str, Tensor]:
    given = PARITY.tensors(case, "in")
    inputs: dict[str, Any] = {"inputs": given.get("data", given.get("image")).to(model.dtype)}
    if "mask" in given:
        inputs["mask"] = given["mask"]
    if "pad_mask" in given:  # True is hidden there
        inputs["mask"] = ~given["pad_mask"]
    output = model(**inputs, labels=given["labels"])
    latents = model.perceiver(**inputs).last_hidden_state
    return {"logits": output.logits, "loss": output.loss, "latents": latents}


@PARITY.every_case
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run, unlearned="position_encoding")


@PARITY.every_case
def test_the_input_array_is_the_reference_s(case: str) -> None:
    """Samples and positions side by side, where the reference has a module that makes them."""
    adapters = {name: value for name, value in PARITY.tensors(case, "mid.f64").items() if "input_adapter" in name}
    model, seen = model_of(case, PARITY.weights(case)).double(), []
    norm = model.perceiver.encoder.blocks[0].cross_attention.input_norm
    norm.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    run(case, model)
    for value in adapters.values():
        assert (seen[0] - value).abs().max() <= 1e-9
    assert all(torch.equal(one, seen[0]) for one in seen)
