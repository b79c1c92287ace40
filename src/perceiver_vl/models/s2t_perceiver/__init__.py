"""S2T Perceiver, with Dynamic Latent Access. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

from perceiver_vl.models.s2t_perceiver.configuration import S2TPerceiverConfig
from perceiver_vl.models.s2t_perceiver.modeling import (
    S2TPerceiverForConditionalGeneration,
    S2TPerceiverModel,
    S2TPerceiverPreTrainedModel,
)

AutoConfig.register(S2TPerceiverConfig.model_type, S2TPerceiverConfig, exist_ok=True)
AutoModel.register(S2TPerceiverConfig, S2TPerceiverModel, exist_ok=True)
AutoModelForSpeechSeq2Seq.register(S2TPerceiverConfig, S2TPerceiverForConditionalGeneration, exist_ok=True)

__all__ = [
    "S2TPerceiverConfig",
    "S2TPerceiverForConditionalGeneration",
    "S2TPerceiverModel",
    "S2TPerceiverPreTrainedModel",
]
