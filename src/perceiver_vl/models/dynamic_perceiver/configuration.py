"""What a Dynamic Perceiver is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError


def _list(*numbers: int) -> Any:
    return field(default_factory=lambda: list(numbers))


@strict
class DynamicPerceiverConfig(PreTrainedConfig):
    """Configuration of the Dynamic Perceiver (Han et al. 2023) over RegNet-Y. The defaults are those of RegNet-Y-800M
    with 128 latents. Raises `UsageError` for values that are out of range or do not fit each other.
    """

    model_type = "dynamic_perceiver"

    # Feature branch: a RegNet-Y of four stages, each of which halves the map
    num_channels: int = 3
    stem_width: int = 32
    depths: list[int] = _list(1, 3, 8, 2)  # blocks a stage
    widths: list[int] = _list(64, 144, 320, 784)
    group_widths: list[int] = _list(16, 16, 16, 16)  # channels of a group of the 3 × 3 convolutions
    se_ratio: float = 0.25  # of squeeze and excitation, in units of the block's input

    # Latent branch: as wide as what comes into each stage; the mixers halve the latents from stage to stage
    num_latents: int = 128  # L, in the first stage
    latent_depths: list[int] = _list(3, 3, 9, 6)  # self-attentions a stage
    num_attention_heads: list[int] = _list(1, 2, 4, 8)  # of these
    intermediate_ratio: int = 4
    pooled_size: int = 7  # features are met as so many by so many tokens, whatever the size of the map
    depthwise_convolutions: bool = True  # of 7 × 7, added to the features before they are pooled
    write_features: bool = True  # latents into the features, between stages
    last_write: bool = True  # and after the last stage
    transfer_knowledge: bool = True  # of the latent exits to the next ones

    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("depths", "widths", "group_widths", "latent_depths", "num_attention_heads"):
            values = getattr(self, name)
            if len(values) != 4 or min(values) < 1:
                raise UsageError(f"{name}={values}: need four numbers, of 1 or more")
        for name in ("num_channels", "stem_width", "intermediate_ratio", "pooled_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if self.num_latents < 8:
            raise UsageError(f"num_latents={self.num_latents}: halved three times, need at least 8")
        for width, group in zip(self.widths, self.group_widths, strict=True):
            if width % group:
                raise UsageError(f"group_widths={self.group_widths}: must divide widths={self.widths} evenly")
        for width, heads in zip(self.latent_widths, self.num_attention_heads, strict=True):
            if width % heads:
                raise UsageError(
                    f"num_attention_heads={self.num_attention_heads}: must divide {self.latent_widths} evenly, the "
                    "widths of what comes into the stages"
                )
        super().__post_init__(**kwargs)

    @property
    def latent_widths(self) -> list[int]:
        """C of each stage: of what comes into it."""
        return [self.stem_width, *self.widths[:3]]

    @property
    def latents_of_stages(self) -> list[int]:
        """How many latents there are in each stage."""
        return [self.num_latents // 2**stage for stage in range(4)]
