"""What a Perceiver's forward costs, from the configuration alone: O(M·N) for its cross-attentions, O(N²) for its latent
transformers.

`tests/models/perceiver/test_flops.py` holds this against the operations counted on built models, and the
paper's figures for ImageNet.
"""

from typing import cast

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.perceiver.configuration import IterativePerceiverConfig


def forward_flops(config: IterativePerceiverConfig, inputs: int, *, training: bool = False) -> int:
    """Classifying one example of `inputs` inputs; in training keys and values are made whatever they cost."""
    latents, width = config.num_latents, config.hidden_size
    cross_attention = block_flops(
        latents,
        inputs,
        width,
        input_size=config.input_size,
        qk_size=config.cross_attention_size,
        v_size=config.cross_value_size,
        intermediate_size=config.cross_intermediate_ratio * width,
        gated_mlp=config.gated_mlp,
        absorbing_heads=None if training else config.num_cross_attention_heads,
    )
    self_attention = block_flops(
        latents,
        latents,
        width,
        qk_size=config.attention_size,
        v_size=config.attention_size,
        intermediate_size=config.intermediate_ratio * width,
        gated_mlp=config.gated_mlp,
    )
    answer = 2 * width * config.num_labels
    if config.pooling == "query":
        query = cast(int, config.query_size)
        answer = 2 * query * config.num_labels
        answer += block_flops(
            1, latents, query, input_size=width, intermediate_size=config.query_intermediate_ratio * query
        )
    self_attentions = config.num_blocks * config.self_attentions_per_block
    return config.num_cross_attentions * cross_attention + self_attentions * self_attention + answer
