"""Where tokens stand, as numbers: learned, sinusoidal, Fourier, 2-D sine-cosine, and rotary positions, and
distances.

Shapes: B batch, L positions, D width, H heads, d channels of a head, A axes.
"""

import math
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """A table of `length` learned vectors of width `dim`, drawn from N(0, `std`).

    LearnedPositions(40, 64)(12)  # (12, 64)
    """

    def __init__(self, length: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, dim) * std)

    def forward(self, length: int | None = None) -> Tensor:
        """The first `length` rows (None: all) → `(L,D)`. Raises `ValueError` for more than there are."""
        if length is not None and length > len(self.weight):
            raise ValueError(f"{length} positions: the table has {len(self.weight)}")
        return self.weight[:length]


def sinusoidal_positions(length: int, dim: int, *, base: float = 10_000.0, halves: bool = False) -> Tensor:
    """Sines (even columns) and cosines (odd) of falling frequencies → `(L,D)`, D even. Source: Vaswani et al. 2017.

    `halves`: all sines, then all cosines, of frequencies down to `1 / base` itself, in any width, as in tensor2tensor
    and fairseq.
    """
    if halves:
        half = dim // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(base) / max(half - 1, 1)))
        angles = torch.arange(length, dtype=torch.float)[:, None] * frequencies
        return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
    angles = torch.arange(length)[:, None] * base ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def fourier_features(
    shape: Sequence[int],
    num_bands: int,
    *,
    max_resolution: Sequence[float] | None = None,
    raw: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions on a grid of any number of axes: sines, then cosines, of `num_bands` linearly spaced frequencies up to
    Nyquist for each axis → `(L, 2·A·num_bands)`, L the product of `shape`, last axis fastest.

    Positions run from -1 to 1 along each axis. `max_resolution`: the sizes whose Nyquist frequency is the highest
    (None: `shape`). `raw`: the positions themselves come first, A more columns. Source: Perceiver (Jaegle et al. 2021),
    3.2.
    """
    positions = grid_positions(shape, dtype=dtype)
    sizes = [max(size, 2) for size in max_resolution or shape]
    return fourier_features_at(positions, num_bands, max_resolution=sizes, raw=raw)


def grid_positions(
    shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Where the places of a grid stand, from -1 to 1 along each axis, ends included → `(L,A)`, last axis fastest."""
    axes = [torch.linspace(-1.0, 1.0, size, dtype=dtype, device=device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def fourier_features_at(
    positions: Tensor,
    num_bands: int,
    *,
    max_resolution: Sequence[float],
    raw: bool = False,
    by_axis: bool = False,
) -> Tensor:
    """Those of any `positions (…,A)`, on a grid or not → `(…, 2·A·num_bands)`, and A more if `raw`.

    `by_axis`: the columns of one axis, sines, cosines and the position itself, stand together (lucidrains); else the
    positions of all axes come first, then all sines, then all cosines (the authors).
    """
    kind, place = positions.dtype, positions.device
    bands = [torch.linspace(1.0, size / 2, num_bands, dtype=kind, device=place) for size in max_resolution]
    frequencies = torch.stack(bands)  # (A,bands)
    angles = torch.pi * (positions[..., None] * frequencies)  # (…,A,bands)
    if by_axis:
        parts = [angles.sin(), angles.cos(), *([positions[..., None]] if raw else [])]
        return torch.cat(parts, dim=-1).flatten(-2)
    angles = angles.flatten(-2)
    return torch.cat([*([positions] if raw else []), angles.sin(), angles.cos()], dim=-1)


def sincos_positions_2d(rows: int, columns: int, dim: int, *, base: float = 10_000.0) -> Tensor:
    """Of a grid of patches, row by row → `(rows·columns,D)`, D divisible by 4: sine and cosine of the column, then of
    the row. Source: Beyer, Zhai, Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k".
    """
    frequencies = base ** -torch.linspace(0, 1, dim // 4)
    y, x = (
        place.flatten()[:, None] * frequencies
        for place in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)


def resize_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """A table of patch positions `(rows·columns,D)` of `grid`, resized bilinearly (corners aligned) to `new_grid`."""
    if grid == new_grid:
        return table
    assert len(table) == prod(grid)
    as_image = table.unflatten(0, grid).permute(2, 0, 1)[None]
    return F.interpolate(as_image, size=new_grid, mode="bilinear", align_corners=True)[0].flatten(1).T


def distance_bias(num_heads: int, queries: int, inputs: int) -> Tensor:
    """What falls with the distance of query and input, more in some heads than in others: -slope·|i - j| `(H,N,M)`, the
    queries being the last N of M. Slopes are powers of 2^(-8/H), and for a number of heads that is no power of two
    those of the next smaller one, then every other one of the next larger. Source: Press et al. 2022 (ALiBi).
    """
    smaller = 2 ** (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (head + 1) / smaller) for head in range(smaller)]
    slopes += [2 ** (-4 * (head + 1) / smaller) for head in range(0, 2 * (num_heads - smaller), 2)]
    distances = (torch.arange(inputs - queries, inputs)[:, None] - torch.arange(inputs)).abs()
    return -torch.tensor(slopes, dtype=torch.float64)[:, None, None] * distances


class RotaryPositions(nn.Module):
    """Rotates pairs of channels of queries and keys by angles that grow with their positions, so that their product
    depends on the distance alone (Su et al. 2021, RoFormer).

        rotary = RotaryPositions(16, share=0.5)
        rotary(torch.randn(2, 4, 10, 16), torch.arange(10))  # (2, 4, 10, 16)

    Rotated are the first `share` of a head's `head_size` channels. `interleaved`: pairs are neighbours (2i, 2i+1), as
    in RoFormer and Perceiver AR; else halves (i, i + R/2), as in LLaMA. `inclusive`: wavelengths reach `base` itself,
    as in the authors' code of Perceiver AR; else they stop one step short of it.
    """

    def __init__(
        self,
        head_size: int,
        *,
        share: float = 1.0,
        base: float = 10_000.0,
        interleaved: bool = True,
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        self.pairs, self.base = int(share * head_size / 2), base
        self.interleaved, self.inclusive = interleaved, inclusive

    def inverse_wavelengths(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`(R/2,)` in `dtype`, rounded as the public implementations round them: those that are not inclusive to
        float32. No buffer, which half precision would round, and a file of weights does not hold.
        """
        if self.inclusive:
            exponents = torch.linspace(0, self.pairs, self.pairs, dtype=dtype, device=device)
        else:
            exponents = torch.arange(self.pairs, dtype=torch.float32, device=device)
        return (1.0 / self.base ** (exponents / self.pairs)).to(dtype)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x (B,H,L,d)`, `positions (L,)` or `(B,L)` → `(B,H,L,d)`."""
        exact = torch.promote_types(x.dtype, torch.float32)  # in half precision position 257 would be 256
        angles = positions[..., None].to(exact) * self.inverse_wavelengths(exact, x.device)  # (…,L,pairs)
        if angles.ndim == 3:
            angles = angles[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        rotated, kept = x.split([2 * angles.shape[-1], x.shape[-1] - 2 * angles.shape[-1]], dim=-1)
        first, second = rotated.unflatten(-1, (-1, 2)).unbind(-1) if self.interleaved else rotated.chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        pairs = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        return torch.cat([pairs, kept], dim=-1)
