"""Perceiver IO computes what transformers' classes and lucidrains' code compute, on the same weights: masked bytes,
images, flow, video with sound and label, and given queries; values and gradients.
"""

from typing import Any

import torch
from parity import Parity, check_values_and_gradients
from torch import Tensor

from perceiver_vl.models.perceiver_io import PerceiverIOPreTrainedModel
from perceiver_vl.models.perceiver_io.convert import converted

PARITY = Parity("perceiver_io")
IMAGES = {"image_fourier": True, "image_learned": False}
"""Which have a skip connection from the class query, which no weight tells (README)."""


def model_of(case: str, state: dict[str, Tensor]) -> PerceiverIOPreTrainedModel:
    """Our model of `state`, whose names are the reference's, with what its shapes do not tell from the manifest."""
    given = PARITY.config(case)
    fields: dict[str, Any] = {}
    if given["kind"] == "lucidrains":
        heads = given["args"]
        return converted(
            state, num_attention_heads=heads["latent_heads"], num_cross_attention_heads=heads["cross_heads"]
        )
    if given["kind"] in IMAGES:
        size = given.get("resolution", given.get("image"))
        fields = {"image_size": size, "max_resolution": size, "decoder_residual": IMAGES[given["kind"]]}
    elif given["kind"] == "flow":
        fields = {"image_size": given["image"]}
    elif given["kind"] == "multimodal":
        fields = {"image_size": [given["size"]] * 2, "num_frames": given["frames"], "audio_samples": given["audio"]}
    return converted(state, given["config"], **fields)


def run(case: str, model: PerceiverIOPreTrainedModel) -> dict[str, Tensor]:
    """Every value that the case's file may hold."""
    kind = PARITY.config(case)["kind"]
    given = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in PARITY.tensors(case, "in").items()
    }
    if kind == "multimodal":
        points = {name: given[f"points_{name}"] for name in ("audio", "image")}
        output = model(image=given["video"], audio=given["audio"], label=given["label"], points=points)
        found = dict(output.logits)
        found["loss"] = sum((value * given[f"probe_{name}"]).sum() for name, value in output.logits.items())
        return found | {"latents": output.last_hidden_state}
    if kind == "mlm":
        output = model(given["tokens"], given["attention_mask"], labels=given["labels"])
        return {"logits": output.logits, "loss": output.loss}
    if kind == "lucidrains":
        queries = given["queries"].expand(len(given["data"]), -1, -1)
        logits = model(given["data"], given["mask"], queries).logits
        return {"logits": logits, "loss": (logits * given["probe"]).sum()}
    latents: list[Tensor] = []
    model.perceiver.decoder.register_forward_hook(lambda _, taken, __: latents.append(taken[0]))
    if kind == "flow":
        logits = model(given["inputs"]).logits
        return {"logits": logits, "loss": (logits * given["probe"]).sum(), "latents": latents[0]}
    output = model(given["inputs"], labels=given["labels"])
    return {"logits": output.logits, "loss": output.loss, "latents": latents[0]}


@PARITY.every_case
def test_values_and_gradients_are_the_reference_s(case: str) -> None:
    check_values_and_gradients(PARITY, case, model_of, run)


@PARITY.every_case
def test_the_input_array_is_the_reference_s(case: str) -> None:
    """Where the reference has a module that makes it."""
    wanted = [v for name, v in PARITY.tensors(case, "mid.f64").items() if name.endswith("input_preprocessor")]
    model, seen = model_of(case, PARITY.weights(case)).double(), []
    base = model if PARITY.config(case)["kind"] == "lucidrains" else model.perceiver
    base.encoder.blocks[0].cross_attention.input_norm.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    run(case, model)
    for value in wanted:
        assert (seen[0] - value).abs().max() <= 1e-9


@PARITY.every_case
def test_evaluation_that_skips_projections_finds_the_same(case: str) -> None:
    """In training no attention is rearranged; both are the reference's."""
    model = model_of(case, PARITY.weights(case)).double()
    evaluated = run(case, model)
    trained = run(case, model.train())
    for name, value in evaluated.items():
        torch.testing.assert_close(trained[name], value, atol=1e-9, rtol=1e-9)
