"""One clip or picture, written again small: so that a few frames of it are quickly read."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
from PIL import Image

from perceiver_vl.media.decode import Clip, stream_clip
from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import MediaError, UsageError
from perceiver_vl.utils.files import write_with

JPEG_QUALITY = 90  # of pictures; frames have FFmpeg's scale 3 of 2..31, about as good
JPEG_SCALE = 3
H264_CRF = 20
DEFAULT_KEYFRAMES = 4
MAX_SIZE = 4096
_LAMBDA = 118  # FFmpeg's FF_QP2LAMBDA
_CHUNK = 32  # frames held at a time
_TICKS = 90_000  # of a second: the clock of MPEG


@dataclass(frozen=True)
class TranscodeSettings:
    """How media are written again.

    size: pixels of the short side, never enlarged; or (height, width), to which every frame is squashed as the
    processor would.
    fps: frames kept of a second, at most; but of a short clip as many more as make `min_frames`, if it has them: those
    on screen at each tick of a clock that starts with the clip.
    format: every frame a JPEG (in an MP4 file, as MJPEG), or H.264 without B-frames whose every `keyframes`-th frame
    can be decoded by itself.
    """

    size: int | tuple[int, int] = 256
    fps: float = 4.0
    min_frames: int = 64
    format: Literal["jpeg", "h264"] = "jpeg"
    keyframes: int | None = None

    def __post_init__(self) -> None:
        sides = (self.size,) if isinstance(self.size, int) else self.size
        if not all(2 <= side <= MAX_SIZE and side % 2 == 0 for side in sides):
            raise UsageError(f"size={self}: need even numbers of pixels from 2 to {MAX_SIZE}, as in 256 or 224x224")
        if not 0 < self.fps <= 1000:
            raise UsageError(f"fps={self.fps}: need more than 0 frames a second (at most 1000)")
        if self.min_frames < 1:
            raise UsageError(f"min_frames={self.min_frames}: need at least 1")
        if self.format not in ("jpeg", "h264"):
            raise UsageError(f"format={self.format}: choose jpeg or h264")
        if self.format == "jpeg" and self.keyframes is not None:
            raise UsageError(f"keyframes={self.keyframes}: every frame of format jpeg is one, leave it out")
        if self.format == "h264" and self.keyframes is None:
            object.__setattr__(self, "keyframes", DEFAULT_KEYFRAMES)
        if self.keyframes is not None and not 1 <= self.keyframes <= 1000:
            raise UsageError(f"keyframes={self.keyframes}: need one in 1 to 1000 frames")

    def write(self, source: Path, target: Path, start: float | None, end: float | None) -> "Transcoded":
        """`transcode`."""
        return transcode(source, target, start, end, self)

    def suffixes(self) -> tuple[str, ...]:
        """What the names of files may end with."""
        return ".mp4", ".jpg"


@dataclass(frozen=True)
class Transcoded:
    """A file that was written: its ending, and what it holds.

    duration: seconds; None: a picture. lost: the source breaks off or parts of it are damaged.
    """

    suffix: str
    frames: int
    duration: float | None
    lost: bool


def target_size(height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) that a frame is written at: even numbers, never larger than it is unless both are given."""
    if not isinstance(size, int):
        return size
    scale = min(1.0, size / min(height, width))
    even = [max(2, 2 * round(side * scale / 2)) for side in (height, width)]
    return even[0], even[1]


