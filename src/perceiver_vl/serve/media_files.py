"""Files of an index, found by id and checked, and what is made of them: ranges, streams, filmstrips."""

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from perceiver_vl.media.decode import load_clip
from perceiver_vl.media.files import FEATURES
from perceiver_vl.serve.library import OpenIndex
from perceiver_vl.serve.problems import ProblemError

STRIP_WIDTH, STRIP_HEIGHT = 320, 180  # of one frame of a strip
MOST_FRAMES = 16
_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
}


def media_type(path: Path) -> str:
    """By its name; what is none of these is only downloaded."""
    return _TYPES.get(path.suffix.lower(), "application/octet-stream")


def find_file(index: OpenIndex, names: Sequence[str], roots: Sequence[Path]) -> Path:
    """The first of the files with one content that may be served: a regular file in the index's folder, or one of
    `roots`, where all links lead. Raises `ProblemError`: 404 where it is gone, 403 where it is elsewhere.
    """
    allowed = [index.root, *(root.resolve() for root in roots)]
    outside = False
    for name in names:
        try:
            path = (index.root / name).resolve(strict=True)
            is_file = stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError, RuntimeError):
            continue
        if not any(path.is_relative_to(root) for root in allowed):
            outside = True
        elif is_file and os.access(path, os.R_OK):
            return path
    if outside:  # where to, is for whoever runs the service alone to know
        raise ProblemError(
            403, f"{names[0]}: a link that leads out of its folder, start the service with --root FOLDER to allow that"
        )
    raise ProblemError(404, f"{names[0]}: not there any more, update the index")


def picture_of(path: Path, frames: int, start: float | None = None, end: float | None = None) -> bytes:
    """At most so many frames of a clip, or of its seconds [start, end), beside each other as one JPEG: each on a field
    of `STRIP_WIDTH` x `STRIP_HEIGHT`. Fewer frames than asked for are repeated, so that the width is the same.
    """
    if path.suffix == FEATURES:
        raise ProblemError(404, f"{path.name}: features have no pictures")
    clip = load_clip(path, frames, start=start, end=end)
    strip = Image.new("RGB", (frames * STRIP_WIDTH, STRIP_HEIGHT), (17, 18, 20))
    for place in range(frames):
        frame = Image.fromarray(clip.frames[place * len(clip.frames) // frames])
        image = ImageOps.contain(frame, (STRIP_WIDTH, STRIP_HEIGHT))
        left = place * STRIP_WIDTH + (STRIP_WIDTH - image.width) // 2
        strip.paste(image, (left, (STRIP_HEIGHT - image.height) // 2))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=82)
    return file.getvalue()
