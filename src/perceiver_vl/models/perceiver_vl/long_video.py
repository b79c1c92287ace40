"""Clips that are too long to be in memory: embedded, read and forgotten a chunk of frames at a time.

A chunk's partial attention is all that the latents will ever take from it, so a read of any length needs the memory of
a chunk. Later cross-attentions meet other latents and need the chunks again: embedded once more, or from a file beside
(a spill). Shapes: B clips, T frames of a chunk, P patches a frame, D width.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.partial_attention import KeysValues
from perceiver_vl.models.perceiver_vl.embeddings import InputEmbeddings
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

Chunk = Tensor | tuple[Tensor, Tensor]  # pixel_values (B,T,3,H,W), with or without frame_mask (B,T)
Chunks = Iterable[Chunk] | Callable[[], Iterable[Chunk]]
Embedded = Iterable[tuple[Tensor, Tensor]]  # tokens (B,T·P,D), mask (B,T·P)
SPILL_BYTES = 16 << 30  # ten hours at a frame a second and base size


@dataclass(frozen=True)
class EmbeddedChunks:
    """The chunks of B clips as their part of the input array, embedded anew at each pass.

    `encode_frames`: that of the model.
    `num_frames`: the frames in all; needed, and the temporal table interpolated to it, where that has fewer rows.
    `on_vectors`: what is told the vectors of the frames of each chunk `(B,T,W)`, which a vision encoder gives beside
    its tokens, and which of them are real `(B,T)` bool. `reduce`: tokens and mask, and which frame of the clip each
    frame is, `(T,)` or `(B,T)` → those that are read (`fewer_keys.reduce_frames`).
    """

    embeddings: InputEmbeddings
    encode_frames: Callable[[Tensor], Tensor]
    chunks: Chunks
    num_frames: int | None
    on_vectors: Callable[[Tensor, Tensor], object] = lambda vectors, mask: None
    reduce: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda tokens, mask, places: (tokens, mask)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """In any order: whether it belongs to a clip or is an image, the first frame shows at the end only."""
        stream = _from_two_frames(_with_masks(self.chunks() if callable(self.chunks) else self.chunks))
        table = temporal_table(self.embeddings.vision.temporal_embeddings, self.num_frames)
        start, held = 0, None
        for pixel_values, given_mask in stream:
            pixel_values = self.encode_frames(pixel_values)
            if pixel_values.ndim == 4:  # of a vision encoder
                self.on_vectors(pixel_values[:, :, 0], given_mask)
                pixel_values = pixel_values[:, :, 1:]
            frames = pixel_values.shape[1]
            if start + frames > len(table):
                raise UsageError(
                    f"clip of {start + frames} frames or more, num_frames={self.num_frames}, max_frames="
                    f"{len(self.embeddings.vision.temporal_embeddings)}: say how many there are with num_frames"
                )
            is_image = start == 0 and frames == 1
            frame_mask = given_mask if is_image else self.embeddings.real_frames(pixel_values, given_mask)
            held = held or _FirstFrames(pixel_values)
            further = held.take(pixel_values, frame_mask, start)
            if further.any():
                tokens = self.embeddings.embed_frames(pixel_values, further, table[start : start + frames])
                yield self.reduce(*tokens, start + torch.arange(frames, device=further.device))
            start += frames
        if held is None or (self.num_frames is not None and start != self.num_frames):
            raise UsageError(f"chunks of {start} frames in all: need {self.num_frames or 'at least one'} (num_frames)")
        yield self.reduce(*self.embeddings.embed_frames(*held.with_places(table)), held.places[:, None])

    @property
    def once(self) -> bool:
        """Whether one pass is all that the chunks can give."""
        return isinstance(self.chunks, Iterator)


class _FirstFrames:
    """The first real frame of each clip, held back: it has a place in time only if a second one comes."""

    def __init__(self, like: Tensor) -> None:
        self.pixel_values = torch.zeros_like(like[:, :1])  # (B,1,3,H,W)
        self.places = torch.zeros(len(like), dtype=torch.long, device=like.device)
        self.counts = torch.zeros_like(self.places)

    def take(self, pixel_values: Tensor, frame_mask: Tensor, start: int) -> Tensor:
        """Note a chunk that begins at frame `start` → the mask `(B,T)` of its real frames that are no clip's first."""
        if pixel_values.shape[2:] != self.pixel_values.shape[2:] or len(pixel_values) != len(self.places):
            found, before = tuple(pixel_values.shape), tuple(self.pixel_values.shape)
            raise UsageError(f"chunk of shape {found} after chunks of {before}: only the frames' number may change")
        first = frame_mask & (frame_mask.cumsum(1) == 1) & (self.counts == 0)[:, None]
        rows, columns = first.nonzero().T
        self.pixel_values[rows, 0] = pixel_values[rows, columns]
        self.places[rows] = start + columns
        self.counts += frame_mask.sum(1)
        return frame_mask & ~first

    def with_places(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels `(B,1,3,H,W)`, mask `(B,1)`, rows of time `(B,1,D)`: zeros for an image."""
        rows = table[self.places] * (self.counts > 1)[:, None]
        return self.pixel_values, (self.counts > 0)[:, None], rows[:, None]


def temporal_table(table: Tensor, num_frames: int | None) -> Tensor:
    """The temporal table `(max_frames,D)`; interpolated linearly (ends aligned) if `num_frames` are more.

    The rows between two trained ones are a guess, as positions at another resolution are; rows that no training clip
    was long enough to reach are still as they were initialised, and are spread with the others.
    """
    if num_frames is None or num_frames <= len(table):
        return table
    return F.interpolate(table.T[None], size=num_frames, mode="linear", align_corners=True)[0].T


def _with_masks(chunks: Iterable[Chunk]) -> Iterator[tuple[Tensor, Tensor]]:
    for chunk in chunks:
        pixel_values, mask = chunk if isinstance(chunk, tuple) else (chunk, None)
        if pixel_values.ndim != 5:
            raise UsageError(f"chunk of shape {tuple(pixel_values.shape)}: need (B,T,3,H,W)")
        if mask is None:
            mask = torch.ones(pixel_values.shape[:2], device=pixel_values.device)
        yield pixel_values, mask.bool()


def _from_two_frames(chunks: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, the first with at least two frames unless there is but one in all: images have rules of their own."""
    head = _first_two_frames(chunks)
    if head is not None:
        yield head
    del head  # a generator keeps what it names, here the first chunk until the last
    yield from chunks


def _first_two_frames(chunks: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    first = next(chunks, None)
    while first is not None and first[0].shape[1] < 2 and (second := next(chunks, None)) is not None:
        first = torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]], dim=1)
    return first


