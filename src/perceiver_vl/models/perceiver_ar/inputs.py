"""What a Perceiver AR is given, checked; and what it keeps of it for later tokens.

Shapes: B batch, M tokens, P of them the prefix, A axes of positions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perceiver_vl.layers.causal import CausalCache, CausalLatents
from perceiver_vl.models.perceiver_ar.configuration import PerceiverARConfig
from perceiver_vl.utils.errors import UsageError


@dataclass
class PerceiverARCache(CausalCache):
    """`CausalCache` that knows whose it is: of the tokens `input_ids (B,M)` with `attention_mask (B,M)` bool."""

    is_compileable: ClassVar[bool] = False  # transformers asks caches for it
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens it holds, M."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows `beam_idx (B,)` int64, as beam search does."""
        super().reorder_cache(beam_idx)
        if self.input_ids is not None and self.attention_mask is not None:
            self.input_ids, self.attention_mask = self.input_ids[beam_idx], self.attention_mask[beam_idx]

    def new_tokens(self, input_ids: Tensor) -> Tensor:
        """Those of `input_ids (B,M)` that it does not hold. Raises `UsageError` where it is of another sequence."""
        known = self.input_ids
        if known is not None and not torch.equal(known[:, : input_ids.shape[1]], input_ids[:, : known.shape[1]]):
            raise UsageError("past_key_values: of another sequence; leave it out, and a new one is made")
        if known is not None and known.shape[1] >= input_ids.shape[1]:
            raise UsageError(f"past_key_values: holds {known.shape[1]} tokens already, give them and at least one more")
        return input_ids if known is None else input_ids[:, known.shape[1] :]


def check_inputs(
    config: PerceiverARConfig,
    real: Tensor,
    position_ids: Tensor | None,
    prefix_length: int,
    shape: tuple[int, int],
    cache: PerceiverARCache | None,
) -> None:
    """Raise `UsageError` for what this model cannot read: `real` is the mask of all tokens, of which there are to be
    `shape (B,M)`; `position_ids (B,M)` or `(B,M,A)`.
    """
    total, axes = shape[1], len(config.position_tables)
    if not 0 < total <= config.max_position_embeddings:
        raise UsageError(
            f"{total} tokens: need 1 to {config.max_position_embeddings}, this model's positions "
            "(max_position_embeddings)"
        )
    if not 0 <= prefix_length < total:
        raise UsageError(f"prefix_length={prefix_length}: need 0 to {total - 1} of {total} tokens")
    check_mask(real, shape, cache)
    if position_ids is None:
        if axes > 1:
            raise UsageError(f"position_ids=None: this model's positions have {axes} axes, give (B,M,{axes})")
        return
    given = position_ids[..., None] if position_ids.ndim == 2 else position_ids
    if given.shape[1] < total or given.shape[2] != max(1, axes) or given.shape[0] not in (1, shape[0]):
        raise UsageError(f"position_ids of shape {tuple(position_ids.shape)}: need ({shape[0]},{total},{max(1, axes)})")
    for axis, rows in enumerate(config.position_tables):
        if not 0 <= (largest := int(given[..., axis].max())) < rows:
            raise UsageError(
                f"position_ids up to {largest} on axis {axis}: need less than {rows}, the rows of its table"
            )


def check_cache(cache: PerceiverARCache | None, latents: CausalLatents, kind: type[PerceiverARCache]) -> None:
    """Raise `UsageError` for what is no cache of `kind`, and for that of another model than the one of `latents`."""
    if cache is None:
        return
    if not isinstance(cache, kind):
        raise UsageError(
            f"past_key_values of type {type(cache).__name__}: need what an earlier call of this model gave"
        )
    own, blocks = cache.own, len(latents.cross_attentions) + len(latents.layers)
    if own is not None and (own.embeddings.shape[-1], len(cache.kept)) != (latents.input_size, blocks):
        raise UsageError("past_key_values: of another model; leave it out, and a new one is made")


def check_mask(real: Tensor, shape: tuple[int, int], cache: PerceiverARCache | None) -> None:
    """Raise `UsageError` where `real`, the mask of all tokens, is not of `shape (B,M)`, or not as the cache's."""
    if tuple(real.shape) != shape:
        raise UsageError(f"attention_mask of shape {tuple(real.shape)}: need {shape}, of all tokens so far")
    known = None if cache is None else cache.attention_mask
    if known is not None and len(known) != len(real):
        raise UsageError(f"past_key_values: of {len(known)} sequences, here are {len(real)}; give the same ones")
    if known is not None and not torch.equal(known, real[:, : known.shape[1]]):
        raise UsageError("past_key_values: of a sequence with other padding; leave it out, and a new one is made")


def padding_first(mask: Tensor) -> Tensor:
    """The columns of each row `(B,M)`, its padding first, all else in its order."""
    return mask.long().argsort(dim=1, stable=True)
