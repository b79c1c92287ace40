"""What a Perceiver IO is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError

Kind = Literal["array", "language", "text", "image", "flow", "multimodal"]


@strict
class PerceiverIOConfig(PreTrainedConfig):
    """Configuration of Perceiver IO (Jaegle et al. 2022), by default of masked bytes; `published.PUBLISHED` has the
    published models' sizes. What is None follows from the rest. Raises `UsageError` for values that are out of range or
    do not fit each other.
    """

    model_type = "perceiver_io"

    # What goes in and comes out: an array of any kind, bytes (masked ones), classes of a text or of an image, flow, or
    # video, sound and label together
    kind: Kind = "language"

    # Encoder: one cross-attention, then num_blocks times the same self-attentions (3.1)
    num_latents: int = 256  # N
    hidden_size: int = 1280  # D
    num_blocks: int = 1
    self_attentions_per_block: int = 26
    num_attention_heads: int = 8
    num_cross_attention_heads: int = 8  # of the cross-attention
    qk_size: int | None = None  # of all heads of a self-attention together; None: D
    v_size: int | None = None  # None: as qk_size
    cross_qk_size: int | None = None  # of the cross-attention; None: the width of the inputs
    cross_v_size: int | None = None  # None: as cross_qk_size
    intermediate_ratio: int = 1  # of the self-attentions' MLPs, in units of D
    cross_intermediate_ratio: int = 1  # of the cross-attention's
    query_residual: bool = True  # of the cross-attention
    gated_mlp: bool = False  # GEGLU (lucidrains)
    attention_bias: bool = True  # of queries, keys and values

    # Decoder: queries read the latents once (3.2)
    query_size: int | None = None
    num_queries: int | None = None  # learned ones; 0: they are made of the inputs, or handed in
    num_decoder_heads: int | None = None
    decoder_qk_size: int | None = None
    decoder_v_size: int | None = None  # None: as decoder_qk_size
    decoder_residual: bool = False  # on for classes, but of learned positions
    decoder_intermediate_ratio: int = 1  # 0: no MLP
    output_size: int | None = None  # 0: no last layer

    # Inputs
    vocab_size: int = 262  # bytes and six special tokens
    max_position_embeddings: int = 2048
    embedding_size: int = 768  # C of bytes
    num_channels: int = 3  # of an array, or of pixels; of flow those of a neighbourhood in one frame
    image_size: list[int] = field(default_factory=lambda: [224, 224])
    image_positions: Literal["fourier", "learned", "conv"] = "fourier"  # conv: a convolution, then Fourier positions
    pixel_channels: int = 256  # of an image's convolution, or of a flow's patch
    num_bands: int = 64  # of an image's Fourier features
    max_resolution: list[int] | None = None  # whose Nyquist frequencies are the highest; None: image_size
    num_frames: int = 16  # of a multimodal video
    video_patch_size: int = 4
    audio_samples: int = 30720
    samples_per_patch: int = 16
    audio_bands: int = 192
    label_query_size: int = 1024
    label_mask_probability: float = 1.0  # 1: the label is never seen; the paper trained with 0.5 (appendix H)

    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        self.max_resolution = self.max_resolution or self.image_size
        super().__post_init__(**kwargs)
        width = self.hidden_size
        follows: dict[str, Any] = {"qk_size": width, "cross_qk_size": self.input_size, "decoder_qk_size": width}
        follows |= {"num_decoder_heads": 1, "query_size": width, "num_queries": 0, "output_size": self.num_labels}
        if self.kind == "language":  # whatever the encoder's widths are
            follows |= {"num_decoder_heads": 8, "decoder_qk_size": 256, "decoder_v_size": self.embedding_size}
            follows |= {
                "query_size": self.embedding_size,
                "num_queries": self.max_position_embeddings,
                "output_size": 0,
            }
        elif self.kind in ("text", "image"):
            follows |= {"num_queries": 1}
        elif self.kind == "flow":
            follows |= {"query_size": self.input_size, "output_size": 2}
        elif self.kind == "multimodal":
            follows |= {"query_size": max(self.query_sizes.values()) + 2, "output_size": 512}
        for name, value in follows.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for part in ("", "cross_", "decoder_"):
            if getattr(self, f"{part}v_size") is None:
                setattr(self, f"{part}v_size", getattr(self, f"{part}qk_size"))
        self._check_values()

    @property
    def input_size(self) -> int:
        """C, the width of the input array."""
        positions = 2 * (2 * self.num_bands + 1)
        if self.kind in ("language", "text"):
            return self.embedding_size
        if self.kind == "image":
            pixels = self.num_channels if self.image_positions == "fourier" else self.pixel_channels
            return pixels + (self.pixel_channels if self.image_positions == "learned" else positions)
        if self.kind == "flow":
            return self.pixel_channels + positions
        return self.num_channels if self.kind == "array" else max(self.modality_sizes.values()) + 4

    @property
    def modality_sizes(self) -> dict[str, int]:
        """Channels and positions of each modality, before they are padded to one width (appendix H)."""
        patch = self.num_channels * self.video_patch_size**2
        query = self.query_sizes
        return {
            "audio": self.samples_per_patch + query["audio"],
            "image": patch + query["image"],
            "label": self.num_labels,
        }

    @property
    def query_sizes(self) -> dict[str, int]:
        """Positions of each modality, as queries."""
        return {
            "audio": 2 * self.audio_bands + 1,
            "image": 3 * (2 * self.num_bands + 1),
            "label": self.label_query_size,
        }

    def _check_values(self) -> None:
        at_least_one = (
            "num_latents hidden_size num_blocks self_attentions_per_block num_attention_heads query_size "
            "num_cross_attention_heads num_decoder_heads max_position_embeddings input_size num_channels"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        for heads, part in (("attention", ""), ("cross_attention", "cross_"), ("decoder", "decoder_")):
            for size in (f"{part}qk_size", f"{part}v_size"):
                number, width = getattr(self, f"num_{heads}_heads"), getattr(self, size)
                if width % number:
                    raise UsageError(f"num_{heads}_heads={number}: must divide {size}={width} evenly")
        if len(self.image_size) != 2 or len(cast(list[int], self.max_resolution)) != 2:
            raise UsageError(
                f"image_size={self.image_size}, max_resolution={self.max_resolution}: need two numbers each"
            )
        if self.kind == "multimodal" and (
            self.audio_samples % self.samples_per_patch or any(side % self.video_patch_size for side in self.image_size)
        ):
            raise UsageError(
                f"samples_per_patch={self.samples_per_patch}, video_patch_size={self.video_patch_size}: must divide "
                f"audio_samples={self.audio_samples} and image_size={self.image_size} evenly"
            )
