"""VTM in the mixed stream: does this text belong to this vision? By their cached encodings."""

from math import ceil

import torch

from perceiver_vl.training.losses.base import (
    BatchFlops,
    EncodedBatch,
    Objective,
    ObjectiveOutput,
    in_pieces,
    matching,
)


class MixedVTM(Objective):
    """Every text once with its own vision, once with a negative."""

    encodings = ("partial_match",)
    needs_negatives = True
    needs_decoder = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits `(2B,)`."""
        global_batch, texts = batch.global_batch, batch.text["partial_match"]
        own = global_batch.places.to(texts.device)
        pairs = batch.all_vision_matches[torch.cat([own, batch.negatives])]
        pieces = global_batch.pieces(None if batch.chunk is None else ceil(batch.chunk / 2))
        logits = in_pieces(batch.model.merge_matches, pieces, pairs, torch.cat([texts, texts]))
        matches = torch.cat([torch.ones_like(own, dtype=torch.bool), batch.negatives == own])
        return matching(logits, matches, 2 * global_batch.total, global_batch)

    def flops(self, batch: BatchFlops) -> float:
        """Two pairs an example."""
        return 2 * batch.examples * batch.match
