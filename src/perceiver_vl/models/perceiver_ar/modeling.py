"""Perceiver AR: the last N of M tokens are latents that read all of them once and predict the next token each.

Shapes: B batch, M tokens, P of them the prefix, N = M - P latents, C width of embeddings, D width of latents, V words.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from perceiver_vl.layers.attention import Attention
from perceiver_vl.layers.causal import CausalLatents, Inputs
from perceiver_vl.layers.positions import RotaryPositions
from perceiver_vl.models.perceiver_ar.configuration import PerceiverARConfig
from perceiver_vl.models.perceiver_ar.generation import PerceiverARGeneration
from perceiver_vl.models.perceiver_ar.inputs import PerceiverARCache, check_cache, check_inputs, padding_first
from perceiver_vl.utils.errors import UsageError


class PerceiverARPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading."""

    config_class = PerceiverARConfig
    base_model_prefix = "model"
    _no_split_modules = ["AttentionBlock", "CausalCrossAttention"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Change to "eager" or "sdpa" after loading, as in transformers."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = str(self.config._attn_implementation)


class PerceiverARModel(PerceiverARPreTrainedModel):
    """Tokens → latents at the last places (paper 3)."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(config)
        width, heads, cross_heads = config.embedding_size, config.num_attention_heads, config.num_cross_attention_heads
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.ModuleList(nn.Embedding(rows, width) for rows in config.position_tables)
        rotating = config.num_hidden_layers if config.rotary_layers < 0 else config.rotary_layers
        rotary = _rotary(config, config.attention_size // heads)
        self.latents = CausalLatents(
            config.hidden_size,
            heads,
            config.num_hidden_layers,
            cross_attentions=config.cross_attention_layers,
            input_size=width,
            query_projection=config.query_projection,
            final_norm=config.final_norm,
            eps=config.layer_norm_eps,
            intermediate_size=config.intermediate_size,
            qk_size=config.attention_size,
            v_size=config.attention_size,
            bias=config.use_bias,
            output_bias=config.use_bias,
            mlp_bias=config.use_bias,
            activation=ACT2FN[config.hidden_act],
            dropout=config.hidden_dropout_prob,
            implementation=config._attn_implementation or "sdpa",
            cross_attention={
                "own_norm": config.own_norm,
                "num_heads": cross_heads,
                "qk_size": config.cross_attention_size,
                "v_size": config.cross_attention_size,
                "intermediate_size": config.cross_intermediate_size,
                "output_bias": True,
                "rotary": _rotary(config, config.cross_attention_size // cross_heads),
            },
            layer_blocks=[{"rotary": rotary if n < rotating else None} for n in range(config.num_hidden_layers)],
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word table."""
        self.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prefix_length: int = 0,
        past_key_values: PerceiverARCache | None = None,
        use_cache: bool | None = None,
        prefix_scores: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """`input_ids (B,M)`, `attention_mask (B,M)`, 1 where real → latents `(B,N,D)`, N = min(M, num_latents).

        Padding may stand on either side; latents are the last of what is real. `position_ids (B,M)`, or `(B,M,A)` with
        tables for A axes; None: counted over what is real. `prefix_length`: so many at least are no latents. With
        `past_key_values`, `input_ids` are the new tokens, and the other arguments those of all. `prefix_scores (B,P)`:
        in training the highest stay in the prefix; None: drawn. Without gradients the prefix is read in chunks. Raises
        `UsageError` for more tokens than positions, and for the cache of another sequence.
        """
        check_cache(past_key_values, self.latents, PerceiverARCache)
        cache, new, config = past_key_values, input_ids.shape[1], self.config
        total = new + (0 if cache is None else cache.length)
        real = torch.ones(len(input_ids), total, dtype=torch.bool, device=input_ids.device)
        real = real if attention_mask is None else attention_mask.bool()
        check_inputs(config, real, position_ids, prefix_length, (len(input_ids), total), cache)
        count = (real.cumsum(1) - 1).clamp(min=0)
        places = (real.sum(1, keepdim=True) - 1 - count if config.positions_from_end else count)[..., None]
        turns = -count if config.positions_from_end else count
        if position_ids is not None:
            places = position_ids[:, :total].reshape(len(position_ids), total, -1)
            turns = turns if places.shape[-1] > 1 else places[..., 0].expand_as(count)
        tokens = self.word_embeddings(input_ids)
        for axis, table in enumerate(self.position_embeddings):
            tokens = tokens + table(places[:, -new:, axis])
        inputs = Inputs(tokens, real[:, -new:], turns[:, -new:])
        if cache is None and attention_mask is not None:
            inputs = inputs.gather(padding_first(real))
        prefix = max(prefix_length, total - config.num_latents)
        if torch.is_grad_enabled() and cache is None and not use_cache:
            return BaseModelOutputWithPast(
                self.latents(inputs, prefix, self._kept_prefix(inputs, prefix, prefix_scores))
            )
        fixed = not (config.positions_from_end and config.position_tables and position_ids is None)
        if use_cache and not fixed:
            raise UsageError("use_cache=True: positions are counted from the end, so all change; use use_cache=False")
        keep = fixed and (config.use_cache if use_cache is None else use_cache)
        cache = PerceiverARCache(keep_prefix=keep) if cache is None else cache
        latents = self.latents.extend(cache, inputs, max(prefix, cache.prefix_length))
        cache.input_ids = input_ids if cache.input_ids is None else torch.cat([cache.input_ids, input_ids], 1)
        cache.attention_mask = real
        return BaseModelOutputWithPast(latents, cache if keep else None)

    def _kept_prefix(self, inputs: Inputs, prefix: int, scores: Tensor | None) -> Tensor | None:
        """Which of the prefix a step of training reads `(B,K)`: all (None), or those of the highest scores."""
        dropped = int(prefix * self.config.prefix_dropout)
        if not self.training or not dropped:
            return None
        scores = torch.rand(len(inputs.mask), prefix, device=inputs.mask.device) if scores is None else scores
        return scores.topk(prefix - dropped, dim=1).indices.sort(dim=1).values


class PerceiverARForCausalLM(PerceiverARPreTrainedModel, PerceiverARGeneration, GenerationMixin):
    """Perceiver AR with a projection of the latents to the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(config)
        self.model = PerceiverARModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """As `PerceiverARModel.forward`, with logits `(B,N,V)`, or of the last `logits_to_keep` latents. `labels
        (B,M)`: the tokens themselves, -100 where nothing is to be predicted; each latent predicts the next.
        """
        found = self.model(input_ids, attention_mask, **inputs)
        logits, loss = self.lm_head(found.last_hidden_state[:, -logits_to_keep:]), None
        if labels is not None:
            number = logits.shape[1]
            if attention_mask is not None:  # padding predicts nothing, nor is it predicted
                order, real = padding_first(attention_mask), attention_mask.bool()
                labels = labels.gather(1, order).masked_fill(~real.gather(1, order).roll(1, 1), -100)
            following = labels[:, labels.shape[1] - number + 1 :]
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), following.flatten())
        return CausalLMOutputWithPast(loss, logits, found.past_key_values)


def _rotary(config: PerceiverARConfig, head_size: int) -> RotaryPositions | None:
    rotated = 2 * int(config.rotary_share * head_size / 2 + 1e-6)
    how = {"interleaved": config.rotary_interleaved, "inclusive": config.rotary_inclusive}
    return RotaryPositions(rotated, base=config.rotary_base, **how) if rotated else None
