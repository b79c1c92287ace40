"""Dynamic Perceiver. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from perceiver_vl.models.dynamic_perceiver.configuration import DynamicPerceiverConfig
from perceiver_vl.models.dynamic_perceiver.modeling import (
    DynamicPerceiverForImageClassification,
    DynamicPerceiverOutput,
    self_distillation_loss,
)

AutoConfig.register(DynamicPerceiverConfig.model_type, DynamicPerceiverConfig, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForImageClassification):
    _auto_class.register(DynamicPerceiverConfig, DynamicPerceiverForImageClassification, exist_ok=True)

__all__ = [
    "DynamicPerceiverConfig",
    "DynamicPerceiverForImageClassification",
    "DynamicPerceiverOutput",
    "self_distillation_loss",
]
