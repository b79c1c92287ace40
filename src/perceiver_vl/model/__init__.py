"""The model, from the input array to the answers. Importing it registers the classes with transformers' Auto
classes.
"""

from transformers import AutoConfig, AutoModel

from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.model.perceiver_vl import (
    PerceiverVLForPreTraining,
    PerceiverVLForPreTrainingOutput,
    PerceiverVLForRetrieval,
    PerceiverVLForRetrievalOutput,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
)

AutoConfig.register(PerceiverVLConfig.model_type, PerceiverVLConfig, exist_ok=True)
AutoModel.register(PerceiverVLConfig, PerceiverVLModel, exist_ok=True)

__all__ = [
    "PerceiverVLForPreTraining",
    "PerceiverVLForPreTrainingOutput",
    "PerceiverVLForRetrieval",
    "PerceiverVLForRetrievalOutput",
    "PerceiverVLModel",
    "PerceiverVLPreTrainedModel",
]
