"""Attention in parts: what queries find in some of the inputs is all told by its output and its log-sum-exp.

Partial attentions of disjoint sets of inputs merge exactly, in any order, so the sets can be attended to apart: at
other times (a cache), one after the other (a clip of an hour), or from shelves (an index). Source: the online softmax
of Milakov and Gimelshein (2018), which FlashAttention applies to tiles. Shapes: B batch, N queries, M inputs, D width,
H heads, d = D/H.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PartialAttention:
    """All that a set of inputs can ever contribute to given queries: per head what they find, and its weight.

    `output (…,H,N,d)`: softmax-weighted values, 0 where nothing may be attended to; `logsumexp (…,H,N)`: of the scaled
    attention scores, minus infinity there; in float32 at least, where no gradient is wanted.
    """

    output: Tensor
    logsumexp: Tensor

    def __len__(self) -> int:
        """The batch size B."""
        return len(self.logsumexp)

    def repeat(self, times: int) -> "PartialAttention":
        """Each example `times` times, one after the other."""
        if times == 1:
            return self
        return PartialAttention(self.output.repeat_interleave(times, 0), self.logsumexp.repeat_interleave(times, 0))

    def pack(self) -> Tensor:
        """One array `(…,N,D+H)` to store; `unpack` makes a partial attention of it again."""
        return torch.cat([self.output.transpose(-3, -2).flatten(-2), self.logsumexp.transpose(-2, -1)], dim=-1)


def unpack(packed: Tensor, num_heads: int) -> PartialAttention:
    """`(…,N,D+H)` as `PartialAttention.pack` gives it → the partial attention."""
    output, logsumexp = packed.split([packed.shape[-1] - num_heads, num_heads], dim=-1)
    return PartialAttention(output.unflatten(-1, (num_heads, -1)).transpose(-3, -2), logsumexp.transpose(-2, -1))


def merge(first: PartialAttention, second: PartialAttention) -> PartialAttention:
    """The partial attention of two disjoint sets of inputs together, exactly; leading dimensions broadcast."""
    # Neither may be attended to: their difference is no number, and any share of two zeros is zero
    share = torch.sigmoid((first.logsumexp - second.logsumexp).nan_to_num())[..., None]
    output = share * first.output + (1 - share) * second.output
    return PartialAttention(output, torch.logaddexp(first.logsumexp, second.logsumexp))


def merge_windows(packed: Tensor, num_heads: int) -> Tensor:
    """Every window of a row of parts `(…,S,D+H)`, each packed for one query, merged → `(…,K,D+H)`, K = S·(S+1)/2.

    In the order of `every_window`; gradients flow back to the parts. `windows.WindowTable` is for rows that are longer.
    """
    parts = unpack(packed, num_heads)  # the parts are where other queries would be
    row, found = parts, [parts.pack()]
    for length in range(2, packed.shape[-2] + 1):
        longer = PartialAttention(parts.output[..., length - 1 :, :], parts.logsumexp[..., length - 1 :])
        row = merge(PartialAttention(row.output[..., :-1, :], row.logsumexp[..., :-1]), longer)
        found.append(row.pack())
    return torch.cat(found, dim=-2)


def every_window(parts: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The windows [start, end) of so many parts: those of one part, from the first to the last, those of two, …: starts
    and ends `(K,)` int64.
    """
    places = torch.arange(parts, device=device)
    starts = torch.cat([places[: parts - more] for more in range(parts)])
    return starts, torch.cat([places[more:] + 1 for more in range(parts)])


