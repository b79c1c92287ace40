"""What a Perceiver TF is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError


@strict
class PerceiverTFConfig(PreTrainedConfig):
    """Configuration of Perceiver TF (Lu et al. 2023, "Multitrack music transcription with a time-frequency Perceiver").

    The authors published no code. The defaults are the paper's sizes, and its reading: latents attend to the
    frequencies of their frame. What YourMT3+ does otherwise is `convert.YOURMT3`. Raises `UsageError` for values that
    are out of range or do not fit.
    """

    model_type = "perceiver_tf"
    main_input_name = "spectrogram"

    # Sound
    sample_rate: int = 16_000  # Hz
    fft_size: int = 2048
    hop_length: int = 300  # samples a frame
    num_bins: int = 1024  # F of a spectrogram
    bins_per_octave: int = 0  # of bins that are spaced as notes are, from lowest_pitch; 0: those of the FFT, from 0 Hz
    lowest_pitch: int = 21  # MIDI number of the first class of pitches
    num_pitches: int = 88

    # Front end, whose blocks halve the frequencies each
    conv_channels: int = 128
    num_conv_blocks: int = 3
    conv_activation: Literal["relu", "leaky"] = "relu"
    frequency_positions: bool = False  # a learned vector for each frequency that is left; neither of the two has them

    # Encoder
    num_latents: int = 24  # K of each frame
    hidden_size: int = 128  # D
    num_blocks: int = 3
    num_local_layers: int = 2  # of a block: latents of a frame attend to each other
    num_temporal_layers: int = 2  # of a block: each latent attends to itself in other frames
    num_attention_heads: int = 8
    num_cross_attention_heads: int = 8
    attention_size: int | None = None  # of all heads' queries or keys; None: D
    value_size: int | None = None  # None: as those
    read: Literal["frequencies", "channels"] = (
        "frequencies"  # of a frame: F vectors of channels, or the other way round
    )
    read_residual: bool = True  # the read is added to the latents; else it takes their place
    feature_size: int | None = None  # width of what is read; None: as the front end gives it
    positions: Literal["trainable", "kdt", "alibi", "none"] = "trainable"
    max_frames: int = (
        110  # T; of `trainable`, a vector for each latent of each frame; of `kdt`, of each, and each frame
    )
    feed_forward: Literal["mlp", "experts"] = "mlp"
    intermediate_ratio: int = 1  # in units of D
    num_experts: int = 8  # of feed_forward="experts", of which each token takes two
    expert_act: Literal["silu", "gelu", "relu"] = "silu"
    norm: Literal["layer", "rms"] = "layer"
    dropout: float = 0.1

    # Answers: a query for each reads the latents of a frame
    instruments: list[str] = field(default_factory=lambda: ["notes"])
    positive_weight: float = 1.0  # of notes that are there, in the loss, beside the many that are not

    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_size = self.attention_size or self.hidden_size
        self.value_size = self.value_size or self.attention_size
        self.feature_size = self.feature_size or (
            self.conv_channels if self.read == "frequencies" else self.num_frequencies
        )
        at_least_one = (
            "sample_rate fft_size hop_length num_bins num_pitches conv_channels num_conv_blocks num_latents "
            "hidden_size num_blocks num_attention_heads num_cross_attention_heads max_frames intermediate_ratio "
            "num_experts"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if self.num_local_layers < 0 or self.num_temporal_layers < 0:
            raise UsageError(
                f"num_local_layers={self.num_local_layers}, num_temporal_layers={self.num_temporal_layers}: need 0 or "
                "more of each"
            )
        for kind in ("", "cross_"):
            heads = getattr(self, f"num_{kind}attention_heads")
            if self.attention_size % heads or self.value_size % heads:
                raise UsageError(
                    f"num_{kind}attention_heads={heads}: must divide attention_size={self.attention_size} and "
                    f"value_size={self.value_size} evenly"
                )
        if self.num_frequencies < 1:
            raise UsageError(
                f"num_conv_blocks={self.num_conv_blocks}: halve num_bins={self.num_bins} so often that none is left"
            )
        if not self.bins_per_octave and self.num_bins > self.fft_size // 2 + 1:
            raise UsageError(f"num_bins={self.num_bins}: fft_size={self.fft_size} gives {self.fft_size // 2 + 1}")
        if self.positive_weight <= 0:
            raise UsageError(f"positive_weight={self.positive_weight}: need more than 0")
        if not self.instruments:
            raise UsageError("instruments=[]: need one at least")
        super().__post_init__(**kwargs)

    @property
    def num_frequencies(self) -> int:
        """F of what the latents read."""
        return self.num_bins >> self.num_conv_blocks

    @property
    def frames_per_second(self) -> float:
        """Of a spectrogram."""
        return self.sample_rate / self.hop_length
