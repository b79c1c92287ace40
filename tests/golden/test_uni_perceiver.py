"""Uni-Perceiver computes what the authors' code computes: the dense encoder and the one with experts, the choice of
experts and their shares, the mask of captions, earlier states as further keys, and every kind of likelihood; values and
gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
from parity import DTYPES, TOLERANCE, Parity, differences, gradient_differences
from torch import Tensor

from perceiver_vl.layers.expert_block import ExpertBlock
from perceiver_vl.layers.experts import AttributeGate
from perceiver_vl.models.uni_perceiver import (
    TASKS,
    LikelihoodHead,
    UniPerceiverEncoder,
    UniPerceiverPreTrainedModel,
    caption_mask,
)
from perceiver_vl.models.uni_perceiver.convert import converted, recognises

PARITY = Parity("uni_perceiver")
THEIRS = {
    "image_classification.input": ("image_classification", "inputs"),
    "video_classification.input": ("video_classification", "inputs"),
    "image_retrieval.input": ("retrieval", "inputs"),
    "video_retrieval.input": ("retrieval", "inputs"),
    "image_retrieval.target": ("retrieval", "candidates"),
    "video_retrieval.target": ("retrieval", "candidates"),
    "image_caption.input": ("captioning", "inputs"),
    "video_caption.input": ("captioning", "inputs"),
    "text_mlm.input": ("masked_words", "inputs"),
    "text_classification.input": ("text_classification", "inputs"),
    "ImageNet1k.candidates": ("image_classification", "candidates"),
    "Vocab_Word.candidates": ("captioning", "candidates"),
}
Values = dict[str, Tensor]


def model_of(case: str, state: Values) -> UniPerceiverPreTrainedModel:
    """Our encoder or head of `state`, whose names are the authors', with what its shapes do not tell."""
    given: dict[str, Any] = PARITY.config(case)
    assert recognises(state)
    if given["what"] == "head":
        return converted(state, initial_temperature=given["temperature"])
    return converted(
        state, num_attention_heads=given["heads"], gate_activation=bool(given.get("tag_act", False)), drop_path=0.0
    )


def run_encoder(encoder: UniPerceiverEncoder, given: Values) -> Values:
    """Hidden states, the scalar that is differentiated, masks, and what every gate chose."""
    data, lengths = given["data"].to(encoder.dtype), given["data_length"].tolist()
    hidden = given.get("invalid_mask", torch.zeros(data.shape[:2], dtype=torch.uint8)).bool()
    mask, found = (~hidden if hidden.any() else None), {}
    twice = bool(given.get("text_twice", torch.tensor(0)))
    first = sum(lengths[:-1]) if len(lengths) > 2 else sum(lengths[:2])
    if twice:
        seen = caption_mask(first, lengths[-1])
        found["attention_mask"] = ~seen
        mask = seen & ~hidden[:, None]
    chosen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: chosen.append(output))
        for module in encoder.modules()
        if isinstance(module, AttributeGate)
    ]
    history, noise = given.get("history"), given.get("noise")
    output = encoder(
        data,
        mask,
        given["attributes"],
        first,
        None if history is None else list(history.to(encoder.dtype)),
        None if noise is None else noise.to(encoder.dtype) / encoder.config.num_experts,
    )
    for hook in hooks:
        hook.remove()
    places = [number for number, layer in enumerate(encoder.layers) if isinstance(layer.block, ExpertBlock)]
    names = [f"layers.{number}.{name}" for number in places for name in ("self_attn.qkv_proj", "linear1")]
    for name, (experts, shares) in zip(names, chosen, strict=True):
        found |= {f"gate.{name}.experts": experts, f"gate.{name}.weights": shares}
    states = output.last_hidden_state
    terms = states * given["probe"].to(encoder.dtype)
    return found | {"hidden": states, "loss": terms.sum(), "terms": terms.abs().sum()}


def task_of_head(given: Values) -> str:
    """Whose likelihoods these are, by what they are asked with."""
    if "target_samples" in given:
        return "retrieval"
    if "step" in given or "data_length" in given:
        return "captioning"
    return "masked_words" if given["targets"].ndim == 2 else "image_classification"


def run_head(head: LikelihoodHead, given: Values) -> Values:
    """Picks the places that answer, as models do before they come to the head."""
    inputs, targets, task = given["input"].to(head.dtype), given.get("targets"), TASKS[task_of_head(given)]
    if "step" in given:
        picked = inputs[:, -1]
    elif task.answers_at == "begin":
        picked = inputs[:, 0]
    else:
        length = targets.shape[1] if task.answers_at == "masked" else int(given["data_length"][-1]) // 2
        picked = inputs[:, -length:][targets != -1]
        targets = targets[targets != -1]
    candidates = given.get("candidates", given.get("target_samples")).to(head.dtype)[:, 0]
    logits = head(head.features(picked), head.features(candidates), task.temperature)
    found = {"logits": logits}
    if task is TASKS["retrieval"]:
        right = torch.arange(len(logits))
        found |= {
            "logits.t2i": logits.T,
            "loss": (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2,
        }
    elif targets is not None:
        found["loss"] = F.cross_entropy(logits, targets)
    return found


def run(case: str, model: UniPerceiverPreTrainedModel) -> Values:
    given = PARITY.tensors(case, "in")
    if isinstance(model, LikelihoodHead):
        return run_head(model, given)
    assert isinstance(model, UniPerceiverEncoder)
    return run_encoder(model.train("noise" in given), given)


@PARITY.every_case
def test_values_and_gradients_are_the_authors_(case: str) -> None:
    if any("bits." in name for name in PARITY.manifest["cases"][case]["tensors"]):
        return check_bits(case)
    weights, found = PARITY.weights(case), {}
    for precision, dtype in DTYPES.items():
        found = run(case, model := model_of(case, weights).to(dtype))
        wanted = PARITY.tensors(case, f"out.{precision}")
        largest = differences({k: v.double() for k, v in found.items()}, {k: v.double() for k, v in wanted.items()})
        if precision == "f32" and "terms" in found:
            largest["loss"] /= max(1.0, found["terms"].item())
        assert max(largest.values()) <= TOLERANCE[precision], (precision, largest)
    stored = PARITY.tensors(case, "grad.f64")
    if not stored:
        return None
    found["loss"].backward()
    for name, weight in weights.items():  # experts that nothing chose have none there, and zeros here
        if "deepspeed_experts" in name and name not in stored:
            stored[name] = torch.zeros_like(weight)
    largest = gradient_differences(model, lambda state: model_of(case, state).double(), weights, stored)
    assert max(largest.values()) <= 1e-9, largest
    return None


def check_bits(case: str) -> None:
    for name, bits in PARITY.tensors(case, "out.f64").items():
        task, which = THEIRS[name.removeprefix("bits.")]
        assert torch.equal(TASKS[task].attributes(which).long(), bits)  # type: ignore[arg-type]


@PARITY.every_case
def test_every_layer_is_the_authors_(case: str) -> None:
    stored = PARITY.tensors(case, "mid.f64")
    model = model_of(case, PARITY.weights(case)).double()
    if not isinstance(model, UniPerceiverEncoder) or not stored:
        return
    outputs: dict[str, Tensor] = {}
    for number, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _, __, x, n=number: outputs.update({f"layers.{n}": x}))
    run(case, model)
    wanted = {name: value for name, value in stored.items() if name in outputs}
    assert len(wanted) == len(model.layers)
    for name, value in wanted.items():
        assert (outputs[name] - value).abs().max() <= 1e-9
