"""A model of random weights in a folder, and indexes of made-up hours of video for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer
from perceiver_vl.search.rows import IndexSettings, Vectors, schema, with_checksums
from perceiver_vl.search.table import SEGMENTS, ClipTable, create_table

SEGMENT = 2.0
SEGMENTS_AN_HOUR = 1800
VECTOR = 256  # numbers of a unit vector
QUERIES = (
    "a dog runs over a field",
    "somebody opens a red door",
    "a train leaves the station",
    "children play in the snow",
    "two people shake hands",
    "a cook cuts vegetables",
)
_AT_ONCE = 5000
_SPREAD = 0.8  # of a segment about its video, and of a video about nothing, which is 1


def save_model(folder: Path, config: PerceiverVLConfig | None, seed: int) -> PerceiverVLConfig:
    """A model of retrieval of random weights, at base size unless `config` says, with its processor."""
    tokenizer = train_tokenizer(list(QUERIES) * 2, vocab_size=400)
    known = {"vocab_size": len(tokenizer), "mask_token_id": tokenizer.mask_token_id, "projection_dim": VECTOR}
    config = PerceiverVLConfig.from_dict((config or PerceiverVLConfig()).to_dict() | known)
    torch.manual_seed(seed)
    PerceiverVLForRetrieval(config).save_pretrained(folder)
    size = {"height": config.image_size, "width": config.image_size}
    frames = min(8, config.max_frames)
    PerceiverVLProcessor(PerceiverVLImageProcessor(size=size, num_frames=frames), tokenizer).save_pretrained(folder)
    return config


def make_library(
    index: Path, model: Path, config: PerceiverVLConfig, hours: int, seed: int, advance: Callable[..., None]
) -> ClipTable:
    """An index of so many videos of an hour each, in segments of two seconds: the vectors of a video about one of its
    own, partial attentions at random.
    """
    shutil.rmtree(index, ignore_errors=True)
    settings = _settings(index, model, config, segments=f"{SEGMENT:g}", segment_fps=1.0)
    clips, segments = create_table(index, settings), create_table(index, settings, SEGMENTS)
    draw = np.random.default_rng([seed, hours])
    clips.commit(_rows(settings, list(range(hours)), [None] * hours, draw, None))
    for video in range(hours):
        centre = draw.standard_normal(VECTOR).astype(np.float32)
        starts = [SEGMENT * number for number in range(SEGMENTS_AN_HOUR)]
        segments.append(_rows(settings, [video] * SEGMENTS_AN_HOUR, starts, draw, centre), ())
        advance()
    clips.finish(lambda: np.eye(VECTOR, dtype=np.float32)[:10])
    segments.finish(lambda: np.eye(VECTOR, dtype=np.float32)[:10])
    return segments


def make_clips(
    index: Path, model: Path, config: PerceiverVLConfig, count: int, seed: int, advance: Callable[..., None]
) -> ClipTable:
    """An index of so many clips without segments, their vectors and partial attentions at random."""
    settings = _settings(index, model, config)
    clips, draw = create_table(index, settings), np.random.default_rng([seed, count])
    for first in range(0, count, _AT_ONCE):
        some = list(range(first, min(first + _AT_ONCE, count)))
        clips.commit(_rows(settings, some, [None] * len(some), draw, None))
        advance(len(some))
    clips.finish(lambda: np.eye(VECTOR, dtype=np.float32)[:10])
    return clips


def _settings(index: Path, model: Path, config: PerceiverVLConfig, **more: Any) -> IndexSettings:
    return IndexSettings(
        str(model.resolve()),
        model_fingerprint(model),
        str(index.resolve()),
        "full",
        int(min(8, config.max_frames)),
        VECTOR,
        config.hidden_size,
        config.num_attention_heads,
        ("none",),
        **more,
    )


def _rows(
    settings: IndexSettings,
    videos: list[int],
    starts: list[float] | list[None],
    draw: np.random.Generator,
    centre: Vectors | None,
) -> pa.Table:
    count = len(videos)
    vectors = _SPREAD * draw.standard_normal((count, settings.vector_size), dtype=np.float32)
    vectors = vectors if centre is None else vectors + centre
    partials = draw.standard_normal((count, settings.hidden_size + settings.num_attention_heads), dtype=np.float32)
    columns = {
        "id": [f"{video:032x}" for video in videos],
        "file": [f"video {video}.mp4" for video in videos],
        "kind": ["video"] * count,
        "size": [1 << 30] * count,
        "mtime": [1 << 60] * count,
        "width": [1280] * count,
        "height": [720] * count,
        "duration": [3600.0] * count,
        "created": [1 << 50] * count,
        "captions": [[]] * count,
        "start": starts,
        "end": [None if start is None else start + SEGMENT for start in starts],
        "vector": list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
        "partial_attention": list(partials),
        "checksum": [0] * count,
    }
    return with_checksums(pa.table(columns, schema(settings)))
