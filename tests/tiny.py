"""The smallest models and inputs that still have every part."""

import shutil
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import BertConfig, ViTConfig

import perceiver_vl
from perceiver_vl import (
    PerceiverVLConfig,
    PerceiverVLForImageClassification,
    PerceiverVLForImagesAndTextClassification,
    PerceiverVLForMultipleChoice,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLImageProcessor,
    PerceiverVLProcessor,
)
from perceiver_vl.data.batching import DRAW_BITS
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer
from perceiver_vl.training.losses.base import PreTrainingBatch

FIGURE_3 = ("joint", "separate", "separate_plus")
AGGREGATIONS = (*FIGURE_3, "text_first")
MASK_TOKEN = 4

Model = TypeVar("Model", bound=PerceiverVLPreTrainedModel)
Kind = type[PerceiverVLPreTrainedModel]


def public_models() -> list[Kind]:
    """Every class of models that the package offers and that needs no other model to be one."""
    needy = "LanguageBridgeForConditionalGeneration"  # tests/models/language_bridge
    offered = [getattr(perceiver_vl, name) for name in perceiver_vl.__all__ if name != needy]
    return [one for one in offered if isinstance(one, type) and issubclass(one, PerceiverVLPreTrainedModel)]


def tiny_config(**changes: Any) -> PerceiverVLConfig:
    """Three blocks of two self-attentions, four patches and a class token a frame."""
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_blocks": 3,
        "self_attentions_per_block": 2,
        "num_latents": 6,
        "num_text_latents": 4,
        "image_size": 16,
        "patch_size": 8,
        "max_frames": 5,
        "vocab_size": 40,
        "max_text_length": 8,
        "mask_token_id": MASK_TOKEN,
        "projection_dim": 12,
    }
    return PerceiverVLConfig(**(small | changes))


