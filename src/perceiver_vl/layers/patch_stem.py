"""Tokens that see: patches projected by several convolutions or soft splits, frames seen several at a time, and what
neighbouring frames add to each other.

Shapes: F frames, B clips, T frames of each, G tubelets of each, P tokens a frame, C channels, D width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.mlp import MLP
from perceiver_vl.layers.zero_linear import ZeroLinear


def patch_projection(frames: Tensor, projection: nn.Conv2d) -> Tensor:
    """`frames (F,C,H,W)` → `(F,P,D)`, P in raster order. A convolution whose stride is its kernel, as one matrix
    product: faster to train.
    """
    size, weight = projection.kernel_size[0], projection.weight
    frames = frames.to(weight.dtype).unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (F,C,rows,p,columns,p)
    patches = frames.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (F,P,C·p·p)
    return F.linear(patches, weight.flatten(1), projection.bias)


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
        # Channels last: the same values in two thirds of the time on a CPU, with the gradient in four fifths
        x = frames.to(self.projection.weight.dtype).contiguous(memory_format=torch.channels_last)
        for halve, norm, add, add_norm in zip(self.halve, self.norms, self.add, self.add_norms, strict=True):
            x = F.gelu(norm(halve(x)))
            x = x + F.gelu(add_norm(add(x)))
        return F.linear(x.flatten(2).transpose(1, 2), self.projection.weight.flatten(1), self.projection.bias)


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


class SoftSplit(nn.Conv2d):
    """Windows about twice as wide as their stride, unfolded and projected: `(F,C,H,W)` → `(F,D,H/stride,W/stride)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 2 * stride - 1, stride=stride, padding=stride // 2)


class SoftSplitStem(nn.Module):
    """Soft splits in the place of the one linear projection of a patch: tokens of windows that overlap, which are laid
    out as a picture and split again, until one is left for each patch (Yuan et al. 2021, "Tokens-to-Token ViT").

        stem = SoftSplitStem(64, patch_size=16)
        stem(torch.randn(2, 3, 64, 64))  # (2, 16, 64)

    As published the first split takes every fourth pixel by windows of 7, further ones every second token by windows of
    3, and tokens between them are at most 64 wide; here patches of any size have splits whose strides give it. A split
    and the linear map of what it unfolds are one convolution. Between two splits T2T-ViT has a transformer layer; of
    that there is the MLP (as wide as the tokens, normed before, added) and not the attention, whose cost is the square
    of 3,136 tokens there, nor its norm of unfolded pixels, which would take the brightness of flat patches away.
    """

    def __init__(self, hidden_size: int, patch_size: int, num_channels: int = 3, eps: float = 1e-5) -> None:
        super().__init__()
        strides, width = split_strides(patch_size), split_width(hidden_size)
        widths = (num_channels, *[width] * (len(strides) - 1), hidden_size)
        self.splits = nn.ModuleList(
            SoftSplit(before, after, stride) for stride, (before, after) in zip(strides, pairwise(widths), strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in strides[1:])
        self.mlps = nn.ModuleList(MLP(width, width) for _ in strides[1:])

    def forward(self, frames: Tensor) -> Tensor:
        """`frames (F,C,H,W)` → `(F,P,D)`, P in raster order."""
        x = frames.to(self.splits[0].weight.dtype)  # type: ignore[arg-type]
        for split, norm, mlp in zip(self.splits, self.norms, self.mlps, strict=False):
            x = split(x).movedim(1, -1)
            x = (x + mlp(norm(x))).movedim(-1, 1)
        tokens: Tensor = self.splits[-1](x)
        return tokens.flatten(2).transpose(1, 2)


def split_strides(patch_size: int) -> tuple[int, ...]:
    """Of each split of a `SoftSplitStem`: a 4 where that divides the patch, 2s, and what is left."""
    strides, left = [], patch_size
    if left % 4 == 0:
        strides, left = [4], left // 4
    while left % 2 == 0:
        strides, left = [*strides, 2], left // 2
    return (*strides, left) if left > 1 or not strides else tuple(strides)


def split_width(hidden_size: int) -> int:
    """Of the tokens between the splits of a `SoftSplitStem`: 64 as published, but no wider than those at the end."""
    return min(64, hidden_size)


def split_flops(hidden_size: int, patch_size: int, num_channels: int, size: int) -> int:
    """Operations of a `SoftSplitStem` on a frame of `size` × `size` pixels; a multiply-add counts as two."""
    strides, width, total = split_strides(patch_size), split_width(hidden_size), 0
    widths = (num_channels, *[width] * (len(strides) - 1), hidden_size)
    for number, (stride, (before, after)) in enumerate(zip(strides, pairwise(widths), strict=True)):
        size //= stride
        mlp = 2 * width**2 if number + 1 < len(strides) else 0
        total += 2 * size**2 * ((2 * stride - 1) ** 2 * before * after + mlp)
    return total


def tubelets(frames: Tensor, frame_mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`frames (B,T,C,H,W)`, `frame_mask (B,T)` bool → `size` consecutive frames at a time, as channels one after the
    other, `(B,G,size·C,H,W)`, G = T/size rounded up, and which of these show a real frame `(B,G)` bool.

    A projection of them is the one in three dimensions of ViViT (Arnab et al. 2021, 3.2) and VATT (Akbari et al. 2021).
    What is not real, or missing at the end, shows the last real frame before it again (before the first one, the
    first), so that padding says nothing and one image is a clip that stands still.
    """
    batch, length = frame_mask.shape
    groups = -(-length // size)
    places = torch.arange(length, device=frames.device).expand(batch, -1)
    shown = places.masked_fill(~frame_mask, -1).cummax(1).values
    shown = torch.where(shown < 0, frame_mask.long().argmax(1, keepdim=True), shown)
    slots = torch.arange(groups * size, device=frames.device).clamp(max=length - 1)
    rows = torch.arange(batch, device=frames.device)[:, None]
    grouped = frames[rows, shown[:, slots]].unflatten(1, (groups, size)).flatten(2, 3)
    real = F.pad(frame_mask, (0, groups * size - length)).unflatten(1, (groups, size)).any(-1)
    return grouped, real


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
