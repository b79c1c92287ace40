"""STRUCTURE: what is near in the space of a frozen encoder stays near in the space that is trained.

A regulariser for few pairs (Gröger et al. 2025, "With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide
You"): a contrast alone may give up all that two encoders know of their own side to tell the pairs of a small set apart.
Shapes: B batch, ΣB that of all processes, T frames, P tokens a frame, W width of an encoder, E retrieval vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput, in_pieces
from perceiver_vl.utils.distributed import GlobalBatch

TEMPERATURE = 0.07
"""Of the similarities within a side, as the authors' code has it."""


class Structure(Objective):
    """Of clips among clips and texts among texts; the mean of both. Needs encoders that are frozen."""

    encodings = ("features",)
    needs_frozen_encoders = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits twice `(B,ΣB)`: similarities of this process's clips with all clips, and of its texts with all texts,
        as trained.
        """
        everyone, levels = batch.global_batch, batch.options.structure_levels
        sides = (frozen_vision(batch), batch.vision["features"]), (frozen_text(batch), batch.text["features"])
        found = [structure_divergence(frozen, trained, everyone, levels) for frozen, trained in sides]
        rows = everyone.mean_of(everyone.total)
        loss = torch.stack([divergences.sum() for divergences, _ in found]).mean() / rows
        return ObjectiveOutput(loss, tuple(logits for _, logits in found), "classes", rows)

    def flops(self, batch: BatchFlops) -> float:
        """Nothing beside the encodings: frozen encoders have seen the batch."""
        return 0.0


def structure_divergence(
    frozen: Tensor, trained: Tensor, global_batch: GlobalBatch, levels: int
) -> tuple[Tensor, Tensor]:
    """Of each example's vectors `(B,W)` and `(B,E)` how far its neighbourhoods are from what they were, 0 to log 2
    `(B,)`; and its trained similarities with all examples, by the temperature `(B,ΣB)`.

    A neighbourhood is the softmax of the similarities of centred unit vectors; that of level l is reached in l steps
    over all examples (the power l of the softmaxed matrix). Jensen-Shannon divergences, that of level l weighed 1/l,
    averaged over the levels (Gröger et al. 2025, 3.2).
    """
    with torch.autocast(trained.device.type, enabled=False):  # differences of entropies
        own = global_batch.places.to(trained.device)
        similarities = [_similarities(global_batch.rows(vectors)) for vectors in (frozen, trained)]
        steps = [one.softmax(1) for one in similarities]
        reached = [one[own] for one in steps]
        found = torch.zeros_like(reached[1][:, 0])
        for level in range(1, levels + 1):
            found = found + _jensen_shannon(*reached) / level
            if level < levels:
                reached = [one @ step for one, step in zip(reached, steps, strict=True)]
        return found / levels, similarities[1][own]


def frozen_vision(batch: EncodedBatch) -> Tensor:
    """What the vision encoder says of each clip `(B,W)`: the mean over its frames, each of length 1."""
    frames = F.normalize(batch.inputs.pixel_values[:, :, 0].detach(), dim=-1)  # encoded already (B,T,1+P,W)
    real = batch.inputs.frame_mask[..., None].to(frames.dtype)
    return (frames * real).sum(1) / real.sum(1).clamp(min=1)


@torch.no_grad()
def frozen_text(batch: EncodedBatch) -> Tensor:
    """What the text encoder says of each text `(B,W)`."""

    def vectors(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return batch.model.perceiver_vl.text_encoder(input_ids, attention_mask)[1]  # type: ignore[misc]

    inputs, pieces = batch.inputs, batch.global_batch.pieces(batch.chunk)
    return in_pieces(vectors, pieces, inputs.input_ids, inputs.attention_mask)


def _similarities(vectors: Tensor) -> Tensor:
    vectors = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
    centred = vectors - vectors.mean(0)
    return centred @ centred.T / TEMPERATURE


def _jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Of distributions `(B,K)` → `(B,)`: how much the entropy of their mean exceeds the mean of theirs."""
    smallest = torch.finfo(first.dtype).tiny  # of 0 the entropy has no gradient
    of_mean, *of_each = (
        torch.special.entr(one.clamp(min=smallest)).sum(1) for one in ((first + second) / 2, first, second)
    )
    return of_mean - torch.stack(of_each).mean(0)
