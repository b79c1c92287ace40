"""The model, from the input array to the answers. Importing it registers the classes with transformers' Auto
classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
)

from perceiver_vl.models.perceiver_vl import onnx_encoder  # noqa: F401  # known to AutoConfig before a folder is read
from perceiver_vl.models.perceiver_vl.captioning import PerceiverVLForCaptioning, PerceiverVLForCaptioningOutput
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.image_pairs import PerceiverVLForImagesAndTextClassification
from perceiver_vl.models.perceiver_vl.modeling import PerceiverVLModel, PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.multiple_choice import PerceiverVLForMultipleChoice
from perceiver_vl.models.perceiver_vl.pretraining import PerceiverVLForPreTraining, PerceiverVLForPreTrainingOutput
from perceiver_vl.models.perceiver_vl.question_answering import (
    PerceiverVLAnswerOutput,
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
)
from perceiver_vl.models.perceiver_vl.retrieval import PerceiverVLForRetrieval, PerceiverVLForRetrievalOutput

AutoConfig.register(PerceiverVLConfig.model_type, PerceiverVLConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, PerceiverVLModel),
    (AutoModelForPreTraining, PerceiverVLForPreTraining),
    (AutoModelForVisualQuestionAnswering, PerceiverVLForQuestionAnswering),
    (AutoModelForImageClassification, PerceiverVLForImageClassification),
    (AutoModelForMultipleChoice, PerceiverVLForMultipleChoice),
    (AutoModelForImageTextToText, PerceiverVLForCaptioning),
):
    auto_class.register(PerceiverVLConfig, model_class, exist_ok=True)

__all__ = [
    "PerceiverVLAnswerOutput",
    "PerceiverVLForCaptioning",
    "PerceiverVLForCaptioningOutput",
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
