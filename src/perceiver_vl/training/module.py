"""A model in a module whose `forward` is all that a step computes: what trains in parallel wraps it (DDP, FSDP)."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel


class TrainingModule(nn.Module):
    """Holds a model, and no weights of its own.

    A step calls several methods of the model, or its `forward` several times. DDP and FSDP see one thing only, that the
    `forward` of the module that they wrap is called, and it has to be called once a step.
    """

    def __init__(self, model: PerceiverVLPreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step, and its parts by name."""

    @abstractmethod
    def encode(self, **inputs: Tensor) -> Tensor:
        """What the model makes of `inputs`, without a loss."""

    def tie_weights(self) -> None:
        """The model's own; accelerate asks for it where one process alone has read the weights."""
        self.model.tie_weights()
