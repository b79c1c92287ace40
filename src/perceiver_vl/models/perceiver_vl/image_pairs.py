"""Statements about two pictures (NLVR2): is it true of the pair?

Shapes: B batch, T frames, L text tokens, M inputs, N latents, D width.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery, query_decoder
from perceiver_vl.models.perceiver_vl.modeling import (
    AskedOutputs,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
    states_of,
)
from perceiver_vl.models.perceiver_vl.question_answering import PerceiverVLAnswerOutput, answer_loss, beside
from perceiver_vl.utils.errors import UsageError


class PairHead(nn.Module):
    """Linear and tanh on what was found in each picture; both side by side through linear, norm, GELU, linear."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.expand = nn.Linear(2 * config.hidden_size, 2 * config.hidden_size)
        self.norm = nn.LayerNorm(2 * config.hidden_size)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)

    def forward(self, answers: Tensor) -> Tensor:
        """`(B,2,D)` → `(B,num_labels)`."""
        pair = torch.tanh(self.dense(answers)).flatten(1)  # (B,2D)
        return self.classifier(F.gelu(self.norm(self.expand(pair))))


class PerceiverVLForImagesAndTextClassification(PerceiverVLPreTrainedModel):
    """True or false of two pictures, in two passes: text with the first picture, text with the second, both answers
    side by side into the head.

    The two passes and the concatenation are those of an earlier version of the released code. The paper's queries are
    in its appendix; ours are one learned vector for each picture, which also tell the head's inputs apart: "the left
    image" is not the right one. `answers_from="mean_latents"` takes the mean of each pass's latents instead.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(vtm_|mlm_|mpm_|contrastive|base_matching|base_answers|caption_)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        if config.answers_from == "query":
            self.decoder = query_decoder(config)
            self.answer_queries = nn.ModuleList(ClassQuery(config) for _ in range(2))
        self.answer_head = PairHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLAnswerOutput:
        """Statement `input_ids (B,L)`, pictures `pixel_values (B,2,T,3,H,W)` with `frame_mask (B,2,T)` →
        `logits (B,num_labels)`.

        T is 1 for photographs; clips are taken too. `labels (B,)`: 1 for true, 0 for false (cross-entropy).
        Raises `UsageError` for another number of pictures than two.
        """
        dimensions = (5, 6) if self.perceiver_vl.vision_encoder is not None else (6,)  # encoded frames have one less
        if pixel_values is None or pixel_values.ndim not in dimensions or pixel_values.shape[1] != 2:
            found = None if pixel_values is None else tuple(pixel_values.shape)
            raise UsageError(f"pixel_values of shape {found}: need two pictures an example, (B, 2, T, 3, H, W)")
        budget = budget or FULL_BUDGET
        frames = None if frame_mask is None else frame_mask.flatten(0, 1)
        vision = self.perceiver_vl.embed_inputs(
            pixel_values=pixel_values.flatten(0, 1), frame_mask=frames, budget=budget
        )
        text = self.perceiver_vl.embed_inputs(input_ids.repeat_interleave(2, 0), _twice(attention_mask))
        rows = torch.arange(2 * len(input_ids), device=input_ids.device)
        record = self.record(**asked)
        # (2B,N,D), the pictures of a pair together
        latents = self.perceiver_vl.encode(beside(vision, rows, text), budget, record)
        logits = self.answer_head(self._answers(latents))
        loss = None if labels is None else answer_loss(logits, labels)
        return PerceiverVLAnswerOutput(loss=loss, logits=logits, **states_of(record))

    def _answers(self, latents: Tensor) -> Tensor:
        """Latents of each picture `(2B,N,D)` → what was found in it `(B,2,D)`."""
        if self.config.answers_from == "mean_latents":
            return latents.mean(1).unflatten(0, (-1, 2))
        queries = torch.cat([query(len(latents) // 2) for query in self.answer_queries], dim=1)  # (B,2,D)
        return self.decode(queries.flatten(0, 1)[:, None], latents)[:, 0].unflatten(0, (-1, 2))


def _twice(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.repeat_interleave(2, 0)