def transcode(
    source: Path, target: Path, start: float | None, end: float | None, settings: TranscodeSettings
) -> Transcoded:
    """Write the seconds `start` to `end` of `source`, or its one picture, to `target` with the right ending added
    (which it may have already), atomically.

    Frames are shown at the times at which they were, counted from `start`; the first is what was on screen then.
    Raises `MediaError` if the source cannot be read or holds nothing there, `OSError` if the target cannot be written.
    """
    begin = start or 0.0
    first = next(stream_clip(source, timestamps=[begin]))
    picture = first.frames[0]
    size = target_size(picture.shape[0], picture.shape[1], settings.size)
    if first.duration is None:
        small = Image.fromarray(resize_frame(picture, size))
        write_with(ended(target, ".jpg"), lambda path: small.save(path, "JPEG", quality=JPEG_QUALITY))
        return Transcoded(".jpg", 1, None, first.lost)
    length = (first.duration if end is None else min(end, first.duration)) - begin
    fps = max(settings.fps, settings.min_frames / length)
    clips = stream_clip(source, fps=fps, start=start, end=end, size=size, chunk=_CHUNK)
    result = Transcoded(".mp4", 0, length, False)

    def write(path: Path) -> None:
        nonlocal result
        result = _write_video(path, source, clips, begin, length, settings)

    write_with(ended(target, ".mp4"), write)
    return result


def ended(path: Path, suffix: str) -> Path:
    """`path` with the ending `suffix` added, unless it has it."""
    return path.with_name(ended_name(path.name, suffix))


def ended_name(name: str, suffix: str) -> str:
    """`name` with the ending `.mp4`, `.jpg` or another added, unless it has it."""
    return name if name.lower().endswith((".jpg", ".jpeg") if suffix == ".jpg" else suffix) else name + suffix


def _write_video(
    path: Path, source: Path, clips: Iterable[Clip], begin: float, length: float, settings: TranscodeSettings
) -> Transcoded:
    """Encode the frames of `clips`, each once, `length` seconds from `begin` on."""
    ticks: list[int] = []
    stream: Any = None
    waiting: Any = None  # the last packet, until it is known how long its frame is shown
    lost = False
    with path.open("wb") as file, av.open(file, "w", format="mp4") as container:
        for clip in clips:
            lost = lost or clip.lost
            stream = stream or _add_stream(container, clip.frames.shape[1], clip.frames.shape[2], settings)
            for seconds, pixels in zip(clip.timestamps.tolist(), clip.frames, strict=True):
                tick = max(0, round((seconds - begin) * _TICKS))
                if ticks and tick <= ticks[-1]:
                    continue  # the clock of the sampling ticks faster than the clip
                ticks.append(tick)
                for packet in _encode(source, stream, _frame(pixels, tick)):
                    waiting = _mux(container, waiting, packet.pts, packet)
        for packet in _encode(source, stream, None):
            waiting = _mux(container, waiting, packet.pts, packet)
        _mux(container, waiting, max(round(length * _TICKS), ticks[-1] + 1), None)
    return Transcoded(".mp4", len(ticks), length, lost)


def _frame(pixels: Frames, tick: int) -> Any:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
    return frame


def _mux(container: Any, packet: Any, until: int, following: Any) -> Any:
    """Write `packet`, shown until then, and give back the one to be written next."""
    if packet is not None:
        packet.duration = until - packet.pts
        container.mux(packet)
    return following


def _add_stream(container: Any, height: int, width: int, settings: TranscodeSettings) -> Any:
    h264 = settings.format == "h264"
    options = {"threads": "1"}  # other processes have the other cores
    if h264:
        keyframes = str(settings.keyframes)
        options |= {"crf": str(H264_CRF), "preset": "veryfast", "g": keyframes, "sc_threshold": "0", "bf": "0"}
    # players want a rate, but every frame carries its own time
    rate = Fraction(settings.fps).limit_denominator(1000)
    stream = container.add_stream("libx264" if h264 else "mjpeg", rate=rate, options=options)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p" if h264 else "yuvj420p"
    stream.codec_context.time_base = Fraction(1, _TICKS)
    if not h264:
        stream.codec_context.qscale = True
        stream.codec_context.global_quality = JPEG_SCALE * _LAMBDA
    return stream


def _encode(source: Path, stream: Any, picture: Any) -> list[Any]:
    try:
        packets: list[Any] = stream.encode(picture)
    except av.error.FFmpegError as error:
        raise MediaError(source, f"cannot be encoded at {stream.width}x{stream.height}: {error.strerror}") from error
    return packets
