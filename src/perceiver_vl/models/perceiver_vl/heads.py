"""What is made of decoded queries and of latents: matching logits, words, and the unit vectors of the multi-stream.

Shapes: B batch, D width, V vocabulary, E retrieval vector.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig


class MatchingHead(nn.Module):
    """Linear and tanh, then the logit that a pair belongs together."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, answer: Tensor) -> Tensor:
        """`(B,D)` → `(B,)`."""
        return self.classifier(torch.tanh(self.dense(answer))).squeeze(-1)


class MaskedWordHead(nn.Module):
    """BERT's transform, then a projection to the vocabulary."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, answers: Tensor) -> Tensor:
        """`(…,D)` → `(…,V)`."""
        return self.projection(self.norm(F.gelu(self.dense(answers)))) + self.bias


class ContrastiveHead(nn.Module):
    """Latents → one unit vector a stream: the mean over the latents, projected (the paper does not say how it
    pools).
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        projection_dim = config.projection_dim or config.hidden_size
        self.vision_projection = nn.Linear(config.hidden_size, projection_dim, bias=False)
        self.text_projection = nn.Linear(config.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
