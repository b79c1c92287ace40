"""The array that a Perceiver reads: samples and where they stand, side by side (paper, 3.2).

Shapes: B batch, M inputs, A axes, C channels of a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.layers.perceiver import Inputs
from perceiver_vl.layers.positions import fourier_features_at, grid_positions
from perceiver_vl.models.perceiver.configuration import IterativePerceiverConfig
from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class InputArray:
    """Samples, mask and positions as `IterativePerceiverModel.forward` takes them. Going through it gives chunks of the
    array, `(B,some,C')` with mask, each made when it is asked for; whoever reads it again has it made again.

    Raises `UsageError` for what is not of the shape that `config` says.
    """

    config: IterativePerceiverConfig
    dtype: torch.dtype
    samples: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        samples, positions = self.samples, self.positions
        axes, channels = len(self.config.input_shape), self.config.num_channels
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UsageError(f"chunk_size={self.chunk_size}: need at least 1 input at a time")
        if positions is not None and (positions.ndim != 3 or positions.shape[-1] != axes):
            raise UsageError(f"positions {tuple(positions.shape)}: need (batch, points, {axes}), -1 to 1")
        if samples is None:
            if positions is None or channels:
                raise UsageError(f"inputs=None: need an array of {channels} channels, or positions of points without")
        elif samples.shape[-1] != channels or samples.ndim != 2 + (axes if positions is None else 1):
            named = "points" if positions is not None else ", ".join(["axis"] * axes)
            raise UsageError(f"inputs {tuple(samples.shape)}: need (batch, {named}, {channels} channels)")
        elif positions is not None and samples.shape[:2] != positions.shape[:2]:
            raise UsageError(f"inputs {tuple(samples.shape)}: not those of positions {tuple(positions.shape)}")
        if self.mask is not None and self.mask.flatten(1).shape != (len(self), self._length):
            raise UsageError(f"mask {tuple(self.mask.shape)}: need one value for each of {self._length} inputs")

    def __len__(self) -> int:
        """B."""
        given = self.positions if self.samples is None else self.samples
        return 0 if given is None else len(given)

    def given(self) -> Inputs:
        """For the encoder: whole, or in chunks."""
        return Inputs(*next(iter(self))) if self.chunk_size is None else Inputs(parts=self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        order, sizes = self.config.fourier_order, self.config.max_resolution or ()
        # The authors' features are of single precision, lucidrains' of that of the data
        precision = torch.promote_types(self.dtype, torch.float32) if order == "axis" else torch.float32
        samples = None if self.samples is None else self.samples.flatten(1, -2)
        mask = None if self.mask is None else self.mask.flatten(1).bool()
        positions = self.positions
        if positions is None and self.samples is not None:
            positions = grid_positions(self.samples.shape[1:-1], dtype=precision, device=self.samples.device)[None]
        assert positions is not None
        step = self.chunk_size or self._length
        for start in range(0, self._length, step):
            some = slice(start, start + step)
            places = positions[:, some].to(precision)
            tokens = fourier_features_at(
                places, self.config.num_bands, max_resolution=sizes, raw=True, by_axis=order == "axis"
            ).to(self.dtype)
            if samples is not None:
                own = samples[:, some]
                own = own / 127.5 - 1 if own.dtype == torch.uint8 else own
                tokens = torch.cat([own.to(self.dtype), tokens.expand(len(own), -1, -1)], dim=-1)
            yield tokens, None if mask is None else mask[:, some]

    @property
    def _length(self) -> int:
        """M."""
        if self.positions is not None:
            return self.positions.shape[1]
        return 0 if self.samples is None else self.samples[0, ..., 0].numel()
