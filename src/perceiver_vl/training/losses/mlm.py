"""MLM, masked language modelling: which words were masked? By the joint encoding with their vision (paper 4.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput, in_pieces


class MLM(Objective):
    """On matched pairs, vision intact: the mean over the masked words, 0 if there is none."""

    needs_masked_words = True
    needs_decoder = True
    compares_pairs = False

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Of the pairs that are encoded jointly; logits of the masked words, the vocabulary is scored there only."""
        inputs, rows, joint = batch.inputs, batch.joint_rows, batch.joint_batch
        masked_input_ids, mlm_labels = inputs.masked_input_ids, inputs.mlm_labels
        assert masked_input_ids is not None
        assert mlm_labels is not None
        labels = mlm_labels[rows]
        is_masked = labels != -100

        def decode(rows: Tensor, is_masked: Tensor) -> Tensor:
            words, vision = masked_input_ids[rows], (inputs.pixel_values[rows], inputs.frame_mask[rows])
            pairs = words, inputs.attention_mask[rows], *vision
            encoded = batch.model.perceiver_vl(*pairs, batch.budget, modality=inputs.modality)
            return batch.model.decode_masked_words(encoded.last_hidden_state, is_masked)

        decoded = in_pieces(decode, joint.pieces(batch.chunk), rows, is_masked)
        logits = batch.model.mlm_head(decoded[is_masked])
        count = joint.summed(is_masked.sum()).clamp(min=1)
        words = joint.mean_of(count.to(torch.promote_types(logits.dtype, torch.float32)))
        loss = F.cross_entropy(logits, labels[is_masked], reduction="sum") / words
        return ObjectiveOutput(loss, (logits,), "classes", words)

    def flops(self, batch: BatchFlops) -> float:
        """The joint encodings."""
        return batch.joint_examples * batch.joint
