"""Momentum: VTC against what a slowly following copy of the model says, now and of the latest batches.

Momentum distillation (ALBEF, Li et al. 2021, 3.2) and its queue of negatives (MoCo, He et al. 2020): captions of the
web fit other clips too, and a one-hot target punishes the model for seeing it; what the copy says is softer.
Shapes: B batch, ΣB that of all processes, Q queued pairs, E retrieval vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput


class Momentum(Objective):
    """Both ways: texts among the copy's vision, vision among its texts."""

    encodings = ("features",)
    needs_momentum = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits twice `(B,ΣB+Q)`: scaled cosines of this process's texts with the copy's vision, of all processes and
        queued, and of its vision with the copy's texts.
        """
        everyone, scale, slow = batch.global_batch, batch.model.logit_scale, batch.momentum
        assert slow is not None
        own = everyone.places.to(slow.text.device)
        sides = (
            (batch.text["features"], slow.text[own], torch.cat([slow.vision, slow.queued_vision])),
            (batch.vision["features"], slow.vision[own], torch.cat([slow.text, slow.queued_text])),
        )
        found = [pseudo_contrast(fast, mine, keys, own, scale, slow.alpha) for fast, mine, keys in sides]
        rows = everyone.mean_of(everyone.total)
        loss = torch.stack([surprise.sum() for surprise, _ in found]).mean() / rows
        return ObjectiveOutput(loss, tuple(logits for _, logits in found), "classes", rows)

    def flops(self, batch: BatchFlops) -> float:
        """The encodings of the copy, forward alone."""
        return batch.examples * (batch.vision + batch.text) / 3


def pseudo_contrast(
    queries: Tensor, slow_queries: Tensor, keys: Tensor, own: Tensor, scale: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query `(B,E)` among the keys `(C,E)` → `(B,)`, and its logits `(B,C)`.

    The target is a mixture: its own key, at the place `own (B,)`, and by the share `alpha` the softmax of what its slow
    query `(B,E)` says of the same keys, at the same temperature (ALBEF, equations 6 and 7).
    """
    logits = scale * queries @ keys.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    with torch.no_grad():
        said = (scale * slow_queries @ keys.T).to(logits.dtype).softmax(1)
        targets = torch.lerp(F.one_hot(own, len(keys)).to(logits.dtype), said, alpha)
    return -(targets * logits.log_softmax(1)).sum(1), logits
