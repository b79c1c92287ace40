"""What is made of decoded queries and of latents: matching logits, words, and the unit vectors of the multi-stream.

Shapes: B batch, D width, V vocabulary, E retrieval vector.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.layers.zero_linear import ZeroLinear
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.embeddings import TokenProjection
from perceiver_vl.models.perceiver_vl.encoders import vision_width

BILINEAR_WIDTH = 256
"""Of `BaseAnswers`."""


class MatchingHead(nn.Module):
    """Linear and tanh, then the logit that a pair belongs together."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = _added_to_a_base(config)(config.hidden_size, 1)

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


class MaskedPatchHead(nn.Module):
    """What a masked patch shows: its pixels, or over a pretrained encoder the values of its token (as MAE ends)."""

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        encoder = config.vision_config
        values = config.num_channels * config.patch_size**2 if encoder is None else vision_width(encoder)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, values)

    def forward(self, answers: Tensor) -> Tensor:
        """`(…,D)` → `(…,V)`, V pixels (channels first) or the width of a token."""
        return self.projection(self.norm(answers))


class CaptionWords(nn.Module):
    """Words in and out by one table: the model's own, or over a text encoder that encoder's, which is projected. What
    the encoder makes of a whole text is of no use here, for a word must not know those after it.
    """

    def __init__(self, config: PerceiverVLConfig, table: nn.Embedding) -> None:
        super().__init__()
        over_encoder = config.text_config is not None
        self.projection_in = TokenProjection(table.embedding_dim, config) if over_encoder else nn.Identity()
        self.projection_out = nn.Linear(config.hidden_size, table.embedding_dim) if over_encoder else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, input_ids: Tensor, table: nn.Module) -> Tensor:
        """`(B,L)` → `(B,L,D)`."""
        content: Tensor = self.projection_in(table(input_ids))
        return content

    def logits(self, latents: Tensor, table: nn.Embedding) -> Tensor:
        """`(…,D)` → `(…,V)`; a table may have rows that no word of the tokenizer has."""
        return F.linear(self.projection_out(latents), table.weight[: len(self.bias)], self.bias)


class ContrastiveHead(nn.Module):
    """Latents → one unit vector a stream: the mean over the latents, projected (the paper does not say how it
    pools).
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        projection_dim = config.projection_dim or config.hidden_size
        linear = _added_to_a_base(config)
        of_vision = linear if config.base_of_vision else nn.Linear
        self.vision_projection = of_vision(config.hidden_size, projection_dim, bias=False)
        self.text_projection = linear(config.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.logit_bias else None
        self.length_weight = nn.Parameter(torch.zeros(())) if config.length_weight else None


def _added_to_a_base(config: PerceiverVLConfig) -> type[nn.Linear]:
    """The way out of the latents: nothing comes out at first, where pretrained encoders already say something."""
    return nn.Linear if config.base == "none" else ZeroLinear


class BaseAnswers(nn.Module):
    """Logits of answers by what pretrained encoders alone say of the question and of both: low-rank bilinear pooling
    (Kim et al. 2017). Its dropout is that of such heads, not of the latents.
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        size, width = config.projection_dim or config.hidden_size, BILINEAR_WIDTH
        self.scale = math.sqrt(size) / 2  # of components about as large as those of normed activations
        self.question = nn.Linear(size, width)
        self.vision_factor = nn.Linear(size, width)
        self.text_factor = nn.Linear(size, width)
        self.classifier = nn.Linear(2 * width, config.num_labels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, vision_base: Tensor, text_base: Tensor) -> Tensor:
        """Unit vectors `(B,E)` of clips and of questions → `(B,num_labels)`."""
        vision, text = self.scale * vision_base, self.scale * text_base
        alone = F.relu(self.question(self.dropout(text)))
        both = F.relu(self.text_factor(text)) * F.relu(self.vision_factor(self.dropout(vision)))
        return self.classifier(self.dropout(torch.cat([alone, both], dim=-1)))


class BaseMatching(nn.Module):
    """The logit that a pair belongs together by what pretrained encoders alone say of both: a scaled cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.threshold = nn.Parameter(torch.tensor(0.0))

    def forward(self, vision_base: Tensor, text_base: Tensor) -> Tensor:
        """Unit vectors `(B,E)` of both sides → `(B,)`."""
        return self.scale * ((vision_base * text_base).sum(-1) - self.threshold)
