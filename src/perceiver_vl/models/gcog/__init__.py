"""The models of gCOG. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from perceiver_vl.models.gcog.configuration import ARCHITECTURES, GCOGConfig
from perceiver_vl.models.gcog.modeling import GCOGForClassification, GCOGModel, GCOGPreTrainedModel

AutoConfig.register(GCOGConfig.model_type, GCOGConfig, exist_ok=True)
AutoModel.register(GCOGConfig, GCOGModel, exist_ok=True)
AutoModelForSequenceClassification.register(GCOGConfig, GCOGForClassification, exist_ok=True)

__all__ = ["ARCHITECTURES", "GCOGConfig", "GCOGForClassification", "GCOGModel", "GCOGPreTrainedModel"]
