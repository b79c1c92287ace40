"""VTC in the mixed stream: which of the batch's texts belongs to which vision? By their cached encodings.

The in-batch softmax of Poly-encoders (Humeau et al. 2020).
"""

from torch import Tensor

from perceiver_vl.training.losses.base import (
    BatchFlops,
    EncodedBatch,
    Objective,
    ObjectiveOutput,
    contrast,
    in_pieces,
)


class MixedVTC(Objective):
    """By the matching logits of all pairs."""

    encodings = ("partial_match",)
    needs_decoder = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits `(B,ΣB)`."""
        vision = batch.all_vision_matches

        def match(texts: Tensor) -> Tensor:
            return batch.model.merge_matches(vision, texts[:, None])

        pieces = batch.global_batch.pieces(batch.chunk)
        return contrast(in_pieces(match, pieces, batch.text["partial_match"]), batch.global_batch)

    def flops(self, batch: BatchFlops) -> float:
        """What one pair an example takes: the others share its partial attention."""
        return batch.examples * batch.match
