"""The models that gCOG compares, as its reference has them (Ito et al. 2024; IBM/gcog).

Shapes: B batch, R tokens of an instruction, S of a stimulus, N latents, D width, K classes. Padding of instructions is
rows of zeros, which the reference's models see; no mask is taken.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from perceiver_vl.layers.attention import Attention
from perceiver_vl.layers.positions import sinusoidal_positions
from perceiver_vl.models.gcog.configuration import GCOGConfig
from perceiver_vl.models.gcog.token_encoder import TokenEncoder
from perceiver_vl.utils.errors import UsageError


class Recurrent(nn.Module):
    """rnn and gru: at each step a token of the instruction, and the whole stimulus (appendix)."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__()
        inputs = config.instruction_size + config.stimulus_length * config.stimulus_size
        kind = {"nonlinearity": "relu"} if config.architecture == "rnn" else {}
        cell = nn.RNN if config.architecture == "rnn" else nn.GRU
        self.cell = cell(inputs, config.hidden_size, batch_first=True, **kind)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        whole = stimuli.flatten(1)[:, None].expand(-1, rules.shape[1], -1)
        return self.norm(self.cell(torch.cat([rules, whole], dim=-1))[1][-1])[:, None]


class SingleStream(nn.Module):
    """Both as one sequence, each in channels of its own; the last token answers."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__()
        width, inputs = config.hidden_size, config.instruction_size + config.stimulus_size
        length = config.max_instruction_length + config.stimulus_length
        self.blocks = nn.ModuleList([TokenEncoder(config, inputs, length)])
        self.blocks += [TokenEncoder(config, width, length, values=0) for _ in range(config.num_hidden_layers - 1)]
        self.mlp = _relus(width, width, 2 * width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        before, after = rules.shape[-1], stimuli.shape[-1]
        x = torch.cat([F.pad(rules, (0, after)), F.pad(stimuli, (before, 0))], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(self.mlp(x[:, -1:]))


class TwoEncoders(nn.Module, ABC):
    """One of the instruction, one of the stimulus."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__()
        self.config = config
        self.instruction = TokenEncoder(config, config.instruction_size, config.max_instruction_length)
        self.stimulus = TokenEncoder(config, config.stimulus_size, config.stimulus_length)

    def forward(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        return self.joined(self.instruction(rules), self.stimulus(stimuli))

    @abstractmethod
    def joined(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        """Both encoded → `(B,N,D)`, of which the last answers."""


class DoubleStream(TwoEncoders):
    """Their last tokens are added."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.instruction_mlp, self.stimulus_mlp = _relus(width, width), _relus(width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.mlp = _relus(width, 2 * width, 2 * width, width)

    def joined(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        both = self.instruction_mlp(rules[:, -1:]) + self.stimulus_mlp(stimuli[:, -1:])
        return self.norm2(self.mlp(self.norm1(both)))


class CrossAttention(TwoEncoders):
    """A query of zeros reads one, then the other; one norm serves both."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__(config)
        width, heads = config.hidden_size, config.num_attention_heads
        self.read_instruction, self.read_stimulus = Attention(width, heads), Attention(width, heads)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def joined(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        latents = rules.new_zeros(len(rules), 1, rules.shape[-1])
        latents = self.norm(self.read_instruction(latents, rules) + latents)
        return self.norm(self.read_stimulus(latents, stimuli) + latents)


class LatentRead(nn.Module):
    """What latents find in one of the two, normed before its MLP."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__()
        self.attention = Attention(config.hidden_size, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _relus(config.hidden_size, config.hidden_size)

    def forward(self, latents: Tensor, inputs: Tensor) -> Tensor:
        found = self.norm(self.attention(latents, inputs))
        return self.mlp(found) + found


class PerceiverLike(TwoEncoders):
    """Latents read the instruction, then the stimulus, and attend to themselves after each, always by the same weights;
    one norm serves all of it. Where latents begin as zeros, as in the reference, they stay alike.
    """

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.latents = nn.Parameter(torch.zeros(config.num_latents, width)) if config.learned_latents else None
        self.read_instruction, self.read_stimulus = LatentRead(config), LatentRead(config)
        self.attention = Attention(width, config.num_attention_heads)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = _relus(width, width)

    def joined(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        latents = rules.new_zeros(self.config.num_latents, rules.shape[-1]) if self.latents is None else self.latents
        latents = latents.expand(len(rules), -1, -1)
        for read, inputs in ((self.read_instruction, rules), (self.read_stimulus, stimuli)):
            latents = self.norm(read(latents, inputs) + latents)
            latents = self.norm(self.attention(latents, latents) + latents)
        return self.mlp(latents)


_ARCHITECTURES: dict[str, type[nn.Module]] = {
    "rnn": Recurrent,
    "gru": Recurrent,
    "single_stream": SingleStream,
    "double_stream": DoubleStream,
    "cross_attention": CrossAttention,
    "perceiver": PerceiverLike,
}


def _relus(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, a ReLU after each."""
    layers = (nn.Linear(before, after) for before, after in pairwise(widths))
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


class GCOGPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading. Linear layers and attention begin as torch has them, as in the reference."""

    config_class = GCOGConfig
    base_model_prefix = "gcog"
    main_input_name = "rules"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PerceiverLike) and module.latents is not None:
            init.normal_(module.latents, std=self.config.initializer_range)
        if isinstance(module, TokenEncoder):
            length, width = module.positions.shape
            init.copy_(module.positions, sinusoidal_positions(length, width))


class GCOGModel(GCOGPreTrainedModel):
    """Instruction and stimulus → what is known of the answer."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__(config)
        self.model = _ARCHITECTURES[config.architecture](config)
        self.post_init()

    @can_return_tuple
    def forward(self, rules: Tensor, stimuli: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """`rules (B,R,8)`, `stimuli (B,S,3)`, numbers → `last_hidden_state (B,N,D)`, N latents or 1; `pooler_output
        (B,D)`, the last of them, answers. Raises `UsageError` for tokens of other sizes, or too many.
        """
        config = self.config
        if rules.shape[-1] != config.instruction_size or stimuli.shape[1:] != (
            config.stimulus_length,
            config.stimulus_size,
        ):
            raise UsageError(
                f"rules {tuple(rules.shape)}, stimuli {tuple(stimuli.shape)}: need (batch, tokens, "
                f"{config.instruction_size}) and (batch, {config.stimulus_length}, {config.stimulus_size})"
            )
        found = self.model(rules.to(self.dtype), stimuli.to(self.dtype))
        return BaseModelOutputWithPooling(found, found[:, -1])


class GCOGForClassification(GCOGPreTrainedModel):
    """Answers, as one of K classes."""

    def __init__(self, config: GCOGConfig) -> None:
        super().__init__(config)
        self.gcog = GCOGModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, rules: Tensor, stimuli: Tensor, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """As `GCOGModel.forward`, and `labels (B,)` → `logits (B,K)`, log-probabilities, and their `loss`."""
        answers = self.gcog(rules, stimuli, return_dict=True).pooler_output
        logits = F.log_softmax(self.classifier(answers), dim=-1)
        return SequenceClassifierOutput(None if labels is None else F.nll_loss(logits, labels), logits)
