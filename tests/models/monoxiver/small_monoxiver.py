"""A small MonoXiver head, and what it takes."""

from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.monoxiver import MonoXiverConfig, MonoXiverModel

SMALL: dict[str, Any] = {
    "point_size": 5,
    "geometry_size": 29,
    "region_size": 3,
    "num_latents": 4,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "num_self_attentions": 2,
    "num_labels": 2,
}


def small_monoxiver(**changes: Any) -> MonoXiverModel:
    """In float64 and for evaluation, no weight zero."""
    torch.manual_seed(0)
    model = MonoXiverModel(MonoXiverConfig(**(SMALL | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def small_candidates(count: int = 7) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = {"points": (9, 5), "geometry": (29,), "regions": (5, 3, 3)}
    return {name: torch.randn(count, *shape, generator=draw).double() for name, shape in shapes.items()}
