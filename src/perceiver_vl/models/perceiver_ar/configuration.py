"""What a Perceiver AR is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError


@strict
class PerceiverARConfig(PreTrainedConfig):
    """Configuration of Perceiver AR (Hawthorne et al. 2022); the defaults compute what the authors' code computes with
    rotary positions, and `convert.VARIANTS` names what the two public implementations in PyTorch do otherwise. Raises
    `UsageError` for a value out of range, or values that do not fit each other.
    """

    model_type = "perceiver_ar"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 256  # bytes
    hidden_size: int = 1024  # D, the width of the latents
    embedding_size: int = 0  # C, the width of tables and inputs; 0: D
    num_hidden_layers: int = 6  # L self-attentions of the latents
    num_latents: int = 1024  # N, of the longest inputs
    max_position_embeddings: int = 8192  # M, the longest context
    cross_attention_layers: list[int] = field(default_factory=lambda: [0])  # how many layers come before each
    num_attention_heads: int = 16
    num_cross_attention_heads: int = 0  # 0: as many
    attention_size: int = 0  # of all heads' queries, keys or values together; 0: D
    cross_attention_size: int = 0  # of the cross-attentions'; 0: C
    intermediate_size: int = 0  # of the MLPs; 0: 4 D
    cross_intermediate_size: int = 0  # of the cross-attentions' MLPs; 0: 4 D
    hidden_act: Literal["relu2", "gelu"] = "relu2"  # squared ReLU, or the exact GELU
    use_bias: bool = True  # in every projection; False: only on a cross-attention's way out
    query_projection: bool = True  # latents begin as a projection of their embeddings
    own_norm: Literal["inputs", "queries"] = (
        "inputs"  # the norm of the latents' own keys and values in a cross-attention
    )
    final_norm: bool = True
    output_bias: bool = True
    tie_word_embeddings: bool = False

    # Positions
    position_tables: list[int] = field(default_factory=list)  # rows of the learned table of each axis; none: rotary
    positions_from_end: bool = False  # counted back from the last token (0), where none are given
    rotary_share: float | int = 0.5  # of each head's channels; 0: no rotation
    rotary_base: float | int = 10_000.0  # the longest wavelength / 2π; the authors set the length of the context
    rotary_interleaved: bool = True  # neighbouring channels are a pair, else the halves
    rotary_inclusive: bool = True  # wavelengths reach the longest itself, as in the authors' code
    rotary_layers: int = -1  # only so many of the first self-attentions rotate; -1: all

    # Training
    prefix_dropout: float | int = 0.0  # share of the prefix that a step of training does without
    hidden_dropout_prob: float | int = 0.0  # after each attention and MLP
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.embedding_size = self.embedding_size or self.hidden_size
        self.num_cross_attention_heads = self.num_cross_attention_heads or self.num_attention_heads
        self.attention_size = self.attention_size or self.hidden_size
        self.cross_attention_size = self.cross_attention_size or self.embedding_size
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        self.cross_intermediate_size = self.cross_intermediate_size or 4 * self.hidden_size
        self._check_values()
        super().__post_init__(**kwargs)

    def _check_values(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_latents", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        most, places = self.max_position_embeddings, self.cross_attention_layers
        if self.num_latents > most:
            raise UsageError(
                f"num_latents={self.num_latents}: latents are the last of max_position_embeddings={most} inputs, so at "
                "most that many"
            )
        if places != sorted(places) or places[:1] != [0] or places[-1] > self.num_hidden_layers:
            raise UsageError(
                f"cross_attention_layers={places}: need rising numbers from 0 (the first) to num_hidden_layers="
                f"{self.num_hidden_layers}"
            )
        for part in ("", "cross_"):
            heads, size = getattr(self, f"num_{part}attention_heads"), getattr(self, f"{part}attention_size")
            if size % heads:
                raise UsageError(f"num_{part}attention_heads={heads}: must divide {part}attention_size={size} evenly")
        if self.embedding_size != self.hidden_size and not (self.query_projection and self.own_norm == "inputs"):
            raise UsageError(
                f"embedding_size={self.embedding_size}: other than hidden_size={self.hidden_size} needs "
                "query_projection=True and own_norm='inputs'"
            )
        if len(self.position_tables) == 1 and self.position_tables[0] < most:
            raise UsageError(
                f"max_position_embeddings={most}: position_tables={self.position_tables} has rows for so many inputs "
                "alone, so at most that many"
            )
        for name in ("rotary_share", "prefix_dropout", "hidden_dropout_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name}={getattr(self, name)}: a share, 0 to 1")
