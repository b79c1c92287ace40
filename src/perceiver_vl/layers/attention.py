"""The one attention of every cross-attention and every self-attention, and the transformer block around it.

Shapes: B batch, N queries (latents), M inputs, C width of the inputs, D width of the queries, H heads, d = D/H.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from perceiver_vl.layers.experts import ScaledLinear, scaled_linear
from perceiver_vl.layers.mlp import MLP
from perceiver_vl.layers.partial_attention import KeysValues, PartialAttention, attend, attention_weights, merge
from perceiver_vl.layers.positions import RotaryPositions
from perceiver_vl.layers.untied import TwinLinear, UntiedKeysValues, apart

Part = Tensor | tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, int] | KeysValues | PartialAttention
"""Some of the inputs: `(B,M,C)`, or with their mask, and the boundary of their kinds, or what an attention had made of
them before."""


_MANY_SCORES = 2**18  # of one head


class Attention(nn.Module):
    """Multi-head attention of `queries` over `inputs`.

        attention = Attention(64, num_heads=4, input_size=32)
        attention(torch.randn(2, 8, 64), torch.randn(2, 1000, 32))  # (2, 8, 64)

    Queries, inputs, keys and values are all `hidden_size` wide, unless `input_size` (of the inputs), `qk_size` (of all
    heads' queries or keys together) or `v_size` (of all heads' values together) says otherwise, as in Perceiver IO.
    `bias`, `output_bias`: of the projections in and out. `qk_norm`: layer norm of each head's queries and keys
    (Dehghani et al. 2023, ViT-22B). `causal`: query n of N sees the first M - N + n + 1 inputs; the two ends are
    aligned, as in Perceiver AR. `rotary`: rotates queries and keys by their positions. `key_positions`: a learned
    vector for each of so many inputs is added to its key (Dynamic Perceiver). `untied`: inputs are of two kinds, whose
    keys and values have weights of their own that begin alike (`UntiedKeysValues`); the first `boundary` of them are of
    the first kind. `layer_scale`: the output is weighed channel by channel, at first by this (`ScaledLinear`).
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
        bias: bool = True,
        output_bias: bool = True,
        qk_norm: bool = False,
        causal: bool = False,
        rotary: RotaryPositions | None = None,
        key_positions: int | None = None,
        untied: bool = False,
        layer_scale: float | None = None,
        implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        self.num_heads, self.causal, self.rotary, self.implementation = num_heads, causal, rotary, implementation
        input_size, qk_size, v_size = input_size or hidden_size, qk_size or hidden_size, v_size or hidden_size
        self.q_proj = nn.Linear(hidden_size, qk_size, bias=bias)
        self.k_proj = nn.Linear(input_size, qk_size, bias=bias)
        self.v_proj = nn.Linear(input_size, v_size, bias=bias)
        self.out_proj = scaled_linear(v_size, hidden_size, layer_scale, bias=output_bias)
        self.q_norm = nn.LayerNorm(qk_size // num_heads) if qk_norm else None
        self.k_norm = nn.LayerNorm(qk_size // num_heads) if qk_norm else None
        self.key_positions = None if key_positions is None else nn.Parameter(torch.zeros(key_positions, qk_size))
        self.untied = UntiedKeysValues(self.k_proj, self.v_proj, self.k_norm) if untied else None

    def forward(
        self,
        queries: Tensor,
        inputs: Tensor,
        mask: Tensor | None = None,
        *,
        query_positions: Tensor | None = None,
        input_positions: Tensor | None = None,
        boundary: int | None = None,
        absorb: bool = False,
    ) -> Tensor:
        """Attend with `queries (B,N,D)` over `inputs (B,M,C)` → `(B,N,D)`.

        `mask (B,M)` or `(B,N,M)` bool, True where attended; a query that may attend to nothing finds zeros. Or
        `(B,M)` or `(B or 1,H,N,M)` in numbers, which are added to the scores after their scaling: the logarithm of how
        many an input stands for (`token_reduction`), minus infinity where there is none.
        Positions `(N,)`, `(M,)` or with a batch in front are those that `rotary` turns by; None: 0 to M - 1, and the
        queries are the last N of them. `boundary`: where inputs of the second kind begin, of an `untied` attention, to
        others it says nothing; None: all are of the first. `absorb`: meet the inputs in their own space where that
        takes fewer operations (`absorbing_pays`); the result is the same but for rounding. For inference, with
        projections that are no more than their weights (`has_plain_projections`).
        """
        if absorb and self._absorbs(queries.shape[1], inputs.shape[1]):
            partial = self.partial_attention(queries, inputs, mask, boundary=boundary, absorb=True)
            return self.output_projection(partial, queries.dtype)
        if absorb and mask is None and self._absorbs_queries(queries.shape[1], inputs.shape[1]):
            return self._absorbed_queries(queries, inputs)
        v = self._split_heads(self._by_kind("v_proj", inputs, boundary))
        q, k = self._queries_and_keys(queries, inputs, query_positions, input_positions, boundary)
        mask = self._full_mask(mask, q, k)
        if self.implementation == "eager":
            attended = attention_weights(q, k, mask) @ v  # (B,H,N,d)
        else:
            attended = _fused(q, k, v, mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(
        self,
        queries: Tensor,
        inputs: Tensor,
        mask: Tensor | None = None,
        *,
        query_positions: Tensor | None = None,
        input_positions: Tensor | None = None,
        boundary: int | None = None,
    ) -> Tensor:
        """How much each query attends to each input, arguments as of `forward` → `(B,H,N,M)`, each row sums to 1."""
        q, k = self._queries_and_keys(queries, inputs, query_positions, input_positions, boundary)
        return attention_weights(q, k, self._full_mask(mask, q, k))

    def forward_with_weights(
        self,
        queries: Tensor,
        inputs: Tensor,
        mask: Tensor | None = None,
        *,
        boundary: int | None = None,
        **positions: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` by written-out weights, whatever the implementation, and these weights, which are part of its
        graph → `(B,N,D)`, `(B,H,N,M)`.
        """
        weights = self.weights(queries, inputs, mask, boundary=boundary, **positions)
        attended = weights @ self._split_heads(self._by_kind("v_proj", inputs, boundary))
        return self.out_proj(attended.transpose(1, 2).flatten(2)), weights

    # --- In parts: what is found in some of the inputs, to be merged with what is found in others ------------------

    def partial_attention(
        self,
        queries: Tensor,
        inputs: Tensor,
        mask: Tensor | None = None,
        *,
        boundary: int | None = None,
        absorb: bool = False,
    ) -> PartialAttention:
        """What `queries (B or 1,N,D)` find in `inputs (B,M,C)`; `mask`, `boundary`, `absorb` as of `forward`. Raises as
        `keys_values`.
        """
        q = self.project_queries(queries)
        if not (absorb and self._absorbs(queries.shape[1], inputs.shape[1])):
            return self.attend(q, self.keys_values(inputs, mask, None, boundary))
        if self.untied is None or boundary is None:
            return self._absorbed_partial_attention(q, inputs, mask, self)
        found = []
        for of, places in ((self, slice(None, boundary)), (self.untied, slice(boundary, None))):
            if (some := inputs[:, places]).shape[1]:
                of_some = None if mask is None else mask[..., places]
                found.append(self._absorbed_partial_attention(q, some, of_some, of))
        return reduce(merge, found)

    def output_projection(self, partial: PartialAttention, dtype: torch.dtype) -> Tensor:
        """Partial attention of all inputs → `(…,N,D)`, as `forward` would have given, in `dtype`."""
        return self.out_proj(partial.output.to(dtype).transpose(-3, -2).flatten(-2))

    def project_queries(self, queries: Tensor, positions: Tensor | None = None) -> Tensor:
        """`queries (B,N,D)` → `(B,H,N,d)`. Raises `ValueError` for a `rotary` attention without `positions`."""
        self._check_positions(positions, self.rotary is not None)
        q = self._split_heads(self.q_proj(queries))
        q = q if self.q_norm is None else self.q_norm(q)
        return q if self.rotary is None or positions is None else self.rotary(q, positions)

    def keys_values(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        boundary: int | None = None,
    ) -> KeysValues:
        """`inputs (B,M,C)`, `mask (B,M)` or `(B,N,M)` → what this attention will ever need of them; `boundary` as of
        `forward`.

        Raises `ValueError` where it depends on their `positions` (`rotary`, `key_positions`) and these are not given,
        and for a causal attention without a mask `(B,N,M)` that says what each query sees of this part.
        """
        self._check_positions(positions, self.rotary is not None or self.key_positions is not None)
        if self.causal and (mask is None or mask.ndim != 3):
            raise ValueError("causal attention in parts: give a mask (B,N,M), a part does not know what came before")
        values = self._split_heads(self._by_kind("v_proj", inputs, boundary))
        return KeysValues(self.project_keys(inputs, positions, boundary), values, mask)

    def attend(self, q: Tensor, inputs: KeysValues) -> PartialAttention:
        """What projected queries `q (B,H,N,d)` find in `inputs`; their batch sizes may differ as in
        `partial_attention.attend`.
        """
        return attend(q, inputs, implementation=self.implementation)

    def _queries_and_keys(
        self,
        queries: Tensor,
        inputs: Tensor,
        query_positions: Tensor | None,
        input_positions: Tensor | None,
        boundary: int | None,
    ) -> tuple[Tensor, Tensor]:
        if self.rotary is not None:
            if input_positions is None:
                input_positions = torch.arange(inputs.shape[1], device=inputs.device)
            if query_positions is None:
                query_positions = input_positions[..., inputs.shape[1] - queries.shape[1] :]
        return self.project_queries(queries, query_positions), self.project_keys(inputs, input_positions, boundary)

    def project_keys(self, inputs: Tensor, positions: Tensor | None = None, boundary: int | None = None) -> Tensor:
        """`inputs (B,M,C)` → `(B,H,M,d)`; arguments as of `keys_values`."""
        k = self._by_kind("k_proj", inputs, boundary)
        if self.key_positions is not None:
            k = k + (self.key_positions[: inputs.shape[1]] if positions is None else self.key_positions[positions])
        k = self._split_heads(k)
        k = k if self.k_norm is None else self._by_kind("k_norm", k, boundary, dim=2)
        return k if self.rotary is None or positions is None else self.rotary(k, positions)

    def _by_kind(self, name: str, x: Tensor, boundary: int | None, dim: int = 1) -> Tensor:
        """What the part of that name makes of inputs; of those of the second kind, their own one."""
        own: nn.Module = getattr(self, name)
        if self.untied is None or boundary is None:
            return own(x)  # type: ignore[no-any-return]
        return apart(x, boundary, own, getattr(self.untied, name), dim)

    def _check_positions(self, positions: Tensor | None, needed: bool) -> None:
        if needed and positions is None:
            raise ValueError("positions=None: this attention depends on them, say where in the whole these stand")

    def _full_mask(self, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """The mask with its dimensions of heads and queries `(B,1,1 or N,M)`, and what is causal about it."""
        if mask is not None and mask.is_floating_point():
            if self.causal:
                raise ValueError("mask in numbers: a causal attention takes none, hide what comes later in it")
            return mask[:, None, None, :].to(q.dtype) if mask.ndim == 2 else mask
        if mask is not None:
            mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        if self.causal:
            number, most = q.shape[-2], k.shape[-2]
            earlier = torch.ones(number, most, dtype=torch.bool, device=q.device).tril(most - number)
            mask = earlier if mask is None else mask & earlier
        return mask

    def _absorbs(self, queries: int, inputs: int) -> bool:
        """Whether so few queries are better met in the inputs' own space: `Wq q · Wk x = (Wkᵀ Wq q) · x`."""
        if not self._only_projects():
            return False
        own = self.k_proj.out_features + self.v_proj.out_features
        return absorbing_pays(queries, inputs, self.k_proj.in_features, own, self.num_heads)

    def _absorbs_queries(self, queries: int, inputs: int) -> bool:
        """Whether so many queries are better met where they are, by few inputs that come to them: of one head that is
        wider than they are. Optical flow asks for every pixel so (Perceiver IO, 4.3).
        """
        if self.num_heads > 1 or not self._only_projects() or self.implementation == "eager":
            return False
        if self.untied is not None or isinstance(self.out_proj, ScaledLinear):
            return False
        width, own = self.q_proj.in_features, self.q_proj.out_features + self.v_proj.out_features
        return 2 * width <= own and inputs * own * width + 2 * queries * inputs * width <= queries * own * (
            width + inputs
        )

    def _only_projects(self) -> bool:
        """Whether queries and keys are projections and nothing else, and all are seen."""
        return not self.causal and self.rotary is None and self.k_norm is None and self.key_positions is None

    def _absorbed_queries(self, queries: Tensor, inputs: Tensor) -> Tensor:
        """As `forward`, with queries never projected, nor what they find: keys and values come in their width."""
        k = self.k_proj(inputs)  # (B,M,D)
        scale = k.shape[-1] ** -0.5
        bias = None if self.q_proj.bias is None else (k @ self.q_proj.bias * scale)[:, None, None]  # (B,1,1,M)
        k, v = k @ self.q_proj.weight, F.linear(self.v_proj(inputs), self.out_proj.weight)
        found = F.scaled_dot_product_attention(queries[:, None], k[:, None], v[:, None], attn_mask=bias, scale=scale)
        return found[:, 0] if self.out_proj.bias is None else found[:, 0] + self.out_proj.bias

    def _absorbed_partial_attention(
        self, q: Tensor, inputs: Tensor, mask: Tensor | None, of: "Attention | UntiedKeysValues"
    ) -> PartialAttention:
        """As `attend(q, keys_values(inputs))`, with keys and values never made: the inputs are both. `of`: what would
        make them.
        """
        key_weight, key_bias = self._of_heads(of.k_proj)
        value_weight, value_bias = self._of_heads(of.v_proj)
        in_their_space = torch.einsum("bhqd,hdi->bhqi", q, key_weight)
        found = attend(
            in_their_space.flatten(1, 2)[:, None],  # all heads' queries meet the same inputs
            KeysValues(inputs[:, None], inputs[:, None], mask),
            scale=q.shape[-1] ** -0.5,
            implementation=self.implementation,
        )
        output = found.output[:, 0].unflatten(1, (self.num_heads, -1))  # (B,H,N,C)
        logsumexp = found.logsumexp[:, 0].unflatten(1, (self.num_heads, -1))
        output = torch.einsum("bhqi,hdi->bhqd", output, value_weight)
        if value_bias is not None:  # weights sum to 1: it comes through whole, unless there was nothing to attend to
            output = output + value_bias * logsumexp.isfinite()[..., None]
        if key_bias is not None:
            logsumexp = logsumexp + (q * key_bias).sum(-1) * q.shape[-1] ** -0.5
        return PartialAttention(output, logsumexp)

    def _of_heads(self, projection: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight `(H,d,C)` and bias `(H,1,d)` of each head."""
        weight, bias = projection.weight.unflatten(0, (self.num_heads, -1)), projection.bias
        return weight, None if bias is None else bias.unflatten(0, (self.num_heads, 1, -1))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B,·,D) → (B,H,·,d)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`scaled_dot_product_attention`, whose kernels want one width of heads. Where values are wider than keys, these
    are filled up with zeros if scores are many and there is no gradient; else writing the scores out is quicker.
    """
    missing, scale = v.shape[-1] - q.shape[-1], q.shape[-1] ** -0.5
    if missing > 0:
        has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if has_gradient or q.shape[-2] * k.shape[-2] < _MANY_SCORES:
            return attention_weights(q, k, mask) @ v
        q, k = F.pad(q, (0, missing)), F.pad(k, (0, missing))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def absorbing_pays(queries: int, inputs: int, width: int, own: int, num_heads: int) -> bool:
    """Whether scores and sums over inputs of full `width` take at most half the operations that their keys and values,
    `own` wide together, would take; any fewer will do where heads get no wider by it. Above that the two run about as
    fast, as so wide heads are further from the peak.
    """
    projected = inputs * own * (width + queries)
    absorbed = queries * width * (own + 2 * num_heads * inputs)
    wider = 2 * num_heads * width > own
    return (2 if wider else 1) * absorbed <= projected


def has_plain_projections(attention: Attention) -> bool:
    """Whether keys and values are the product with a weight and no more: no adapter, not quantised, not offloaded."""
    both = attention if attention.untied is None else attention.untied
    return all(
        type(projection) in (nn.Linear, TwinLinear)
        and type(projection.weight) is nn.Parameter
        and not projection.weight.is_meta
        for projection in (attention.k_proj, attention.v_proj, both.k_proj, both.v_proj)
    )


class AttentionBlock(GradientCheckpointingLayer):
    """A transformer block: attention and MLP, each added to what came in.

        block = AttentionBlock(64, num_heads=4, input_size=32)
        block(latents, inputs)  # cross-attention: (B,N,64), (B,M,32) → (B,N,64)
        AttentionBlock(64, num_heads=4)(latents)  # self-attention

    `intermediate_size`: width of the MLP; None: four times `hidden_size`, 0: no MLP. Perceiver-VL norms its inputs
    once, before the encoder; `norm_inputs` norms them in the block, as Perceiver IO does. `residual` is what the
    attention is added to: the queries as they came in, the normed queries (the released code of Perceiver-VL), or
    nothing. `norm_first`: norms stand before attention and MLP, else after each sum, as in the first Transformer and in
    MonoXiver. `mlp_residual`: the MLP is added to what came to its norm, or to what its norm gives (S2T Perceiver).
    `gated_mlp`, `mlp_bias`, `activation`: of the MLP. `layer_scale`: what attention and MLP add is weighed channel by
    channel, at first by this (Touvron et al. 2021, CaiT, 2.1). `attention`: further arguments of `Attention`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int | None = None,
        *,
        input_size: int | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
        norm_inputs: bool = False,
        residual: Literal["queries", "normed_queries", "none"] = "queries",
        norm_first: bool = True,
        mlp_residual: Literal["attended", "normed"] = "attended",
        gated_mlp: bool = False,
        mlp_bias: bool = True,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        layer_scale: float | None = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.residual, self.norm_first, self.mlp_residual = residual, norm_first, mlp_residual
        self.norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.input_norm = nn.LayerNorm(input_size or hidden_size, eps=eps) if norm_inputs else nn.Identity()
        self.attention = Attention(hidden_size, num_heads, input_size=input_size, layer_scale=layer_scale, **attention)
        self.norm2 = None if intermediate_size == 0 else nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = None
        if intermediate_size != 0:
            width = intermediate_size or 4 * hidden_size
            self.mlp = MLP(
                hidden_size, width, bias=mlp_bias, gated=gated_mlp, activation=activation, layer_scale=layer_scale
            )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, latents: Tensor, inputs: Tensor | None = None, mask: Tensor | None = None, **attention: Any
    ) -> Tensor:
        """`latents (B,N,D)`, `inputs (B,M,C)` → `(B,N,D)`; without inputs the latents attend to themselves.

        `mask` and further arguments: as of `Attention.forward`.
        """
        normed = self._before(latents)
        if inputs is None:
            return self._add(latents, self.attention(normed, normed, mask, **attention))
        attended = self.attention(normed, self.input_norm(inputs), mask, **attention)
        return self._add(self._kept(latents, normed), attended)

    def forward_with_weights(
        self, latents: Tensor, inputs: Tensor | None = None, mask: Tensor | None = None, **attention: Any
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the weights of the attention (`Attention.forward_with_weights`) → `(B,N,D)`, `(B,H,N,M)`."""
        normed = self._before(latents)
        given = normed if inputs is None else self.input_norm(inputs)
        attended, weights = self.attention.forward_with_weights(normed, given, mask, **attention)
        return self._add(latents if inputs is None else self._kept(latents, normed), attended), weights

    def weights(
        self, latents: Tensor, inputs: Tensor | None = None, mask: Tensor | None = None, **attention: Any
    ) -> Tensor:
        """How the block attends, arguments as of `forward` → `(B,H,N,M)`."""
        normed = self._before(latents)
        return self.attention.weights(normed, normed if inputs is None else self.input_norm(inputs), mask, **attention)

    def forward_parts(self, latents: Tensor, parts: Iterable[Part]) -> Tensor:
        """`forward` over inputs that come in parts, none of which need be there when another is: `(B,N,D)`."""
        q = self.project_queries(latents)
        return self.from_partial_attention(latents, reduce(merge, (self._find(q, part) for part in parts)))

    def _find(self, q: Tensor, part: Part) -> PartialAttention:
        if isinstance(part, PartialAttention):
            return part
        if isinstance(part, KeysValues):
            return self.attend(q, part)
        inputs, mask, *boundary = (part, None) if isinstance(part, Tensor) else part
        return self.attend(q, self.keys_values(inputs, mask, None, *boundary))

    def partial_attention(
        self, queries: Tensor, inputs: Tensor, mask: Tensor | None = None, *, absorb: bool = False
    ) -> PartialAttention:
        """What the block's attention finds in `inputs (B,M,C)`, for `queries (B or 1,N,D)`."""
        return self.attention.partial_attention(self._before(queries), self.input_norm(inputs), mask, absorb=absorb)

    def project_queries(self, queries: Tensor, positions: Tensor | None = None) -> Tensor:
        """`queries (B,N,D)` → those of the block's attention, `(B,H,N,d)`."""
        return self.attention.project_queries(self._before(queries), positions)

    def project_keys(self, inputs: Tensor, boundary: int | None = None) -> Tensor:
        """`inputs (B,M,C)` → the keys of the block's attention, `(B,H,M,d)`."""
        return self.attention.project_keys(self.input_norm(inputs), None, boundary)

    def keys_values(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        boundary: int | None = None,
    ) -> KeysValues:
        """All that the block will ever need of `inputs (B,M,C)`; arguments as of `Attention.keys_values`."""
        return self.attention.keys_values(self.input_norm(inputs), mask, positions, boundary)

    def attend(self, q: Tensor, inputs: KeysValues) -> PartialAttention:
        """What projected queries `(B,H,N,d)` find in `inputs`."""
        return self.attention.attend(q, inputs)

    def from_partial_attention(self, queries: Tensor, partial: PartialAttention) -> Tensor:
        """The block's output `(…,N,D)` for `queries (…,N,D)`, from what they find in all inputs together."""
        attended = self.attention.output_projection(partial, queries.dtype)
        return self._add(self._kept(queries, self._before(queries)), attended)

    def _before(self, x: Tensor) -> Tensor:
        return self.norm1(x) if self.norm_first else x

    def _kept(self, queries: Tensor, normed: Tensor) -> Tensor | None:
        if self.residual == "queries":
            return queries
        return normed if self.residual == "normed_queries" else None

    def _add(self, latents: Tensor | None, attended: Tensor) -> Tensor:
        attended = self.dropout(attended)
        latents = attended if latents is None else latents + attended
        if not self.norm_first:
            latents = self.norm1(latents)
        if self.norm2 is None or self.mlp is None:
            return latents
        if not self.norm_first:
            return self.norm2(latents + self.dropout(self.mlp(latents)))
        normed = self.norm2(latents)
        return (latents if self.mlp_residual == "attended" else normed) + self.dropout(self.mlp(normed))
