"""What Perceiver IO is asked: masked bytes, classes, flow, and all of a video again (paper, 4).

Shapes: B batch, L bytes, T frames, H × W pixels, S samples of sound, Q queries, K classes, V words.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.models.perceiver_io.configuration import PerceiverIOConfig
from perceiver_vl.models.perceiver_io.inputs import (
    MODALITIES,
    ByteEmbeddings,
    FlowEmbeddings,
    ImageEmbeddings,
    MultimodalEmbeddings,
    MultimodalQueries,
)
from perceiver_vl.models.perceiver_io.modeling import PerceiverIOModel, PerceiverIOPreTrainedModel


class PerceiverIOForMaskedLM(PerceiverIOPreTrainedModel):
    """Which bytes are masked ones (4.1): one learned query for each place, answers compared to the bytes' vectors."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__(config)
        self.embeddings, self.perceiver = ByteEmbeddings(config), PerceiverIOModel(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        """`input_ids (B,L)`, `attention_mask (B,L)`, `labels (B,L)`, -100 where nothing is asked → `logits (B,L,V)`."""
        mask = None if attention_mask is None else attention_mask.bool()
        latents = self.perceiver.encode(self.embeddings(input_ids), mask)
        queries = cast(Tensor, self.perceiver.decoder.queries)[: input_ids.shape[1]].expand(len(input_ids), -1, -1)
        logits = F.linear(self.perceiver.decode(latents, queries), self.embeddings.word_embeddings.weight, self.bias)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss, logits)


class PerceiverIOForSequenceClassification(PerceiverIOPreTrainedModel):
    """Classes of a text, by one learned query."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__(config)
        self.embeddings, self.perceiver = ByteEmbeddings(config), PerceiverIOModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """`input_ids (B,L)`, `attention_mask (B,L)`, `labels (B,)` → `logits (B,K)`."""
        mask = None if attention_mask is None else attention_mask.bool()
        logits = self.perceiver(self.embeddings(input_ids), mask, return_dict=True).logits[:, 0]
        return SequenceClassifierOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class PerceiverIOForImageClassification(PerceiverIOPreTrainedModel):
    """Classes of an image, pixel by pixel, by one learned query (4.2)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__(config)
        self.embeddings, self.perceiver = ImageEmbeddings(config), PerceiverIOModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, chunk_size: int | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """`pixel_values (B,3,H,W)`, `labels (B,)` → `logits (B,K)`; `chunk_size`: pixels that are met at a time."""
        output = self.perceiver(self.embeddings(pixel_values), chunk_size=chunk_size, return_dict=True)
        logits = output.logits[:, 0]
        return ImageClassifierOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class PerceiverIOForOpticalFlow(PerceiverIOPreTrainedModel):
    """How far each pixel moves between two frames; what asks for it is the input array itself (4.3)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__(config)
        self.embeddings, self.perceiver = FlowEmbeddings(config), PerceiverIOModel(config)
        self.post_init()

    @can_return_tuple
    def forward(self, frames: Tensor, labels: Tensor | None = None, **chunks: int | None) -> ModelOutput:
        """`frames (B,2,27,H,W)` (`inputs.neighbourhoods`), `labels (B,H,W,2)` → `logits (B,H,W,2)`, in pixels, and the
        `loss`, the mean distance to the labels; chunks as of `PerceiverIOModel.forward`.
        """
        tokens = self.embeddings(frames)
        flow = self.perceiver(tokens, queries=tokens, return_dict=True, **chunks).logits / 100
        flow = flow.unflatten(1, frames.shape[-2:])
        return ModelOutput(loss=None if labels is None else (flow - labels).norm(dim=-1).mean(), logits=flow)


class PerceiverIOForMultimodalAutoencoding(PerceiverIOPreTrainedModel):
    """Video, sound and label through one bottleneck, and back (4.4)."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__(config)
        self.embeddings, self.perceiver = MultimodalEmbeddings(config), PerceiverIOModel(config)
        self.queries = MultimodalQueries(config)
        sizes = {"audio": config.samples_per_patch, "image": config.num_channels, "label": config.num_labels}
        self.heads = nn.ModuleDict({name: nn.Linear(cast(int, config.output_size), sizes[name]) for name in MODALITIES})
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        image: Tensor,
        audio: Tensor,
        label: Tensor,
        points: Mapping[str, Tensor] | None = None,
        **chunks: int | None,
    ) -> ModelOutput:
        """`image (B,T,3,H,W)`, `audio (B,S,1)`, `label (B,K)`; `points`: the pixels and the patches of sound that are
        asked for, int64 `(Q,)` each (None: all) → `logits`: `image (B,Q,3)`, `audio (B,Q·16)`, `label (B,K)`.
        """
        tokens = self.embeddings(image, audio, label)
        everywhere = {name: torch.arange(prod(grid)) for name, grid in self.queries.grids().items()}
        queries = self.queries(everywhere | dict(points or {}), len(label))
        joined = torch.cat([queries[name] for name in MODALITIES], dim=1)
        output = self.perceiver(tokens, queries=joined, return_dict=True, **chunks)
        parts = output.logits.split([queries[name].shape[1] for name in MODALITIES], dim=1)
        found = {name: self.heads[name](part) for name, part in zip(MODALITIES, parts, strict=True)}
        logits = {"audio": found["audio"].flatten(1), "image": found["image"], "label": found["label"][:, 0]}
        return ModelOutput(logits=logits, last_hidden_state=output.last_hidden_state)
