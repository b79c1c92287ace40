"""A small Dynamic Perceiver, and what it takes."""

from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.dynamic_perceiver import DynamicPerceiverConfig, DynamicPerceiverForImageClassification

SMALL: dict[str, Any] = {
    "stem_width": 4,
    "depths": [1, 2, 1, 1],
    "widths": [8, 8, 12, 16],
    "group_widths": [4, 8, 4, 8],
    "num_latents": 8,
    "latent_depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 4, 3],
    "intermediate_ratio": 2,
    "pooled_size": 3,
    "num_labels": 5,
}
PLAIN: dict[str, Any] = {
    "depthwise_convolutions": False,
    "write_features": False,
    "last_write": False,
    "transfer_knowledge": False,
}


def small_dynamic_perceiver(**changes: Any) -> DynamicPerceiverForImageClassification:
    """In float64 and for evaluation, no weight zero."""
    torch.manual_seed(0)
    model = DynamicPerceiverForImageClassification(DynamicPerceiverConfig(**(SMALL | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def small_pictures(batch: int = 3, height: int = 32, width: int = 40) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).double()
