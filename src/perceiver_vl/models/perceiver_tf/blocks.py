"""The parts of Perceiver TF: convolutions before it, and its block of one read, local and temporal layers.

Shapes: B batch, T frames, F frequencies, C channels, K latents of a frame, D width.
"""

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.experts import TokenExperts
from perceiver_vl.layers.positions import distance_bias
from perceiver_vl.models.perceiver_tf.configuration import PerceiverTFConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


class ConvBlock(nn.Module):
    """Two convolutions of 3 × 3 and what came in, then every other frequency of their mean."""

    def __init__(self, before: int, after: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.activation, self.pool = activation, nn.AvgPool2d((1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """`(B,C,T,F)` → `(B,C',T,F/2)`."""
        found = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        return self.pool(self.activation(found + self.shortcut(x)))


class SpectralTemporalBlock(nn.Module):
    """One read of every frame's spectrum, then layers within frames, then layers through time."""

    def __init__(self, config: PerceiverTFConfig) -> None:
        super().__init__()
        self.has_bias = config.positions == "alibi"
        alike: dict[str, Any] = {
            "hidden_size": config.hidden_size,
            "qk_size": config.attention_size,
            "v_size": config.value_size,
            "eps": config.layer_norm_eps,
            "dropout": config.dropout,
        }
        self.read = AttentionBlock(
            num_heads=config.num_cross_attention_heads,
            intermediate_size=0,
            input_size=config.feature_size,
            norm_inputs=True,
            residual="queries" if config.read_residual else "none",
            **alike,
        )
        inner = config.intermediate_ratio * config.hidden_size
        own = alike | {"num_heads": config.num_attention_heads, "intermediate_size": inner}
        self.local_layers = nn.ModuleList(AttentionBlock(**own) for _ in range(config.num_local_layers))
        self.temporal_layers = nn.ModuleList(AttentionBlock(**own) for _ in range(config.num_temporal_layers))
        for layer in [self.read, *self.local_layers, *self.temporal_layers]:
            assert isinstance(layer, AttentionBlock)
            if config.norm == "rms":
                for name in ("norm1", "input_norm", "norm2"):
                    if isinstance(norm := getattr(layer, name), nn.LayerNorm):
                        setattr(layer, name, nn.RMSNorm(norm.normalized_shape, eps=config.layer_norm_eps))
            if config.feed_forward == "experts" and layer.mlp is not None:
                experts = TokenExperts(config.hidden_size, inner, config.num_experts, _ACTIVATIONS[config.expert_act])
                layer.mlp = experts  # type: ignore[assignment]

    def forward(self, latents: Tensor, features: Tensor, time_positions: Tensor | None = None) -> Tensor:
        """`latents (B,T,K,D)`, `features (B,T,·,·)`, `time_positions (T,D)` → `(B,T,K,D)`."""
        batch, frames = latents.shape[:2]
        x, inputs = latents.flatten(0, 1), features.flatten(0, 1)  # a sequence a frame
        x = self.read(x, inputs, self._bias(self.read, x, inputs))
        for layer in self.local_layers:
            x = layer(x, None, self._bias(layer, x, x))
        x = x.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)  # a sequence a latent
        for layer in self.temporal_layers:
            x = x if time_positions is None else x + time_positions
            time_positions = None  # once
            x = layer(x, None, self._bias(layer, x, x))
        return x.unflatten(0, (batch, -1)).transpose(1, 2)

    def _bias(self, layer: nn.Module, queries: Tensor, inputs: Tensor) -> Tensor | None:
        """Distances, which YourMT3+ adds before scores are scaled."""
        if not self.has_bias:
            return None
        attention = cast(AttentionBlock, layer).attention
        scale = (attention.q_proj.out_features // attention.num_heads) ** -0.5
        return (distance_bias(attention.num_heads, queries.shape[1], inputs.shape[1]) * scale)[None].to(queries)
