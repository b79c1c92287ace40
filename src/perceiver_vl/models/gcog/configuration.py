"""What a model of gCOG is made of; refuses what cannot work, by name."""

from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from perceiver_vl.utils.errors import UsageError

Architecture = Literal["rnn", "gru", "single_stream", "double_stream", "cross_attention", "perceiver"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


@strict
class GCOGConfig(PreTrainedConfig):
    """Configuration of the models that gCOG compares (Ito et al. 2024, 3 and appendix); the defaults are the paper's.

    rnn, gru: the whole stimulus beside each token of the instruction. single_stream: an encoder of both as one
    sequence. double_stream: an encoder of each, whose last tokens are added. cross_attention: one query of zeros reads
    the instruction, then the stimulus. perceiver: latents do, and attend to themselves. Raises `UsageError` for values
    out of range, or that do not fit each other.
    """

    model_type = "gcog"

    architecture: Architecture = "perceiver"
    instruction_size: int = 8  # of a token: operator, two selectors of shape, colour and time, end
    stimulus_size: int = 3  # of a token: colour, shape, end
    stimulus_length: int = 101  # cells and an end
    max_instruction_length: int = 100  # rows for the positions of instructions
    num_labels: int = 138
    token_values: int = 0  # 0: tokens are numbers, as in the reference; else each number below it has a learned vector
    hidden_size: int = 256  # D; the paper's recurrent nets have 512
    num_attention_heads: int = 1
    num_hidden_layers: int = 1  # of single_stream; the others have one, whatever this says
    num_latents: int = 10  # of perceiver
    learned_latents: bool = False  # the reference's are zeros: all alike to the end, so there is one in fact
    position_dropout: float = 0.1  # after the positions, in training: the reference has it, whatever its dropout is
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_latents", "stimulus_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: need at least 1")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise UsageError(
                f"hidden_size={self.hidden_size}: need an even number that num_attention_heads="
                f"{self.num_attention_heads} divides evenly"
            )
        if not 0.0 <= self.position_dropout < 1.0:
            raise UsageError(f"position_dropout={self.position_dropout}: a share, 0 to below 1")
        super().__post_init__(**kwargs)
