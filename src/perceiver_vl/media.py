"""Any video or image file → a few sampled frames, or one clear `MediaError`.

Videos go through PyAV: a first pass reads the packets without decoding them, so the time of every frame is known
exactly; then only the stretches from a keyframe to a wanted frame are decoded. Pictures and animated pictures go
through Pillow. The first bytes of the file decide which of the two, its name does not.
"""

import itertools
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
import PIL
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from perceiver_vl.errors import MediaError, UsageError
from perceiver_vl.video import MAX_FRAME_PIXELS, VideoFile, check_pixels

Frames = npt.NDArray[np.uint8]
Sampling = Literal["uniform", "random"]

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
IMAGE_EXTENSIONS = frozenset(".avif .bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())  # noqa: SIM905


_ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # several pages in others (TIFF, MPO) are not a clip
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video or a picture.

    frames: (T, H, W, 3) uint8 RGB. timestamps: (T,) float64 seconds from the first frame of the stream.
    duration: seconds from the first frame to the end of the last; None where nothing tells, as for a picture.
    lost: decoding broke off or met damage, so that frames are missing.
    """

    frames: Frames
    timestamps: npt.NDArray[np.float64]
    duration: float | None
    lost: bool


def is_media(path: str | os.PathLike[str]) -> bool:
    """Whether the extension is one of a video or an image."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


def find_media(folder: str | os.PathLike[str]) -> list[Path]:
    """All media files below `folder`, sorted; hidden files and folders are skipped."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".") and is_media(name)]
    return sorted(found)


def decoder_version() -> str:
    """The decoders and their versions, for evaluation records: their pixels differ."""
    return f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info}), Pillow {PIL.__version__}"


def sample_indices(total: int, num_frames: int, rng: np.random.Generator | None = None) -> list[int]:
    """Indices of the frames to take from `total`: one from each of `num_frames` equal segments.

    The middle of the segment, or with `rng` any frame of it. All frames once if there are no more than `num_frames`.
    """
    if total <= num_frames:
        return list(range(total))
    edges = [i * total // num_frames for i in range(num_frames + 1)]
    segments = itertools.pairwise(edges)
    if rng is None:
        return [(first + after) // 2 for first, after in segments]
    return [int(rng.integers(first, after)) for first, after in segments]


def resize_frame(frame: Frames, size: tuple[int, int]) -> Frames:
    """(H, W, 3) uint8 → (*size, 3) uint8, squashed: antialiased bicubic, the one filter used everywhere."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def load_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    *,
    sampling: Sampling = "uniform",
    rng: np.random.Generator | None = None,
    size: tuple[int, int] | None = None,
) -> Frames:
    """The frames of `load_clip`, which see: (T, H, W, 3) uint8 RGB."""
    return load_clip(path, num_frames, sampling=sampling, rng=rng, size=size).frames


def load_clip(
    path: str | os.PathLike[str],
    num_frames: int,
    *,
    sampling: Sampling = "uniform",
    rng: np.random.Generator | None = None,
    size: tuple[int, int] | None = None,
) -> Clip:
    """Decode at most `num_frames` frames of a video, an animation or a picture (T = 1), upright and in RGB.

    sampling: "uniform" takes the middle of each of `num_frames` equal segments of the frames, "random" any frame of
    each segment, drawn from `rng`. A clip with fewer frames gives each of them once.
    size: (H, W) that every frame is squashed to as it is decoded; without it, the stored size with square pixels.
    A damaged file gives the frames that could be decoded, with `lost`.

    Raises MediaError if no frame can be read, UsageError for arguments that cannot work.
    """
    _check_arguments(num_frames, sampling, rng, size)
    rng = rng if sampling == "random" else None
    try:
        return _load(Path(path), num_frames, rng, size)
    except MediaError:
        raise
    except Exception as error:  # the decoders raise whatever a damaged file leads them to
        raise MediaError(path, _reason(error)) from error


def _check_arguments(
    num_frames: int, sampling: str, rng: np.random.Generator | None, size: tuple[int, int] | None
) -> None:
    if num_frames < 1:
        raise UsageError(f"num_frames={num_frames}: need at least one frame")
    if sampling not in ("uniform", "random"):
        raise UsageError(f"sampling={sampling!r}: choose 'uniform' or 'random'")
    if sampling == "random" and rng is None:
        raise UsageError("sampling='random': needs rng, a numpy Generator made from an explicit seed")
    if size is not None and (len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_FRAME_PIXELS):
        raise UsageError(f"size={size}: need (height, width) of at least 1 and at most {MAX_FRAME_PIXELS} pixels")


def _load(path: Path, num_frames: int, rng: np.random.Generator | None, size: tuple[int, int] | None) -> Clip:
    head = _first_bytes(path)
    if _is_picture(head):
        return _load_picture(path, num_frames, rng, size)
    try:
        return _load_video(path, num_frames, rng, size)
    except av.error.InvalidDataError as error:
        try:
            return _load_picture(path, num_frames, rng, size)  # the rarer picture formats, known only to Pillow
        except UnidentifiedImageError:
            raise MediaError(path, _unreadable(head)) from error


