"""What MonoXiver's head costs, from the configuration alone: linear in the candidates but for their competition.

`tests/models/monoxiver/test_monoxiver_flops.py` holds this against the operations counted on built models.
"""

from typing import Any

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.monoxiver.configuration import MonoXiverConfig


def forward_flops(config: MonoXiverConfig, candidates: int, points: int = 9) -> int:
    """Of one picture's `candidates`, each seen at `points` points."""
    latents, width, features = config.num_latents, config.hidden_size, config.point_size
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": config.intermediate_size}
    region = features * config.region_size**2
    embeddings = 2 * width * (points * features + config.geometry_size * latents + region)
    perceiver = block_flops(latents, points, **sizes) + block_flops(1, latents, **sizes)
    perceiver += config.num_self_attentions * block_flops(latents, latents, **sizes)
    layers = config.num_class_layers + 2 * config.num_box_layers
    heads = 2 * width * (layers * width + config.num_labels + 6)
    return candidates * (embeddings + perceiver + heads) + block_flops(candidates, candidates, **sizes)