@dataclass(frozen=True)
class KeysValues:
    """What an attention needs of a set of inputs, whatever the queries: `keys (B,H,M,d)`, `values (B,H,M,d)`,
    `mask (B,M)` or `(B,N,M)` bool, True where attended, or `(B,M)` in numbers that are added to the scaled scores;
    None: all are attended to.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        """The batch size B."""
        return len(self.keys)


def attend(
    q: Tensor, inputs: KeysValues, *, scale: float | None = None, implementation: str = "sdpa"
) -> PartialAttention:
    """What queries `q (B,H,N,d)` find in `inputs`; `scale` of the scores: 1/√d if None.

    `q` may have one row for all inputs, or `inputs` fewer rows than `q`: then each serves as many rows of `q`, which
    are next to each other. `implementation`: eager writes the weights out; sdpa runs a kernel of
    `scaled_dot_product_attention` that gives the log-sum-exp, where there is one (`has_kernel`).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    times = max(1, len(q) // max(1, len(inputs)))
    if times > 1:  # the questions about one clip are further queries of the same attention
        q = q.unflatten(0, (-1, times)).transpose(1, 2).flatten(2, 3)  # (B/times,H,times·N,d)
    elif len(q) < len(inputs):
        q = q.expand(len(inputs), -1, -1, -1)
    mask = inputs.mask
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]  # (B,1,1 or N,M)
        mask = mask.to(q.dtype) if mask.is_floating_point() else mask
    run = _fused if implementation == "sdpa" and has_kernel(q, inputs) else _eager
    output, logsumexp = run(q, inputs.keys, inputs.values, mask, scale)
    if mask is not None:  # what kernels make of nothing to attend to differs
        nothing = (mask.isneginf() if mask.is_floating_point() else ~mask).all(-1)
        output, logsumexp = output.masked_fill(nothing[..., None], 0.0), logsumexp.masked_fill(nothing, -torch.inf)
    if times > 1:
        output, logsumexp = (
            part.unflatten(2, (times, -1)).transpose(1, 2).flatten(0, 1) for part in (output, logsumexp)
        )
    return PartialAttention(output, logsumexp)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Softmax of the scaled scores of `q (B,H,N,d)` with `k (B,H,M,d)` → `(B,H,N,M)`; zeros where `mask` is False,
    which broadcasts to it; a `mask` in numbers is added to the scaled scores.
    """
    return _softmax(_scores(q, k, mask, q.shape[-1] ** -0.5 if scale is None else scale), mask)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.transpose(-1, -2) * scale  # (B,H,N,M)
    if mask is None:
        return scores
    least = torch.finfo(scores.dtype).min  # a row of minus infinities has no softmax
    return scores + mask.clamp(min=least) if mask.is_floating_point() else scores.masked_fill(~mask, least)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    weights = scores.softmax(-1)
    if mask is None:
        return weights
    return weights.masked_fill(mask.isneginf() if mask.is_floating_point() else ~mask, 0.0)


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, the latter in float32 at least but where there is a gradient: training keeps the
    precision of its scores.
    """
    scores = _scores(q, k, mask, scale)
    exact = scores if scores.dtype == torch.float64 or scores.requires_grad else scores.float()
    return _softmax(scores, mask) @ v, exact.logsumexp(-1)


def has_kernel(q: Tensor, inputs: KeysValues) -> bool:
    """Whether torch has a kernel that gives the log-sum-exp of this attention: on a CPU or CUDA, of something, one
    width of heads, and no gradient, as that of the log-sum-exp is not known to it. `torch.compile` fuses what is
    written out, and those who ask torch for no fused attention get none.
    """
    if q.device.type not in ("cpu", "cuda") or q.shape[-1] != inputs.values.shape[-1] or torch.compiler.is_compiling():
        return False
    if not (q.numel() and inputs.keys.numel()):
        return False
    if not q.dtype == inputs.keys.dtype == inputs.values.dtype:  # under autocast, which no kernel called by name heeds
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, inputs.keys, inputs.values)):
        return False
    if q.device.type == "cuda":
        return torch.backends.cuda.mem_efficient_sdp_enabled() and q.dtype != torch.float64
    return torch.backends.cuda.flash_sdp_enabled()


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The kernels of `scaled_dot_product_attention`; they keep the log-sum-exp for their backward pass."""
    bias = mask
    if mask is not None and not mask.is_floating_point():
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    if q.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, logsumexp = kernel(q, k, v, attn_mask=bias, scale=scale)
        return output, logsumexp
    if bias is not None:
        bias = _aligned(bias.expand(len(q), q.shape[1], q.shape[2], -1))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    output, logsumexp, *_ = kernel(q, k, v, bias, compute_log_sumexp=True, scale=scale)
    return output, logsumexp[..., : q.shape[2]]  # it is padded to whole tiles


def _aligned(bias: Tensor) -> Tensor:
    """The same numbers in rows whose length in memory is a multiple of 8, as the CUDA kernel wants them."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 8))[..., :length]
