"""The S2T Perceiver's encoder computes what the authors' code computes, with all latents, with those that training
drew, and with those that are the most diverse: latents, choices and gradients.
"""

import torch
from parity import Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.layers.token_selection import most_diverse
from perceiver_vl.models.s2t_perceiver import S2TPerceiverModel
from perceiver_vl.models.s2t_perceiver.convert import converted

PARITY = Parity("s2t_perceiver_dla")


def model_of(case: str, state: dict[str, Tensor]) -> S2TPerceiverModel:
    """Our model of `state`, whose names are the reference's, with what its shapes do not tell from the manifest."""
    given = PARITY.config(case)
    return converted(
        state,
        num_attention_heads=given["encoder_attention_heads"],
        stride=given["conv_stride"],
        scale_inputs=not given["no_scale_embedding"],
        max_frames=max(given["max_source_positions"], PARITY.tensors(case, "in")["src"].shape[1]),
        dropout=given["dropout"],
    )


def run(case: str, model: S2TPerceiverModel) -> dict[str, Tensor]:
    given = PARITY.tensors(case, "in")
    choice = given["choice"].T if "choice" in given else None
    number = int(given["k_inf"]) if "k_inf" in given else None
    output = model.train("choice" in given)(given["src"].to(model.dtype), given["lengths"], number, choice)
    latents = output.last_hidden_state.transpose(0, 1)
    terms = latents * given["probe"]
    found = {"encoder_out": latents, "loss": terms.sum(), "terms": terms.abs().sum()}
    return found if output.kept is None else found | {"picks": output.kept.T}


@PARITY.every_case
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run)


@PARITY.every_case
def test_latents_attend_as_the_reference_s(case: str) -> None:
    """And what is chosen from its own weights is what it chose."""
    stored = PARITY.tensors(case, "mid.f64")
    model, seen = model_of(case, PARITY.weights(case)).double(), []
    cross = model.encoder.blocks[0].cross_attention
    cross.register_forward_hook(lambda _, given, __: seen.append(given))
    run(case, model)
    weights = cross.weights(*seen[0])[:, 0]
    assert (weights - stored["cross_attention_weights"]).abs().max() <= 1e-9
    picks = PARITY.tensors(case, "out.f64").get("picks")
    if picks is not None:
        assert torch.equal(most_diverse(stored["cross_attention_weights"], len(picks)), picks.T)
