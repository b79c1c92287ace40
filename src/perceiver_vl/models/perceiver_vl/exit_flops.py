"""What an example that leaves after so many blocks has cost, from the configuration alone.

`tests/models/perceiver_vl/test_exit_flops.py` holds this against the operations counted on built models.
"""

from dataclasses import replace

from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import (
    encoder_flops,
    output_flops,
    partial_attention_flops,
    pretrained_flops,
)


def exit_flops(
    config: PerceiverVLConfig, frames: int, text_tokens: int, budget: ComputeBudget = FULL_BUDGET
) -> list[int]:
    """Of an example of `frames` frames and `text_tokens` tokens that leaves after the first block, the second, …: all
    that it was embedded and encoded with, and an answer after each of these blocks.
    """
    width, exits = config.hidden_size, config.blocks_of(budget)
    head = 2 * width * (width + 2 * width + 2 * config.num_labels)
    if config.answers_as_text:  # whose directions are there already
        head = 2 * width * (width + config.num_labels)
    if config.answers_from == "query":
        latents = config.latents_of(budget, text_only=not frames)[1]
        head += partial_attention_flops(config, 1, latents) + output_flops(config, 1)
    before, found = pretrained_flops(config, frames, text_tokens), []
    for number in range(1, exits + 1):
        reads = min(config.cross_attentions_of(budget), number)
        dials = replace(budget, blocks=number, cross_attentions=reads)
        found.append(before + encoder_flops(config, frames, text_tokens, dials) + number * head)
    return found
