"""A query array attends to the latents, once (paper 3.4, Figure 2).

Shapes: B batch, N latents, L text tokens, P patches a frame, Q queries, D width.
"""

import torch
from torch import Tensor, nn

from perceiver_vl.layers.perceiver import QueryDecoder
from perceiver_vl.layers.positions import resize_positions
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import block_arguments, cross_attention_arguments


def query_decoder(config: PerceiverVLConfig) -> QueryDecoder:
    """The decoder of a configuration; the queries of all tasks are handed in."""
    return QueryDecoder(**block_arguments(config), **cross_attention_arguments(config))


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


class MaskedPatchQueries(nn.Module):
    """One query for each patch that is asked for, saying which frame it is in and where, never what it shows."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.position_embeddings = nn.Embedding(config.grid**2, config.hidden_size)
        self.temporal_embeddings = nn.Embedding(config.max_frames, config.hidden_size)

    def forward(self, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """`places (B,Q)` int64, frame · P + patch, of frames of `grid` rows and columns → `(B,Q,D)`."""
        patches = grid[0] * grid[1]
        positions = resize_positions(self.position_embeddings.weight, (self.grid, self.grid), grid)
        return positions[places % patches] + self.temporal_embeddings(places // patches)
