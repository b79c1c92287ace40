"""gCOG's Perceiver-like model computes what the reference's computes: the last latent, log-probabilities, loss,
gradients, and that all its latents are one.
"""

import torch
from parity import Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.models.gcog import GCOGForClassification
from perceiver_vl.models.gcog.convert import converted, recognises

PARITY = Parity("gcog_model")


def model_of(case: str, state: dict[str, Tensor]) -> GCOGForClassification:
    """Our model of `state`; the reference's dropout of positions is there in training alone."""
    assert recognises(state)
    return converted(state, num_attention_heads=PARITY.config(case)["nhead"])


def run(case: str, model: GCOGForClassification) -> dict[str, Tensor]:
    given = PARITY.tensors(case, "in")
    rules, stimuli = (given[name].to(model.dtype) for name in ("rule_tokens", "stimulus_tokens"))
    output = model(rules, stimuli, labels=given["answer_class"])
    return {
        "log_probabilities": output.logits,
        "loss": output.loss,
        "last_latent": model.gcog(rules, stimuli).pooler_output,
    }


@PARITY.every_case
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run, unlearned=".pe")


@PARITY.every_case
def test_what_is_on_the_way_is_the_reference_s(case: str) -> None:
    model, seen = model_of(case, PARITY.weights(case)).double(), []
    model.gcog.model.norm.register_forward_hook(lambda _, __, latents: seen.append(latents))
    given = PARITY.tensors(case, "in")
    with torch.no_grad():
        model(given["rule_tokens"], given["stimulus_tokens"])
    stored = PARITY.tensors(case, "mid.f64")
    names = sorted(name for name in stored if name.startswith("layernorm_latent"))
    assert len(seen) == len(names)
    for found, name in zip(seen, names, strict=True):
        assert (found - stored[name]).abs().max() <= 1e-9
        assert (found - found[:, :1]).abs().max() <= 1e-12  # one latent, ten times
