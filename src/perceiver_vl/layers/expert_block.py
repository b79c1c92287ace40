"""A transformer block whose linear maps have experts, chosen by what is asked (Zhu et al. 2022, "Uni-Perceiver-MoE:
Learning Sparse Generalist Models with Conditional MoEs").

Shapes: B batch, N tokens, D width, R rows of A attribute bits, E experts.
"""

from typing import Any, cast

from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.experts import AttributeGate, ExpertLinear, Routing
from perceiver_vl.layers.mlp import MLP


class ExpertBlock(AttentionBlock):
    """An `AttentionBlock` of tokens that attend to themselves, each of whose linear maps is one of E, weighed: one gate
    chooses for the attention, another one for the MLP, and what they choose depends on attribute bits alone. It costs
    what a block without experts costs, and the sums of weights. What was chosen stays in the block until it is called
    again, so not by two threads at once.

    `gate_activation`, `gate_noise`: of `AttributeGate`. `block`: as of `AttentionBlock`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        *,
        num_attributes: int,
        num_experts: int,
        gate_activation: bool = True,
        gate_noise: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-5,
        **block: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads, intermediate_size, eps=eps, **block)
        attention, mlp = self.attention, cast(MLP, self.mlp)
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, ExpertLinear(hidden_size, hidden_size, num_experts))
        attention.out_proj = ExpertLinear(hidden_size, hidden_size, num_experts, layer_scale)  # type: ignore[assignment]
        mlp.fc1 = ExpertLinear(hidden_size, intermediate_size, num_experts)  # type: ignore[assignment]
        mlp.fc2 = ExpertLinear(intermediate_size, hidden_size, num_experts, layer_scale)  # type: ignore[assignment]
        self.gates = nn.ModuleDict()
        for name in ("attention", "mlp"):
            self.gates[name] = AttributeGate(
                num_attributes, hidden_size, num_experts, activation=gate_activation, noise=gate_noise, eps=eps
            )

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        inputs: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        attributes: Tensor,
        first: int = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """`latents (B,N,D)` → `(B,N,D)`. `attributes (R,A)`, R 1 or 2, of the `first` so many tokens and of the others;
        `inputs (B,M,D)`: all of the tokens, of which the latents are the last, where they are not all themselves.
        `noise (R,E)`: as of `AttributeGate`.
        """
        length = (latents if inputs is None else inputs).shape[1]
        self._route(attributes, first, length, noise)
        return super().forward(latents, inputs, mask)

    def forward_with_weights(  # type: ignore[override]
        self, latents: Tensor, *, attributes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the weights of the attention → `(B,N,D)`, `(B,H,N,N)`."""
        self._route(attributes, 0, latents.shape[1], None)
        return super().forward_with_weights(latents)

    def _route(self, attributes: Tensor, first: int, length: int, noise: Tensor | None) -> None:
        """Say to every map which experts it is; here, that a block which is run again in the backward pass says so
        again.
        """
        for name, gate in self.gates.items():
            experts, shares = gate(attributes, noise)
            routing = Routing(experts, shares, first, length)
            for module in self.get_submodule(name).modules():
                if isinstance(module, ExpertLinear):
                    module.routing = routing
