"""Operations of a bridge to a language model, as `models.perceiver_vl.flops` counts those of a Perceiver-VL."""

import json
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.language_bridge.language_model import LanguageModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import encoder_flops


def bridge_flops(
    config: PerceiverVLConfig, frames: int, text_tokens: int, budget: ComputeBudget = FULL_BUDGET
) -> tuple[int, int]:
    """A clip of `frames` frames and a text of `text_tokens` tokens about it, all of which say which word comes next:
    what is before the language model, and the language model, which is counted without weights. Nothing is kept of an
    earlier pass. A pretrained vision encoder comes on top (`pretrained_flops`).
    """
    each = config.bridge_tokens or config.latents_of(budget)[1]
    shown = each * len(config.bridge_blocks)
    width, language = _counted(
        config.language_config.to_json_string(), each if config.bridge_layers else shown, text_tokens
    )
    if config.bridge_layers:
        width = config.language_config.hidden_size
    return encoder_flops(config, frames, 0, budget) + 2 * shown * config.hidden_size * width, language


@lru_cache(maxsize=256)
def _counted(language: str, soft_tokens: int, words: int) -> tuple[int, int]:
    """Of a language model, its configuration as JSON, the width of its words, and operations for these tokens."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        part = LanguageModel(AutoConfig.for_model(**json.loads(language), attn_implementation="eager")).eval()
        width = part.words.embedding_dim
        mask = torch.ones(1, soft_tokens + words, dtype=torch.long)
        part.logits(torch.empty(*mask.shape, width), mask, words)
    return width, int(counter.get_total_flops())
