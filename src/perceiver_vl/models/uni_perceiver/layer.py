"""One layer of Uni-Perceiver, with experts or without (Zhu et al. 2022, "Learning sparse generalist models with
conditional MoEs").

Shapes: B batch, L tokens, D width, R rows of A attribute bits, E experts.
"""

import torch
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.expert_block import ExpertBlock
from perceiver_vl.layers.experts import DropPath
from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig
from perceiver_vl.utils.errors import UsageError


class UniPerceiverLayer(nn.Module):
    """A pre-norm block with layer scale, whose linear maps have experts in every other layer."""

    def __init__(self, config: UniPerceiverConfig, has_experts: bool) -> None:
        super().__init__()
        sizes = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.block: AttentionBlock
        if has_experts:
            self.block = ExpertBlock(
                *sizes,
                num_attributes=config.num_attributes,
                num_experts=config.num_experts,
                gate_activation=config.gate_activation,
                gate_noise=config.gate_noise / config.num_experts,
                layer_scale=config.layer_scale,
                eps=config.layer_norm_eps,
            )
        else:
            self.block = AttentionBlock(*sizes, layer_scale=config.layer_scale, eps=config.layer_norm_eps)
        self.block.dropout = DropPath(config.drop_path)  # type: ignore[assignment]

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        attributes: Tensor | None = None,
        first: int = 0,
        history: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """`x (B,L,D)`, what it was before `history (B,·,D)`, `attributes (R,A)` of the first so many tokens of both
        together and of the others → `(B,L,D)`.
        """
        inputs = None if history is None else self.block.norm1(torch.cat([history, x], 1))
        if not isinstance(self.block, ExpertBlock):
            return self.block(x, inputs, mask)
        if attributes is None:
            raise UsageError("attributes=None: this model has experts, say what the task is")
        return self.block(x, inputs, mask, attributes=attributes.to(x.dtype), first=first, noise=noise)
