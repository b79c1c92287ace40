"""The one attention every read and every thought goes through, and the transformer block around it.

Shapes: B batch, N latents (or Q queries), M inputs (or N latents), D width, H heads.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


@dataclass(frozen=True)
class AttentionSummary:
    """All that a set of inputs can ever contribute to given queries: per head what they answer, and how loudly.

    `output (…,H,Q,D/H)`: softmax-weighted values; `logsumexp (…,H,Q)`: of the attention scores.
    """

    output: Tensor
    logsumexp: Tensor


def merge_summaries(first: AttentionSummary, second: AttentionSummary) -> AttentionSummary:
    """The summary of two disjoint sets of inputs together, exactly; leading dimensions broadcast."""
    share = torch.sigmoid(first.logsumexp - second.logsumexp)[..., None]
    output = share * first.output + (1 - share) * second.output
    return AttentionSummary(output, torch.logaddexp(first.logsumexp, second.logsumexp))


class Attention(nn.Module):
    """Multi-head attention of `queries` over `inputs`.

    Queries, inputs, keys and values are all of width `hidden_size`, unless `input_size` (of the inputs), `qk_size` (of
    all heads' queries or keys together) or `v_size` (of all heads' values together) says otherwise, as in Perceiver IO.
    `implementation`: sdpa (`scaled_dot_product_attention`), or eager (the weights written out).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        input_size: int | None = None,
        qk_size: int | None = None,
        v_size: int | None = None,
        implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.implementation = implementation
        input_size, qk_size, v_size = input_size or hidden_size, qk_size or hidden_size, v_size or hidden_size
        self.q_proj = nn.Linear(hidden_size, qk_size)
        self.k_proj = nn.Linear(input_size, qk_size)
        self.v_proj = nn.Linear(input_size, v_size)
        self.out_proj = nn.Linear(v_size, hidden_size)

    def forward(self, queries: Tensor, inputs: Tensor, input_mask: Tensor | None = None) -> Tensor:
        """Attend with `queries (B,N,D)` over `inputs (B,M,D)`; `input_mask (B,M)` bool, True where attended →
        `(B,N,D)`. A query that may attend to nothing finds zeros.
        """
        v = self._split_heads(self.v_proj(inputs))
        if self.implementation == "eager":
            attended = self.weights(queries, inputs, input_mask) @ v  # (B,H,N,D/H)
        else:
            q, k = self._split_heads(self.q_proj(queries)), self._split_heads(self.k_proj(inputs))
            mask = None if input_mask is None else input_mask[:, None, None, :]
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, queries: Tensor, inputs: Tensor, input_mask: Tensor | None = None) -> Tensor:
        """How much each query attends to each input, arguments as of `forward` → `(B,H,N,M)`, each row sums to 1."""
        scores = self._scores(queries, inputs)
        if input_mask is None:
            return scores.softmax(-1)
        masked = ~input_mask[:, None, None, :]
        return scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(masked, 0.0)

    def summarise(self, queries: Tensor, inputs: Tensor) -> AttentionSummary:
        """What `queries (B or 1,Q,D)` find in `inputs (B,M,D)`, to be merged with what they find elsewhere."""
        scores = self._scores(queries, inputs)
        return AttentionSummary(scores.softmax(-1) @ self._split_heads(self.v_proj(inputs)), scores.logsumexp(-1))

    def finish(self, summary: AttentionSummary) -> Tensor:
        """Summary of all inputs → `(…,Q,D)`, as `forward` would have given."""
        return self.out_proj(summary.output.transpose(-3, -2).flatten(-2))

    def _scores(self, queries: Tensor, inputs: Tensor) -> Tensor:
        q, k = self._split_heads(self.q_proj(queries)), self._split_heads(self.k_proj(inputs))
        return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B,H,Q,M)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B,·,D) → (B,H,·,D/H)


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`(…,D)` → `(…,D)`."""
        return self.fc2(F.gelu(self.fc1(x)))


class AttentionBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block: attention and MLP, each added to what came in.

    With `inputs` it reads them (cross-attention); without, the latents attend to themselves (self-attention). Reads and
    thoughts are the same block (paper 3.2). Perceiver-VL norms its inputs once, before the encoder; `norm_inputs` norms
    them in the block, as Perceiver IO does. `residual` is what a read's attention is added to: the queries as they came
    in, the normed queries (the released code of Perceiver-VL), or nothing. The other sizes are those of `Attention`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        eps: float,
        dropout: float = 0.0,
        *,
        input_size: int | None = None,
        qk_size: int | None = None,
        v_size: int | None = None,
        norm_inputs: bool = False,
        residual: Literal["queries", "normed_queries", "none"] = "queries",
        implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.input_norm = nn.LayerNorm(input_size or hidden_size, eps=eps) if norm_inputs else nn.Identity()
        self.attention = Attention(
            hidden_size,
            num_heads,
            input_size=input_size,
            qk_size=qk_size,
            v_size=v_size,
            implementation=implementation,
        )
        self.norm2 = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = MLP(hidden_size, intermediate_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, inputs: Tensor | None = None, input_mask: Tensor | None = None) -> Tensor:
        """`latents (B,N,D)`, `inputs (B,M,D)`, `input_mask (B,M)` bool → `(B,N,D)`."""
        normed = self.norm1(latents)
        if inputs is None:
            return self._add(latents, self.attention(normed, normed))
        attended = self.attention(normed, self.input_norm(inputs), input_mask)
        return self._add(self._kept(latents, normed), attended)

    def summarise(self, queries: Tensor, inputs: Tensor) -> AttentionSummary:
        """What the block's attention finds in `inputs (B,M,D)`, for `queries (B or 1,Q,D)`."""
        return self.attention.summarise(self.norm1(queries), self.input_norm(inputs))

    def finish(self, queries: Tensor, summary: AttentionSummary) -> Tensor:
        """The block's output `(…,Q,D)` for `queries (…,Q,D)`, from the summary of all that they read."""
        return self._add(self._kept(queries, self.norm1(queries)), self.attention.finish(summary))

    def _kept(self, queries: Tensor, normed: Tensor) -> Tensor:
        if self.residual == "queries":
            return queries
        return normed if self.residual == "normed_queries" else torch.zeros_like(queries)

    def _add(self, latents: Tensor, attended: Tensor) -> Tensor:
        latents = latents + self.dropout(attended)
        return latents + self.dropout(self.mlp(self.norm2(latents)))


def fourier_features(length: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of `length` positions in [-1, 1] at dim/2 linearly spaced frequencies up to Nyquist →
    `(length,dim)`.

    Source: Perceiver (Jaegle et al., 2021), section 3.2, without the raw position.
    """
    positions = torch.linspace(-1.0, 1.0, length, dtype=dtype)[:, None]
    frequencies = torch.linspace(1.0, max(length / 2, 1.0), dim // 2, dtype=dtype)[None, :]
    angles = torch.pi * positions * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
