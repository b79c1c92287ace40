"""Positions as numbers: Fourier features, and tables that are resized to another grid.

Shapes: D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def fourier_features(length: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of `length` positions in [-1, 1] at dim/2 linearly spaced frequencies up to Nyquist →
    `(length,dim)`.

    Source: Perceiver (Jaegle et al., 2021), section 3.2, without the raw position.
    """
    positions = torch.linspace(-1.0, 1.0, length, dtype=dtype)[:, None]
    frequencies = torch.linspace(1.0, max(length / 2, 1.0), dim // 2, dtype=dtype)[None, :]
    angles = torch.pi * positions * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def resize_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """A table of patch positions `(rows·columns,D)` of `grid`, resized bilinearly (corners aligned) to `new_grid`."""
    if grid == new_grid:
        return table
    as_image = table.unflatten(0, grid).permute(2, 0, 1)[None]
    return F.interpolate(as_image, size=new_grid, mode="bilinear", align_corners=True)[0].flatten(1).T
