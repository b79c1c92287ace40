"""Perceiver, with iterative cross-attention. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from perceiver_vl.models.perceiver.configuration import IterativePerceiverConfig
from perceiver_vl.models.perceiver.modeling import (
    IterativePerceiverForClassification,
    IterativePerceiverModel,
    IterativePerceiverPreTrainedModel,
)

AutoConfig.register(IterativePerceiverConfig.model_type, IterativePerceiverConfig, exist_ok=True)
AutoModel.register(IterativePerceiverConfig, IterativePerceiverModel, exist_ok=True)
AutoModelForImageClassification.register(IterativePerceiverConfig, IterativePerceiverForClassification, exist_ok=True)

__all__ = [
    "IterativePerceiverConfig",
    "IterativePerceiverForClassification",
    "IterativePerceiverModel",
    "IterativePerceiverPreTrainedModel",
]
