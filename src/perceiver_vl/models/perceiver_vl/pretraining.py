"""Retrieval, masked words and masked patches: what pre-training trains (paper 4.1; patches as in MAE).

Shapes: B batch, T frames, L text tokens, N latents, Q queries, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import MaskedPatchQueries, MaskedWordQueries
from perceiver_vl.models.perceiver_vl.heads import MaskedPatchHead, MaskedWordHead
from perceiver_vl.models.perceiver_vl.modeling import AskedOutputs, states_of
from perceiver_vl.models.perceiver_vl.retrieval import PerceiverVLForRetrieval, matching_loss
from perceiver_vl.utils.errors import UsageError


@dataclass
class PerceiverVLForPreTrainingOutput(ModelOutput):
    """`loss ()`: the sum of the losses whose labels are given; `vtm_logits (B,)`; `mlm_logits (B,L,V)`."""

    loss: Tensor | None = None
    vtm_logits: Tensor | None = None
    mlm_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PerceiverVLForPreTraining(PerceiverVLForRetrieval):
    """Retrieval, masked words and, where they are asked for (`config.masked_patches`), masked patches: the model that
    the pre-training objectives train (paper 4.1).
    """

    _keys_to_ignore_on_load_unexpected = []

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.mlm_queries = MaskedWordQueries(config)
        self.mlm_head = MaskedWordHead(config)
        self.mpm_queries = MaskedPatchQueries(config) if config.masked_patches else None
        self.mpm_head = MaskedPatchHead(config) if config.masked_patches else None
        # Not of the class: the parent's post_init would tie a head that is not there yet
        self._tied_weights_keys = {"mlm_head.projection.weight": "perceiver_vl.embeddings.text.word_embeddings.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The MLM head's projection to the vocabulary."""
        return self.mlm_head.projection

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the MLM head's projection to the vocabulary."""
        self.mlm_head.projection = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the bias of the MLM head goes with the words, those of new ones are 0."""
        table = super().resize_token_embeddings(*args, **kwargs)
        bias = self.mlm_head.bias
        self.mlm_head.bias = nn.Parameter(F.pad(bias.detach(), (0, table.num_embeddings - len(bias))))
        return table

    def decode_masked_words(self, latents: Tensor, is_masked: Tensor) -> Tensor:
        """`latents (B,N,D)`, `is_masked (B,L)` bool → what the decoder says of every text position `(B,L,D)`."""
        return self.decode(self.mlm_queries(is_masked), latents)

    def decode_masked_patches(self, latents: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """`latents (B,N,D)`, `places (B,Q)` as of `MaskedPatchQueries` → what those patches show `(B,Q,V)`.

        Raises `UsageError` for a model that was not made with `masked_patches`.
        """
        if self.mpm_queries is None or self.mpm_head is None:
            raise UsageError("masked_patches=False: this model has no queries for patches, make one with it")
        answers: Tensor = self.mpm_head(self.decode(self.mpm_queries(places, grid), latents))
        return answers

    @can_return_tuple
    def forward(  # type: ignore[override]  # another output, and the labels that go with it
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        vtm_labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLForPreTrainingOutput:
        """Both questions in one decoder call: `mlm_labels (B,L)` with -100 where nothing is predicted, `vtm_labels
        (B,)`.

        Without `mlm_labels` the masked positions are those that hold the mask token. The two losses are summed with
        weight 1 (paper 4.1). With unmasked text for matching and masked text for words, call twice (as the objectives
        do).
        """
        is_masked = input_ids == self.config.mask_token_id if mlm_labels is None else mlm_labels != -100
        encoded = self.perceiver_vl(
            input_ids, attention_mask, pixel_values, frame_mask, budget, return_dict=True, **asked
        )
        latents = encoded.last_hidden_state
        queries = torch.cat([self.vtm_query(len(latents)), self.mlm_queries(is_masked)], dim=1)
        answers = self.decode(queries, latents)  # (B,1+L,D)
        vtm_logits, mlm_logits = self.vtm_head(answers[:, 0]), self.mlm_head(answers[:, 1:])
        losses = []
        if vtm_labels is not None:
            losses.append(matching_loss(vtm_logits, vtm_labels))
        if mlm_labels is not None:
            losses.append(masked_word_loss(mlm_logits, mlm_labels))
        loss = torch.stack(losses).sum() if losses else None
        return PerceiverVLForPreTrainingOutput(
            loss=loss, vtm_logits=vtm_logits, mlm_logits=mlm_logits, **states_of(encoded)
        )


def masked_word_loss(mlm_logits: Tensor, mlm_labels: Tensor) -> Tensor:
    """Mean cross-entropy over the positions whose label is not -100; 0 if there is none. `(…,V)`, `(…)`."""
    total = F.cross_entropy(mlm_logits.flatten(0, -2), mlm_labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (mlm_labels != -100).sum().clamp(min=1)
