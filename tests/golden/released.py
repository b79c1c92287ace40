"""The released code's values beside ours: `python tests/golden/released.py` prints the largest differences as a table.

The values lie in `$PARITY_DIR/perceiver_vl`, by default beside the project; its README gives their meaning.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from parity import DTYPES, PARITY_DIR
from safetensors.torch import load_file
from torch import Tensor, nn

from perceiver_vl import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.original_checkpoint import MODELS, load_released, released_config

FOLDER = PARITY_DIR / "perceiver_vl"
TASKS = {
    "video_mlm": "pretraining",
    "video_match": "retrieval",
    "video_match_first_cross": "retrieval",
    "image_mlm": "pretraining",
    "image_match": "retrieval",
    "image_match_other_size": "retrieval",
    "image_vqa": "question-answering",
    "image_cls": "image-classification",
}


def released_model(
    task: str, dtype: torch.dtype, state: dict[str, Tensor] | None = None, **changes: Any
) -> tuple[Any, set[str]]:
    """Our model with the golden weights (or `state`, named as they are), and which of its parameters were loaded.

    `changes`: fields of the configuration that are not to be as released.
    """
    weights = load_file(FOLDER / "weights.safetensors")
    heads = json.loads((FOLDER / "manifest.json").read_text())["config"]["num_heads"]
    model = MODELS[task](released_config(weights, task, num_attention_heads=heads, **changes)).to(dtype).eval()
    loaded = load_released(model, weights if state is None else state).loaded
    return model, set(loaded)


def differences(case: str, precision: str, **changes: Any) -> dict[str, float]:
    """The largest absolute difference of every value of a case in one precision, gradients (`grad.…`) included."""
    golden = load_file(FOLDER / f"{case}.safetensors")
    model, _ = released_model(TASKS[case], DTYPES[precision], **changes)
    ours = run(case, model, {name[3:]: value for name, value in golden.items() if name.startswith("in.")})
    wanted = {
        name.replace(f".{precision}", ""): value
        for name, value in golden.items()
        if name.startswith((f"mid.{precision}.", f"out.{precision}."))
    }
    found = {name: (ours[name] - value).abs().max().item() for name, value in wanted.items()}
    gradients = {name.removeprefix("grad.f64."): value for name, value in golden.items() if name.startswith("grad.")}
    if gradients and precision == "f64":
        next(value for name, value in ours.items() if name.endswith("_loss")).backward()
        # A gradient has the shape of its tensor, so the conversion of weights converts gradients too.
        shaped, loaded = released_model(TASKS[case], torch.float64, gradients, **changes)
        theirs = dict(shaped.named_parameters())
        for name, parameter in model.named_parameters():
            if name in loaded:
                found[f"grad.{name}"] = (parameter.grad - theirs[name]).abs().max().item()
    return found


def run(case: str, model: PerceiverVLPreTrainedModel, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """One forward pass of a case, and every value that the golden file may hold."""
    pixels = given["video"] if "video" in given else given["image"][:, None]
    dtype = next(model.parameters()).dtype
    inputs: dict[str, Any] = {"pixel_values": pixels.to(dtype)}
    if "text_ids" in given:
        inputs |= {"input_ids": given["text_ids"], "attention_mask": given["text_mask"]}
    if case == "video_match_first_cross":
        inputs["budget"] = ComputeBudget(cross_attentions=1)
    labels = {"mlm": "mlm_labels", "match": "vtm_labels", "vqa": "labels", "cls": "labels"}[case.split("_")[1]]
    answers = {"mlm_labels": "mlm_labels", "vtm_labels": "matching_labels", "labels": "vqa_targets"}[labels]
    inputs[labels] = given[answers if answers in given else "labels"]

    with recorded(model) as seen:
        output = model(**inputs)
    values = values_inside(model, seen)
    if case.endswith("_mlm"):
        values |= {"out.mlm_logits": output.mlm_logits, "out.mlm_loss": output.loss}
        values["out.text_feats"] = values["out.cls_feats"][:, 1:]
    elif "_match" in case:
        values["out.matching_loss"] = output.loss
    else:
        name = "vqa" if case.endswith("_vqa") else "img"
        values |= {f"out.{name}_logits": output.logits, f"out.{name}_loss": output.loss}
    if output.get("vtm_logits") is not None:
        values["out.matching_logits"] = output.vtm_logits[:, None]
    return values


def values_inside(model: Any, seen: dict[nn.Module, list[tuple[Any, Tensor]]]) -> dict[str, Tensor]:
    """Intermediate values by their golden names, from what the modules received and returned."""
    base, length = model.perceiver_vl, model.config.self_attentions_per_block
    values = {}
    for modality, ((tokens, *_), normed) in zip(("visual", "text"), seen[base.embeddings.norm], strict=False):
        values |= {f"mid.embed.{modality}": tokens, f"mid.co_norm.{modality}": normed}
    for number, block in enumerate(base.encoder.blocks):
        if block.cross_attention in seen:
            (latents, tokens, mask), after = seen[block.cross_attention][0]
            values[f"mid.latents.after_cross.{number * length:02d}"] = after
            if number == 0:
                read = block.cross_attention
                values["mid.cross_attention_probs.00"] = read.attention.weights(read.norm1(latents), tokens, mask)
                values["out.visual_mask"] = mask[:, : values["mid.embed.visual"].shape[1]].long()
        for place, self_attention in enumerate(block.self_attentions):
            values[f"mid.latents.after_self.{number * length + place:02d}"] = seen[self_attention][0][1]
    values["mid.latents.final_norm"] = values["out.cls_feats"] = seen[base.encoder.norm][0][1]
    if hasattr(model, "decoder"):
        (queries, latents, *_), after = seen[model.decoder.block][0]
        values |= {"mid.decoder.queries": queries, "mid.decoder.after_block": after}
        block = model.decoder.block
        values["mid.decoder_attention_probs"] = block.attention.weights(block.norm1(queries), latents)
        values["out.cls_feats"] = seen[model.decoder.norm][0][1]
    return values


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[nn.Module, list[tuple[Any, Tensor]]]]:
    """What every module receives and returns while this is open."""
    seen: dict[nn.Module, list[tuple[Any, Tensor]]] = {}

    def keep(module: nn.Module, received: Any, returned: Any) -> None:
        seen.setdefault(module, []).append((received, returned))

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    """Print case × precision × largest difference of intermediate values, outputs and gradients."""
    print(f"{'case':26}{'':6}{'values':>8}{'intermediate':>14}{'outputs':>10}{'gradients':>11}")
    for case in TASKS:
        for precision in DTYPES:
            found = differences(case, precision)
            largest = [
                max((value for name, value in found.items() if name.startswith(kind)), default=None)
                for kind in ("mid.", "out.", "grad.")
            ]
            shown = ["-" if value is None else f"{value:.1e}" for value in largest]
            print(f"{case:26}{precision:6}{len(found):8}{shown[0]:>14}{shown[1]:>10}{shown[2]:>11}")


if __name__ == "__main__":
    main()
