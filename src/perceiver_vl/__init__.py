"""Perceiver-VL: vision-and-language modelling with iterative latent attention.

The public names load on first use, so that `import perceiver_vl` and `perceiver-vl --help` stay light. Using one
of them registers all with transformers' `AutoConfig`, `AutoModel`, `AutoProcessor` and `AutoImageProcessor`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perceiver_vl._version import __version__
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError

if TYPE_CHECKING:
    from perceiver_vl.inference.pipelines import pipeline
    from perceiver_vl.media.decode import load_frames
    from perceiver_vl.models.language_bridge import LanguageBridgeForConditionalGeneration
    from perceiver_vl.models.perceiver_vl import (
        PerceiverVLForCaptioning,
        PerceiverVLForImageClassification,
        PerceiverVLForImagesAndTextClassification,
        PerceiverVLForMultipleChoice,
        PerceiverVLForPreTraining,
        PerceiverVLForQuestionAnswering,
        PerceiverVLForRetrieval,
        PerceiverVLModel,
    )
    from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
    from perceiver_vl.models.perceiver_vl.modalities import Modality, register_modality
    from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor
    from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer
    from perceiver_vl.models.perceiver_vl.warm_start import initialise_from

_HOME = {
    "LanguageBridgeForConditionalGeneration": "perceiver_vl.models.language_bridge",
    "PerceiverVLConfig": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLModel": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForPreTraining": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForRetrieval": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForQuestionAnswering": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForMultipleChoice": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForCaptioning": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForImagesAndTextClassification": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLForImageClassification": "perceiver_vl.models.perceiver_vl",
    "PerceiverVLProcessor": "perceiver_vl.models.perceiver_vl.processing",
    "Modality": "perceiver_vl.models.perceiver_vl.modalities",
    "register_modality": "perceiver_vl.models.perceiver_vl.modalities",
    "PerceiverVLImageProcessor": "perceiver_vl.models.perceiver_vl.processing",
    "initialise_from": "perceiver_vl.models.perceiver_vl.warm_start",
    "load_frames": "perceiver_vl.media.decode",
    "pipeline": "perceiver_vl.inference.pipelines",
    "train_tokenizer": "perceiver_vl.models.perceiver_vl.tokenizer",
}

__all__ = [
    "ComputeBudget",
    "LanguageBridgeForConditionalGeneration",
    "MediaError",
    "Modality",
    "PerceiverVLConfig",
    "PerceiverVLError",
    "PerceiverVLForCaptioning",
    "PerceiverVLForImageClassification",
    "PerceiverVLForImagesAndTextClassification",
    "PerceiverVLForMultipleChoice",
    "PerceiverVLForPreTraining",
    "PerceiverVLForQuestionAnswering",
    "PerceiverVLForRetrieval",
    "PerceiverVLImageProcessor",
    "PerceiverVLModel",
    "PerceiverVLProcessor",
    "UsageError",
    "__version__",
    "initialise_from",
    "load_frames",
    "pipeline",
    "register_modality",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import_module("perceiver_vl.models.perceiver_vl")
        import_module("perceiver_vl.models.perceiver_vl.processing")
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
