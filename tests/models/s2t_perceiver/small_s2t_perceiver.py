"""A small S2T Perceiver, and what it takes."""

from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.s2t_perceiver import S2TPerceiverConfig, S2TPerceiverForConditionalGeneration

SMALL: dict[str, Any] = {
    "num_features": 5,
    "kernel_sizes": [5, 3],
    "conv_channels": 8,
    "conv_output_size": 10,
    "num_latents": 6,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_decoder_layers": 2,
    "vocab_size": 9,
    "max_frames": 40,
    "max_target_length": 8,
    "dropout": 0.0,
}


def small_s2t_perceiver(**changes: Any) -> S2TPerceiverForConditionalGeneration:
    """In float64 and for evaluation, no weight zero."""
    torch.manual_seed(0)
    model = S2TPerceiverForConditionalGeneration(S2TPerceiverConfig(**(SMALL | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def small_speech(batch: int = 2, frames: int = 13) -> Tensor:
    return torch.randn(batch, frames, 5, generator=torch.Generator().manual_seed(1)).double()
