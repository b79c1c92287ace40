"""A video as browsers play it: which files they play as they are, and any other as fragmented MP4, made while it is
watched: copied where the codecs allow it, encoded again in small otherwise.
"""

import contextlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from perceiver_vl.media.cutting import MOST_OVERTAKEN, clock_of, open_container
from perceiver_vl.media.decode import load_clip, stream_clip
from perceiver_vl.media.source import open_source
from perceiver_vl.utils.errors import MediaError

Plays = Literal["file", "stream", "frames"]
FRAME_RATE, HEIGHT = 25.0, 480
"""Of what is encoded again: at most so many frames a second, and so many lines."""
_QUALITY = "28"
_PICTURES = {"h264": ("yuv420p", "yuvj420p"), "vp8": ("yuv420p",), "vp9": ("yuv420p",), "av1": ("yuv420p",)}
_SOUNDS = {"mp4": ("aac", "mp3", "opus", "flac"), "webm": ("opus", "vorbis")}
_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".webm": "webm"}
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000"}
_FRAMES_AT_ONCE = 8
_KEYFRAMES = 2.0  # seconds from one to the next


def how_it_plays(path: Path) -> Plays:
    """As a file, as a stream that is made of it, or not at all, by its container and codecs; it is not decoded."""
    try:
        with _opened(path) as container:
            picture, sound = _codecs(container)
            kind = _CONTAINERS.get(path.suffix.lower())
            if kind == "mp4" and picture in ("h264", "av1", "vp9") and sound in (None, *_SOUNDS["mp4"]):
                return "file"
            if kind == "webm" and picture in ("vp8", "vp9", "av1") and sound in (None, *_SOUNDS["webm"]):
                return "file"
    except (MediaError, av.error.FFmpegError):
        return "frames"
    return "stream" if "libx264" in av.codecs_available else "frames"


def stream_start(path: Path, start: float) -> float:
    """Where a stream that is asked for from `start` on begins: at the keyframe before, if it is copied. Seconds from
    the first frame; raises `MediaError` for a file that cannot be read.
    """
    open_source(path)
    with _opened(path) as container:
        if not _is_copied(container):
            return max(0.0, start)
    with _as_media_error(path), open_container(path) as container:
        origin, keys = clock_of(path, container.streams.best("video"))
    return max(0.0, max((key for key in keys if key <= origin + start + 1e-3), default=origin) - origin)


def stream_mp4(path: Path, start: float = 0.0) -> Generator[bytes, None, None]:
    """A video from `start` seconds on, with its sound, as the bytes of a fragmented MP4, as they are asked for: whoever
    stops asking stops the work. Raises `MediaError` as decoding does.
    """
    open_source(path)
    with _opened(path) as container:
        copied = _is_copied(container)
    with _as_media_error(path):
        yield from _copied(path, start) if copied else _encoded(path, start)


