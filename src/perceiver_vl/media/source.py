"""Where the bytes of a media file are, and how much may be made of them.

The limits keep a hostile file from taking the machine down: a picture that claims millions of rows, a video whose few
bytes decode for hours. Each is refused with a `MediaError` that names the limit.
"""

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from perceiver_vl.utils.errors import MediaError

HEAD_BYTES = 64  # that tell what a file is
MAX_PICTURE_PIXELS = 100_000_000  # of a picture, or of a frame that is shown
LARGE_PIXELS = 1 << 24  # of a picture: above that one is decoded at a time, whatever the number of threads
MAX_VIDEO_PIXELS = 8192 * 8192  # of a frame of video, of which a decoder may hold twenty
MAX_FRAMES = 4_000_000  # of a file, and of a request: 18 hours at 60 frames a second
MAX_CLIP_BYTES = 4 << 30  # of the frames of one `Clip`
FREE_PIXELS = 1 << 36  # what any file may have decoded: five minutes of 4K; minutes of one core
FREE_PICTURE_PIXELS = 1 << 33  # of a picture or an animation: a minute or two of one core, 4,000 frames of 1080p
MAX_PICTURE_EXPANSION = 100  # for each byte of an animation beyond that
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
        """How many pixels may be decoded of a video of this size."""
        return FREE_PIXELS + MAX_EXPANSION * self.size

    @property
    def most_picture_pixels(self) -> int:
        """How many of a picture or an animation, of which every pass over it and every scan of a JPEG counts."""
        return FREE_PICTURE_PIXELS + MAX_PICTURE_EXPANSION * self.size


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


_large_pictures = threading.Semaphore(1)


@contextmanager
def one_large_picture(pixels: int) -> Iterator[None]:
    """Wait until no other thread decodes a picture of more than `LARGE_PIXELS`, if this one has so many: that each of
    some threads holds one would be more memory than there is.
    """
    if pixels <= LARGE_PIXELS:
        yield
        return
    with _large_pictures:
        yield


class PixelCount:
    """Pixels decoded so far, against what the size of the file allows."""

    def __init__(self, source: Source, most: int) -> None:
        self._source, self._most, self._left = source, most, most

    def spend(self, pixels: int) -> None:
        """Raise `MediaError` when it was too much."""
        self._left -= pixels
        if self._left < 0:
            raise MediaError(
                self._source.name,
                f"expands to more than {self._most} pixels, the most for a file of {self._source.size} bytes",
            )
