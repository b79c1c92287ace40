"""What MonoXiver's head is made of; refuses what cannot work, by name."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError


@strict
class MonoXiverConfig(PreTrainedConfig):
    """Configuration of MonoXiver's fusion and verification head (Liu et al. 2023). The defaults are those of the
    released model of KITTI's cars over MonoCon. Raises `UsageError` for values that are out of range or do not fit.
    """

    model_type = "monoxiver"

    # What is known of a candidate
    point_size: int = 64  # F, the channels of the detector's feature map, sampled at projected corners and centre
    geometry_size: int = 29  # G: the box in the picture (4), in space (7), nine projected points (18)
    region_size: int = 14  # S: features of the box in the picture are F × S × S

    # The Perceiver of each candidate
    num_latents: int = 4  # N, made of its geometry
    hidden_size: int = 256  # D
    num_attention_heads: int = 8
    intermediate_size: int = 1024  # of every MLP
    num_self_attentions: int = 1
    share_decoder_mlp: bool = True  # the decoder has the MLP of the cross-attention, as the released code has it

    # Answers
    num_class_layers: int = 2  # of D before the class
    num_box_layers: int = 2  # before what is to be added to place and size

    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        names = "point_size geometry_size region_size num_latents hidden_size num_attention_heads intermediate_size"
        for name in names.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        for name in ("num_self_attentions", "num_class_layers", "num_box_layers"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)}: need 0 or more")
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"num_attention_heads={self.num_attention_heads}: must divide hidden_size={self.hidden_size} evenly"
            )
        super().__post_init__(**kwargs)
