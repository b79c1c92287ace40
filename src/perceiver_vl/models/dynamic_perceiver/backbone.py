"""The feature branch: a RegNet-Y (Radosavovic et al. 2020).

Shapes: B batch, H × W pixels or places, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.models.dynamic_perceiver.configuration import DynamicPerceiverConfig


class NormedConvolution(nn.Module):
    """A convolution without a bias, and batch norm."""

    def __init__(self, before: int, width: int, size: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, width, size, stride, size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B,C,H,W)` → `(B,C',H',W')`."""
        return self.norm(self.convolution(x))


class Bottleneck(nn.Module):
    """1 × 1, grouped 3 × 3 and 1 × 1 convolutions, squeeze and excitation between the last two, added to what came in;
    `stride` halves the map, and then what came in is projected.
    """

    def __init__(self, before: int, width: int, group_width: int, squeezed: int, stride: int) -> None:
        super().__init__()
        self.a = NormedConvolution(before, width)
        self.b = NormedConvolution(width, width, 3, stride=stride, groups=width // group_width)
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.c = NormedConvolution(width, width)
        changes = stride > 1 or before != width
        self.projection = NormedConvolution(before, width, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(B,C,H,W)` → `(B,C',H',W')`."""
        y = F.relu(self.b(F.relu(self.a(x))))
        y = y * self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return F.relu(self.projection(x) + self.c(y))


def regnet_stages(config: DynamicPerceiverConfig) -> nn.ModuleList:
    """The four stages, each a row of bottlenecks, the first of which halves the map."""
    stages = nn.ModuleList()
    for depth, width, group, before in zip(
        config.depths, config.widths, config.group_widths, config.latent_widths, strict=True
    ):
        inputs = [before, *[width] * (depth - 1)]
        stages.append(
            nn.Sequential(
                *(
                    Bottleneck(size, width, group, squeezed_width(config, size), 1 if number else 2)
                    for number, size in enumerate(inputs)
                )
            )
        )
    return stages


def squeezed_width(config: DynamicPerceiverConfig, before: int) -> int:
    """Channels of squeeze and excitation in a block that `before` channels come into."""
    return round(config.se_ratio * before)
