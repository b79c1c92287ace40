"""Attention in parts: what a query finds in a set of inputs is summarised exactly by its output and its log-sum-exp.

Summaries of disjoint sets merge exactly, in any order, so the sets can be read apart: at other times (a cache), one
after the other (a clip of an hour), or from shelves (an index). Source: the online softmax of Milakov and Gimelshein
(2018), which FlashAttention applies to tiles.
Shapes: B batch, N queries, M inputs, D width, H heads, d = D/H.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartialAttention:
    """All that a set of inputs can ever contribute to given queries: per head what they answer, and how loudly.

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


@dataclass(frozen=True)
class KeysValues:
    """What an attention needs of a set of inputs, whatever the queries: `keys (B,H,M,d)`, `values (B,H,M,d)`,
    `mask (B,M)` bool, True where attended; None: everywhere.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        """The batch size B."""
        return len(self.keys)


def attend(q: Tensor, inputs: KeysValues, *, scale: float | None = None, eager: bool = False) -> PartialAttention:
    """What queries `q (B,H,N,d)` find in `inputs`; `scale` of the scores: 1/√d if None.

    `q` may have one row for all inputs, or `inputs` fewer rows than `q`: then each serves as many rows of `q`, which
    are next to each other. `eager` writes the weights out; else a fused kernel runs where there is one that gives the
    log-sum-exp.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    times = max(1, len(q) // max(1, len(inputs)))
    if times > 1:  # the questions about one clip are further queries of the same attention
        q = q.unflatten(0, (-1, times)).transpose(1, 2).flatten(2, 3)  # (B/times,H,times·N,d)
    elif len(q) < len(inputs):
        q = q.expand(len(inputs), -1, -1, -1)
    partial = (_written_out if eager or not _has_kernel(q, inputs) else _fused)(q, inputs, scale)
    if times > 1:
        output, logsumexp = (part.unflatten(2, (times, -1)).transpose(1, 2).flatten(0, 1) for part in _parts(partial))
        return PartialAttention(output, logsumexp)
    return partial


def _parts(partial: PartialAttention) -> tuple[Tensor, Tensor]:
    return partial.output, partial.logsumexp


def _written_out(q: Tensor, inputs: KeysValues, scale: float) -> PartialAttention:
    scores = q @ inputs.keys.transpose(-1, -2) * scale  # (B,H,N,M)
    if inputs.mask is None:
        return PartialAttention(scores.softmax(-1) @ inputs.values, _logsumexp(scores))
    masked = ~inputs.mask[:, None, None, :]
    scores = scores.masked_fill(masked, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(masked, 0.0)
    logsumexp = _logsumexp(scores)
    return PartialAttention(weights @ inputs.values, _silent_where_masked(logsumexp, inputs.mask))


def _fused(q: Tensor, inputs: KeysValues, scale: float) -> PartialAttention:
    """The kernel that `scaled_dot_product_attention` runs on a CPU; it keeps the log-sum-exp for its backward pass."""
    mask = None
    if inputs.mask is not None:
        mask = torch.zeros_like(inputs.mask, dtype=q.dtype).masked_fill_(~inputs.mask, -torch.inf)[:, None, None, :]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = kernel(q, inputs.keys, inputs.values, attn_mask=mask, scale=scale)
    return PartialAttention(output, _silent_where_masked(logsumexp, inputs.mask))


def _has_kernel(q: Tensor, inputs: KeysValues) -> bool:
    """Whether `_fused` can run: on a CPU, one width of heads, and no gradient, as that of the log-sum-exp is not known
    to it. `torch.compile` fuses what is written out, and those who ask torch for no fused attention get none.
    """
    if q.device.type != "cpu" or q.shape[-1] != inputs.values.shape[-1] or torch.compiler.is_compiling():
        return False
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, inputs.keys, inputs.values))
    return not needs_grad and torch.backends.cuda.flash_sdp_enabled()


def _silent_where_masked(logsumexp: Tensor, mask: Tensor | None) -> Tensor:
    return logsumexp if mask is None else logsumexp.masked_fill(~mask.any(-1)[:, None, None], -torch.inf)


def _logsumexp(scores: Tensor) -> Tensor:
    """In float32 at least, but where there is a gradient: training keeps the precision of its scores."""
    return (scores if scores.dtype == torch.float64 or scores.requires_grad else scores.float()).logsumexp(-1)
