"""The smallest Perceiver ARs that still have every part."""

from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_ar import PerceiverARConfig, PerceiverARForCausalLM
from perceiver_vl.models.perceiver_ar.convert import VARIANTS

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_latents": 6,
    "max_position_embeddings": 40,
    "num_attention_heads": 2,
    "rotary_base": 40.0,
}
KINDS: dict[str, dict[str, Any]] = {
    "authors": VARIANTS["authors"],
    "krasserm": {**VARIANTS["krasserm"], "position_tables": [40]},
    "lucidrains": {**VARIANTS["lucidrains"], "position_tables": [40]},
    "two reads": {"cross_attention_layers": [0, 1], "embedding_size": 12, "cross_attention_size": 8},
}


def tiny_ar(kind: str = "authors", **changes: Any) -> PerceiverARForCausalLM:
    """A float64 model in which no parameter is zero."""
    torch.manual_seed(0)
    model = PerceiverARForCausalLM(PerceiverARConfig(**{**SMALL, **KINDS[kind], **changes})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(1, 11, (batch, length), generator=torch.Generator().manual_seed(length))
