"""The model that ours is compared with: every token attends to every token, as in ViLT (Kim et al., 2021).

`baselines` measures what it costs; `learning` trains it in the place of a model's encoder, with the embeddings, heads,
objectives, data and steps of ours. Shapes: B batch, M inputs, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import initialization as init

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.perceiver import Inputs
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import block_arguments
from perceiver_vl.utils.errors import UsageError


class JointTransformer(nn.Module):
    """A class token in front of all inputs, and `num_layers` blocks of self-attention over them together.

    `encode` is the model. The rest is what `PerceiverVLModel` asks of its encoder, which this can replace: the class
    token stands in the place of the latents, N = 1.
    """

    modalities = ("joint",)

    def __init__(self, config: PerceiverVLConfig, num_layers: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.blocks = nn.ModuleList(
            AttentionBlock(**block_arguments(config), norm_inputs=True, qk_norm=config.qk_norm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def encode(self, tokens: Tensor, mask: Tensor | None = None, *, class_token_only: bool = False) -> Tensor:
        """`tokens (B,M,D)`, `mask (B,M)` bool, True where real → `(B,1+M,D)`, the class token first; or that alone
        `(B,1,D)`, without what the last block would do for the others.
        """
        tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        mask = None if mask is None else torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens, tokens, mask)
        queries = tokens[:, :1] if class_token_only else tokens
        return self.norm(self.blocks[-1](queries, tokens, mask))

    def forward(self, inputs: Sequence[Inputs], latents: Tensor, **budget: Any) -> Tensor:
        """`inputs` of M tokens → `(B,1,D)`; a budget of latents and cross-attentions changes nothing: it has none.

        Raises `UsageError` for cached vision: here it depends on the words.
        """
        tokens, mask = inputs[0].tokens, inputs[0].mask
        if tokens is None:
            raise UsageError("vision_cache: a joint transformer cannot use one, its vision depends on the words")
        return self.encode(tokens, mask, class_token_only=True)

    def first_latents(self, which: int | Tensor) -> Tensor:
        """The class token, in the place of the latents, `(1,1,D)`."""
        return self.class_token[None, None]

    def attending_blocks(self, cross_attentions: int) -> list[bool]:
        """It has no cross-attentions to leave out."""
        return []


@torch.no_grad()
def replace_encoder(model: PerceiverVLPreTrainedModel, start: Path | None = None) -> None:
    """Give `model` a joint transformer for an encoder, with as many attention blocks, cross-attentions counted, and as
    many parameters in them. start: a folder with a trained one, whose weights it takes as far as they fit.
    """
    config = model.config
    encoder = JointTransformer(config, config.num_blocks * (1 + config.self_attentions_per_block))
    encoder.apply(model._init_weights)
    init.normal_(encoder.class_token, std=config.initializer_range)
    model.get_submodule("perceiver_vl").encoder = encoder
    if start is not None:
        own = model.state_dict()
        weights = load_file(start / "model.safetensors")
        fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        model.load_state_dict(fitting, strict=False)
