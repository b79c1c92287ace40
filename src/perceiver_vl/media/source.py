"""Where the bytes of a media file are, and how much may be made of them.

The limits keep a hostile file from taking the machine down: a picture that claims millions of rows, a video whose few
bytes decode for hours. Each is refused with a `MediaError` that names the limit.
"""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from perceiver_vl.utils.errors import MediaError

HEAD_BYTES = 64  # that tell what a file is
MAX_PICTURE_PIXELS = 100_000_000  # of a picture, or of a frame that is shown
MAX_VIDEO_PIXELS = 8192 * 8192  # of a frame of video, of which a decoder may hold twenty
MAX_FRAMES = 4_000_000  # of a file, and of a request: 18 hours at 60 frames a second
MAX_CLIP_BYTES = 4 << 30  # of the frames of one `Clip`
FREE_PIXELS = 1 << 36  # what any file may have decoded: five minutes of 4K; minutes of one core
MAX_EXPANSION = 100_000  # pixels decoded for each byte of file beyond that; a still 1080p screen has about 20 000


@dataclass(frozen=True)
class Source:
    """A media file on disk, or the bytes of one; `name` stands in messages."""

    name: Path
    data: bytes | None
    head: bytes
    size: int

    def open(self) -> BinaryIO:
        """The bytes, from the first."""
        return self.name.open("rb") if self.data is None else io.BytesIO(self.data)

    @property
    def most_pixels(self) -> int:
        """How many pixels may be decoded of a file of this size."""
        return FREE_PIXELS + MAX_EXPANSION * self.size


def open_source(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Source:
    """What `load_clip` was given. Raises `MediaError` if there is nothing to read."""
    if isinstance(source, bytes):
        path = Path(name or "bytes")
        if not source:
            raise MediaError(path, "empty file (0 bytes)")
        return Source(path, source, source[:HEAD_BYTES], len(source))
    path = Path(source)
    try:
        return _open_file(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of names that no file can have
        raise MediaError(path, "no such file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(path, reason[0].lower() + reason[1:]) from error


def _open_file(path: Path) -> Source:
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        raise MediaError(path, "is a folder, not a media file")
    if not stat.S_ISREG(info.st_mode):  # reading from a pipe or a device could wait for ever
        raise MediaError(path, "not a regular file")
    if info.st_size == 0:
        raise MediaError(path, "empty file (0 bytes)")
    with path.open("rb") as file:
        return Source(path, None, file.read(HEAD_BYTES), info.st_size)


def check_pixels(name: Path, width: int, height: int, most: int = MAX_PICTURE_PIXELS) -> None:
    """Raise `MediaError` for frames of more than `most` pixels."""
    if width * height > most:
        raise MediaError(name, f"frames of {width}x{height} pixels are more than the {most} allowed")


class PixelCount:
    """Pixels decoded so far, against what the size of the file allows."""

    def __init__(self, source: Source) -> None:
        self._source, self._left = source, source.most_pixels

    def spend(self, pixels: int) -> None:
        """Raise `MediaError` when it was too much."""
        self._left -= pixels
        if self._left < 0:
            raise MediaError(
                self._source.name,
                f"expands to more than {self._source.most_pixels} pixels, the most for a file of "
                f"{self._source.size} bytes",
            )
