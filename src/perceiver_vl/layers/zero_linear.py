"""A way into a sum that adds nothing before it is trained."""

from torch import nn


class ZeroLinear(nn.Linear):
    """A linear layer whose weights and bias start at 0, as those of the adapters of ControlNet (Zhang et al. 2023)."""

    def reset_parameters(self) -> None:
        """To 0."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
