"""What a forward costs, from the configuration alone: the formulas of the paper's cost model, O(k·M·N + k·l·N²).

A multiply-add counts as two operations, as the paper counts. Norms, biases, GELU and softmax are left out: below 2 % at
base size. `tests/model/test_flops.py` holds these formulas against the operations counted on the built model.
Shapes: M inputs, N latents, Q queries, D width, k blocks, l self-attentions a block.
"""

from perceiver_vl.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.model.attention import absorbing_pays


def block_flops(config: PerceiverVLConfig, queries: int, inputs: int) -> int:
    """One transformer block in which `queries` tokens read `inputs` tokens (self-attention: the same number).

    Few queries (the decoder's) are met in the inputs' own space: no keys and values are made (`Attention.summarise`).
    """
    d, r, heads = config.hidden_size, config.intermediate_ratio, config.num_attention_heads
    projections = 2 * d * d * queries + 2 * d * d * inputs  # q and out on one side, k and v on the other
    attention = 2 * queries * inputs * d
    if absorbing_pays(queries, inputs, d, 2 * d, heads):
        projections = 4 * d * d * queries
        attention *= heads
    mlp = 2 * r * d * d * queries
    return 2 * (projections + attention + mlp)


def embedding_flops(config: PerceiverVLConfig, frames: int) -> int:
    """The patch projection of `frames` frames of `image_size` (words are looked up, which costs nothing here)."""
    patches = (config.image_size // config.patch_size) ** 2
    return 2 * frames * patches * config.num_channels * config.patch_size**2 * config.hidden_size


def encoder_flops(
    config: PerceiverVLConfig, frames: int = 0, text_tokens: int = 0, budget: ComputeBudget = FULL_BUDGET
) -> int:
    """Embedding and encoding one example: `frames` frames (0: text alone) and `text_tokens` tokens (0: vision
    alone).
    """
    frames = min(frames, budget.frames or frames)
    if frames:
        latents = budget.latents or config.num_latents
    else:
        latents = budget.text_latents or config.num_text_latents or config.num_latents
    vision_tokens = frames * config.tokens_per_frame
    if config.modality_aggregation == "joint":
        read = block_flops(config, latents, vision_tokens + text_tokens)
    else:
        read = sum(block_flops(config, latents, tokens) for tokens in (vision_tokens, text_tokens) if tokens)
    reads = budget.cross_attentions or config.num_blocks
    thoughts = config.num_blocks * config.self_attentions_per_block
    return embedding_flops(config, frames) + reads * read + thoughts * block_flops(config, latents, latents)


def matching_flops(config: PerceiverVLConfig, latents: int) -> int:
    """One pair's way through the decoder and the matching head, its query reading `latents` latents."""
    d = config.hidden_size
    return block_flops(config, 1, latents) + 2 * (d * d + d)


def pooling_flops(config: PerceiverVLConfig) -> int:
    """The projection of one pooled example to a multi-stream vector."""
    return 2 * config.hidden_size * (config.projection_dim or config.hidden_size)
