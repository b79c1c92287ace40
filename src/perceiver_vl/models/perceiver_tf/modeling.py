"""Perceiver TF: latents of every frame read its spectrum, mix within the frame, and follow each other through time
(Lu et al. 2023).

Shapes: B batch, T frames, F frequencies, C channels, K latents of a frame, D width, I instruments, P pitches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.perceiver import QueryDecoder
from perceiver_vl.models.perceiver_tf.blocks import ConvBlock, SpectralTemporalBlock
from perceiver_vl.models.perceiver_tf.configuration import PerceiverTFConfig
from perceiver_vl.utils.errors import UsageError


class PerceiverTFPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading."""

    config_class = PerceiverTFConfig
    base_model_prefix = "perceiver_tf"
    main_input_name = "spectrogram"

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, as of `PerceiverVLPreTrainedModel`: the model whose classifier is begun has no weights of its own."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        tables = ("latents", "position_table", "time_table", "frequency_table", "queries")
        for table in (getattr(module, name, None) for name in tables):
            if isinstance(table, nn.Parameter):
                init.normal_(table, std=1.0 if table is getattr(module, "latents", None) else 0.02)
        if isinstance(module, PerceiverTFForTranscription):
            init.constant_(module.classifier.bias, RARE)


class PerceiverTFModel(PerceiverTFPreTrainedModel):
    """Spectrogram → latents of every frame."""

    def __init__(self, config: PerceiverTFConfig) -> None:
        super().__init__(config)
        widths = [1, *[config.conv_channels] * config.num_conv_blocks]
        activation = nn.ReLU() if config.conv_activation == "relu" else nn.LeakyReLU(0.01)
        self.front_end = nn.Sequential(*(ConvBlock(before, after, activation) for before, after in pairwise(widths)))
        latents, width = config.num_latents, config.hidden_size
        self.latents = nn.Parameter(torch.randn(latents, width))
        rows = {"trainable": (config.max_frames, latents, width), "kdt": (latents, width)}.get(config.positions)
        self.position_table = None if rows is None else nn.Parameter(0.02 * torch.randn(rows))
        self.time_table = (
            nn.Parameter(0.02 * torch.randn(config.max_frames, width)) if config.positions == "kdt" else None
        )
        self.frequency_table = None
        if config.frequency_positions:
            self.frequency_table = nn.Parameter(0.02 * torch.randn(config.num_frequencies, config.conv_channels))
        self.blocks = nn.ModuleList(SpectralTemporalBlock(config) for _ in range(config.num_blocks))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        spectrogram: Tensor | None = None,
        features: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """`spectrogram (B,T,F)`, or in its place `features (B,T,F,C)`, as the front end would give them →
        `last_hidden_state (B,T,K,D)`. Raises `UsageError` for more frames than there are positions for.
        """
        if features is None:
            if spectrogram is None or spectrogram.ndim != 3:
                raise UsageError("spectrogram: need (batch, frames, frequencies), or features")
            features = self.front_end(spectrogram[:, None].to(self.dtype)).movedim(1, -1)
        frames = features.shape[1]
        if self.config.positions in ("trainable", "kdt") and frames > self.config.max_frames:
            raise UsageError(f"{frames} frames: need at most {self.config.max_frames}, this model's positions")
        if self.frequency_table is not None:
            features = features + self.frequency_table
        inputs = features.transpose(2, 3) if self.config.read == "channels" else features
        latents = self.latents.expand(len(features), frames, -1, -1)
        if self.position_table is not None:
            latents = latents + (self.position_table[:frames] if self.position_table.ndim == 3 else self.position_table)
        states = [latents]
        for number, block in enumerate(self.blocks):
            times = self.time_table[:frames] if self.time_table is not None and number == 0 else None
            states.append(block(states[-1], inputs, times))
        return BaseModelOutput(states[-1], tuple(states) if output_hidden_states else None)


RARE = -4.0
"""Logit of a note at first: one in 55 is there, and training need not begin by finding that out."""


@dataclass
class TranscriptionOutput(ModelOutput):
    """loss: where there are labels. onset_logits, frame_logits: `(B,T,I,P)`, of a note's beginning, and of its being
    there.
    """

    loss: Tensor | None = None
    onset_logits: Tensor | None = None
    frame_logits: Tensor | None = None


class PerceiverTFForTranscription(PerceiverTFPreTrainedModel):
    """Which notes begin and which are there, in each frame, of each instrument: its query reads the frame's latents."""

    def __init__(self, config: PerceiverTFConfig) -> None:
        super().__init__(config)
        self.perceiver_tf = PerceiverTFModel(config)
        self.decoder = QueryDecoder(
            config.hidden_size,
            config.num_cross_attention_heads,
            num_queries=len(config.instruments),
            intermediate_size=config.intermediate_ratio * config.hidden_size,
            norm_inputs=True,
            eps=config.layer_norm_eps,
        )
        self.classifier = nn.Linear(config.hidden_size, 2 * config.num_pitches)
        self.post_init()

    @can_return_tuple
    def forward(
        self, spectrogram: Tensor, onsets: Tensor | None = None, frames: Tensor | None = None, **_: Any
    ) -> TranscriptionOutput:
        """`spectrogram (B,T,F)`, labels `onsets`, `frames` `(B,T,I,P)`, 0 to 1 → logits and the loss, binary
        cross-entropy summed over the two (the paper's sub-tasks; it gives no weights).
        """
        latents = self.perceiver_tf(spectrogram, return_dict=True).last_hidden_state
        found = self.classifier(self.decoder(latents.flatten(0, 1))).unflatten(0, latents.shape[:2])
        logits = found.chunk(2, dim=-1)
        loss = roll_loss(logits, (onsets, frames), self.config.positive_weight)
        return TranscriptionOutput(loss, *logits)


def roll_loss(logits: Sequence[Tensor], labels: Sequence[Tensor | None], positive_weight: float = 1.0) -> Tensor | None:
    """Binary cross-entropy, the mean over each roll, summed over those that have labels; None where none has.
    `positive_weight`: of what is there.
    """
    losses = [
        F.binary_cross_entropy_with_logits(one, label.to(one.dtype), pos_weight=one.new_tensor(positive_weight))
        for one, label in zip(logits, labels, strict=True)
        if label is not None
    ]
    return torch.stack(losses).sum() if losses else None
