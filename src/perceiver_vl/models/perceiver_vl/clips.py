"""Clips that are met once: by many questions (`cache_vision`), or as a stream too long to hold (`long_vision`).

Shapes: B clips, T frames, L text tokens, N latents, D width, H heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from perceiver_vl.layers.partial_attention import merge_summaries, unpack
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, TrainingBudget
from perceiver_vl.models.perceiver_vl.long_video import SPILL_BYTES, Chunks, EmbeddedChunks, ProjectedChunks, Spill
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache, weights_mark
from perceiver_vl.utils.errors import UsageError

if TYPE_CHECKING:
    from perceiver_vl.models.perceiver_vl.modeling import PerceiverVLModel


class ReadsClipsOnce:
    """What every model can do with clips beforehand; the results go in as `vision_cache=`."""

    def cache_vision(
        self, pixel_values: Tensor, frame_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> VisionCache:
        """All that `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` will contribute to any text, for reading at `budget`.

        It takes 2·M·D numbers for each read after the first, and N·(D+H) for that. Raises `UsageError` for a budget
        that the model does not have.
        """
        base = _base(self)
        budget = budget or FULL_BUDGET
        _check_budget(base, budget)
        array = base.embed(pixel_values=pixel_values, frame_mask=frame_mask, budget=budget)
        assert array.vision is not None
        reads, latents = base.encoder.vision_reads[: _reads(base, budget)], _first_latents(base, budget)
        first = reads[0].summarise(latents, array.vision, array.vision_mask)
        later = tuple((read.keys_values(array.vision, array.vision_mask),) for read in reads[1:])
        assert array.vision_mask is not None
        seen = (array.vision, array.vision_mask) if _chooses(base, budget) else None
        return VisionCache(first, later, budget, vision_mark(base), seen)

    def cache_from_first_read(self, packed: Tensor, budget: ComputeBudget) -> VisionCache:
        """The cache of clips whose first read was stored: `packed (B,N,D+H)` as `vision_cache.first.pack()` gave it.

        With one read that is all there is to a clip. That the weights are still the same is for the caller to know.
        Raises `UsageError` for a budget of several reads, of another number of latents, or that chooses among them.
        """
        base = _base(self)
        _check_budget(base, budget)
        _refuse_choice(base, budget)
        if _reads(base, budget) != 1:
            raise UsageError(f"budget {budget}: a first read is all of a clip only at cross_attentions=1")
        wanted = (_first_latents(base, budget).shape[1], base.config.hidden_size + base.config.num_attention_heads)
        if packed.shape[1:] != wanted:
            raise UsageError(f"first reads of shape {tuple(packed.shape)}: need (B, {wanted[0]}, {wanted[1]})")
        return VisionCache(unpack(packed, base.config.num_attention_heads), (), budget, vision_mark(base))

    @contextmanager
    def long_vision(
        self,
        chunks: Chunks,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget | None = None,
        spill: str | Path | None = None,
        spill_bytes: int = SPILL_BYTES,
    ) -> Iterator[VisionCache]:
        """Clips of any length, in the memory of one chunk, for any number of texts within the `with` block.

        `chunks`: `pixel_values (B,T,3,H,W)` of T frames at a time (T may vary), or pairs of them and `frame_mask
        (B,T)`; either an iterable, or a function that opens it. Reads after the first need the chunks again: from the
        function or the list, or, if `spill` names a folder, from a file there that holds at most `spill_bytes` of
        embedded frames and is deleted afterwards. `num_frames`: how many frames in all; needed beyond `max_frames`,
        where the temporal table is interpolated. For use without gradients.
        Raises `UsageError` for a stream that can be read once where more is needed and there is no spill, for a budget
        of frames or that chooses among the latents, and for frames that are not as many as said; `PerceiverVLError` for
        a spill that has no room.
        """
        base = _base(self)
        budget = budget or FULL_BUDGET
        _check_budget(base, budget)
        _refuse_choice(base, budget)
        if budget.frames is not None:
            raise UsageError(f"budget {budget}: every frame of a stream is read, give it fewer frames")
        reads, latents = base.encoder.vision_reads[: _reads(base, budget)], _first_latents(base, budget)
        embedded = EmbeddedChunks(base.embeddings, chunks, num_frames)
        if embedded.once and len(reads) > 1 and spill is None:
            raise UsageError(
                f"chunks: can be read once, but are read {len(reads)} times; give a function that opens them, a folder "
                "to spill into, or a budget of cross_attentions=1"
            )
        kept = None if spill is None or len(reads) == 1 else Spill(spill, spill_bytes)
        try:
            first_pass = iter(embedded) if kept is None else kept.copies(embedded)
            parts = (reads[0].summarise(latents, tokens, mask) for tokens, mask in first_pass)
            later = tuple(ProjectedChunks(read, embedded if kept is None else kept) for read in reads[1:])
            yield VisionCache(reduce(merge_summaries, parts), later, budget, vision_mark(base))
        finally:
            if kept is not None:
                kept.close()

    @torch.no_grad()
    def encode_long(
        self,
        chunks: Chunks,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget | None = None,
        spill: str | Path | None = None,
        spill_bytes: int = SPILL_BYTES,
    ) -> Tensor:
        """Clips of any length, alone or with texts `input_ids (B,L)` → latents `(B,N,D)`, as of the clip in one piece.

        The other arguments and what is raised: `long_vision`.
        """
        long = self.long_vision(chunks, num_frames=num_frames, budget=budget, spill=spill, spill_bytes=spill_bytes)
        with long as cache:
            latents: Tensor = _base(self)(input_ids, attention_mask, vision_cache=cache).last_hidden_state
        return latents


def vision_mark(model: "PerceiverVLModel") -> str:
    """A fingerprint of all that a `VisionCache` depends on."""
    config, encoder = model.config, model.encoder
    settings = (
        config.num_attention_heads,
        config.layer_norm_eps,
        config.zero_frames_are_padding,
        config.modality_aggregation,
    )
    weights = [*model.embeddings.parameters(), *encoder.parameters(recurse=False)]
    weights += [weight for read in encoder.vision_reads for weight in read.parameters()]
    return weights_mark(settings, weights)


def _base(model: object) -> "PerceiverVLModel":
    return cast("PerceiverVLModel", model.base_model)  # type: ignore[attr-defined]


def _first_latents(base: "PerceiverVLModel", budget: ComputeBudget) -> Tensor:
    return base.encoder.first_latents(base.config.latents_of(budget)[0])


def _reads(base: "PerceiverVLModel", budget: ComputeBudget) -> int:
    return base.config.reads_of(budget)


def _check_budget(base: "PerceiverVLModel", budget: ComputeBudget) -> None:
    base.config.check_budget(budget)
    if isinstance(budget, TrainingBudget):
        raise UsageError(f"budget {budget}: drawn for a step of training, clips are cached for use")


def _chooses(base: "PerceiverVLModel", budget: ComputeBudget) -> bool:
    """Whether the budget chooses among the latents after the first read."""
    first, kept = base.config.latents_of(budget)
    return kept < first


def _refuse_choice(base: "PerceiverVLModel", budget: ComputeBudget) -> None:
    """A first read that was summarised does not say what each latent attended to."""
    if _chooses(base, budget):
        raise UsageError(f"budget {budget}: the first read is not kept whole here, leave out latent_choice")