def _first_bytes(path: Path) -> bytes:
    try:
        info = path.stat()
    except FileNotFoundError:
        raise MediaError(path, "no such file") from None
    if stat.S_ISDIR(info.st_mode):
        raise MediaError(path, "is a folder, not a media file")
    if not stat.S_ISREG(info.st_mode):  # reading from a pipe or a device could wait for ever
        raise MediaError(path, "not a regular file")
    if info.st_size == 0:
        raise MediaError(path, "empty file (0 bytes)")
    with path.open("rb") as file:
        return file.read(16)


def _is_picture(head: bytes) -> bool:
    return (
        head.startswith(_PICTURE_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavif", b"ftypavis")
    )


def _unreadable(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "truncated: the index of the file (moov) is missing"
    return "not a media file, or damaged from its start"


def _reason(error: Exception) -> str:
    detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "truncated" in detail:
        return "truncated: the end of the file is missing"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, av.error.FFmpegError):
        return detail[0].lower() + detail[1:]
    return f"damaged: cannot be decoded ({detail})"


def _clip(path: Path, taken: list[tuple[float, Frames]], duration: float | None, lost: bool) -> Clip:
    if not taken:
        raise MediaError(path, "no frame can be decoded: truncated or damaged")
    return Clip(np.stack([frame for _, frame in taken]), np.array([time for time, _ in taken]), duration, lost)


# Pictures and animations


def _load_picture(path: Path, num_frames: int, rng: np.random.Generator | None, size: tuple[int, int] | None) -> Clip:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; what matters is raised
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise MediaError(path, f"more pixels than the {MAX_FRAME_PIXELS} allowed") from error
        with image:
            check_pixels(path, *image.size)
            if image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False):
                return _load_animation(path, image, num_frames, rng, size)
            frame = to_rgb(image)
    return _clip(path, [(0.0, frame if size is None else resize_frame(frame, size))], None, lost=False)


def _load_animation(
    path: Path, image: Any, num_frames: int, rng: np.random.Generator | None, size: tuple[int, int] | None
) -> Clip:
    first = int(getattr(image, "default_image", False))  # a picture shown only by viewers that cannot animate
    wanted = {first + index for index in sample_indices(image.n_frames - first, num_frames, rng)}
    taken: list[tuple[float, Frames]] = []
    time, lost = 0.0, False
    for index in range(first, image.n_frames):
        try:
            image.seek(index)
            image.load()
        except Exception:
            lost = True
            break
        if index in wanted or index == first:
            frame = to_rgb(image)
            taken.append((time, frame if size is None else resize_frame(frame, size)))
        time += (image.info.get("duration") or 100.0) / 1000  # browsers show a frame without a duration for 100 ms
    if first not in wanted and len(taken) > 1:
        taken.pop(0)  # it was kept only in case nothing else could be decoded
    return _clip(path, taken, time, lost)


def to_rgb(image: Image.Image) -> Frames:
    """A Pillow image → (H, W, 3) uint8: EXIF orientation applied, transparency on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def _to_8_bits(values: npt.NDArray[Any]) -> Frames:
    """Gray values of 16 or 32 bits, or floats in 0..1, scaled to 0..255."""
    if values.dtype.kind == "f":
        full = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        full = 65535.0 if values.max(initial=0) <= 65535 else 2.0**31 - 1
    scaled: npt.NDArray[Any] = np.nan_to_num(values.astype(np.float32)) * np.float32(255 / full)
    return scaled.clip(0, 255).round().astype(np.uint8)


# Videos


def _load_video(path: Path, num_frames: int, rng: np.random.Generator | None, size: tuple[int, int] | None) -> Clip:
    with VideoFile(path) as video:
        wanted = [video.frame_times[i] for i in sample_indices(len(video.frame_times), num_frames, rng)]
        render = _Renderer(path, video.pixel_aspect, size)
        origin, unit = video.frame_times[0], video.time_unit
        taken = [((time - origin) * unit, render(frame)) for time, frame in video.decode(wanted)]
        if not taken and video.last_decoded is not None:  # damage took every wanted frame, but not every frame
            time, frame = video.last_decoded
            taken = [((time - origin) * unit, render(frame))]
        return _clip(path, taken, video.duration, video.lost)


class _Renderer:
    """A decoded frame → (H, W, 3) uint8: RGB, upright, with square pixels or of the size asked for."""

    def __init__(self, path: Path, pixel_aspect: float, size: tuple[int, int] | None):
        self._path, self._pixel_aspect, self._size = path, pixel_aspect, size
        self._reformatter = VideoReformatter()  # one for all frames: making its tables costs more than using them

    def __call__(self, frame: Any) -> Frames:
        check_pixels(self._path, frame.width, frame.height)
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round(frame.rotation / 90) % 4
        upright: Frames = np.ascontiguousarray(np.rot90(rgb, turns))
        if self._size is None:
            self._size = self._square_size(upright.shape[:2], turns)
        return resize_frame(upright, self._size)

    def _square_size(self, upright: tuple[int, int], turns: int) -> tuple[int, int]:
        """The size with square pixels: the stretched side grows, so that nothing is lost."""
        height, width = upright
        aspect = self._pixel_aspect if turns % 2 == 0 else 1 / self._pixel_aspect
        size = (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
        check_pixels(self._path, size[1], size[0])
        return size
