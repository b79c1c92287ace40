"""The model, from the input array to the answers. Importing it registers the classes with transformers' Auto
classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
)

from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.model.answering import (
    PerceiverVLAnswerOutput,
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
)
from perceiver_vl.model.perceiver_vl import (
    PerceiverVLForPreTraining,
    PerceiverVLForPreTrainingOutput,
    PerceiverVLForRetrieval,
    PerceiverVLForRetrievalOutput,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
)

AutoConfig.register(PerceiverVLConfig.model_type, PerceiverVLConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, PerceiverVLModel),
    (AutoModelForPreTraining, PerceiverVLForPreTraining),
    (AutoModelForVisualQuestionAnswering, PerceiverVLForQuestionAnswering),
    (AutoModelForImageClassification, PerceiverVLForImageClassification),
):
    auto_class.register(PerceiverVLConfig, model_class, exist_ok=True)

__all__ = [
    "PerceiverVLAnswerOutput",
    "PerceiverVLForImageClassification",
    "PerceiverVLForPreTraining",
    "PerceiverVLForPreTrainingOutput",
    "PerceiverVLForQuestionAnswering",
    "PerceiverVLForRetrieval",
    "PerceiverVLForRetrievalOutput",
    "PerceiverVLModel",
    "PerceiverVLPreTrainedModel",
]
