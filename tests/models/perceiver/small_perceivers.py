"""A Perceiver that is small and has every part."""

from typing import Any

import torch

from perceiver_vl.models.perceiver import IterativePerceiverConfig, IterativePerceiverForClassification


def small_config(**changes: Any) -> IterativePerceiverConfig:
    """Three reads of a grid of 4 × 5, of which the last two share; no two sizes are equal that need not be."""
    small: dict[str, Any] = {
        "num_channels": 2,
        "input_shape": [4, 5],
        "num_bands": 3,
        "num_latents": 6,
        "hidden_size": 12,
        "num_blocks": 4,
        "num_cross_attentions": 3,
        "self_attentions_per_block": 2,
        "num_attention_heads": 4,
        "num_labels": 3,
    }
    return IterativePerceiverConfig(**(small | changes))


def small_perceiver(**changes: Any) -> IterativePerceiverForClassification:
    """In float64 and for evaluation, no weight zero."""
    torch.manual_seed(0)
    model = IterativePerceiverForClassification(small_config(**changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model
