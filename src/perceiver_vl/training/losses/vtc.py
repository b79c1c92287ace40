"""VTC, vision-text contrast: which of the batch's texts belongs to which vision? By the multi-stream's dot product.

ALBEF (Li et al. 2021); what the paper leaves out, so that its multi-stream has no objective of its own.
Shapes: B batch, ΣB that of all processes, C candidates, K mixed negatives, E retrieval vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput, contrast


class VTC(Objective):
    """Over the pairs of all processes."""

    encodings = ("features",)

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits `(B,ΣB)`: scaled cosines of this process's texts with all vision; beside them, where they are asked
        for, those of texts and of vision with `mixed_negatives`.
        """
        everyone, scale, options = batch.global_batch, batch.model.logit_scale, batch.options
        text, own_vision = batch.text["features"], batch.vision["features"]
        if options.vtc_directions == "text_to_vision":
            own_vision = own_vision.detach()
        elif options.vtc_directions == "vision_to_text":
            text = text.detach()
        vision = everyone.rows(own_vision)
        logits = scale * text @ vision.T
        mixed = None
        if (count := min(options.mixed_negatives, everyone.total - 2)) > 0:
            sides = (text, vision), (own_vision, everyone.rows(text))
            places = everyone.places.to(text.device)
            of_text, of_vision = (
                scale * (mixed_negatives(queries, others, places, count) @ queries[..., None]).squeeze(-1)
                for queries, others in sides
            )
            mixed = of_text, of_vision
        return contrast(logits, everyone, mixed, options.focal_gamma, options.vtc_directions)

    def flops(self, batch: BatchFlops) -> float:
        """Nothing beside the encodings."""
        return 0.0


def mixed_negatives(queries: Tensor, candidates: Tensor, own: Tensor, count: int) -> Tensor:
    """Of each query `(B,E)` so many negatives that nobody has: unit vectors `(B,K,E)` halfway between two `candidates`
    `(C,E)` that are neighbours in the order of its hardest negatives, the first between the two hardest.

    `own (B,)`: the place of each query's own candidate, which is in none; K ≤ C - 2. The pairwise mixing of
    KaLM-Embedding-V2 (Zhao et al. 2025) after MoCHi (Kalantidis et al. 2020), whose shares are drawn: even ones need no
    draw. Gradients reach the candidates that are mixed.
    """
    similarities = (queries @ candidates.T).detach().scatter(1, own[:, None], -torch.inf)
    hardest = candidates[similarities.topk(count + 1, dim=1).indices]
    return F.normalize(hardest[:, :-1] + hardest[:, 1:], dim=-1)
