"""What an S2T Perceiver costs, from the configuration alone: its self-attentions and its decoder see k latents, however
long the speech and however many latents there are.

`tests/models/s2t_perceiver/test_s2t_perceiver_flops.py` holds this against the operations counted on built models.
"""

from itertools import pairwise

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.s2t_perceiver.configuration import S2TPerceiverConfig


def encoder_flops(
    config: S2TPerceiverConfig, frames: int, latents: int | None = None, *, training: bool = False
) -> int:
    """One example of `frames` frames and `latents` latents (None: all). In training these are drawn before the
    cross-attention; else all attend, and the choice meets every pair of them.
    """
    kept = config.num_latents if latents is None else latents
    reading = kept if training else config.num_latents
    total, inputs = 0, frames
    layers = len(config.kernel_sizes)
    widths = [config.num_features, *[config.conv_channels // 2] * (layers - 1), config.conv_output_size]
    for (before, width), size in zip(pairwise(widths), config.kernel_sizes, strict=False):
        inputs = (inputs - 1) // config.stride + 1
        total += 2 * inputs * size * before * 2 * width
    width, wide = config.hidden_size, config.intermediate_size
    total += block_flops(reading, inputs, width, input_size=config.input_size, intermediate_size=wide)
    if kept < reading:  # queries, keys and scores once more, written out, and their products
        total += 2 * width * (reading * width + inputs * config.input_size + reading * inputs)
        total += 2 * reading**2 * inputs
    return total + config.num_hidden_layers * block_flops(kept, kept, width, intermediate_size=wide)


def decoder_flops(config: S2TPerceiverConfig, words: int, latents: int) -> int:
    """All `words` of a text at once, as in training."""
    width = config.hidden_size
    layer = block_flops(words, words, width, intermediate_size=0)
    layer += block_flops(words, latents, width, intermediate_size=config.intermediate_size)
    return config.num_decoder_layers * layer + 2 * words * width * config.vocab_size
