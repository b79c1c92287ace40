"""A bridge to a language model. Importing it tells transformers' Auto class of it."""

from typing import Any, TypeVar

from transformers import AutoModelForImageTextToText

from perceiver_vl.models.language_bridge.modeling import LanguageBridgeForConditionalGeneration
from perceiver_vl.models.perceiver_vl import PerceiverVLForCaptioning, PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig

_Kinds: Any = (PerceiverVLForCaptioning, LanguageBridgeForConditionalGeneration)  # a folder's `architectures` choose
AutoModelForImageTextToText.register(PerceiverVLConfig, _Kinds, exist_ok=True)

_Model = TypeVar("_Model", bound=type[PerceiverVLPreTrainedModel])


def class_for(kind: _Model, config: PerceiverVLConfig) -> _Model:
    """The class that a configuration is of, where `kind` is asked for: a language model may say the captions."""
    if kind is PerceiverVLForCaptioning and config.language_config is not None:
        return LanguageBridgeForConditionalGeneration  # type: ignore[return-value]
    return kind


__all__ = ["LanguageBridgeForConditionalGeneration", "class_for"]
