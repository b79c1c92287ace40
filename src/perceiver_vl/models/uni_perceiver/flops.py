"""What a Uni-Perceiver's forward costs, from the configuration alone.

`tests/models/uni_perceiver/test_uni_perceiver.py` holds this against the operations counted on built models. Experts
are summed before they are applied, so with them a pass costs what it costs without, and the sums, which grow with no
input and are counted by nobody.
"""

from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig


def forward_flops(config: UniPerceiverConfig, words: int = 0, frames: int = 0, segments: int = 1) -> int:
    """Encoding one example of so many words and frames into a direction; `segments`: 2 where vision and text have
    experts of their own, which matters to gates alone. A multiply-add counts as two operations.
    """
    width, tokens = config.hidden_size, 1 + words + frames * config.num_patches
    patches = 2 * frames * config.num_patches * config.num_channels * config.patch_size**2 * width
    layer = block_flops(tokens, tokens, width, intermediate_size=config.intermediate_size)
    gate = 2 * segments * width * (config.num_attributes + config.num_experts)
    with_experts = (config.num_hidden_layers + 1) // 2 if config.num_experts else 0
    return patches + config.num_hidden_layers * layer + 2 * with_experts * gate + 2 * width * width
