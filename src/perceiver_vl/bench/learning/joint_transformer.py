"""The comparator: every token attends to every token, as in ViLT (Kim et al., 2021).

Only the encoder differs. Embeddings, heads, objectives, data and steps are those of the model that it stands beside.
Shapes: B batch, M inputs, D width, k blocks, l self-attentions a block.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import initialization as init

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.utils.errors import UsageError


class JointTransformer(nn.Module):
    """A class token in front of all inputs, k·(l+1) blocks of self-attention over them together → the class token.

    As many attention blocks as the Perceiver-VL of the same configuration has, its cross-attentions counted, and as
    many parameters in them. The class token stands in the place of the latents, N = 1.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.blocks = nn.ModuleList(
            AttentionBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.layer_norm_eps,
                config.hidden_dropout_prob,
                norm_inputs=True,
                implementation=config._attn_implementation or "sdpa",
            )
            for _ in range(config.num_blocks * (1 + config.self_attentions_per_block))
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def cross_attentions_to_run(self, cross_attentions: int) -> list[dict[str, bool]]:
        """It has no reads to leave out."""
        return []

    def forward(
        self, inputs: InputArray, which: int | Tensor, reads: list[dict[str, bool]], kept: int | None = None
    ) -> Tensor:
        """`inputs` of M tokens → `(B,1,D)`; the other arguments are an encoder's with latents, and change nothing.

        Raises `UsageError` for cached vision: here it depends on the words.
        """
        if inputs.vision_cache is not None:
            raise UsageError("vision_cache: a joint transformer cannot use one, its vision depends on the words")
        tokens, mask = inputs.joined
        tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)  # (B,1+M,D)
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
