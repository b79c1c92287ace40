"""Sound → logarithms of mel filter banks.

Shapes: S samples, T frames, F mel bins.
"""

import warnings
from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank


def mel_power(sound: Tensor, rate: int, window: int, hop: int, bins: int, lowest: float) -> Tensor:
    """`(…,S)` at `rate` samples a second → power in mel bins from `lowest` Hz to half the rate `(…,T,F)`, in windows of
    so many samples (Hann), a frame every `hop`, the first in the middle of its window at sample 0: T = 1 + S // hop.
    """
    power = torch.stft(sound, window, hop, window, torch.hann_window(window, dtype=sound.dtype), return_complex=True)
    return power.abs().square().transpose(-1, -2) @ mel_filters(rate, window, bins, lowest).to(sound.dtype)


def log_mel(sound: Tensor, rate: int, window: int, hop: int, bins: int, lowest: float = 20.0) -> Tensor:
    """The logarithms of `mel_power`, as Whisper scales them (Radford et al. 2023): what is more than 80 dB below the
    loudest is silence, and 40 dB are 1.
    """
    logs = mel_power(sound, rate, window, hop, bins, lowest).clamp(min=1e-10).log10()
    return (logs.maximum(logs.amax((-1, -2), keepdim=True) - 8.0) + 4.0) / 4.0


@lru_cache(maxsize=16)
def mel_filters(rate: int, window: int, bins: int, lowest: float) -> Tensor:
    """What each bin takes of each frequency of a window `(window/2+1,F)`, float64; too many bins: some take nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of those; who minds looks
        return torch.from_numpy(mel_filter_bank(window // 2 + 1, bins, lowest, rate / 2, rate))
