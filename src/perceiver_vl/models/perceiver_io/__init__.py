"""Perceiver IO. Importing it registers the classes with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from perceiver_vl.models.perceiver_io.configuration import PerceiverIOConfig
from perceiver_vl.models.perceiver_io.modeling import PerceiverIOModel, PerceiverIOPreTrainedModel
from perceiver_vl.models.perceiver_io.tasks import (
    PerceiverIOForImageClassification,
    PerceiverIOForMaskedLM,
    PerceiverIOForMultimodalAutoencoding,
    PerceiverIOForOpticalFlow,
    PerceiverIOForSequenceClassification,
)

AutoConfig.register(PerceiverIOConfig.model_type, PerceiverIOConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, PerceiverIOModel),
    (AutoModelForMaskedLM, PerceiverIOForMaskedLM),
    (AutoModelForSequenceClassification, PerceiverIOForSequenceClassification),
    (AutoModelForImageClassification, PerceiverIOForImageClassification),
):
    auto_class.register(PerceiverIOConfig, model_class, exist_ok=True)

__all__ = [
    "PerceiverIOConfig",
    "PerceiverIOForImageClassification",
    "PerceiverIOForMaskedLM",
    "PerceiverIOForMultimodalAutoencoding",
    "PerceiverIOForOpticalFlow",
    "PerceiverIOForSequenceClassification",
    "PerceiverIOModel",
    "PerceiverIOPreTrainedModel",
]
