"""What somebody has (a file, an image, an array, a tensor) as a model takes it: sampled frames, or all at some rate.

Shapes: T frames.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perceiver_vl.data.sources import EncodedFrames, load_features
from perceiver_vl.data.transcode.features import check_features
from perceiver_vl.data.transcode.prepared import has_features
from perceiver_vl.media.decode import load_frames, sampled_count, stream_clip
from perceiver_vl.media.files import FEATURES, VIDEO_EXTENSIONS
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.processing import ClipLike, ImageLike, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache, why_whole
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

Medium = ImageLike | ClipLike
_CHUNK_FRAMES = 32  # of a clip that is read at a rate: what is held of it at once


class ClipOptions(TypedDict, total=False):
    """How a clip is read for all that is asked about it.

    start, end: only these seconds of a file. fps: every frame of a file at that rate, however long it is, in the memory
    of some frames (`long_vision`); None: a few sampled ones. spill: a folder for what later cross-attentions need of
    it, which else decode it again. budget: of clip and texts. progress: show how far the reading is.
    """

    start: float | None
    end: float | None
    fps: float | None
    spill: str | Path | None
    budget: ComputeBudget
    progress: bool


@contextmanager
def cached_clip(
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    clip: Medium | VisionCache,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    spill: str | Path | None = None,
    budget: ComputeBudget = FULL_BUDGET,
    progress: bool = False,
) -> Iterator[VisionCache]:
    """What a clip contributes to every text it is asked with, read once as `ClipOptions` say; what was read earlier
    (`VisionCache`) as it is.

    Raises `UsageError` for options that do not go together, `MediaError` for a file that cannot be read.
    """
    if isinstance(clip, VisionCache):
        yield clip
        return
    model.config.check_budget(budget)
    if fps is None:
        if spill is not None:
            raise UsageError(f"spill={spill}: only a clip that is read at a rate needs one, give fps")
        num_frames = frames_of(processor, budget)
        frames = load_medium(clip, model, processor, num_frames, start, end)
        yield model.cache_vision(**processor(videos=[frames], num_frames=num_frames).to(model.device), budget=budget)
        return
    if isinstance(clip, str | os.PathLike) and str(clip).endswith(FEATURES):
        raise UsageError(f"fps={fps}: {clip} are features of some frames, name the media file or leave fps out")
    if not isinstance(clip, str | os.PathLike):
        raise UsageError(f"fps={fps}: of a file, but a {type(clip).__name__} was given")
    if budget.frames is not None:
        raise UsageError(f"fps={fps}: says which frames are read, leave frames={budget.frames} out of the budget")
    if reason := why_whole(model.config):
        raise UsageError(f"fps={fps}: {reason}, which chunks cut apart; leave fps out, and some frames are sampled")
    count = sampled_count(clip, fps, start=start, end=end)
    size = processor.image_processor.size
    with ProgressBars(progress) as stages:

        def chunks() -> Iterator[tuple[Tensor, Tensor]]:
            """All frames as chunks `(1,T,3,H,W)` with masks `(1,T)`; those that a damaged file lacks are masked."""
            advance = stages.stage("Reading frames", count)
            decoded = stream_clip(
                clip, fps=fps, start=start, end=end, size=(size.height, size.width), chunk=_CHUNK_FRAMES
            )
            missing = count
            for part in decoded:
                inputs = processor(videos=[part.frames], num_frames=len(part.frames)).to(model.device)
                yield inputs["pixel_values"], inputs["frame_mask"]
                advance(len(part.frames))
                missing -= len(part.frames)
            while missing:
                lacking = min(missing, len(part.frames))
                yield inputs["pixel_values"][:, :lacking], torch.zeros_like(inputs["frame_mask"][:, :lacking])
                advance(lacking)
                missing -= lacking

        with model.long_vision(chunks, num_frames=count, budget=budget, spill=spill) as cache:
            yield cache


def load_medium(
    medium: Any,
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    num_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> Any:
    """A medium as the processor takes clips: a file decoded, an image as its one frame, features as they are.

    Raises `MediaError` for a file that cannot be read, `UsageError` for seconds of what is no media file, for features
    of another encoder.
    """
    if isinstance(medium, str | os.PathLike) and str(medium).endswith(FEATURES):
        if start is not None or end is not None:
            raise UsageError(f"start={start}, end={end}: seconds of a media file, {medium} are features of one")
        return _features_of(Path(medium), model, processor, num_frames)
    if isinstance(medium, str | os.PathLike):
        size = processor.image_processor.size
        return load_frames(medium, num_frames, size=(size.height, size.width), start=start, end=end)
    if start is not None or end is not None:
        raise UsageError(f"start={start}, end={end}: seconds of a file, but a {type(medium).__name__} was given")
    if isinstance(medium, Image.Image):
        return [medium]
    if isinstance(medium, np.ndarray | Tensor) and medium.ndim == 3:
        return medium[None]
    if isinstance(medium, list | tuple):  # pictures, as the frames of one clip
        for one in medium:
            if isinstance(one, str | os.PathLike) and Path(one).suffix.lower() in VIDEO_EXTENSIONS:
                raise UsageError(f"{one}: in a list, which is one clip of pictures; give one video at a time")
    return medium


def _features_of(
    path: Path, model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor, num_frames: int
) -> EncodedFrames:
    """Of a clip of a folder that `prepare --features` has written."""
    folder = next((parent for parent in path.absolute().parents if has_features(parent)), None)
    if folder is None:
        raise UsageError(f"{path}: in no folder of features with its prepare.json, name the media file")
    check_features(folder, model, processor, num_frames)
    return load_features(path, num_frames)


def frames_of(processor: PerceiverVLProcessor, budget: ComputeBudget) -> int:
    """How many frames of a clip are sampled."""
    return budget.frames or int(processor.image_processor.num_frames)
