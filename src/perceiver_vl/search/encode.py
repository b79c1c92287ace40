"""Media files → unit vectors and partial attentions: decoding ahead in threads, encoding in batches.

Shapes: B batch, D width, H heads, E retrieval vector.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perceiver_vl.data.prefetch import decode_ahead, or_media_error
from perceiver_vl.data.sources import load_features
from perceiver_vl.media.decode import Clip, load_clip
from perceiver_vl.media.files import FEATURES
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import ClipLike, PerceiverVLProcessor
from perceiver_vl.search.rows import EncodedClip, IndexEntry, IndexSettings, SkippedFile
from perceiver_vl.utils.errors import MediaError, PerceiverVLError


@torch.inference_mode()
def encode_clips(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    clips: Sequence[ClipLike],
    num_frames: int,
    budget: ComputeBudget,
) -> tuple[Tensor, Tensor]:
    """B clips → all that searching them needs: unit vectors `(B,E)` and partial attentions `(B,D+H)`, in float32."""
    inputs = processor(videos=clips, num_frames=num_frames).to(model.device)
    latents, features = model.encode_and_pool_vision(inputs["pixel_values"], inputs["frame_mask"], budget)
    return features.float(), model.partial_match(latents).float()


def encode_files(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    settings: IndexSettings,
    budget: ComputeBudget,
    batch_size: int,
    files: Sequence[IndexEntry],
    strict: bool,
) -> Generator[EncodedClip | SkippedFile, None, None]:
    """Each file encoded, in order, or what is wrong with one that cannot be decoded, as soon as that is known.

    With `strict` such a file raises its `MediaError`, once the clips before it are encoded. Raises `PerceiverVLError`
    for a model whose encodings are not numbers.
    """
    size = processor.image_processor.size

    def decode(file: IndexEntry) -> Clip:
        path = Path(settings.media, file.file)
        if path.suffix == FEATURES:
            features = load_features(path, settings.frames)
            return Clip(features, np.zeros(len(features)), None, lost=False)
        return load_clip(path, settings.frames, size=(size.height, size.width))

    batch: list[tuple[IndexEntry, Clip]] = []
    with closing(decode_ahead(files, or_media_error(decode), 2 * batch_size)) as decoding:
        for number, (file, clip) in enumerate(decoding, start=1):
            if not isinstance(clip, MediaError):
                batch.append((file, clip))
            elif not strict:
                yield SkippedFile(file.file, file.size, file.mtime, clip.reason)
            stopped = clip if strict and isinstance(clip, MediaError) else None
            if batch and (len(batch) == batch_size or number == len(files) or stopped):
                clips = [decoded.frames for _, decoded in batch]
                found = encode_clips(model, processor, clips, settings.frames, budget)
                yield from encoded_rows(batch, *found, settings)
                batch = []
            if stopped:
                raise stopped


def encoded_rows(
    batch: Sequence[tuple[IndexEntry, Clip]], vectors: Tensor, partial_attentions: Tensor, settings: IndexSettings
) -> Iterator[EncodedClip]:
    """What `encode_clips` gives of files, with what reading them told; `PerceiverVLError` for what is no number."""
    found = zip(batch, vectors.cpu().numpy(), partial_attentions.cpu().numpy(), strict=True)
    for (file, clip), vector, partial_attention in found:
        if not (np.isfinite(vector).all() and np.isfinite(partial_attention).all()):
            raise PerceiverVLError(
                f"{file.file}: its encoding is not numbers, the weights in {settings.model} are damaged"
            )
        height, width = clip.shape or (None, None)
        created = clip.created or datetime.fromtimestamp(file.mtime / 1e9, UTC)
        known = replace(file, width=width, height=height, duration=clip.duration, created=created)
        yield EncodedClip(known, vector, partial_attention, clip.lost)
