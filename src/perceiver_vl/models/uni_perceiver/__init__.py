"""Uni-Perceiver. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from perceiver_vl.models.uni_perceiver.configuration import UniPerceiverConfig
from perceiver_vl.models.uni_perceiver.inputs import TASKS, Task, caption_mask
from perceiver_vl.models.uni_perceiver.modeling import (
    LikelihoodHead,
    UniPerceiverEncoder,
    UniPerceiverModel,
    UniPerceiverPreTrainedModel,
)

AutoConfig.register(UniPerceiverConfig.model_type, UniPerceiverConfig, exist_ok=True)
AutoModel.register(UniPerceiverConfig, UniPerceiverModel, exist_ok=True)

__all__ = [
    "TASKS",
    "LikelihoodHead",
    "Task",
    "UniPerceiverConfig",
    "UniPerceiverEncoder",
    "UniPerceiverModel",
    "UniPerceiverPreTrainedModel",
    "caption_mask",
]
