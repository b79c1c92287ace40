"""The one attention every cross-attention and every self-attention goes through, and the transformer block around it.

Shapes: B batch, N latents (or Q queries), M inputs (or N latents), D width, H heads.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from perceiver_vl.layers.partial_attention import KeysValues, PartialAttention, attend


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
        if self._absorbs(queries.shape[1], inputs.shape[1]):
            return self.output_projection(self.partial_attention(queries, inputs, input_mask), queries.dtype)
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
        q, k = self._split_heads(self.q_proj(queries)), self._split_heads(self.k_proj(inputs))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B,H,N,M)
        if input_mask is None:
            return scores.softmax(-1)
        masked = ~input_mask[:, None, None, :]
        return scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(masked, 0.0)

    def partial_attention(self, queries: Tensor, inputs: Tensor, input_mask: Tensor | None = None) -> PartialAttention:
        """What `queries (B or 1,N,D)` find in `inputs (B,M,D)`, to be merged with what they find elsewhere."""
        q = self.project_queries(queries)
        if self._absorbs(queries.shape[1], inputs.shape[1]):
            return self._absorbed_partial_attention(q, inputs, input_mask)
        return self.attend(q, self.keys_values(inputs, input_mask))

    def output_projection(self, partial: PartialAttention, dtype: torch.dtype) -> Tensor:
        """Summary of all inputs → `(…,N,D)`, as `forward` would have given, in `dtype`."""
        return self.out_proj(partial.output.to(dtype).transpose(-3, -2).flatten(-2))

    def project_queries(self, queries: Tensor) -> Tensor:
        """`queries (B,N,D)` → `(B,H,N,D/H)`."""
        return self._split_heads(self.q_proj(queries))

    def keys_values(self, inputs: Tensor, input_mask: Tensor | None = None) -> KeysValues:
        """`inputs (B,M,D)`, `input_mask (B,M)` → what this attention will ever need of them."""
        return KeysValues(self._split_heads(self.k_proj(inputs)), self._split_heads(self.v_proj(inputs)), input_mask)

    def attend(self, q: Tensor, inputs: KeysValues) -> PartialAttention:
        """What projected queries `q (B,H,N,D/H)` find in `inputs`; their batch sizes may differ as in
        `partial_attention.attend`.
        """
        return attend(q, inputs, eager=self.implementation == "eager")

    def _absorbs(self, queries: int, inputs: int) -> bool:
        """Whether so few queries are better met in the inputs' own space: `Wq q · Wk x = (Wkᵀ Wq q) · x`.

        Not in training, whose arithmetic stays as it is; nor where a projection is more than its weight (an adapter).
        """
        width, own = self.k_proj.in_features, self.k_proj.out_features + self.v_proj.out_features
        if self.training or not absorbing_pays(queries, inputs, width, own, self.num_heads):
            return False
        return _is_its_weight(self.k_proj) and _is_its_weight(self.v_proj)

    def _absorbed_partial_attention(self, q: Tensor, inputs: Tensor, input_mask: Tensor | None) -> PartialAttention:
        """As `attend(q, keys_values(inputs))`, with keys and values never made: the inputs are both."""
        key_weight, key_bias = self._of_heads(self.k_proj)
        value_weight, value_bias = self._of_heads(self.v_proj)
        in_their_space = torch.einsum("bhqd,hdi->bhqi", q, key_weight)
        found = attend(
            in_their_space.flatten(1, 2)[:, None],  # all heads' queries meet the same inputs
            KeysValues(inputs[:, None], inputs[:, None], input_mask),
            scale=q.shape[-1] ** -0.5,
            eager=self.implementation == "eager",
        )
        output = found.output[:, 0].unflatten(1, (self.num_heads, -1))  # (B,H,N,D)
        logsumexp = found.logsumexp[:, 0].unflatten(1, (self.num_heads, -1))
        # Weights sum to 1, so the bias of the values comes through whole, unless there was nothing to attend to
        output = torch.einsum("bhqi,hdi->bhqd", output, value_weight)
        output = output + value_bias * logsumexp.isfinite()[..., None]
        return PartialAttention(output, logsumexp + (q * key_bias).sum(-1) * q.shape[-1] ** -0.5)

    def _of_heads(self, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight `(H,D/H,D)` and bias `(H,1,D/H)` of each head."""
        weight = projection.weight.unflatten(0, (self.num_heads, -1))
        return weight, projection.bias.unflatten(0, (self.num_heads, 1, -1))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B,·,D) → (B,H,·,D/H)


def absorbing_pays(queries: int, inputs: int, width: int, own: int, num_heads: int) -> bool:
    """Whether scores and sums over inputs of full `width` take at most half the operations that their keys and values,
    `own` wide together, would take. Above that the two run about as fast, as so wide heads are further from the peak.
    """
    projected = inputs * own * (width + queries)
    absorbed = queries * width * (own + 2 * num_heads * inputs)
    return 2 * absorbed <= projected


def _is_its_weight(projection: nn.Linear) -> bool:
    """Whether a projection is the product with its weight and no more: no adapter, not quantised, not offloaded."""
    weight = projection.weight
    return type(projection) is nn.Linear and type(weight) is nn.Parameter and not weight.is_meta


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
    self-attentions are the same block (paper 3.2). Perceiver-VL norms its inputs once, before the encoder;
    `norm_inputs` norms them in the block, as Perceiver IO does. `residual` is what a read's attention is added to: the
    queries as they came in, the normed queries (the released code of Perceiver-VL), or nothing. The other sizes are
    those of `Attention`.
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

    def partial_attention(self, queries: Tensor, inputs: Tensor, input_mask: Tensor | None = None) -> PartialAttention:
        """What the block's attention finds in `inputs (B,M,D)`, for `queries (B or 1,Q,D)`."""
        return self.attention.partial_attention(self.norm1(queries), self.input_norm(inputs), input_mask)

    def project_queries(self, queries: Tensor) -> Tensor:
        """`queries (B,Q,D)` → those of the block's attention, `(B,H,Q,D/H)`."""
        return self.attention.project_queries(self.norm1(queries))

    def keys_values(self, inputs: Tensor, input_mask: Tensor | None = None) -> KeysValues:
        """All that the block will ever need of `inputs (B,M,D)`."""
        return self.attention.keys_values(self.input_norm(inputs), input_mask)

    def attend(self, queries: Tensor, inputs: KeysValues) -> PartialAttention:
        """What projected queries `(B,H,Q,D/H)` find in `inputs`, as `partial_attention` would."""
        return self.attention.attend(queries, inputs)

    def from_partial_attention(self, queries: Tensor, partial: PartialAttention) -> Tensor:
        """The block's output `(…,Q,D)` for `queries (…,Q,D)`, from the partial attention of all that they read."""
        return self._add(
            self._kept(queries, self.norm1(queries)), self.attention.output_projection(partial, queries.dtype)
        )

    def _kept(self, queries: Tensor, normed: Tensor) -> Tensor:
        if self.residual == "queries":
            return queries
        return normed if self.residual == "normed_queries" else torch.zeros_like(queries)

    def _add(self, latents: Tensor, attended: Tensor) -> Tensor:
        latents = latents + self.dropout(attended)
        return latents + self.dropout(self.mlp(self.norm2(latents)))