class _Pipe:
    """What a muxer writes into, to be taken out again."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> Iterator[bytes]:
        """All that was written since, if anything."""
        parts, self._parts = self._parts, []
        if parts:
            yield b"".join(parts)


def _copied(path: Path, start: float) -> Iterator[bytes]:
    with open_container(path) as source:
        origin, keys = clock_of(path, source.streams.best("video"))
    first = max((key for key in keys if key <= origin + start + 1e-3), default=origin)
    pipe = _Pipe()
    with open_container(path) as source, av.open(pipe, "w", format="mp4", options=_FRAGMENTED) as written:
        video = source.streams.best("video")
        streams = [video, *source.streams.audio[:1]]
        copies = {stream.index: written.add_stream_from_template(stream) for stream in streams}
        source.seek(int(first / video.time_base), stream=video, backward=True)
        begun, before = False, dict[int, int]()
        for packet in source.demux(streams):
            if packet.pts is None:
                continue
            time, of_video = float(packet.pts * packet.time_base), packet.stream is video
            begun = begun or (of_video and packet.is_keyframe and time >= first - 1e-6)
            if not begun or (not of_video and time < first):
                continue
            if packet.dts is None:  # of the first ones that others overtake; no two may be decoded at once
                before[packet.stream.index] = before.get(packet.stream.index, packet.pts - MOST_OVERTAKEN) + 1
                packet.dts = before[packet.stream.index]
            shift = round(first / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copies[packet.stream.index]
            written.mux(packet)
            yield from pipe.take()
    yield from pipe.take()


def _encoded(path: Path, start: float) -> Iterator[bytes]:
    pipe = _Pipe()
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_container(path))
        video = source.streams.best("video")
        origin, _ = clock_of(path, video)
        width, height = _small(path)
        written = opened.enter_context(av.open(pipe, "w", format="mp4", options=_FRAGMENTED))
        picture: Any = written.add_stream("libx264", rate=round(FRAME_RATE))
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        picture.options = {"crf": _QUALITY, "preset": "veryfast", "g": str(round(_KEYFRAMES * FRAME_RATE))}
        sound, sounds = _sound(source, written, origin, start)
        heard = next(sounds, None)
        clips = opened.enter_context(
            contextlib.closing(
                stream_clip(path, fps=FRAME_RATE, start=start, chunk=_FRAMES_AT_ONCE, size=(height, width))  # type: ignore[type-var]
            )
        )
        number = 0
        for clip in clips:
            for frame in clip.frames:
                shown: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                shown.pts, number = number, number + 1
                written.mux(picture.encode(shown))
            while heard is not None and heard[0] <= number / FRAME_RATE:
                written.mux(sound.encode(heard[1]))
                heard = next(sounds, None)
            yield from pipe.take()
        written.mux(picture.encode())
        if sound is not None:
            written.mux(sound.encode())
    yield from pipe.take()


def _sound(source: Any, written: Any, origin: float, start: float) -> tuple[Any, Iterator[tuple[float, Any]]]:
    """The stream that the sound is encoded into, and its frames from `start` on, each with its seconds from there."""
    if not source.streams.audio or source.streams.audio[0].codec_context is None:
        return None, iter(())
    stream = source.streams.audio[0]
    encoder = written.add_stream("aac", rate=stream.rate or 48000)
    encoder.layout = "stereo"

    def frames() -> Iterator[tuple[float, Any]]:
        source.seek(max(0, int((origin + start) / stream.time_base)), stream=stream, backward=True)
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=stream.rate or 48000)
        heard = 0
        for frame in source.decode(stream):
            if frame.pts is None or (time := float(frame.pts * frame.time_base) - origin - start) < 0:
                continue
            for part in resampler.resample(frame):
                heard = max(heard, round(time * part.sample_rate))
                part.pts, part.time_base = heard, Fraction(1, part.sample_rate)
                heard += part.samples
                yield time, part

    return encoder, frames()


def _small(path: Path) -> tuple[int, int]:
    """Width and height of what is encoded, upright and even."""
    shape = load_clip(path, timestamps=[0.0], size=(8, 8)).shape
    assert shape is not None
    scale = min(1.0, HEIGHT / min(shape))
    height, width = (max(2, round(side * scale / 2) * 2) for side in shape)
    return width, height


def _is_copied(container: Any) -> bool:
    picture, sound = _codecs(container)
    return picture in ("h264", "av1", "vp9") and sound in (None, *_SOUNDS["mp4"])


def _codecs(container: Any) -> tuple[str | None, str | None]:
    """The names of the codecs of picture and sound; no name for a picture that browsers would not take."""
    context = container.streams.best("video").codec_context
    picture = context.name if context is not None and context.pix_fmt in _PICTURES.get(context.name, ()) else None
    sounds = container.streams.audio
    if not sounds:
        return picture, None
    return picture, sounds[0].codec_context.name if sounds[0].codec_context is not None else "unknown"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _as_media_error(path), open_container(path) as container:
        if container.streams.best("video") is None:
            raise MediaError(path, "no video stream")
        yield container


@contextlib.contextmanager
def _as_media_error(path: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise MediaError(path, f"cannot be played ({error.strerror})") from error
