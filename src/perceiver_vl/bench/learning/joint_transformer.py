"""The comparator: every token attends to every token, as in ViLT (Kim et al., 2021).

Only the encoder differs. Embeddings, heads, objectives, data and steps are those of the model that it stands beside.
Shapes: B batch, M inputs, D width, k blocks, l self-attentions a block.
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
    """A class token in front of all inputs, k·(l+1) blocks of self-attention over them together → the class token.

    As many attention blocks as the Perceiver-VL of the same configuration has, its cross-attentions counted, and as
    many parameters in them. The class token stands in the place of the latents, N = 1.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.modalities = ("joint",)
        self.class_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.blocks = nn.ModuleList(
            AttentionBlock(**block_arguments(config), norm_inputs=True)
            for _ in range(config.num_blocks * (1 + config.self_attentions_per_block))
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def attending_blocks(self, cross_attentions: int) -> list[bool]:
        """It has no cross-attentions to leave out."""
        return []

    def first_latents(self, which: int | Tensor) -> Tensor:
        """The class token, in the place of the latents."""
        return self.class_token[None, None]

    def forward(self, inputs: Sequence[Inputs], latents: Tensor, **dials: Any) -> Tensor:
        """`inputs` of M tokens → `(B,1,D)`; the dials are an encoder's with latents, and change nothing.

        Raises `UsageError` for cached vision: here it depends on the words.
        """
        tokens, mask = inputs[0].tokens, inputs[0].mask
        if tokens is None or mask is None:
            raise UsageError("vision_cache: a joint transformer cannot use one, its vision depends on the words")
        tokens = torch.cat([latents, tokens], dim=1)  # (B,1+M,D)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens, tokens, mask)
        return self.norm(self.blocks[-1](tokens[:, :1], tokens, mask))  # of the last only the class token is asked for


@torch.no_grad()
def as_joint_transformer(model: PerceiverVLPreTrainedModel, start: Path | None = None) -> None:
    """Replace the encoder of `model`; start: a folder with a trained joint transformer, whose weights it takes as far
    as they fit.
    """
    encoder = JointTransformer(model.config)
    encoder.apply(model._init_weights)
    init.normal_(encoder.class_token, std=model.config.initializer_range)
    model.get_submodule("perceiver_vl").encoder = encoder
    if start is not None:
        own = model.state_dict()
        weights = load_file(start / "model.safetensors")
        fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        model.load_state_dict(fitting, strict=False)
