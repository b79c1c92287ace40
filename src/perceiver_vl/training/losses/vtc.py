"""VTC, vision-text contrast: which of the batch's texts belongs to which vision? By the multi-stream's dot product.

ALBEF (Li et al. 2021); what the paper leaves out, so that its multi-stream has no objective of its own.
"""

from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput, contrast


class VTC(Objective):
    """Over the pairs of all processes."""

    encodings = ("features",)

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits `(B,ΣB)`: scaled cosines of this process's texts with all vision."""
        vision = batch.global_batch.rows(batch.vision["features"])
        return contrast(batch.model.logit_scale * batch.text["features"] @ vision.T, batch.global_batch)

    def flops(self, batch: BatchFlops) -> float:
        """Nothing beside the encodings."""
        return 0.0
