"""Pictures and animated pictures, through Pillow: upright RGB frames and their times."""

import contextlib
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.media.sampling import DecodedFrame, Frames, Seconds, told_time
from perceiver_vl.media.source import (
    MAX_FRAMES,
    MAX_PICTURE_PIXELS,
    PixelCount,
    Source,
    check_pixels,
    one_large_picture,
)
from perceiver_vl.utils.errors import MediaError

# Not EPS, for which Pillow would run Ghostscript, nor formats that nobody photographs in
_FORMATS = "AVIF BMP DIB GIF ICO JPEG JPEG2000 PCX PNG PPM QOI SGI TGA TIFF WEBP".split()  # noqa: SIM905
_ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # several pages in others (TIFF, MPO) are not a clip
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_UNTIMED = 100.0  # milliseconds for which browsers show a frame that does not say
_BAND = 256  # rows
_DRAFT_MARGIN = 2  # a JPEG is decoded at a half, a quarter or an eighth, if that is still so often the size wanted


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is for Pillow."""
    return (
        head.startswith(_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or bool(_brands(head) & {b"avif", b"avis"})
        or is_heic(head)
    )


def is_heic(head: bytes) -> bool:
    """Whether a file that begins so is a photograph of a phone (HEIC, HEIF), of which FFmpeg shows one tile."""
    return bool(_brands(head) & _HEIC_BRANDS) and not _brands(head) & {b"avif", b"avis"}


def _brands(head: bytes) -> set[bytes]:
    """What a file of the family of MP4 says that it is: the first, and those that it is compatible with."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))}


class Picture:
    """An open picture or animation: how many frames, when they are shown, and the reading of some of them."""

    rounding = 0.0005  # half a millisecond, the unit of the times

    def __init__(self, source: Source):
        self.name = source.name
        self.damaged = False
        self._source = source
        self._count_pixels = PixelCount(source, source.most_picture_pixels)
        self._image = self._open()
        if self._image.format == "JPEG":
            self._count_pixels.spend(_scans(source) * self._image.width * self._image.height)
        try:
            frames = self._count_frames() if self._image.format in _ANIMATED_FORMATS else 1
        except BaseException:
            self.close()
            raise
        self._animated = frames > 1
        self.shape, self.created = _shape(self._image), _created(self._image)  # before it is decoded at a fraction
        # The first picture of some files is only for viewers that cannot animate
        self._first = int(self._animated and getattr(self._image, "default_image", False))
        self.count = frames - self._first
        self._begins: Seconds | None = None if self._animated else np.zeros(2)
        if self.count > MAX_FRAMES:
            self.close()
            raise MediaError(self.name, f"{self.count} frames are more than the {MAX_FRAMES} allowed")

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()

    @property
    def times(self) -> Seconds:
        """(count,) seconds at which the frames begin, fewer where the rest cannot be decoded."""
        return self._play_through()[:-1]

    @property
    def duration(self) -> float | None:
        """Seconds of an animation; None for a picture."""
        return float(self._play_through()[-1]) if self._animated else None

    def _play_through(self) -> Seconds:
        """When each frame begins, and when the last ends: known only once all were read."""
        if self._begins is None:
            for _ in self._play():
                pass
        assert self._begins is not None
        return self._begins

    def _reopen(self) -> Any:
        self._image.close()
        return self._open()

    def _open(self) -> Any:
        formats = [*_FORMATS, _open_heic(self.name)] if is_heic(self._source.head) else _FORMATS
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd metadata; what matters is raised
                image = Image.open(self._source.open() if self._source.data else self._source.name, formats=formats)
        except Image.DecompressionBombError as error:
            raise MediaError(self.name, f"more pixels than the {MAX_PICTURE_PIXELS} allowed") from error
        check_pixels(self.name, *image.size)
        return image

    def _count_frames(self) -> int:
        """As the file says, or if it breaks off, as many as can be decoded, but at least one."""
        try:
            return int(getattr(self._image, "n_frames", 1))
        except Exception:  # Pillow raises whatever a damaged file leads it to
            self.damaged = True
        self._image = self._reopen()
        count = 0
        with contextlib.suppress(Exception):
            while count <= MAX_FRAMES:
                self._count_pixels.spend(self._image.width * self._image.height)
                self._image.seek(count)
                self._image.load()
                count += 1
        self._image = self._reopen()  # as if nothing had happened
        return max(count, 1)

    def read(self, wanted: list[int], size: tuple[int, int] | None) -> Iterator[DecodedFrame]:
        """The frames at the increasing indices `wanted`; if none can be read, the first in its place."""
        if not self._animated:
            with warnings.catch_warnings(), one_large_picture(self._image.width * self._image.height):
                warnings.simplefilter("ignore")
                _shrink(self._image, size)
                frame = self._frame(size)
                if size is not None:
                    self._image = self._reopen()  # lets go of the pixels, of which there may be far more
            yield DecodedFrame(0, 0.0, frame)
            return
        waiting = set(wanted)
        spare: tuple[float, Frames] | None = None
        for index, seconds in self._play():
            if index in waiting:
                waiting.discard(index)
                yield DecodedFrame(index, seconds, self._frame(size))
            elif index == 0:
                spare = seconds, self._frame(size)
        if spare and len(waiting) == len(wanted):
            yield DecodedFrame(wanted[0], *spare, exact=False)

    def _frame(self, size: tuple[int, int] | None) -> Frames:
        frame = to_rgb(self._image)
        return frame if size is None else resize_frame(frame, size)

    def _play(self) -> Iterator[tuple[int, float]]:
        """Decode every frame in turn; damage ends it. Keeps the times, which stand at the frames themselves."""
        begins = [0.0]  # milliseconds
        for index in range(self.count):
            self._count_pixels.spend(self._image.width * self._image.height)
            try:
                self._image.seek(index + self._first)
                check_pixels(self.name, *self._image.size)  # a later frame may claim to be larger than the first
                self._image.load()
            except MediaError:
                raise
            except Exception:  # Pillow raises whatever a damaged file leads it to
                self.damaged = True
                break
            yield index, begins[-1] / 1000
            begins.append(begins[-1] + (self._image.info.get("duration") or _UNTIMED))
        self._begins = np.array(begins) / 1000


