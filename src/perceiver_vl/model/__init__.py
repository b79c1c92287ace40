"""The model, from the input array to the answers. Importing it registers the classes with transformers' Auto
classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
)

from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.model.answering import (
    PerceiverVLAnswerOutput,
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
)
from perceiver_vl.model.choosing import PerceiverVLForMultipleChoice
from perceiver_vl.model.pairs import PerceiverVLForImagesAndTextClassification
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
    (AutoModelForMultipleChoice, PerceiverVLForMultipleChoice),
):
    auto_class.register(PerceiverVLConfig, model_class, exist_ok=True)

__all__ = [
    "PerceiverVLAnswerOutput",
    "PerceiverVLForImageClassification",
    "PerceiverVLForImagesAndTextClassification",
    "PerceiverVLForMultipleChoice",
    "PerceiverVLForPreTraining",
    "PerceiverVLForPreTrainingOutput",
    "PerceiverVLForQuestionAnswering",
    "PerceiverVLForRetrieval",
    "PerceiverVLForRetrievalOutput",
    "PerceiverVLModel",
    "PerceiverVLPreTrainedModel",
]
