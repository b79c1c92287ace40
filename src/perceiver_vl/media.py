"""Any video or image file → a few sampled frames, or one clear `MediaError`.

Videos go through PyAV: a first pass reads the packets without decoding them, so the time of every frame is known
exactly; then only the stretches from a keyframe to a wanted frame are decoded. Pictures and animated pictures go
through Pillow. The first bytes of the file decide which of the two, its name does not.
"""

import contextlib
import itertools
import os
import stat
import sys
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
import PIL
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from perceiver_vl.errors import PerceiverVLError, UsageError

Frames = npt.NDArray[np.uint8]
Sampling = Literal["uniform", "random"]

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
IMAGE_EXTENSIONS = frozenset(".avif .bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())  # noqa: SIM905

MAX_FRAME_PIXELS = 100_000_000  # a frame that claims more is refused before it is decoded
KEPT_PACKET_BYTES = 16 << 20  # a video stream up to this size is read from disk once, a larger one twice
SINGLE_THREAD_PIXELS = 640 * 480  # below this, starting decoder threads costs more than they save
SKIP_GAP = 8  # packets that must lie between two wanted frames for starting anew at a keyframe to pay

_ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # several pages in others (TIFF, MPO) are not a clip
_TEXT_FORMATS = frozenset({"concat", "dash", "hls", "tty"})  # FFmpeg would follow lists, and draw any text
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


class MediaError(PerceiverVLError):
    """A media file that cannot be read; the message is `FILE: REASON`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        self.path = Path(path)
        self.reason = " ".join(reason.split())
        super().__init__(f"{path}: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)  # so that the error survives the trip from a data-loader worker


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


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise MediaError(path, f"frames of {width}x{height} pixels are more than the {MAX_FRAME_PIXELS} allowed")


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
            _check_pixels(path, *image.size)
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
    with _VideoFile(path) as video:
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
        _check_pixels(self._path, frame.width, frame.height)
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
        _check_pixels(self._path, size[1], size[0])
        return size


class _VideoFile:
    """An open video: when its frames are shown, and the decoding of some of them.

    Times are integers in units of `time_unit` seconds: presentation times, or where a file has none, frame numbers.
    """

    def __init__(self, path: Path):
        self._path = path
        self._open()
        self.lost = False
        self.last_decoded: tuple[int, Any] | None = None
        self._scan()
        self._reading, self._position = self._packets(), sys.maxsize  # nothing is left to read
        self._begun = False  # whether the decoder has seen the first packet

    def __enter__(self) -> "_VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        # "file:" and the whitelist keep FFmpeg on this machine, whatever the name or the content looks like
        self._container: Any = av.open(
            f"file:{self._path}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
        if self._container.format.name in _TEXT_FORMATS:
            self._container.close()
            raise MediaError(self._path, "not a media file but a text or a list of files")
        videos = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            only = " (audio only)" if self._container.streams.audio else ""
            self._container.close()
            raise MediaError(self._path, "no video stream" + only)
        best = self._container.streams.best("video")
        self._stream = best if best in videos else videos[0]
        codec = self._stream.codec_context
        if codec is None:
            self._container.close()
            raise MediaError(self._path, "no decoder for its video stream")
        _check_pixels(self._path, codec.width, codec.height)
        codec.thread_count = 1 if codec.width * codec.height <= SINGLE_THREAD_PIXELS else min(4, os.cpu_count() or 1)
        codec.thread_type = "AUTO"
        self.pixel_aspect = float(self._stream.sample_aspect_ratio or 1) or 1.0

    def _scan(self) -> None:
        """Read all packets without decoding them; keep them if together they are small."""
        kept: list[Any] = []
        kept_bytes = 0
        times: list[int | None] = []  # of each packet
        shown: list[int | None] = []
        keyframes: list[int] = []
        last = (0, 0)  # time and duration of the last frame shown
        first = None
        for packet in self._packets():
            first = first or packet
            if packet.is_keyframe:
                keyframes.append(len(times))
            if not packet.is_discard:  # what an edit list cuts off is decoded but not shown
                shown.append(packet.pts)
                last = max(last, (packet.pts or 0, packet.duration or 0))
            times.append(packet.pts)
            self.lost |= packet.is_corrupt
            kept_bytes += packet.size
            if kept_bytes <= KEPT_PACKET_BYTES:
                kept.append(packet)
            else:
                kept.clear()
        if not shown:
            raise MediaError(self._path, "no frames: truncated or damaged")
        self.lost |= len(times) < len(self._stream.index_entries)  # the index tells of packets that are not there
        self._kept, self._first = kept, first
        self._set_times(times, shown, keyframes, last[1])

    def _set_times(
        self, times: list[int | None], shown: list[int | None], keyframes: list[int], last_duration: int
    ) -> None:
        rate = float(self._stream.average_rate or 25)
        self._timed = None not in times
        if self._timed:
            self.time_unit = float(self._stream.time_base)
            self.frame_times = sorted({time for time in shown if time is not None})
            self._place_of = {time: place for place, time in enumerate(times) if time is not None}
            self._keyframes = sorted((time, place) for place in keyframes if (time := times[place]) is not None)
            end = self.frame_times[-1] + (last_duration or 1 / (rate * self.time_unit))
        else:
            self.time_unit = 1 / rate
            self.frame_times = list(range(len(shown)))
            self._place_of, self._keyframes = {}, []
            end = len(shown)
        self.duration = (end - self.frame_times[0]) * self.time_unit

    def _packets(self) -> Iterator[Any]:
        """The packets of the stream from the current position on; damage ends them."""
        try:
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
        except av.error.FFmpegError:
            self.lost = True

    def _packets_from(self, place: int) -> Iterator[Any]:
        """The packets from the one at `place` on, with a decoder that has forgotten what came before.

        A large stream is read forward again rather than sought in: reading costs little beside decoding, and after
        a seek some formats (MPEG programme and transport streams) give packets other times than before.
        """
        if not self._kept and self._position > place:
            self._container.close()
            self._open()
            self._reading, self._position = self._packets(), 0
            self._begun = False
        codec = self._stream.codec_context
        if place > 0 and not self._begun:  # the first packet may tell what all need, as x264's version in H.264 does
            with contextlib.suppress(av.error.FFmpegError):
                codec.decode(self._first)
        self._begun = True
        codec.flush_buffers()
        return iter(self._kept[place:]) if self._kept else self._read_on(place)

    def _read_on(self, place: int) -> Iterator[Any]:
        for packet in self._reading:
            self._position += 1
            if self._position > place:
                yield packet

    def _stretches(self, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """(place of a keyframe, wanted times to decode from there), so that little else is decoded."""
        stretches: list[tuple[int, list[int]]] = []
        for time in wanted:
            before = bisect_right(self._keyframes, time, key=lambda keyframe: keyframe[0])
            place = self._keyframes[before - 1][1] if before else 0
            if stretches and place - self._place_of.get(stretches[-1][1][-1], place) < SKIP_GAP:
                stretches[-1][1].append(time)
            else:
                stretches.append((place, [time]))
        return stretches

    def decode(self, wanted: list[int]) -> Iterator[tuple[int, Any]]:
        """(time, frame) at each wanted time; the next one before the following wanted time stands in for a lost one."""
        ends = dict(itertools.pairwise(wanted))
        for place, times in self._stretches(wanted):
            pending = iter(times)
            due: int | None = next(pending)
            for time, frame in self._decode_from(place, set(times)):
                while due is not None and time >= ends.get(due, time + 1):
                    self.lost = True
                    due = next(pending, None)
                if due is None:
                    break
                if time >= due:
                    self.lost |= time > due
                    yield time, frame
                    due = next(pending, None)
                    if due is None:
                        break
            self.lost |= due is not None

    def _decode_from(self, place: int, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        packets = self._packets_from(place)
        codec = self._stream.codec_context
        count = itertools.count()
        skips = self._timed and codec.name == "h264"  # where a frame marked so is certainly used by no other
        for packet in itertools.chain(packets, [None]):
            if skips and packet is not None:  # frames that no other frame needs are not worth decoding
                codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            try:
                frames = codec.decode(packet)
            except av.error.FFmpegError:
                self.lost = True
                continue
            for frame in frames:
                time = frame.pts if self._timed else next(count)
                if time is not None:
                    self.last_decoded = (time, frame)
                    yield time, frame
