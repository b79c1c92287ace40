"""Muon of the matrices within a network, AdamW of all else, as one optimizer.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; its steps here are as large as
AdamW's would be (Liu et al. 2025, "Muon is Scalable for LLM Training"), so one learning rate suits both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_OUTSIDE = ("classifier", "mlm_head.projection")
"""The last layers, one row a class or word."""


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` that share groups and state, so that schedules, checkpoints and
    resumes take them for one.
    """

    def __init__(
        self, matrices: Sequence[Tensor], decayed: Sequence[Tensor], others: Sequence[Tensor], **given: Any
    ) -> None:
        decay, betas, eps = given.pop("weight_decay"), given.pop("betas"), given.pop("eps")
        groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        self.muon = torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw", **given)
        self.adamw = torch.optim.AdamW([one for one in groups if one["params"]], betas=betas, eps=eps, **given)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As that of torch."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss


def muon_with_adamw(model: nn.Module, **given: Any) -> MuonWithAdamW:
    """Of what learns in a model: Muon of the weights of linear layers that are not its last, AdamW of tables,
    convolutions, norms and biases, of which those of one dimension do not decay.
    """
    learning = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(_OUTSIDE)
    }
    matrices = [value for _, value in learning if id(value) in linear]
    rest = [value for _, value in learning if id(value) not in linear]
    return MuonWithAdamW(
        matrices, [one for one in rest if one.ndim > 1], [one for one in rest if one.ndim < 2], **given
    )
