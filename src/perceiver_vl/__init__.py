"""Perceiver-VL: vision-and-language modelling with iterative latent attention.

The public names load on first use, so that `import perceiver_vl` and `perceiver-vl --help` stay light. Using one
of them registers all with transformers' `AutoConfig`, `AutoModel`, `AutoProcessor` and `AutoImageProcessor`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perceiver_vl._version import __version__
from perceiver_vl.budget import ComputeBudget
from perceiver_vl.errors import MediaError, PerceiverVLError, UsageError

if TYPE_CHECKING:
    from perceiver_vl.configuration import PerceiverVLConfig
    from perceiver_vl.media import load_frames
    from perceiver_vl.model import (
        PerceiverVLForImageClassification,
        PerceiverVLForImagesAndTextClassification,
        PerceiverVLForMultipleChoice,
        PerceiverVLForPreTraining,
        PerceiverVLForQuestionAnswering,
        PerceiverVLForRetrieval,
        PerceiverVLModel,
    )
    from perceiver_vl.model.pretrained import initialise_from
    from perceiver_vl.pipelines import pipeline
    from perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor

_HOME = {
    "PerceiverVLConfig": "perceiver_vl.model",
    "PerceiverVLModel": "perceiver_vl.model",
    "PerceiverVLForPreTraining": "perceiver_vl.model",
    "PerceiverVLForRetrieval": "perceiver_vl.model",
    "PerceiverVLForQuestionAnswering": "perceiver_vl.model",
    "PerceiverVLForMultipleChoice": "perceiver_vl.model",
    "PerceiverVLForImagesAndTextClassification": "perceiver_vl.model",
    "PerceiverVLForImageClassification": "perceiver_vl.model",
    "PerceiverVLProcessor": "perceiver_vl.processing",
    "PerceiverVLImageProcessor": "perceiver_vl.processing",
    "initialise_from": "perceiver_vl.model.pretrained",
    "load_frames": "perceiver_vl.media",
    "pipeline": "perceiver_vl.pipelines",
}

__all__ = [
    "ComputeBudget",
    "MediaError",
    "PerceiverVLConfig",
    "PerceiverVLError",
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
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import_module("perceiver_vl.model")
        import_module("perceiver_vl.processing")
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
