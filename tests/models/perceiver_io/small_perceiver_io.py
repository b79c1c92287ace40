"""Small Perceiver IOs of every kind, and what they take."""

from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_io import PerceiverIOConfig, PerceiverIOPreTrainedModel
from perceiver_vl.models.perceiver_io.convert import MODELS

SMALL: dict[str, Any] = {
    "num_latents": 5,
    "hidden_size": 16,
    "num_blocks": 2,
    "self_attentions_per_block": 2,
    "num_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "embedding_size": 24,
    "vocab_size": 30,
    "max_position_embeddings": 12,
    "image_size": [8, 12],
    "pixel_channels": 6,
    "num_bands": 3,
    "num_frames": 2,
    "audio_samples": 24,
    "samples_per_patch": 4,
    "audio_bands": 5,
    "label_query_size": 9,
    "num_labels": 6,
}
KINDS: dict[str, dict[str, Any]] = {
    "array": {"kind": "array", "num_channels": 10, "query_size": 12},
    "language": {"kind": "language"},
    "text": {"kind": "text", "decoder_residual": True},
    "image-fourier": {"kind": "image", "decoder_residual": True},
    "image-learned": {"kind": "image", "image_positions": "learned"},
    "image-conv": {"kind": "image", "image_positions": "conv"},
    "flow": {"kind": "flow", "num_channels": 27},
    "multimodal": {"kind": "multimodal", "output_size": 10},
}


def small_config(kind: str, **changes: Any) -> PerceiverIOConfig:
    return PerceiverIOConfig(**(SMALL | KINDS[kind] | changes))


def small_perceiver_io(kind: str, **changes: Any) -> PerceiverIOPreTrainedModel:
    """In float64 and for evaluation, no weight zero."""
    torch.manual_seed(0)
    config = small_config(kind, **changes)
    model = MODELS[config.kind](config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def small_inputs(kind: str, batch: int = 2) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=draw, dtype=torch.float64)

    if kind == "array":
        return {"inputs": numbers(9, 10), "queries": numbers(4, 12)}
    if kind in ("language", "text"):
        return {"input_ids": torch.randint(30, (batch, 12), generator=draw)}
    if kind == "flow":
        return {"frames": numbers(2, 27, 8, 12)}
    if kind == "multimodal":
        return {"image": numbers(2, 3, 8, 12), "audio": numbers(24, 1), "label": numbers(6)}
    return {"pixel_values": numbers(3, 8, 12)}