@dataclass(frozen=True)
class ProjectedChunks:
    """The chunks as keys and values of one cross-attention, projected at each pass."""

    block: AttentionBlock
    embedded: Embedded

    def __iter__(self) -> Iterator[KeysValues]:
        """A part for each chunk."""
        for tokens, mask in self.embedded:
            yield self.block.keys_values(tokens, mask)


class Spill:
    """Embedded chunks in a nameless file of `folder`, which is gone with this object or this process."""

    def __init__(self, folder: str | Path, most_bytes: int) -> None:
        """Raises `UsageError` for a folder that cannot be written."""
        self.folder, self.most_bytes, self.bytes = folder, most_bytes, 0
        self.parts: list[tuple[int, torch.Size, torch.dtype, Tensor]] = []
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise UsageError(f"spill={str(folder)!r}: cannot be written ({error.strerror}), give a folder") from error

    def copies(self, embedded: Embedded) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass `embedded` through, and keep it. Raises `PerceiverVLError` for a full disk or more than `most_bytes`."""
        for tokens, mask in embedded:
            stored = tokens.detach().cpu().contiguous().view(torch.uint8).numpy()
            if self.bytes + stored.nbytes > self.most_bytes:
                raise PerceiverVLError(
                    f"{self.folder}: the spill would take more than spill_bytes={self.most_bytes}; allow more, or give "
                    "the chunks as a function that opens them again"
                )
            try:
                self.file.write(stored.data)
                self.file.flush()
            except OSError as error:
                raise PerceiverVLError(f"{self.folder}: the spill cannot be written ({error.strerror})") from error
            self.parts.append((self.bytes, tokens.shape, tokens.dtype, mask))
            self.bytes += stored.nbytes
            yield tokens, mask

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What was kept; raises `UsageError` once it is closed."""
        for offset, shape, dtype, mask in self.parts:
            if self.file.closed:
                raise UsageError("vision_cache: its spill is closed, ask within the with block of long_vision")
            size = shape.numel() * dtype.itemsize
            stored = np.memmap(self.file, dtype=np.uint8, mode="c", offset=offset, shape=(size,))
            yield torch.from_numpy(stored).view(dtype).view(shape).to(mask.device), mask

    def close(self) -> None:
        """Give the disk back."""
        self.file.close()
