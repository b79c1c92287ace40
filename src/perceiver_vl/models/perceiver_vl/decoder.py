"""A query array reads the latents, once (paper 3.4, Figure 2).

Shapes: B batch, N latents, L text tokens, Q queries, D width.
"""

import torch
from torch import Tensor, nn

from perceiver_vl.layers.partial_attention import PartialAttention
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import cross_attention_block


class PerceiverVLDecoder(nn.Module):
    """One cross-attention block whose queries are those of all tasks asked at once, and a norm."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.block = cross_attention_block(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """`queries (B,Q,D)`, `latents (B,N,D)` → `(B,Q,D)`. No query sees another: tasks can be asked together or
        apart.
        """
        return self.norm(self.block(queries, latents))

    def from_partial_attention(self, queries: Tensor, partial: PartialAttention) -> Tensor:
        """What `forward` gives, from the partial attention of all latents: `queries (…,Q,D)` → `(…,Q,D)`."""
        return self.norm(self.block.from_partial_attention(queries, partial))


class ClassQuery(nn.Module):
    """The learned vector that asks one question of a pair or clip (the [CLS] query of VTM), Q = 1."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, batch_size: int) -> Tensor:
        """→ `(B,1,D)`."""
        return self.query.expand(batch_size, 1, -1)


class MaskedWordQueries(nn.Module):
    """One query for each text position, saying where it is and whether it was masked, never which token stands
    there.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(config.max_text_length, config.hidden_size)
        self.mask_embeddings = nn.Embedding(2, config.hidden_size)
        self.row_of_masked = config.mask_embedding_row

    def forward(self, is_masked: Tensor) -> Tensor:
        """`is_masked (B,L)` bool → `(B,L,D)`."""
        rows = (is_masked == bool(self.row_of_masked)).long()
        return self.position_embeddings.weight[: is_masked.shape[1]] + self.mask_embeddings(rows)
