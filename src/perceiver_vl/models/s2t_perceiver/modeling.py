"""S2T Perceiver: speech of any length → a few of many latents → text (Tsiamas et al. 2023).

Shapes: B batch, T frames, F features of a frame, n latents, k of them, D width, L words, V vocabulary.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.perceiver import EncoderRecord, Inputs, LatentEncoder
from perceiver_vl.layers.positions import sinusoidal_positions
from perceiver_vl.layers.token_selection import drawn_latents
from perceiver_vl.models.s2t_perceiver.configuration import S2TPerceiverConfig
from perceiver_vl.models.s2t_perceiver.inputs import InputArray
from perceiver_vl.utils.errors import UsageError


class S2TPerceiverPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading."""

    config_class = S2TPerceiverConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    _no_split_modules = ["AttentionBlock"]
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Latents: a truncated normal distribution of `initializer_range`; matrices as Glorot's; words: 1 over √D."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, LatentEncoder) and isinstance(module.latents, nn.Parameter):
            init.trunc_normal_(module.latents, std=self.config.initializer_range)


class S2TPerceiverModel(S2TPerceiverPreTrainedModel):
    """Filter banks → latents."""

    def __init__(self, config: S2TPerceiverConfig) -> None:
        super().__init__(config)
        self.input_array = InputArray(config)
        self.encoder = LatentEncoder(
            config.hidden_size,
            config.num_attention_heads,
            num_latents=config.num_latents,
            self_attentions_per_block=config.num_hidden_layers,
            input_size=config.input_size,
            intermediate_size=config.intermediate_size,
            eps=config.layer_norm_eps,
            dropout=config.dropout,
            cross_attention={"num_heads": 1, "norm_inputs": True, "mlp_residual": "normed", "dropout": 0.0},
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        lengths: Tensor | None = None,
        num_latents: int | None = None,
        choice: Tensor | None = None,
        **_: Any,
    ) -> ModelOutput:
        """`input_features (B,T,F)`, of which the first `lengths (B,)` frames are real (None: all) →
        `last_hidden_state (B,k,D)`, and `kept (B,k)`: which latents these are, None if they are all.

        In training each example draws `num_train_latents` before the cross-attention (DLA-train), or takes `choice
        (B,k)` int64. In evaluation `num_latents` (None: all) go on after it, the most diverse (DLA-inf), so that one
        model serves any number. Raises `UsageError` for what does not fit.
        """
        config, batch = self.config, len(input_features)
        if input_features.ndim != 3 or input_features.shape[-1] != config.num_features:
            raise UsageError(
                f"input_features {tuple(input_features.shape)}: need (batch, frames, {config.num_features})"
            )
        if input_features.shape[1] > config.max_frames:
            raise UsageError(f"input_features: {input_features.shape[1]} frames, max_frames={config.max_frames}")
        if num_latents is not None and not 1 <= num_latents <= config.num_latents:
            raise UsageError(f"num_latents={num_latents}: need 1 to {config.num_latents}")
        lengths = torch.full((batch,), input_features.shape[1]) if lengths is None else lengths
        if self.training and choice is None and config.num_train_latents < config.num_latents:
            seed = int(torch.randint(2**62, ()))
            choice = drawn_latents(config.num_latents, config.num_train_latents, seed, batch)
        latents = cast(Tensor, self.encoder.latents).expand(batch, -1, -1)
        if choice is not None:
            latents = cast(Tensor, self.encoder.latents)[choice.to(latents.device)]
        keep = None if self.training or num_latents == config.num_latents else num_latents
        record = EncoderRecord(kept=[])
        found = self.encoder(
            [Inputs(*self.input_array(input_features, lengths))], latents=latents, keep_latents=keep, record=record
        )
        return ModelOutput(last_hidden_state=found, kept=record.kept[0] if record.kept else choice)


class DecoderLayer(nn.Module):
    """Words attend to those before them, then to the latents."""

    def __init__(self, config: S2TPerceiverConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        alike: dict[str, Any] = {"eps": config.layer_norm_eps, "dropout": config.dropout}
        self.self_attention = AttentionBlock(width, heads, 0, causal=True, **alike)
        self.cross_attention = AttentionBlock(width, heads, config.intermediate_size, **alike)

    def forward(self, words: Tensor, latents: Tensor) -> Tensor:
        """`words (B,L,D)`, `latents (B,k,D)` → `(B,L,D)`."""
        return self.cross_attention(self.self_attention(words), latents)


class S2TPerceiverForConditionalGeneration(S2TPerceiverPreTrainedModel):
    """Speech → text, word by word: a pre-norm transformer decoder over the latents."""

    _tied_weights_keys = {"output.weight": "word_embeddings.weight"}

    def __init__(self, config: S2TPerceiverConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.model = S2TPerceiverModel(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Those of words."""
        return self.word_embeddings

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        lengths: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Speech as of `S2TPerceiverModel.forward`, and `labels (B,L)`, -100 where there is none, ending in
        `eos_token_id` → `logits (B,L,V)` and `loss`. `decoder_input_ids (B,L)`: the words before, in the place of those
        of the labels.
        """
        encoded = self.model(input_features, lengths, return_dict=True, **options)
        if decoder_input_ids is None:
            if labels is None:
                raise UsageError("labels=None, decoder_input_ids=None: need one of them")
            before = labels[:, :-1].masked_fill(labels[:, :-1] < 0, self.config.pad_token_id)
            decoder_input_ids = F.pad(before, (1, 0), value=self.config.bos_token_id)
        logits = self.decode(encoded.last_hidden_state, decoder_input_ids)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return ModelOutput(loss=loss, logits=logits, **encoded)

    def decode(self, latents: Tensor, words: Tensor) -> Tensor:
        """`latents (B,k,D)`, `words (B,L)` int64, the first of which begins a text → logits of the next `(B,L,V)`."""
        if words.shape[1] > self.config.max_target_length:
            raise UsageError(f"{words.shape[1]} words: max_target_length={self.config.max_target_length}")
        width = self.config.hidden_size
        x = math.sqrt(width) * self.word_embeddings(words)
        x = x + sinusoidal_positions(words.shape[1] + 2, width, halves=True)[2:].to(x)
        for layer in self.layers:
            x = layer(x, latents)
        return self.output(self.norm(x))

    @torch.no_grad()
    def transcribe(
        self, input_features: Tensor, lengths: Tensor | None = None, max_length: int = 64, **options: Any
    ) -> Tensor:
        """The likeliest word after the other, `(B,L)` int64, `pad_token_id` after the end. Options as of
        `S2TPerceiverModel.forward`.
        """
        latents = self.model(input_features, lengths, return_dict=True, **options).last_hidden_state
        words = torch.full((len(latents), 1), self.config.bos_token_id, device=latents.device)
        ended = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        while not ended.all() and words.shape[1] <= max_length:
            following = self.decode(latents, words)[:, -1].argmax(-1).masked_fill(ended, self.config.pad_token_id)
            words, ended = (
                torch.cat([words, following[:, None]], dim=1),
                ended | (following == self.config.eos_token_id),
            )
        return words[:, 1:]
