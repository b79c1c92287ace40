"""Perceiver AR. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from perceiver_vl.models.perceiver_ar.configuration import PerceiverARConfig
from perceiver_vl.models.perceiver_ar.inputs import PerceiverARCache
from perceiver_vl.models.perceiver_ar.modeling import PerceiverARForCausalLM, PerceiverARModel

AutoConfig.register(PerceiverARConfig.model_type, PerceiverARConfig, exist_ok=True)
AutoModel.register(PerceiverARConfig, PerceiverARModel, exist_ok=True)
AutoModelForCausalLM.register(PerceiverARConfig, PerceiverARForCausalLM, exist_ok=True)

__all__ = ["PerceiverARCache", "PerceiverARConfig", "PerceiverARForCausalLM", "PerceiverARModel"]
