"""What a Perceiver IO's forward costs, from the configuration alone: O((M + Q + L·N)·N) (paper, 3.3).

`tests/models/perceiver_io/test_perceiver_io_flops.py` holds this against the operations counted on built models, and
the paper's figures.
"""

from math import prod
from typing import cast

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.perceiver_io.configuration import PerceiverIOConfig


def forward_flops(config: PerceiverIOConfig, inputs: int, queries: int, *, training: bool = False) -> int:
    """One example of `inputs` inputs that `queries` queries ask of: all but what makes the input array of bytes or
    pixels (`embedding_flops`). In training keys and values are made whatever they cost.
    """
    latents, width, query_size = config.num_latents, config.hidden_size, cast(int, config.query_size)
    cross_attention = block_flops(
        latents,
        inputs,
        width,
        input_size=config.input_size,
        qk_size=config.cross_qk_size,
        v_size=config.cross_v_size,
        intermediate_size=config.cross_intermediate_ratio * width,
        gated_mlp=config.gated_mlp,
        absorbing_heads=None if training else config.num_cross_attention_heads,
    )
    self_attention = block_flops(
        latents,
        latents,
        width,
        qk_size=config.qk_size,
        v_size=config.v_size,
        intermediate_size=config.intermediate_ratio * width,
        gated_mlp=config.gated_mlp,
    )
    answer = block_flops(
        queries,
        latents,
        query_size,
        input_size=width,
        qk_size=config.decoder_qk_size,
        v_size=config.decoder_v_size,
        intermediate_size=config.decoder_intermediate_ratio * query_size,
        gated_mlp=config.gated_mlp,
        absorbing_heads=None if training else config.num_decoder_heads,
    )
    outputs = 2 * queries * query_size * cast(int, config.output_size)
    self_attentions = config.num_blocks * config.self_attentions_per_block
    return cross_attention + self_attentions * self_attention + answer + outputs


def embedding_flops(config: PerceiverIOConfig) -> int:
    """Of an image's convolution and learned positions, or of a flow's patches; all else costs nothing here."""
    pixels, channels = config.pixel_channels, config.num_channels
    places = prod(config.image_size)
    if config.kind == "flow":
        return 2 * places * 2 * channels * pixels
    if config.kind != "image" or config.image_positions == "fourier":
        return 0
    if config.image_positions == "learned":
        return 2 * places * pixels * (channels + pixels)
    return 2 * prod((side + 1) // 2 for side in config.image_size) * 49 * channels * pixels
