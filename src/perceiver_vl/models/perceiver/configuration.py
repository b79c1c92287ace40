"""What a Perceiver is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.layers.perceiver import Sharing
from perceiver_vl.utils.errors import UsageError


@strict
class IterativePerceiverConfig(PreTrainedConfig):
    """Configuration of the Perceiver (Jaegle et al. 2021, with iterative cross-attention; transformers' `perceiver` is
    Perceiver IO). The defaults are the paper's for ImageNet (3.2 and appendix), 45 M parameters: 224 × 224 pixels,
    eight cross-attentions of which the last seven share their weights, as all latent transformers do. What the public
    implementations do otherwise is named by `convert.VARIANTS`. Raises `UsageError` for values that are out of range or
    do not fit.
    """

    model_type = "iterative_perceiver"

    # Input array: samples with any number of axes, or points
    num_channels: int = 3  # of a sample; 0: points that are no more than their positions
    input_shape: list[int] = field(default_factory=lambda: [224, 224])  # of the axes that samples have in training
    num_bands: int = 64  # of the Fourier features of each axis; 0: positions alone (3.2)
    max_resolution: list[float] | None = None  # the sizes whose Nyquist frequencies are the highest; None: input_shape
    fourier_order: Literal["kind", "axis"] = "kind"  # [positions, sines, cosines], or so for each axis (lucidrains)

    # Latents
    num_latents: int = 512  # N
    hidden_size: int = 1024  # D
    num_blocks: int = 8  # latent transformers
    num_cross_attentions: int = 8  # the first so many blocks begin with one
    self_attentions_per_block: int = 6  # l
    share_cross_attentions: Sharing = "all_but_first"  # sharing the first too is unstable (paper, 3.1)
    share_self_attentions: Sharing = "all"

    # Widths
    num_attention_heads: int = 8  # of the latent transformers
    num_cross_attention_heads: int = 1
    cross_attention_size: int | None = None  # of all heads' queries or keys in these; None: the inputs'
    cross_value_size: int | None = None  # of its values; None: as of its keys
    attention_size: int | None = None  # of the latent transformers' queries, keys or values; None: D
    intermediate_ratio: int = 1  # of the latent transformers' MLPs, in units of D
    cross_intermediate_ratio: int = 1  # of the cross-attentions' MLPs
    gated_mlp: bool = False  # GEGLU (lucidrains)
    attention_bias: bool = True  # of queries, keys and values

    # Answers
    pooling: Literal["mean", "normed_mean", "query"] = "mean"  # the paper's, lucidrains', or Perceiver IO's decoder
    query_size: int | None = None  # of pooling="query", as the next three; None: D
    query_residual: bool = True
    num_query_attention_heads: int = 1
    query_intermediate_ratio: int = 1

    initializer_range: float = 0.02  # standard deviation of the latents, which are cut off at ±2 (3.2)
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        self.max_resolution = [float(size) for size in self.max_resolution or self.input_shape]
        self.cross_attention_size = self.cross_attention_size or self.input_size
        self.cross_value_size = self.cross_value_size or self.cross_attention_size
        self.attention_size = self.attention_size or self.hidden_size
        self.query_size = self.query_size or self.hidden_size
        self._check_values()
        super().__post_init__(**kwargs)

    @property
    def input_size(self) -> int:
        """C, the width of the input array: a sample and its position (3.2)."""
        return self.num_channels + len(self.input_shape) * (2 * self.num_bands + 1)

    def _check_values(self) -> None:
        at_least_one = (
            "num_latents hidden_size num_blocks num_cross_attentions self_attentions_per_block num_attention_heads "
            "num_cross_attention_heads intermediate_ratio cross_intermediate_ratio num_query_attention_heads "
            "query_intermediate_ratio"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if self.num_channels < 0 or self.num_bands < 0:
            raise UsageError(f"num_channels={self.num_channels}, num_bands={self.num_bands}: need 0 or more of each")
        if not self.input_shape or min(self.input_shape) < 1:
            raise UsageError(f"input_shape={self.input_shape}: need the size of each axis, at least one axis")
        if len(self.max_resolution or ()) != len(self.input_shape):
            raise UsageError(
                f"max_resolution={self.max_resolution}: need one for each axis of input_shape={self.input_shape}"
            )
        for part, size in (
            ("", "attention"),
            ("cross_", "cross_attention"),
            ("cross_", "cross_value"),
            ("query_", "query"),
        ):
            heads, width = getattr(self, f"num_{part}attention_heads"), getattr(self, f"{size}_size")
            if width % heads:
                raise UsageError(f"num_{part}attention_heads={heads}: must divide {size}_size={width} evenly")
        if self.num_cross_attentions > self.num_blocks:
            raise UsageError(
                f"num_cross_attentions={self.num_cross_attentions}: each begins a block, so at most "
                f"num_blocks={self.num_blocks}"
            )
        needed = {"none": self.num_blocks, "all": 1, "all_but_first": min(2, self.num_blocks)}
        if self.num_cross_attentions < needed[self.share_cross_attentions]:
            raise UsageError(
                f"num_cross_attentions={self.num_cross_attentions}: with share_cross_attentions="
                f"{self.share_cross_attentions!r} need at least {needed[self.share_cross_attentions]}, or there would "
                "be weights that nothing uses"
            )
