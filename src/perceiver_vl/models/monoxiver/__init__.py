"""MonoXiver's head. Importing it registers the classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from perceiver_vl.models.monoxiver.configuration import MonoXiverConfig
from perceiver_vl.models.monoxiver.modeling import MonoXiverModel, MonoXiverOutput

AutoConfig.register(MonoXiverConfig.model_type, MonoXiverConfig, exist_ok=True)
AutoModel.register(MonoXiverConfig, MonoXiverModel, exist_ok=True)

__all__ = ["MonoXiverConfig", "MonoXiverModel", "MonoXiverOutput"]
