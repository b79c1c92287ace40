"""Perceiver IO: latents read any inputs once, and any queries read the latents (Jaegle et al. 2022).

Shapes: B batch, M inputs, C their width, N latents, D width, Q queries, E their width, O
outputs.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.attention import AttentionBlock, has_plain_projections
from perceiver_vl.layers.perceiver import Inputs, LatentEncoder, QueryDecoder
from perceiver_vl.models.perceiver_io.configuration import PerceiverIOConfig
from perceiver_vl.models.shared_blocks import SharedBlocksMixin


class PerceiverIOPreTrainedModel(SharedBlocksMixin):
    """Initialisation, saving and loading."""

    config_class = PerceiverIOConfig
    base_model_prefix = "perceiver"
    main_input_name = "inputs"
    _no_split_modules = ["AttentionBlock"]
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers: variance 1 over what comes in (appendix); tables, latents, queries: `initializer_range`."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
        for table in module._parameters.values():
            if table is not None and not isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
                init.normal_(table, std=self.config.initializer_range)


class PerceiverIOModel(PerceiverIOPreTrainedModel):
    """An input array → latents; queries → an output array."""

    def __init__(self, config: PerceiverIOConfig) -> None:
        super().__init__(config)
        alike: dict[str, Any] = {"bias": config.attention_bias, "gated_mlp": config.gated_mlp}
        alike["eps"] = config.layer_norm_eps
        width, query_size = config.hidden_size, cast(int, config.query_size)
        self.encoder = LatentEncoder(
            width,
            config.num_attention_heads,
            num_latents=config.num_latents,
            num_blocks=config.num_blocks,
            self_attentions_per_block=config.self_attentions_per_block,
            input_size=config.input_size,
            share_cross_attentions="all",
            share_self_attentions="all",
            final_norm=False,
            intermediate_size=config.intermediate_ratio * width,
            qk_size=config.qk_size,
            v_size=config.v_size,
            cross_attention={
                "num_heads": config.num_cross_attention_heads,
                "intermediate_size": config.cross_intermediate_ratio * width,
                "qk_size": config.cross_qk_size,
                "v_size": config.cross_v_size,
                "norm_inputs": True,
                "residual": "queries" if config.query_residual else "none",
            },
            **alike,
        )
        self.decoder = QueryDecoder(
            query_size,
            cast(int, config.num_decoder_heads),
            num_queries=config.num_queries or None,
            input_size=width,
            intermediate_size=config.decoder_intermediate_ratio * query_size,
            qk_size=config.decoder_qk_size,
            v_size=config.decoder_v_size,
            norm_inputs=True,
            residual="queries" if config.decoder_residual else "none",
            final_norm=False,
            **alike,
        )
        self.output = nn.Linear(query_size, config.output_size) if config.output_size else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, queries: Tensor | None = None, **chunks: int | None
    ) -> ModelOutput:
        """`inputs (B,M,C)`, `mask (B,M)`, True where real, and `queries (B,Q,E)`, or the learned ones →
        `last_hidden_state (B,N,D)`, `logits (B,Q,O)`. chunks: `chunk_size` of `encode`, `query_chunk_size` of `decode`.
        """
        latents = self.encode(inputs, mask, chunks.get("chunk_size"))
        outputs = self.decode(latents, queries, chunks.get("query_chunk_size"))
        return ModelOutput(logits=outputs, last_hidden_state=latents)

    def encode(self, inputs: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        """`(B,M,C)` → latents `(B,N,D)`; `chunk_size`: so many inputs are met at a time, with the same result."""
        given = Inputs(inputs, mask)
        if chunk_size is not None:
            masks = [None] * inputs.shape[1] if mask is None else mask.split(chunk_size, dim=1)
            given = Inputs(parts=list(zip(inputs.split(chunk_size, dim=1), masks, strict=False)))
        later = [None] * (self.config.num_blocks - 1)
        latents = cast(Tensor, self.encoder.latents).expand(len(inputs), -1, -1)
        return self.encoder(
            [given, *later], latents=latents, absorb=self._absorb(self.encoder.blocks[0].cross_attention)
        )

    def decode(self, latents: Tensor, queries: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        """Latents `(B,N,D)` and queries `(B,Q,E)` → `(B,Q,O)`; `chunk_size`: so many queries at a time. No query sees
        another (3.2), so any of them may be asked alone.
        """
        if queries is None:
            queries = cast(Tensor, self.decoder.queries).expand(len(latents), -1, -1)
        absorb, parts = self._absorb(self.decoder.block), queries.split(chunk_size or queries.shape[1], dim=1)
        found = [self.output(self.decoder(latents, part, absorb=absorb)) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _absorb(self, block: Any) -> bool:
        return not self.training and has_plain_projections(cast(AttentionBlock, block).attention)