def tiny_model(kind: type[Model] = PerceiverVLForPreTraining, seed: int = 0, **changes: Any) -> Model:  # type: ignore[assignment]
    """A float64 model for evaluation in which no parameter is zero, so that everything has an effect."""
    torch.manual_seed(seed)
    model = kind(tiny_config(**changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def tiny_encoders() -> dict[str, Any]:
    """Changes to `tiny_config` that put it on a ViT and a BERT, which never met."""
    tower = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "vision_config": ViTConfig(**tower, image_size=16, patch_size=8),
        "text_config": BertConfig(**tower, vocab_size=40, max_position_embeddings=8),
        "base": "linear",
        "token_grid": 2,
        "frame_class_token": True,
        "patch_size": 1,
    }


def tiny_inputs(batch: int = 2, frames: int = 3, words: int = 6, seed: int = 0, size: int = 16) -> dict[str, Tensor]:
    """Random pixels and words, nothing padded and nothing masked."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(MASK_TOKEN + 1, 40, (batch, words), generator=draw),
        "attention_mask": torch.ones(batch, words, dtype=torch.long),
        "pixel_values": torch.randn(batch, frames, 3, size, size, generator=draw, dtype=torch.float64),
        "frame_mask": torch.ones(batch, frames, dtype=torch.long),
    }


def inputs_of(kind: Kind, padded: bool = False, **shape: int) -> dict[str, Tensor]:
    """What the model takes; with `padded` words and frames."""
    inputs = tiny_inputs(**shape)
    if padded:
        inputs["attention_mask"][0, -2:] = 0
        inputs["frame_mask"][1, -1:] = 0
    if kind is PerceiverVLForImageClassification:
        return {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    if kind is PerceiverVLForMultipleChoice:
        words = {name: torch.stack([inputs[name], inputs[name].flip(1)], 1) for name in ("input_ids", "attention_mask")}
        return inputs | words
    if kind is PerceiverVLForImagesAndTextClassification:
        pairs = {name: torch.stack([inputs[name], inputs[name].flip(0)], 1) for name in ("pixel_values", "frame_mask")}
        return inputs | pairs
    return inputs


def outputs_of(model: PerceiverVLPreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = model(**inputs).to_tuple()
    assert outputs
    return outputs


def squares(outputs: tuple[Tensor, ...]) -> Tensor:
    """A loss in which every output counts."""
    return torch.stack([output.square().mean() for output in outputs]).sum()


def gradients(model: PerceiverVLPreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `squares` gives every parameter that takes part."""
    model.zero_grad()
    squares(outputs_of(model, inputs)).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def gradients_of_all_streams(model: PerceiverVLForRetrieval) -> dict[str, Tensor]:
    """What `squares` of a clip, of words, of both and of how they match give every parameter, in one backward pass."""
    model.zero_grad()
    inputs = tiny_inputs()
    vision, text = model.encode_vision(inputs["pixel_values"]), model.encode_text(inputs["input_ids"])
    both = model.match_jointly(inputs["input_ids"], pixel_values=inputs["pixel_values"])
    squares((model.match(vision, text), both, vision, text)).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def checkpoint(model: PerceiverVLPreTrainedModel, enable: bool, **how: Any) -> None:
    """Turn gradient checkpointing on or off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that transformers 6 will drop
        if enable:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how or None)
        else:
            model.gradient_checkpointing_disable()


def tiny_batch(pairs: int = 4) -> PreTrainingBatch:
    """Matched pairs, an image among clips, with words masked in each and more in every second."""
    inputs = tiny_inputs(pairs, frames=3)
    inputs["frame_mask"][0, 1:] = 0
    chosen = torch.zeros(pairs, 6, dtype=torch.bool)
    chosen[:, 1], chosen[::2, 3] = True, True
    return PreTrainingBatch(
        **inputs,
        masked_input_ids=inputs["input_ids"].masked_fill(chosen, MASK_TOKEN),
        mlm_labels=inputs["input_ids"].masked_fill(~chosen, -100),
        other_input_ids=inputs["input_ids"].flip(1)[:, :5],
        other_attention_mask=torch.ones(pairs, 5, dtype=torch.long),
        negative_draws=(torch.rand(pairs, generator=torch.Generator().manual_seed(1)) * 2**DRAW_BITS).long(),
        patch_draws=torch.arange(pairs) + 3,
    )


def tiny_stretches(examples: int = 4, segments: int = 3) -> PreTrainingBatch:
    """Stretches of segments of 1 to 2 s with a moment, or two in every second; in the first a segment only fills up."""
    inputs = tiny_inputs(examples * segments, frames=2)
    words = tiny_inputs(examples, frames=1)
    draw = torch.Generator().manual_seed(2)
    edges = torch.cat([torch.zeros(examples, 1), (1 + torch.rand(examples, segments, generator=draw)).cumsum(1)], 1)
    edges[:1, -1] = edges[:1, -2]
    moments = torch.zeros(examples, 2, 2)
    moments[:, 0] = torch.rand(examples, 1, generator=draw) + torch.tensor([0.0, 1.5])
    moments[1::2, 1] = torch.tensor([2.5, 9.0])
    return PreTrainingBatch(
        input_ids=words["input_ids"],
        attention_mask=words["attention_mask"],
        pixel_values=inputs["pixel_values"].unflatten(0, (examples, segments)),
        frame_mask=inputs["frame_mask"].unflatten(0, (examples, segments)),
        edges=edges.double(),
        moments=moments.double(),
    )


def tiny_processor(captions: list[str], size: int = 16, num_frames: int = 4) -> PerceiverVLProcessor:
    """A processor for the model of `tiny_config` whose tokenizer knows the words of `captions`."""
    tokenizer = train_tokenizer(captions, vocab_size=500, max_length=8)
    return PerceiverVLProcessor(
        PerceiverVLImageProcessor(size={"height": size, "width": size}, num_frames=num_frames), tokenizer
    )


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    """Equal to within the rounding of float64."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def differs(left: Tensor, right: Tensor) -> bool:
    """Different by more than rounding."""
    return left.shape != right.shape or bool((left - right).abs().max() > 1e-6)


def tiny_recipe(output: Path, **changes: Any) -> dict[str, Any]:
    """A recipe, as YAML has it, that trains the model of `tiny_config` for six steps of four clips on the CPU."""
    recipe: dict[str, Any] = {
        "output": str(output),
        "data": {"train": {"world": {"clips": 24, "size": 16}}, "num_frames": 2},
        "model": {
            "hidden_size": 16,
            "num_attention_heads": 4,
            "self_attentions_per_block": 1,
            "num_latents": 4,
            "image_size": 16,
            "patch_size": 8,
            "max_frames": 4,
            "max_text_length": 24,
            "initializer_range": 0.1,
            "latent_initializer_range": 0.2,
        },
        "objectives": {},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
            "save_steps": 2,
            "save_total_limit": 10,
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "seed": 1,
        },
    }
    for section, values in changes.items():
        recipe[section] = recipe.get(section, {}) | values
    return recipe


def lose_the_end(run: Path, last: str) -> None:
    """Have a run that ended look as if it had been stopped before its last checkpoint."""
    shutil.rmtree(run / "checkpoints" / last)
    for name in ("model.safetensors", "metrics.json"):
        (run / name).unlink()
