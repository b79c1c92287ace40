"""Matching and retrieval in three streams (paper 3.5).

Shapes: B batch, T frames, L text tokens, N latents, D width, E length of a retrieval vector, K candidates.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.partial_attention import PartialAttention, merge, unpack
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery, query_decoder
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.heads import BaseMatching, ContrastiveHead, MatchingHead
from perceiver_vl.models.perceiver_vl.modeling import (
    AskedOutputs,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
    states_of,
)
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache


@dataclass
class PerceiverVLForRetrievalOutput(ModelOutput):
    """`loss ()` when labels are given; `vtm_logits (B,)`: the logit that text and vision belong together; the rest if
    asked for (`AskedOutputs`).
    """

    loss: Tensor | None = None
    vtm_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PerceiverVLForRetrieval(PerceiverVLPreTrainedModel):
    """The three streams of retrieval over the same weights (paper 3.5).

    single: text and vision encoded together, then matched (`match_jointly`). multi: encoded apart, one unit vector a
    side (`get_text_features`, `get_vision_features`), a dot product a pair. mixed: encoded apart (`encode_text`,
    `encode_vision`), their latents matched by the decoder (`match`), or each summarised for it once (`partial_match`:
    what an index stores) and the partial attentions merged (`merge_matches`).
    """

    _keys_to_ignore_on_load_unexpected = [r"^(mlm_|mpm_|answer_|base_answers|caption_)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        self.decoder = query_decoder(config)
        self.vtm_query = ClassQuery(config)
        self.vtm_head = MatchingHead(config)
        self.contrastive = ContrastiveHead(config)
        self.base_matching = BaseMatching() if config.has_vision_base else None
        self.post_init()

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> Tensor:
        """`input_ids (B,L)`, `attention_mask (B,L)` → text latents `(B,N,D)`, N = the text stream's own number."""
        return self.perceiver_vl(input_ids, attention_mask, budget=budget, return_dict=True).last_hidden_state

    def encode_vision(
        self,
        pixel_values: Tensor,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        modality: str | None = None,
    ) -> Tensor:
        """`pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` → vision latents `(B,N,D)`. `modality`: what they are
        instead of pixels, as of `PerceiverVLModel.embed_inputs`, here and in all that takes a clip.
        """
        return self.perceiver_vl(
            pixel_values=pixel_values, frame_mask=frame_mask, budget=budget, modality=modality, return_dict=True
        ).last_hidden_state

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> Tensor:
        """`input_ids (B,L)` → unit vectors `(B,E)` of the multi-stream."""
        return self.encode_and_pool_text(input_ids, attention_mask, budget)[1]

    def get_vision_features(
        self,
        pixel_values: Tensor,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        modality: str | None = None,
    ) -> Tensor:
        """`pixel_values (B,T,3,H,W)` → unit vectors `(B,E)` of the multi-stream."""
        return self.encode_and_pool_vision(pixel_values, frame_mask, budget, modality)[1]

    def encode_and_pool_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, budget: ComputeBudget | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `encode_text` and `get_text_features` give, computed once."""
        budget = budget or FULL_BUDGET
        inputs = self.perceiver_vl.embed_inputs(input_ids, attention_mask, budget=budget)
        latents = self.perceiver_vl.encode(inputs, budget)
        return latents, self.pool_text(latents, inputs.text_base)

    def tokens_and_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The text part of the input array `(B,L,D)` and what `get_text_features` gives `(B,E)`: of a model whose text
        side another has taken over.
        """
        inputs = self.perceiver_vl.embed_inputs(input_ids, attention_mask)
        assert inputs.text is not None
        return inputs.text, self.pool_text(self.perceiver_vl.encode(inputs), inputs.text_base)

    def encode_and_pool_vision(
        self,
        pixel_values: Tensor,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        modality: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What `encode_vision` and `get_vision_features` give, computed once."""
        budget = budget or FULL_BUDGET
        inputs = self.perceiver_vl.embed_inputs(None, None, pixel_values, frame_mask, budget, modality=modality)
        latents = self.perceiver_vl.encode(inputs, budget)
        return latents, self.pool_vision(latents, inputs.vision_base)

    def pool_text(self, text_latents: Tensor, base: Tensor | None = None) -> Tensor:
        """Text latents `(B,N,D)`, and what the encoders alone say `(B,E)`, where the model has them → unit vectors
        `(B,E)`.
        """
        return _unit_sum(base, self.contrastive.text_projection(text_latents.mean(1)))

    def pool_vision(self, vision_latents: Tensor, base: Tensor | None = None) -> Tensor:
        """The same of vision latents `(B,N,D)`."""
        return _unit_sum(base, self.contrastive.vision_projection(vision_latents.mean(1)))

    @property
    def logit_scale(self) -> Tensor:
        """The learned factor on cosine similarities, at most 100 (as CLIP's)."""
        return self.contrastive.logit_scale.exp().clamp(max=100.0)

    @property
    def logit_bias(self) -> Tensor | float:
        """What is added to scaled similarities, where the model has it (as SigLIP's); it changes no order."""
        return 0.0 if self.contrastive.logit_bias is None else self.contrastive.logit_bias

    @property
    def length_weight(self) -> Tensor | None:
        """What a window of a video gains with the logarithm of its seconds, as a scaled similarity; None: not known."""
        learned = self.contrastive.length_weight
        return None if learned is None else self.logit_scale * learned

    def match(self, vision_latents: Tensor, text_latents: Tensor) -> Tensor:
        """Mixed-stream: `(B,N_V,D)` and `(B,N_T,D)`, encoded apart → matching logits `(B,)`."""
        return self._matching_logits(torch.cat([vision_latents, text_latents], dim=1))

    def partial_match(self, latents: Tensor) -> Tensor:
        """All that latents of either side `(B,N,D)` can contribute to a mixed-stream match → `(B,D+H)`, to be stored.

        The query is the same for every pair, so what it finds on one side does not depend on the other.
        """
        return self._partial_match(latents).pack()[:, 0]

    def merge_matches(self, vision: Tensor, text: Tensor) -> Tensor:
        """Mixed-stream from `partial_match` of both sides, `(…,D+H)` → matching logits `(…)`, as of `match`.

        Leading dimensions broadcast: `(B,·)` with `(B,·)` are B pairs, `(C,·)` with `(Q,1,·)` all `(Q,C)`.
        """
        vision_found, text_found = (
            unpack(side[..., None, :], self.config.num_attention_heads) for side in (vision, text)
        )
        return self._merged_logits(self.vtm_query(1), vision_found, text_found)

    def match_all(self, vision_latents: Tensor, text_latents: Tensor) -> Tensor:
        """Mixed-stream scores of all pairs: `(C,N_V,D)`, `(Q,N_T,D)` → matching logits `(Q,C)`, as of `match`."""
        vision, text = self._partial_match(vision_latents), self._partial_match(text_latents)
        text = PartialAttention(text.output[:, None], text.logsumexp[:, None])
        return self._merged_logits(self.vtm_query(1), vision, text)

    def _partial_match(self, latents: Tensor) -> PartialAttention:
        return self.decoder.partial_attention(latents, self.vtm_query(1), absorb=self.may_absorb(self.decoder))

    def _merged_logits(self, query: Tensor, vision: PartialAttention, text: PartialAttention) -> Tensor:
        return self.vtm_head(self.decoder.from_partial_attention(query, merge(vision, text))[..., 0, :])

    def match_jointly(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
        modality: str | None = None,
    ) -> Tensor:
        """Single-stream: text and vision in one input array → matching logits `(B,)`; `vision_cache` as of
        `PerceiverVLModel.forward`.
        """
        budget = budget or FULL_BUDGET
        given = input_ids, attention_mask, pixel_values, frame_mask
        return self.match_inputs(self.perceiver_vl.embed_inputs(*given, budget, vision_cache, modality), budget)

    def match_inputs(self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET) -> Tensor:
        """Single-stream from an input array that is embedded already (`PerceiverVLModel.embed_inputs`) → `(B,)`."""
        return self._joint_logits(self.perceiver_vl.encode(inputs, budget), inputs)

    def _joint_logits(self, latents: Tensor, inputs: InputArray) -> Tensor:
        """Single-stream: what the latents make of both, beside what the encoders alone say of the pair."""
        logits = self._matching_logits(latents)
        if self.base_matching is None:
            return logits
        assert inputs.vision_base is not None
        assert inputs.text_base is not None
        return logits + self.base_matching(inputs.vision_base, inputs.text_base)

    def _matching_logits(self, latents: Tensor) -> Tensor:
        return self.vtm_head(self.decode(self.vtm_query(len(latents)), latents)[:, 0])

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        vtm_labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        modality: str | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLForRetrievalOutput:
        """Single-stream matching; `vtm_labels (B,)` are 1 where the pair belongs together, else 0."""
        budget, record = budget or FULL_BUDGET, self.record(**asked)
        given = input_ids, attention_mask, pixel_values, frame_mask
        inputs = self.perceiver_vl.embed_inputs(*given, budget, modality=modality)
        logits = self._joint_logits(self.perceiver_vl.encode(inputs, budget, record), inputs)
        loss = None if vtm_labels is None else matching_loss(logits, vtm_labels)
        return PerceiverVLForRetrievalOutput(loss=loss, vtm_logits=logits, **states_of(record))


def _unit_sum(base: Tensor | None, added: Tensor) -> Tensor:
    return F.normalize(added if base is None else base + added, dim=-1)


def matching_loss(vtm_logits: Tensor, vtm_labels: Tensor) -> Tensor:
    """Binary cross-entropy of matching logits `(B,)` with labels `(B,)` in {0, 1}."""
    return F.binary_cross_entropy_with_logits(vtm_logits, vtm_labels.to(vtm_logits.dtype))


def combined_scores(multi: Tensor, matching: Tensor) -> Tensor:
    """Scores of a shortlist: log-probability of each candidate by the multi-stream plus that by the other.

    Both estimate how much likelier a clip is with this text than without (what contrast and matching learn), so their
    product does. `multi`: scaled similarities (…,K); `matching`: logits of the mixed or single stream (…,K) → (…,K).
    """
    return multi.log_softmax(-1) + matching.log_softmax(-1)
