"""Multiple choice: which of several texts belongs to the clip (TGIF-QA action and transition, MSRVTT multiple choice).

Shapes: B batch, C choices, T frames, L text tokens, M inputs, N latents, D width, R choices that are real, of all B.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import can_return_tuple

from perceiver_vl.layers.perceiver import EncoderRecord
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery, query_decoder
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.heads import BaseMatching, MatchingHead
from perceiver_vl.models.perceiver_vl.modeling import (
    AskedOutputs,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
    states_of,
)
from perceiver_vl.models.perceiver_vl.question_answering import PerceiverVLAnswerOutput, beside
from perceiver_vl.utils.errors import UsageError


class PerceiverVLForMultipleChoice(PerceiverVLPreTrainedModel):
    """One choice of several: each is read with the clip and asked the VTM query, and the best match is the answer.

    The paper's query for this task is in its appendix. Ours is that of VTM, with VTM's head: choosing is matching, so a
    pre-trained or retrieval model chooses before any fine-tuning, as MSRVTT's multiple choice is usually scored. Over
    pretrained encoders the latents add to what these alone say of each choice and the clip, as in the single stream.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(mlm_|mpm_|answer_|contrastive|base_answers|caption_)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        self.decoder = query_decoder(config)
        self.vtm_query = ClassQuery(config)
        self.vtm_head = MatchingHead(config)
        self.base_matching = BaseMatching() if config.has_vision_base else None
        self.post_init()

    def choose(
        self,
        vision: InputArray,
        rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        choice_mask: Tensor | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        record: EncoderRecord | None = None,
    ) -> Tensor:
        """Choices `input_ids (B,C,L)` about clips that are embedded already (`PerceiverVLModel.embed_inputs`): example
        b is about row `rows[b]` of `vision (V,M_v,D)` → `logits (B,C)`.
        """
        real = torch.ones_like(input_ids[..., 0], dtype=torch.bool) if choice_mask is None else choice_mask.bool()
        words = None if attention_mask is None else attention_mask[real]
        text = self.perceiver_vl.embed_inputs(input_ids[real], words)  # (R,L,D)
        pairs = beside(vision, rows[real.nonzero()[:, 0]], text)
        latents = self.perceiver_vl.encode(pairs, budget, record)  # (R,N,D)
        scores = self.vtm_head(self.decode(self.vtm_query(len(latents)), latents)[:, 0])
        if self.base_matching is not None:
            assert pairs.vision_base is not None
            assert pairs.text_base is not None
            scores = scores + self.base_matching(pairs.vision_base, pairs.text_base)
        return scores.new_full(real.shape, -torch.inf).masked_scatter(real, scores)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        choice_mask: Tensor | None = None,
        labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLAnswerOutput:
        """Choices `input_ids (B,C,L)`, `attention_mask (B,C,L)` and a clip `pixel_values (B,T,3,H,W)` → `logits (B,C)`.

        `choice_mask (B,C)`: 1 where there is a choice, 0 where an example has fewer (its logit is minus infinity, and
        it costs nothing); None: all are there. `labels (B,)`: which choice is right (cross-entropy).
        The clip is embedded once for all its choices. Raises `UsageError` where there is none.
        """
        if pixel_values is None:
            raise UsageError("pixel_values=None: a choice is about a clip or an image, give one for each example")
        budget = budget or FULL_BUDGET
        vision = self.perceiver_vl.embed_inputs(pixel_values=pixel_values, frame_mask=frame_mask, budget=budget)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        record = self.record(**asked)
        logits = self.choose(vision, rows, input_ids, attention_mask, choice_mask, budget, record)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return PerceiverVLAnswerOutput(loss=loss, logits=logits, **states_of(record))
