"""Sound → what a Perceiver TF reads.

Shapes: B batch, S samples, T frames, F bins.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_tf.configuration import PerceiverTFConfig


def spectrogram(samples: Tensor, config: PerceiverTFConfig) -> Tensor:
    """`samples (B,S)` at the configuration's rate → `(B,T,F)`, logarithms of magnitudes, one frame every `hop_length`
    samples. Where `bins_per_octave` is set, bins are spaced as notes are, from the lowest pitch up.
    """
    window = torch.hann_window(config.fft_size, device=samples.device, dtype=samples.dtype)
    found = torch.stft(
        samples, config.fft_size, config.hop_length, window=window, pad_mode="constant", return_complex=True
    ).abs()
    magnitudes = found.transpose(1, 2)[:, : samples.shape[1] // config.hop_length]  # (B,T,fft/2+1)
    if config.bins_per_octave:
        filters = _note_filters(
            config.sample_rate, config.fft_size, config.num_bins, config.bins_per_octave, config.lowest_pitch
        )
        magnitudes = magnitudes @ filters.to(magnitudes)
    return torch.log1p(10 * magnitudes[..., : config.num_bins])


@lru_cache(maxsize=8)
def _note_filters(sample_rate: int, fft_size: int, bins: int, per_octave: int, lowest: int) -> Tensor:
    """Triangles between neighbouring centres, at least a bin of the FFT wide → `(fft/2+1,F)`."""
    frequencies = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * sample_rate / fft_size
    centres = 440.0 * 2 ** ((lowest - 69) / 12 + torch.arange(bins, dtype=torch.float64) / per_octave)
    widths = (centres * (2 ** (1 / per_octave) - 1)).clamp(min=sample_rate / fft_size)
    filters = (1 - (frequencies[:, None] - centres).abs() / widths).clamp(min=0.0)
    return (filters / math.sqrt(fft_size)).float()
