"""Perceiver TF computes what YourMT3+'s encoder computes: reads of frequencies and of channels, with a skip and
without, both kinds of positions and distances, experts, the front end; values, what is on the way, and gradients.
"""

from typing import Any

import torch
from parity import Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.models.perceiver_tf import PerceiverTFModel
from perceiver_vl.models.perceiver_tf.convert import converted, recognises

PARITY = Parity("perceiver_tf")
LISTS = {"local_transformer": "local_layers", "temporal_transformer": "temporal_layers"}


def model_of(case: str, state: dict[str, Tensor]) -> PerceiverTFModel:
    """Our encoder of `state`, whose names are theirs, with what its shapes do not tell from the manifest."""
    assert recognises(state)
    given: dict[str, Any] = PARITY.config(case)
    encoder = given["encoder"]
    kind = encoder["position_encoding_type"]
    fields = {
        "num_attention_heads": encoder["num_self_attention_heads"],
        "num_cross_attention_heads": encoder["num_cross_attention_heads"],
        "read": "channels" if encoder["attention_to_channel"] else "frequencies",
        "read_residual": encoder["sca_use_query_residual"],
        "positions": "trainable" if kind == "tkd" else kind,
        "conv_activation": "relu" if given["conv_activation"] == "relu" else "leaky",
        "dropout": encoder["dropout_rate"],
    }
    if "hidden_act" in encoder and encoder["ff_layer_type"] == "moe":
        fields["expert_act"] = encoder["hidden_act"]
    return converted(state, **fields)


def run(case: str, model: PerceiverTFModel) -> dict[str, Tensor]:
    given = {name: value.to(model.dtype) for name, value in PARITY.tensors(case, "in").items()}
    latents = model(given.get("spectrogram"), given.get("features")).last_hidden_state
    terms = latents * given["probe"]
    return {"latents": latents, "loss": terms.sum(), "terms": terms.abs().sum()}


@PARITY.every_case
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run, unchosen=".mlp.experts.")


@PARITY.every_case
def test_every_layer_is_the_reference_s(case: str) -> None:
    model, found = model_of(case, PARITY.weights(case)).double(), {}
    for name, module in model.named_modules():
        theirs = name.replace("blocks.", "encoder.blocks.").replace("front_end.", "pre_encoder.blocks.")
        for word, ours in LISTS.items():
            theirs = theirs.replace(ours, word)
        theirs = theirs.replace(".read", ".spectral_cross_attention").replace(".mlp.router", ".mlp.gate")
        module.register_forward_hook(lambda _, __, output, n=theirs: found.update({n: output}))
    with torch.no_grad():
        run(case, model)
    given = PARITY.tensors(case, "in")
    features = given["features"].double() if "features" in given else found["front_end"].movedim(1, -1)
    stored = PARITY.tensors(case, "mid.f64")
    assert stored
    for name, wanted in stored.items():
        if name == "features":
            own = found["front_end"].movedim(1, -1)
        elif name.startswith("spectral_attention."):
            own = reads(model, features, int(name.rpartition(".")[2]))
        else:
            own = found[name]
        assert (own - wanted).abs().max() <= 1e-9, name


def reads(model: PerceiverTFModel, features: Tensor, block: int) -> Tensor:
    """How the latents of each frame attend to its spectrum."""
    read = model.blocks[block].read
    with torch.no_grad():
        states = model(features=features, output_hidden_states=True).hidden_states
        return read.weights(states[block].flatten(0, 1), features.flatten(0, 1))
