"""The frames of a clip as small pictures beside each other, for pages that need no file beside them."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import MediaError

STRIP_FRAMES = 8
STRIP_HEIGHT = 96
STRIP_WIDTH = 256  # at most, of one frame
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A frame of a filmstrip: where in the clip, in seconds (None: unknown), and a JPEG as a `data:` address."""

    seconds: float | None
    width: int
    source: str


@dataclass(frozen=True)
class Filmstrip:
    """The frames of a clip, or why there are none."""

    pictures: list[Thumbnail]
    problem: str | None = None


def filmstrip(
    path: Path, frames: int = STRIP_FRAMES, start: float | None = None, end: float | None = None
) -> Filmstrip:
    """At most `frames` small frames of a clip, or of its seconds [start, end), at equal distances; one of an image."""
    try:
        clip = load_clip(path, frames, start=start, end=end)
    except MediaError as error:
        return Filmstrip([], error.reason)
    return Filmstrip(
        [_picture(float(seconds), frame) for seconds, frame in zip(clip.timestamps, clip.frames, strict=True)]
    )


def filmstrip_of(frames: Frames) -> Filmstrip:
    """Frames `(T,H,W,3)` that are decoded already, whenever they were."""
    return Filmstrip([_picture(None, frame) for frame in frames])


def _picture(seconds: float | None, frame: Frames) -> Thumbnail:
    image = ImageOps.contain(Image.fromarray(frame), (STRIP_WIDTH, STRIP_HEIGHT))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return Thumbnail(seconds, image.width, f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
