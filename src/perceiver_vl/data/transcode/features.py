"""Clips as the frozen vision encoder of a model sees them, written once: what is dear in training over such a model.

`prepare --features MODEL` writes a folder of them as `prepare` writes small media. Each is an `.npy` of float16
`(T,1+P,W)`: of every frame its vector and its tokens (`PerceiverVLModel.encode_frames`).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceiver_vl.data.transcode.one_file import Transcoded, ended
from perceiver_vl.data.transcode.prepared import has_features, read_manifest
from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.files import FEATURES
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.files import write_with


@dataclass(frozen=True)
class FeatureSettings:
    """What features depend on: the encoder's fingerprint, and how many frames are sampled of a clip.

    model: the folder that it is loaded from; another with the same encoder makes the same features.
    """

    encoder: str
    num_frames: int
    token_grid: int
    model: str

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise UsageError(f"num_frames={self.num_frames}: need at least 1")

    def write(self, source: Path, target: Path, start: float | None, end: float | None) -> Transcoded:
        """Encode `num_frames` frames of a clip, the middles of equal segments, and write them to `target`.npy, whole
        or not at all. Raises `MediaError` if the source cannot be read, `OSError` if the target cannot be written.
        """
        model, processor = _load(self.model)
        size = processor.image_processor.size
        clip = load_clip(source, self.num_frames, size=(size.height, size.width), start=start, end=end)
        with torch.inference_mode():
            pixels = processor(videos=[clip.frames], num_frames=len(clip.frames))["pixel_values"]
            features = model.base_model.encode_frames(pixels)[0].to(torch.float16).numpy()

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, features, allow_pickle=False)

        write_with(ended(target, FEATURES), save)
        return Transcoded(FEATURES, len(features), clip.duration, clip.lost)

    def suffixes(self) -> tuple[str, ...]:
        """What the names of files may end with."""
        return (FEATURES,)


_FORMAT = 1  # of what `encode_frames` gives; another number where the same encoder's features are others


@lru_cache(maxsize=1)
def _load(model: str) -> tuple[Any, PerceiverVLProcessor]:
    return load_retriever(model, "cpu")


def feature_settings(model_folder: str | Path, num_frames: int | None = None) -> FeatureSettings:
    """The settings of the model in a folder; `num_frames`: None for its processor's.

    Raises `UsageError` for a model that has no vision encoder.
    """
    model, processor = _load(str(Path(model_folder).resolve()))
    return FeatureSettings(
        encoder=encoder_fingerprint(model, processor),
        num_frames=num_frames or int(processor.image_processor.num_frames),
        token_grid=model.config.grid,
        model=str(Path(model_folder).resolve()),
    )


def encoder_fingerprint(model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor) -> str:
    """SHA-256 over all that the features of a clip depend on: the encoder, its token grid, size and normalisation.

    Raises `UsageError` for a model that has no vision encoder.
    """
    encoder = model.base_model.vision_encoder
    if encoder is None:
        raise UsageError(
            "features: of a pretrained vision encoder, which this model has none of; make one with perceiver-vl init"
        )
    images = processor.image_processor
    digest = hashlib.sha256(
        repr((_FORMAT, model.config.grid, dict(images.size), list(images.image_mean), list(images.image_std))).encode()
    )
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_features(
    folder: str | Path, model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor, num_frames: int
) -> None:
    """Refuse a folder of features that another encoder has made, or with fewer frames than are asked for; another kind
    of folder is none of this function's business. Raises `UsageError`.
    """
    if not has_features(Path(folder)):
        return
    settings = (read_manifest(Path(folder)) or {})["settings"]
    again = f"perceiver-vl prepare MEDIA {folder} --features MODEL"
    if settings["encoder"] != encoder_fingerprint(model, processor):
        raise UsageError(
            f"{folder}: features of another encoder or token grid than this model has, make them again in a new folder "
            f"({again})"
        )
    if settings["num_frames"] < num_frames:
        raise UsageError(
            f"{folder}: features of {settings['num_frames']} frames a clip, {num_frames} are asked for; ask for fewer, "
            f"or make them again ({again} --num-frames {num_frames})"
        )
