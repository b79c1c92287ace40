"""Tokens of gCOG and the transformer block over them, as its reference has it.

Shapes: B batch, L tokens, D width.
"""

import torch
from torch import Tensor, nn

from perceiver_vl.layers.attention import Attention
from perceiver_vl.layers.positions import sinusoidal_positions
from perceiver_vl.models.gcog.configuration import GCOGConfig
from perceiver_vl.utils.errors import UsageError


class ValueEmbedding(nn.Module):
    """Tokens of small whole numbers → the sum of a learned vector for each number at each of its places. A colour or a
    shape is then a thing of its own, where a linear map knows it as more than one and less than another.
    """

    def __init__(self, token_size: int, values: int, width: int) -> None:
        super().__init__()
        self.values = values
        self.vectors = nn.Embedding(token_size * values, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B,L,·)` → `(B,L,D)`."""
        first = self.values * torch.arange(tokens.shape[-1], device=tokens.device)
        return self.vectors(tokens.long().clamp(0, self.values - 1) + first).sum(-2)


class TokenEncoder(nn.Module):
    """Tokens as numbers → one transformer block whose norms come after the sums, and whose MLP ends in a ReLU."""

    positions: Tensor

    def __init__(self, config: GCOGConfig, token_size: int, length: int, values: int | None = None) -> None:
        super().__init__()
        width, values = config.hidden_size, config.token_values if values is None else values
        self.embedding = ValueEmbedding(token_size, values, width) if values else nn.Linear(token_size, width)
        self.register_buffer("positions", sinusoidal_positions(length, width))
        self.dropout = nn.Dropout(config.position_dropout)
        self.attention = Attention(width, config.num_attention_heads)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B,L,·)` → `(B,L,D)`. Raises `UsageError` for more tokens than positions."""
        if tokens.shape[1] > len(self.positions):
            raise UsageError(f"{tokens.shape[1]} tokens: need at most {len(self.positions)}, this model's positions")
        x = self.dropout(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        x = self.norm1(self.attention(x, x) + x)
        return self.norm2(self.mlp(x) + x)
