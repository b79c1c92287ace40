"""What evaluations have in common: the media as the model takes them, the checks, and a model set to evaluate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.data.prefetch import ReadBatch
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class VisionBatch:
    """The media of a batch: distinct clips or pictures `pixel_values (V,T,3,H,W)`, `frame_mask (V,T)`, and which of
    them each example is about, `rows (B,)` int64; of pairs, V = 2 times the distinct pairs, and a row counts pairs.
    `modality`: what they are instead, `(V,T,…)`, as of `PerceiverVLModel.embed_inputs`.
    """

    pixel_values: Tensor
    frame_mask: Tensor
    rows: Tensor
    modality: str | None = None


def vision_batch_of(
    batch: ReadBatch, processor: PerceiverVLProcessor, num_frames: int, device: torch.device
) -> VisionBatch:
    """The media of a batch as the model takes them."""
    clips = [frames for medium in batch.media for frames in medium]
    inputs = processor(videos=clips, num_frames=num_frames).to(device)
    rows = torch.tensor(batch.rows, device=device)
    return VisionBatch(inputs["pixel_values"], inputs["frame_mask"], rows, inputs.get("modality"))


def checked_frames(
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    num_frames: int | None,
    budget: ComputeBudget,
    batch_size: int,
) -> int:
    """The number of frames of a clip; raises `UsageError` for values that cannot work."""
    model.config.check_budget(budget)
    frames: int = budget.frames or num_frames or processor.image_processor.num_frames
    if not 1 <= frames <= model.config.max_frames:
        raise UsageError(f"num_frames={frames}: need 1 to {model.config.max_frames}, the model's max_frames")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: need at least 1")
    return frames


@contextmanager
def evaluating(model: PerceiverVLPreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode, and after that as it was."""
    was_training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(was_training)