def _open_heic(name: Path) -> str:
    """Teach Pillow to read HEIC, and say how it calls the format."""
    try:
        import pillow_heif
    except ImportError:
        raise MediaError(name, "a HEIC photograph, to read it: pip install 'perceiver-vl[heic]'") from None
    pillow_heif.register_heif_opener()
    return "HEIF"


def _shape(image: Any) -> tuple[int, int]:
    """(H, W), upright."""
    width, height = image.size
    with contextlib.suppress(Exception):  # Pillow raises whatever damaged EXIF leads it to
        if _exif(image).get(ExifTags.Base.Orientation, 1) >= 5:
            return width, height
    return height, width


def _exif(image: Any) -> Image.Exif:
    """What stands before the pixels: a PNG's own `getexif` decodes them to look behind."""
    if image.format == "TIFF":
        tags: Image.Exif = image.getexif()
        return tags
    exif = Image.Exif()
    exif.load(image.info.get("exif"))
    return exif


def _created(image: Any) -> datetime | None:
    """When it was taken, as its EXIF says."""
    with contextlib.suppress(Exception):  # Pillow raises whatever damaged EXIF leads it to
        exif = _exif(image)
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        told = camera.get(ExifTags.Base.DateTimeOriginal) or exif[ExifTags.Base.DateTime]
        return told_time(told.replace(":", "-", 2) + camera.get(ExifTags.Base.OffsetTimeOriginal, ""))
    return None


def _shrink(image: Any, size: tuple[int, int] | None) -> None:
    """Have a JPEG decoded at a fraction of its size: four to six times quicker, and 0.2 of 255 from the whole."""
    if size is not None and image.format == "JPEG":
        side = _DRAFT_MARGIN * max(size)  # of either side, as the picture may lie
        image.draft(None, (side, side))


def _scans(source: Source) -> int:
    """How many scans a JPEG has: each goes over the whole picture, and a small file may have thousands."""
    scans, before = 0, b""
    with source.open() as file:
        while block := file.read(1 << 20):
            scans += (before + block).count(b"\xff\xda")
            before = block[-1:]
    return max(1, scans)


def to_rgb(image: Image.Image) -> Frames:
    """A Pillow image → (H, W, 3) uint8: EXIF orientation applied, transparency on white, 16 bits scaled to 8.

    A band of it at a time, as the steps between would each take as much memory as the whole.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    image.load()
    frame: Frames = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _BAND):
        bottom = min(top + _BAND, image.height)
        frame[top:bottom] = _band_to_rgb(image.crop((0, top, image.width, bottom)))
    return frame


def _band_to_rgb(band: Image.Image) -> Frames:
    if band.has_transparency_data:
        rgba = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(band.convert("RGB"))


def _to_8_bits(values: npt.NDArray[Any]) -> Frames:
    """Gray values of 16 or 32 bits, or floats in 0..1, scaled to 0..255."""
    if values.dtype.kind == "f":
        full = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        full = 65535.0 if values.max(initial=0) <= 65535 else 2.0**31 - 1
    scaled: npt.NDArray[Any] = np.nan_to_num(values.astype(np.float32)) * np.float32(255 / full)
    return scaled.clip(0, 255).round().astype(np.uint8)
