"""TTC, text-text contrast: which two captions are of the same clip?

The contrast within a modality of TCL (Yang et al. 2022): words that tell clips apart are told apart before vision
knows them.
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


class TTC(Objective):
    """As VTC, with another caption of each clip for its vision."""

    encodings = ("features",)
    needs_other_captions = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits `(B,ΣB)`: scaled cosines of this process's texts with all other captions."""
        model, inputs, global_batch = batch.model, batch.inputs, batch.global_batch
        assert inputs.other_input_ids is not None
        assert inputs.other_attention_mask is not None

        def features(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return model.get_text_features(input_ids, attention_mask, batch.budget)

        pieces = global_batch.pieces(batch.chunk)
        others = in_pieces(features, pieces, inputs.other_input_ids, inputs.other_attention_mask)
        return contrast(model.logit_scale * batch.text["features"] @ global_batch.rows(others).T, global_batch)

    def flops(self, batch: BatchFlops) -> float:
        """The encodings of the other captions."""
        return batch.examples * batch.text
