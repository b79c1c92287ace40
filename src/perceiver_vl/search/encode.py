"""Media files → unit vectors and partial attentions: decoding ahead in threads, encoding in batches."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from perceiver_vl.media.decode import Clip as Decoded
from perceiver_vl.media.decode import load_clip
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.search.store import EncodedClip, IndexEntry, IndexSettings, SkippedFile
from perceiver_vl.utils.errors import MediaError, PerceiverVLError

DECODING_THREADS = min(8, os.cpu_count() or 1)


class ClipEncoder:
    """Decodes files in threads while the model encodes the batch before."""

    def __init__(
        self,
        model: PerceiverVLForRetrieval,
        processor: PerceiverVLProcessor,
        settings: IndexSettings,
        budget: ComputeBudget,
        batch_size: int,
    ) -> None:
        self._model, self._processor, self._settings = model, processor, settings
        self._budget, self._batch_size = budget, batch_size
        size = processor.image_processor.size
        self._size = (size.height, size.width)

    def encode(
        self, clips: Sequence[IndexEntry], broken: dict[str, SkippedFile], damaged: list[str], strict: bool
    ) -> Iterator[EncodedClip | None]:
        """Each clip encoded, in order; None for a file that cannot be decoded, which is added to `broken`.

        A file that lacks frames is encoded and added to `damaged`.
        With `strict` such a file raises its `MediaError`, once the clips before it are encoded.
        """
        batch: list[tuple[IndexEntry, Decoded]] = []
        for clip, decoded in self._decode_ahead(clips):
            if isinstance(decoded, MediaError):
                if strict:
                    yield from self._encode_batch(batch)
                    raise decoded
                broken[clip.file_name] = SkippedFile(clip.file_name, clip.size, clip.mtime_ns, decoded.reason)
                yield None
                continue
            if decoded.lost:
                damaged.append(clip.file_name)
            batch.append((replace(clip, duration=decoded.duration), decoded))
            if len(batch) == self._batch_size:
                yield from self._encode_batch(batch)
                batch = []
        yield from self._encode_batch(batch)

    def _decode_ahead(self, clips: Sequence[IndexEntry]) -> Iterator[tuple[IndexEntry, Decoded | MediaError]]:
        """Every clip with its frames or what is wrong with it; at most two batches of frames are held."""
        remaining = iter(clips)
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            waiting: deque[tuple[IndexEntry, Future[Decoded | MediaError]]] = deque()
            try:
                while True:
                    for clip in islice(remaining, 2 * self._batch_size - len(waiting)):
                        waiting.append((clip, pool.submit(self._decode, clip)))
                    if not waiting:
                        return
                    clip, future = waiting.popleft()
                    yield clip, future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, clip: IndexEntry) -> Decoded | MediaError:
        try:
            return load_clip(Path(self._settings.media, clip.file_name), self._settings.frames, size=self._size)
        except MediaError as error:
            return error

    @torch.inference_mode()
    def _encode_batch(self, batch: Sequence[tuple[IndexEntry, Decoded]]) -> list[EncodedClip]:
        if not batch:
            return []
        videos = [decoded.frames for _, decoded in batch]
        inputs = self._processor(videos=videos, num_frames=self._settings.frames, return_tensors="pt").to(
            self._model.device
        )
        latents = self._model.encode_vision(inputs["pixel_values"], inputs["frame_mask"], self._budget)
        vectors = self._model.pool_vision(latents).float().cpu().numpy()
        partial_attentions = self._model.partial_match(latents).float().cpu().numpy()
        encoded = [
            EncodedClip(clip, vector, partial_attention)
            for (clip, _), vector, partial_attention in zip(batch, vectors, partial_attentions, strict=True)
        ]
        for one in encoded:
            if not (np.isfinite(one.vector).all() and np.isfinite(one.partial_attention).all()):
                raise PerceiverVLError(
                    f"{one.clip.file_name}: its encoding is not numbers, "
                    f"the weights in {self._settings.model} are damaged"
                )
        return encoded
