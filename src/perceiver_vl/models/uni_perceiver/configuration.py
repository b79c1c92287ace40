"""What a Uni-Perceiver is made of; refuses what cannot work, by name."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError

TEMPERATURES = [
    "img_cls",
    "video_cls",
    "text_mlm",
    "text_caption",
    "caption",
    "mlm",
    "retrieve",
    "tqa_mlm",
    "tqa_caption",
    "tqa_retrieve",
    "downstream",
]
"""Of the released code, one for each family of tasks."""


@strict
class UniPerceiverConfig(PreTrainedConfig):
    """Configuration of Uni-Perceiver (Zhu et al., CVPR 2022); the defaults are BASE, 124 M parameters. With
    `num_experts` it is Uni-Perceiver-MoE (Zhu et al., NeurIPS 2022), whose experts the attributes of a task choose.
    Raises `UsageError` for values that are out of range or do not fit.
    """

    model_type = "uni_perceiver"

    # Tokens
    vocab_size: int = 49411
    max_position_embeddings: int = 512  # of texts
    begin_token_id: int = 49410  # SPE, before every input: what it becomes stands for the whole
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    max_frames: int = 8

    # Encoder
    hidden_size: int = 768  # D
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_scale: float = 1e-3  # what each branch is weighed by at first
    drop_path: float = 0.1
    num_experts: int = 0  # E of every other layer, beginning with the first; 0: none
    num_attributes: int = 8  # bits of a task and role, which alone choose the experts
    gate_activation: bool = False  # GELU between the two layers of a gate
    gate_noise: float = 1.0  # in training, in units of 1/E

    # Answers
    temperatures: list[str] = field(default_factory=lambda: list(TEMPERATURES))
    initial_temperature: float = 0.07
    largest_scale: float = 100.0  # one over the smallest temperature

    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        at_least_one = (
            "vocab_size max_position_embeddings image_size patch_size num_channels max_frames hidden_size "
            "num_hidden_layers num_attention_heads intermediate_size num_attributes"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"num_attention_heads={self.num_attention_heads}: must divide hidden_size={self.hidden_size} evenly"
            )
        if self.image_size % self.patch_size:
            raise UsageError(f"patch_size={self.patch_size}: must divide image_size={self.image_size} evenly")
        if not 0 <= self.begin_token_id < self.vocab_size:
            raise UsageError(f"begin_token_id={self.begin_token_id}: not one of vocab_size={self.vocab_size} words")
        if self.num_experts == 1 or self.num_experts < 0:
            raise UsageError(f"num_experts={self.num_experts}: need 2 or more, as two are chosen, or 0 for none")
        if not 0.0 <= self.drop_path < 1.0:
            raise UsageError(f"drop_path={self.drop_path}: a share, 0 to below 1")
        if not self.temperatures or self.initial_temperature <= 0:
            raise UsageError(
                f"temperatures={self.temperatures}, initial_temperature={self.initial_temperature}: need a name at "
                "least, and more than 0"
            )
        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """Of a frame."""
        return (self.image_size // self.patch_size) ** 2
