"""VTM, vision-text matching: does this text belong to this vision? By their joint encoding (paper 4.1)."""

from torch import Tensor

from perceiver_vl.training.losses.base import (
    BatchFlops,
    EncodedBatch,
    Objective,
    ObjectiveOutput,
    in_pieces,
    matching,
)


class VTM(Objective):
    """As published: each text, unmasked, with its own vision or a negative."""

    needs_negatives = True
    needs_decoder = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Of the pairs that are encoded jointly; logits `(R,)`."""
        inputs, rows = batch.inputs, batch.joint_rows
        places, donors = batch.global_batch.places.to(rows.device)[rows], batch.donors[rows]
        pixel_values, where = batch.global_batch.fetched(inputs.pixel_values, donors)
        frame_mask, _ = batch.global_batch.fetched(inputs.frame_mask, donors)

        def match(rows: Tensor, where: Tensor) -> Tensor:
            vision = pixel_values[where], frame_mask[where]
            pairs = inputs.input_ids[rows], inputs.attention_mask[rows], *vision
            return batch.model.match_jointly(*pairs, batch.budget, modality=inputs.modality)

        logits = in_pieces(match, batch.joint_batch.pieces(batch.chunk), rows, where)
        return matching(logits, donors == places, batch.joint_batch.total, batch.global_batch)

    def flops(self, batch: BatchFlops) -> float:
        """The joint encodings."""
        return batch.joint_examples * batch.joint
