"""The array that an S2T Perceiver's latents attend to: speech, convolved, and where its frames stand.

Shapes: B batch, T frames, F features of a frame, M inputs, C their width.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.positions import sinusoidal_positions
from perceiver_vl.models.s2t_perceiver.configuration import S2TPerceiverConfig


class InputArray(nn.Module):
    """Convolutions over time, each with a gate for half of its channels, and where frames stand."""

    def __init__(self, config: S2TPerceiverConfig) -> None:
        super().__init__()
        layers = len(config.kernel_sizes)
        widths = [config.num_features, *[config.conv_channels // 2] * (layers - 1), config.conv_output_size]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, 2 * width, size, stride=config.stride, padding=size // 2)
            for (before, width), size in zip(pairwise(widths), config.kernel_sizes, strict=False)
        )
        self.stride = config.stride
        self.scale = math.sqrt(config.input_size) if config.scale_inputs else 1.0

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (B,T,F)`, `lengths (B,)` → input array `(B,M,C)`, and which of it is real, `(B,M)` bool.

        As in the authors' code convolutions do not mask padding: what they make of the zeros behind a shorter example
        reaches its last frames.
        """
        x = features.transpose(1, 2)
        for convolution in self.convolutions:
            x = F.glu(convolution(x), dim=1)
            lengths = (lengths - 1) // self.stride + 1
        x = x.transpose(1, 2) * self.scale
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None].to(x.device)
        positions = sinusoidal_positions(x.shape[1] + 2, x.shape[-1], halves=True)[2:]  # padding was number 1 there
        return x + positions.to(x) * mask[..., None], mask
