"""Clips for the benches of trained models: a user's own, or the generated world's held-out ones."""

from collections.abc import Mapping
from pathlib import Path

from perceiver_vl.data.open import open_dataset
from perceiver_vl.data.records import Need
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import Subset, VideoDataset
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.errors import UsageError

WORLD = "world"
WORLD_CLIPS = 256


def open_videos(
    data: str,
    processor: PerceiverVLProcessor,
    *,
    split: str | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    clips: int | None = None,
    need: Need | None = "text",
    default_clips: int = WORLD_CLIPS,
) -> VideoDataset:
    """The first `clips` of the folder, or folder or URL of shards, `data`, read as `open_dataset` does; or of the
    generated world's test split.

    `world` stands for the latter (`./world` for a folder of that name); without `clips` it has `default_clips`.
    Raises `UsageError` for what cannot be opened, a number below 1, or needs that the world's captions do not meet;
    `PerceiverVLError` where more than the share `max_failed_fraction` of the records cannot be used.
    """
    if clips is not None and clips < 1:
        raise UsageError(f"clips={clips}: need at least 1")
    size = processor.image_processor.size
    if data == WORLD:
        if need != "text":
            raise UsageError(
                "data=world: has captions alone, write its questions as files with perceiver-vl world OUT --tasks "
                "frame --clips 200 --held-out 50"
            )
        if metadata or columns:
            raise UsageError("data=world: has no metadata and columns, leave them out")
        return World(split or "test", default_clips if clips is None else clips, size=size.height)
    source, _ = open_dataset(
        data,
        (size.height, size.width),
        split=split,
        metadata=metadata,
        columns=columns,
        max_failed_fraction=max_failed_fraction,
        need=need,
    )
    return source if clips is None else Subset(source, clips)
