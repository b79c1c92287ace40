"""What an S2T Perceiver is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError


@strict
class S2TPerceiverConfig(PreTrainedConfig):
    """Configuration of the S2T Perceiver (Tsiamas et al. 2023). The defaults are the paper's size "s". Raises
    `UsageError` for values that are out of range or do not fit each other.
    """

    model_type = "s2t_perceiver"

    # Input array: filter banks, convolved or as they are
    num_features: int = 80  # of a frame
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 5])  # of the convolutions; []: none
    stride: int = 1  # of each
    conv_channels: int = 1024  # of all but the last, before its gate
    conv_output_size: int = 256  # C, the width of the input array
    scale_inputs: bool = False  # by the root of their width
    max_frames: int = 6000

    # Encoder: one cross-attention of one head, then self-attentions
    num_latents: int = 512  # n
    num_train_latents: int | None = None  # k, drawn for each example in training; None: all
    hidden_size: int = 256  # D
    intermediate_size: int = 2048
    num_hidden_layers: int = 12  # self-attentions of the latents
    num_attention_heads: int = 8  # the code names 4 for this size, and reads another name
    dropout: float = 0.15  # of self-attentions and decoder; the cross-attention has none

    # Decoder: a transformer that attends to the latents
    num_decoder_layers: int = 6
    vocab_size: int = 8000
    max_target_length: int = 1024
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2

    initializer_range: float = 0.05  # standard deviation of the latents (truncated)
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_train_latents is None:
            self.num_train_latents = self.num_latents
        self._check_values()
        super().__post_init__(**kwargs)

    @property
    def input_size(self) -> int:
        """C, the width of the input array."""
        return self.conv_output_size if self.kernel_sizes else self.num_features

    def _check_values(self) -> None:
        at_least_one = (
            "num_features stride conv_channels conv_output_size max_frames num_latents num_train_latents hidden_size "
            "intermediate_size num_attention_heads vocab_size max_target_length"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if self.num_hidden_layers < 0 or self.num_decoder_layers < 0:
            raise UsageError(
                f"num_hidden_layers={self.num_hidden_layers}, num_decoder_layers={self.num_decoder_layers}: need 0 or "
                "more of each"
            )
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes) or self.conv_channels % 2:
            raise UsageError(
                f"kernel_sizes={self.kernel_sizes}, conv_channels={self.conv_channels}: need odd sizes, even channels"
            )
        if (self.num_train_latents or 0) > self.num_latents:
            raise UsageError(
                f"num_train_latents={self.num_train_latents}: drawn from num_latents={self.num_latents}, need no more"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"num_attention_heads={self.num_attention_heads}: must divide hidden_size={self.hidden_size} evenly"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout={self.dropout}: need a share, 0 or more and less than 1")
