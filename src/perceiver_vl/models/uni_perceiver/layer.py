"""One layer of Uni-Perceiver, with experts or without (Zhu et al. 2022, "Learning sparse generalist models with
conditional MoEs").

Shapes: B batch, L tokens, D width, R rows of A attribute bits, E experts.
"""

from typing import cast

import torch
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.experts import AttributeGate, DropPath, ExpertLinear, Routing, ScaledLinear
from perceiver_vl.layers.mlp import MLP
from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig
from perceiver_vl.utils.errors import UsageError


class UniPerceiverLayer(nn.Module):
    """A pre-norm block with layer scale, whose linear maps have experts in every other layer. One gate chooses for all
    of the attention, another one for the MLP.
    """

    def __init__(self, config: UniPerceiverConfig, has_experts: bool) -> None:
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.block = AttentionBlock(width, config.num_attention_heads, inner, eps=eps)
        self.block.dropout = DropPath(config.drop_path)  # type: ignore[assignment]
        attention, mlp = self.block.attention, cast(MLP, self.block.mlp)
        self.gates = nn.ModuleDict()
        if not has_experts:
            attention.out_proj = ScaledLinear(width, width, config.layer_scale)
            mlp.fc2 = ScaledLinear(inner, width, config.layer_scale)
            return
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, ExpertLinear(width, width, config.num_experts))
        attention.out_proj = ExpertLinear(width, width, config.num_experts, config.layer_scale)  # type: ignore[assignment]
        mlp.fc1 = ExpertLinear(width, inner, config.num_experts)  # type: ignore[assignment]
        mlp.fc2 = ExpertLinear(inner, width, config.num_experts, config.layer_scale)  # type: ignore[assignment]
        for name in ("attention", "mlp"):
            noise = config.gate_noise / config.num_experts
            self.gates[name] = AttributeGate(
                config.num_attributes,
                width,
                config.num_experts,
                activation=config.gate_activation,
                noise=noise,
                eps=eps,
            )

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
        length = x.shape[1] + (0 if history is None else history.shape[1])
        for name, gate in self.gates.items():
            if attributes is None:
                raise UsageError("attributes=None: this model has experts, say what the task is")
            experts, shares = gate(attributes.to(x.dtype), noise)
            routing = Routing(experts, shares, first, length)
            for module in self.block.get_submodule(name).modules():
                if isinstance(module, ExpertLinear):
                    module.routing = routing
        if history is None:
            return self.block(x, None, mask)
        return self.block(x, self.block.norm1(torch.cat([history, x], 1)), mask)
