"""Uni-Perceiver: every task is an input and candidates, encoded alike by one transformer, and the likelihood of each
candidate is their cosine over a temperature (Zhu et al. 2022).

Shapes: B batch, L tokens, P of them before the text, T frames, D width, K candidates, R rows of attribute bits.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from perceiver_vl.layers.experts import ExpertLinear, ScaledLinear
from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig
from perceiver_vl.models.uni_perceiver.embeddings import Embeddings
from perceiver_vl.models.uni_perceiver.inputs import Task, caption_mask, task_of
from perceiver_vl.models.uni_perceiver.layer import UniPerceiverLayer
from perceiver_vl.utils.errors import UsageError


class UniPerceiverPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading."""

    config_class = UniPerceiverConfig
    base_model_prefix = "uni_perceiver"
    main_input_name = "input_ids"
    _no_split_modules = ["UniPerceiverLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in the released code: linear maps as Xavier has them, tables N(0, `initializer_range`), biases 0."""
        super()._init_weights(module)
        if isinstance(module, ExpertLinear):
            for one in module.weight:
                init.xavier_uniform_(one)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, LikelihoodHead):
            for one in module.log_scales.values():
                init.constant_(one, -math.log(self.config.initial_temperature))
        elif isinstance(module, Embeddings):
            for one in (module.text_type, module.vision_type):
                init.normal_(one, std=self.config.initializer_range)
        if isinstance(module, ScaledLinear | ExpertLinear) and module.scale is not None:
            init.constant_(module.scale, self.config.layer_scale)


class UniPerceiverEncoder(UniPerceiverPreTrainedModel):
    """Tokens of any kind → what they become, without a norm at the end."""

    main_input_name = "tokens"

    def __init__(self, config: UniPerceiverConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            UniPerceiverLayer(config, config.num_experts > 0 and number % 2 == 0)
            for number in range(config.num_hidden_layers)
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        attributes: Tensor | None = None,
        first: int = 0,
        history: Sequence[Tensor] | None = None,
        noise: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """`tokens (B,L,D)`, `mask (B,L)` or `(B,L,L)` bool, True where seen → `last_hidden_state (B,L,D)`.

        `attributes (R,A)`: bits of the first so many tokens and of the others, or one row of all. `history`: of each
        layer what it was given before these tokens, `(B,·,D)`, as further keys and values (`hidden_states` are of this
        kind). `noise (R,E)`: added to the scores of all gates.
        """
        x, states = tokens, []
        for number, layer in enumerate(self.layers):
            states.append(x)
            x = layer(x, mask, attributes, first, None if history is None else history[number], noise)
        return BaseModelOutput(x, (*states, x) if output_hidden_states else None)


class LikelihoodHead(UniPerceiverPreTrainedModel):
    """Inputs and candidates through one norm and one projection → logits: cosines over the temperature of a task."""

    main_input_name = "inputs"

    def __init__(self, config: UniPerceiverConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        scale = -math.log(config.initial_temperature)
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.tensor(scale)) for name in config.temperatures})
        self.post_init()

    def features(self, states: Tensor) -> Tensor:
        """`(…,D)` → directions, of length 1 `(…,D)`."""
        return F.normalize(self.projection(self.norm(states)), dim=-1)

    def forward(self, inputs: Tensor, candidates: Tensor, temperature: str) -> Tensor:
        """`features` of inputs `(B,D)` and candidates `(K,D)` → logits `(B,K)`. Raises `UsageError` for a temperature
        that this head does not have.
        """
        if temperature not in self.log_scales:
            raise UsageError(f"temperature={temperature}: unknown, choose from {', '.join(self.log_scales.keys())}")
        scale = self.log_scales[temperature].exp().clamp(max=self.config.largest_scale)
        return scale * inputs @ candidates.T


class UniPerceiverModel(UniPerceiverPreTrainedModel):
    """Text, images, videos, or a text after these → what they stand for, as a direction; candidates likewise."""

    def __init__(self, config: UniPerceiverConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = UniPerceiverEncoder(config)
        self.head = LikelihoodHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.embeddings.words

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        task: str = "image_classification",
        as_candidates: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """`input_ids (B,L)`, `attention_mask (B,L)`, 1 where real, `pixel_values (B,3,H,W)` or `(B,T,3,H,W)`, of one of
        `TASKS`, as its inputs or `as_candidates` → `last_hidden_state (B,M,D)`, and `pooler_output`, directions: of the
        first token `(B,D)`; of a caption's places `(B,L,D)`, each of which is to name the word at its own place; of all
        places for masked words.

        Raises `UsageError` for a task that there is not, or nothing to encode.
        """
        what = task_of(task)
        if input_ids is None and pixel_values is None:
            raise UsageError("input_ids=None, pixel_values=None: need one of them at least")
        given = cast(Tensor, input_ids if input_ids is not None else pixel_values)
        begin = self.embeddings.text(torch.full((len(given), 1), self.config.begin_token_id, device=self.device))
        parts = [begin] if pixel_values is None else [begin, self.embeddings.vision(pixel_values)]
        first = sum(part.shape[1] for part in parts)
        twice = not as_candidates and what.answers_at == "caption"
        mask = None
        if input_ids is not None:
            words = input_ids.shape[1]
            parts.append(self.embeddings.text(input_ids))
            real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            if twice:  # the places show no word: that of the first token stands for all
                parts.append(self.embeddings.text(torch.full_like(input_ids, self.config.begin_token_id)))
                real = torch.cat([real, real], 1)
            mask = F.pad(real.bool(), (first, 0), value=True)
            if twice:
                mask = mask[:, None] & caption_mask(first, 2 * words).to(mask.device)
                mask = mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        states = self._encode(torch.cat(parts, 1), mask, what, as_candidates, first)
        if twice:
            answers = states[:, -cast(Tensor, input_ids).shape[1] :]
        else:
            answers = states[:, first:] if what.answers_at == "masked" and not as_candidates else states[:, 0]
        return BaseModelOutputWithPooling(states, self.head.features(answers))

    def _encode(self, tokens: Tensor, mask: Tensor | None, task: Task, as_candidates: bool, first: int) -> Tensor:
        attributes = task.attributes("candidates" if as_candidates else "inputs").to(tokens.device)
        return self.encoder(tokens, mask, attributes, first, return_dict=True).last_hidden_state

    def logits(self, inputs: Tensor, candidates: Tensor, task: str) -> Tensor:
        """Directions of inputs `(…,D)` and of candidates `(K,D)`, which may be kept → `(…,K)`; their softmax is how
        likely each is.
        """
        return self.head(inputs, candidates, task_of(task).temperature)
