"""What a forward pass costs, from the configuration alone (paper 3): O(M·N) for the cross-attentions, O(L·N²) for the
latents.

`tests/models/perceiver_ar/test_causal_lm.py` holds it against the operations counted on the built model.
"""

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.perceiver_ar.configuration import PerceiverARConfig


def forward_flops(config: PerceiverARConfig, length: int, prefix_length: int = 0) -> int:
    """One sequence of `length` tokens of which `prefix_length` at least are no latents, logits included; nothing is
    kept of an earlier pass.
    """
    number, width = length - max(prefix_length, length - config.num_latents), config.hidden_size
    cross = block_flops(
        number,
        length,
        width,
        input_size=config.embedding_size,
        qk_size=config.cross_attention_size,
        v_size=config.cross_attention_size,
        intermediate_size=config.cross_intermediate_size,
    )
    layer = block_flops(
        number,
        number,
        width,
        qk_size=config.attention_size,
        v_size=config.attention_size,
        intermediate_size=config.intermediate_size,
    )
    projection = 2 * number * config.embedding_size * width if config.query_projection else 0
    logits = 2 * number * width * config.vocab_size
    return projection + len(config.cross_attention_layers) * cross + config.num_hidden_layers * layer + logits
