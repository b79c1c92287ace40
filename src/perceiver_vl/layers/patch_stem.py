"""Tokens that see: patches projected by several convolutions, and what neighbouring frames add to each other.

Shapes: F frames, B clips, T frames of each, P tokens a frame, D width.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.zero_linear import ZeroLinear


class ConvolutionalStem(nn.Module):
    """Convolutions of stride 2 in the place of the one linear projection of a patch, each followed by one of stride 1
    that is added to it, then a projection (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").

        stem = ConvolutionalStem(64, patch_size=16)
        stem(torch.randn(2, 3, 64, 64))  # (2, 16, 64)

    Each stage is normed over its frame and followed by GELU. Widths double up to `hidden_size` (`stem_widths`). A token
    sees a little beyond its patch.
    """

    def __init__(self, hidden_size: int, patch_size: int, num_channels: int = 3) -> None:
        super().__init__()
        widths = (num_channels, *stem_widths(hidden_size, patch_size))
        self.halve, self.add, self.norms, self.add_norms = (nn.ModuleList() for _ in range(4))
        for before, width in pairwise(widths):
            self.halve.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            self.add.append(nn.Conv2d(width, width, 3, padding=1))
            self.norms.append(nn.GroupNorm(1, width))
            self.add_norms.append(nn.GroupNorm(1, width))
        self.projection = nn.Conv2d(widths[-1], hidden_size, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """`frames (F,3,H,W)` → `(F,P,D)`, P in raster order."""
        x = frames.to(self.projection.weight.dtype)
        for halve, norm, add, add_norm in zip(self.halve, self.norms, self.add, self.add_norms, strict=True):
            x = F.gelu(norm(halve(x)))
            x = x + F.gelu(add_norm(add(x)))
        patches: Tensor = self.projection(x)
        return patches.flatten(2).transpose(1, 2)


def stem_widths(hidden_size: int, patch_size: int) -> tuple[int, ...]:
    """Channels of each stage of a `ConvolutionalStem`: doubling from at least a quarter of `hidden_size` to all."""
    stages = patch_size.bit_length() - 1
    return tuple(max(1, hidden_size // 2 ** min(2, stages - 1 - stage)) for stage in range(stages))


def stem_flops(hidden_size: int, patch_size: int, num_channels: int, size: int) -> int:
    """Operations of a `ConvolutionalStem` on a frame of `size` × `size` pixels; a multiply-add counts as two."""
    total, before = 0, num_channels
    for width in stem_widths(hidden_size, patch_size):
        size //= 2
        total += 2 * 9 * (before + width) * width * size**2
        before = width
    return total + 2 * before * hidden_size * size**2


class TemporalMixing(nn.Module):
    """What a token gains from those of its place in the `kernel_size` frames around it: a convolution over time, GELU,
    and a way back that starts at 0, so that a trained model it is put into computes what it did.

    mixing = TemporalMixing(64, kernel_size=3)
    mixing(torch.randn(2, 8, 16, 64), torch.ones(2, 8, dtype=torch.bool))  # (2, 8, 16, 64)
    """

    def __init__(self, hidden_size: int, kernel_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.over_time = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2)
        self.back = ZeroLinear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """`tokens (B,T,P,D)`, `frame_mask (B,T)` bool, whose frames that are not real add nothing → `(B,T,P,D)`."""
        batch, _, places, _ = tokens.shape
        x = self.norm(tokens) * frame_mask[:, :, None, None]
        x = x.permute(0, 2, 3, 1).flatten(0, 1)  # (B·P,D,T)
        x = F.gelu(self.over_time(x)).unflatten(0, (batch, places)).permute(0, 3, 1, 2)
        mixed: Tensor = self.back(x)
        return tokens + mixed


def mixing_flops(hidden_size: int, kernel_size: int, tokens: int) -> int:
    """Operations of a `TemporalMixing` of `tokens` tokens of all frames together."""
    return 2 * (kernel_size + 1) * hidden_size**2 * tokens
