"""Perceiver TF. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForAudioFrameClassification

from perceiver_vl.models.perceiver_tf.configuration import PerceiverTFConfig
from perceiver_vl.models.perceiver_tf.modeling import (
    PerceiverTFForTranscription,
    PerceiverTFModel,
    PerceiverTFPreTrainedModel,
)

AutoConfig.register(PerceiverTFConfig.model_type, PerceiverTFConfig, exist_ok=True)
AutoModel.register(PerceiverTFConfig, PerceiverTFModel, exist_ok=True)
AutoModelForAudioFrameClassification.register(PerceiverTFConfig, PerceiverTFForTranscription, exist_ok=True)

__all__ = ["PerceiverTFConfig", "PerceiverTFForTranscription", "PerceiverTFModel", "PerceiverTFPreTrainedModel"]
