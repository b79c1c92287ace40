"""Perceiver: a small array of latents reads a huge array of inputs, again and again (Jaegle et al. 2021).

Shapes: B batch, M inputs, A their axes, C their width, N latents, D width, K classes.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions, ImageClassifierOutput
from transformers.utils import can_return_tuple

from perceiver_vl.layers.attention import AttentionBlock, has_plain_projections
from perceiver_vl.layers.perceiver import EncoderRecord, LatentEncoder, QueryDecoder
from perceiver_vl.models.perceiver.configuration import IterativePerceiverConfig
from perceiver_vl.models.perceiver.inputs import InputArray
from perceiver_vl.models.shared_blocks import SharedBlocksMixin


class IterativePerceiverPreTrainedModel(SharedBlocksMixin):
    """Initialisation, saving and loading."""

    config_class = IterativePerceiverConfig
    base_model_prefix = "perceiver"
    main_input_name = "inputs"
    _no_split_modules = ["AttentionBlock"]
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Latents and query: a normal distribution of `initializer_range` cut off at ±2 (3.2); linear layers: variance
        1 over what comes in, biases 0, as in the authors' code.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
        for table in (getattr(module, "latents", None), getattr(module, "queries", None)):
            if isinstance(table, nn.Parameter):
                init.trunc_normal_(table, std=self.config.initializer_range, a=-2.0, b=2.0)


class IterativePerceiverModel(IterativePerceiverPreTrainedModel):
    """Input array → latents."""

    def __init__(self, config: IterativePerceiverConfig) -> None:
        super().__init__(config)
        self.encoder = LatentEncoder(
            config.hidden_size,
            config.num_attention_heads,
            num_latents=config.num_latents,
            num_blocks=config.num_blocks,
            self_attentions_per_block=config.self_attentions_per_block,
            input_size=config.input_size,
            share_cross_attentions=config.share_cross_attentions,
            share_self_attentions=config.share_self_attentions,
            final_norm=False,
            eps=config.layer_norm_eps,
            intermediate_size=config.intermediate_ratio * config.hidden_size,
            qk_size=config.attention_size,
            v_size=config.attention_size,
            bias=config.attention_bias,
            gated_mlp=config.gated_mlp,
            cross_attention={
                "num_heads": config.num_cross_attention_heads,
                "intermediate_size": config.cross_intermediate_ratio * config.hidden_size,
                "qk_size": config.cross_attention_size,
                "v_size": config.cross_value_size,
                "norm_inputs": True,
            },
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        inputs: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        chunk_size: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithCrossAttentions:
        """`inputs (B,*axes,C)`: an image (B,H,W,3), sound (B,T,C), a video (B,T,H,W,3), numbers or bytes, of which
        -1 to 1 are made; axes of any size, and Nyquist stays that of training → `last_hidden_state (B,N,D)`.

        `mask`, of the axes: True where real. `positions (B,M,A)`, -1 to 1: points, in the place of a grid, with
        `inputs (B,M,C)` or none. `chunk_size`: so many inputs are met at a time, and the array is never there as a
        whole: the same result in bounded memory. Raises `UsageError` for inputs that are of another kind.
        """
        array = InputArray(self.config, self.dtype, inputs, mask, positions, chunk_size)
        weights: list[list[Tensor] | None] = [[], []] if output_attentions else [None, None]
        record = EncoderRecord([] if output_hidden_states else None, *weights)
        latents = self.encoder(
            [array.given()] * self.config.num_blocks,
            latents=cast(Tensor, self.encoder.latents).expand(len(array), -1, -1),
            attending=self.encoder.attending_blocks(self.config.num_cross_attentions),
            absorb=not self.training and self._may_absorb(),
            record=record,
        )
        seen = (record.hidden_states, record.attentions, record.cross_attentions)
        return BaseModelOutputWithCrossAttentions(latents, *(None if one is None else tuple(one) for one in seen))

    def _may_absorb(self) -> bool:
        blocks = (cast(AttentionBlock, block.cross_attention) for block in self.encoder.blocks)
        return all(has_plain_projections(block.attention) for block in blocks)


class IterativePerceiverForClassification(IterativePerceiverPreTrainedModel):
    """Classes of anything: the latents' mean, and one linear layer (3.1)."""

    def __init__(self, config: IterativePerceiverConfig) -> None:
        super().__init__(config)
        self.perceiver = IterativePerceiverModel(config)
        width, self.decoder = config.hidden_size, None
        if config.pooling == "query":
            width = cast(int, config.query_size)
            self.decoder = QueryDecoder(
                width,
                config.num_query_attention_heads,
                num_queries=1,
                input_size=config.hidden_size,
                intermediate_size=config.query_intermediate_ratio * width,
                norm_inputs=True,
                residual="queries" if config.query_residual else "none",
                final_norm=False,
                eps=config.layer_norm_eps,
            )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pooling == "normed_mean" else nn.Identity()
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        inputs: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ImageClassifierOutput:
        """Arguments as of `IterativePerceiverModel.forward`, and `labels (B,)` → `logits (B,K)`, and the `loss`."""
        output = self.perceiver(inputs, mask, positions, return_dict=True, **options)
        latents = output.last_hidden_state
        pooled = latents.mean(1) if self.decoder is None else self.decoder(latents)[:, 0]
        logits = self.classifier(self.norm(pooled))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, output.hidden_states, output.attentions)
