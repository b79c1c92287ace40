"""A stretch of a video as a file of its own: copied from the keyframe before it on, or encoded again exactly."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np

from perceiver_vl.media.decode import frame_times, stream_clip
from perceiver_vl.media.source import open_source
from perceiver_vl.media.video import FORMATS
from perceiver_vl.utils.errors import MediaError, UsageError
from perceiver_vl.utils.files import write_with

Cut = Literal["keyframes", "exact"]
ENDINGS: dict[Cut, str] = {"keyframes": ".mkv", "exact": ".mp4"}
"""Matroska takes what any codec made; H.264 and AAC in MP4 play everywhere."""
_MILLISECONDS = Fraction(1, 1000)
_QUALITY = "18"  # x264's constant rate factor, at which nothing is seen
_FRAMES_AT_ONCE = 16
MOST_OVERTAKEN = 16  # frames that are decoded before one that is shown earlier, of any codec


def check_cut(cut: str) -> Cut:
    """Raises `UsageError` for another way than those two."""
    if cut not in get_args(Cut):
        raise UsageError(f"cut={cut}: choose {' or '.join(get_args(Cut))}")
    return cut  # type: ignore[return-value]


def cut_video(source: Path, start: float, end: float, out: Path, cut: Cut = "keyframes") -> tuple[float, float]:
    """Write what is shown in [start, end), seconds from the first frame, with its sound, to `out`; what was written.

    keyframes: without decoding, from the last keyframe at `start` or before, which is the start that is told; it is
    before 0 where that is one of the frames that an edit list hides.
    exact: frames are encoded again (H.264) with the times at which they were shown. Raises `MediaError` for a file that
    cannot be read, or whose codec cannot be copied.
    """
    open_source(source)
    found = (start, end)

    def write(beside: Path) -> None:
        nonlocal found
        try:
            found = (_copy if cut == "keyframes" else _encode)(source, start, end, beside)
        except av.error.FFmpegError as error:
            raise MediaError(source, f"cannot be cut ({error.strerror})") from error

    write_with(out, write)
    return found


def _copy(source: Path, start: float, end: float, out: Path) -> tuple[float, float]:
    with open_container(source) as container, av.open(str(out), "w", format="matroska") as written:
        video = container.streams.best("video")
        streams = [video, *container.streams.audio[:1]]
        copies = {stream.index: written.add_stream_from_template(stream) for stream in streams}
        origin, keys = clock_of(source, video)
        first = last = max((key for key in keys if key <= origin + start + 1e-3), default=origin)
        begun, before = False, dict[int, int]()
        for packet in container.demux(streams):
            if packet.pts is None:
                continue
            time, of_video = float(packet.pts * packet.time_base), packet.stream is video
            begun = begun or (of_video and packet.is_keyframe and time >= first - 1e-6)
            if packet.dts is None:  # of the first ones that others overtake; no two may be decoded at once
                before[packet.stream.index] = before.get(packet.stream.index, packet.pts - MOST_OVERTAKEN) + 1
                packet.dts = before[packet.stream.index]
            if of_video and packet.dts * packet.time_base >= origin + end:
                break  # what is shown before is decoded before
            if not begun or not (of_video or first <= time < origin + end):
                continue
            if of_video:
                last = max(last, time + float((packet.duration or 0) * packet.time_base))
            shift = round(first / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copies[packet.stream.index]
            written.mux(packet)
    return first - origin, last - origin


def _encode(source: Path, start: float, end: float, out: Path) -> tuple[float, float]:
    times, duration = frame_times(source)
    on_screen = max(0, int(np.searchsorted(times, start + 1e-3, side="right")) - 1)
    wanted = times[on_screen : np.searchsorted(times, end - 1e-3)]
    if not len(wanted):
        raise MediaError(source, f"nothing is shown from {start:.3f} to {end:.3f} s")
    first, last = float(wanted[0]), min(end, duration or end)
    with open_container(source) as container, av.open(str(out), "w", format="mp4") as written:
        picture: Any = None
        sounds = _sound(container, source, first, last)
        sound: Any = None
        if container.streams.audio:
            rate = container.streams.audio[0].rate or 48000
            sound = written.add_stream("aac", rate=rate)
            sound.layout = container.streams.audio[0].layout
        for clip in stream_clip(source, timestamps=wanted.tolist(), chunk=_FRAMES_AT_ONCE):
            for time, frame in zip(clip.timestamps.tolist(), clip.frames, strict=True):
                height, width = (side - side % 2 for side in frame.shape[:2])  # H.264 wants even sides
                if picture is None:
                    picture = written.add_stream("libx264", rate=container.streams.best("video").average_rate or 25)
                    picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
                    picture.codec_context.time_base, picture.options = _MILLISECONDS, {"crf": _QUALITY}
                shown: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                shown.pts, shown.time_base = round((time - first) * 1000), _MILLISECONDS
                written.mux(picture.encode(shown))
        written.mux(picture.encode())
        if sound is not None:
            for heard in sounds:
                written.mux(sound.encode(heard))
            written.mux(sound.encode())
    return first, last


def _sound(container: Any, source: Path, first: float, last: float) -> Iterator[Any]:
    """The frames of the sound that begin in [first, last) seconds, on a clock that begins there."""
    stream = container.streams.audio[0]
    origin, _ = clock_of(source, container.streams.best("video"))
    container.seek(int((origin + first) / stream.time_base), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts is None or (time := float(frame.pts * frame.time_base) - origin) < first:
            continue
        if time >= last:
            break
        frame.pts = frame.pts - round((origin + first) / frame.time_base)
        yield frame


def open_container(source: Path) -> contextlib.AbstractContextManager[Any]:
    """A file, kept to itself: no network, no playlist."""
    how = {"protocol_whitelist": "file", "format_whitelist": FORMATS}  # as for decoding
    return av.open(f"file:{source}", options=how, metadata_errors="replace")


def clock_of(source: Path, stream: Any) -> tuple[float, list[float]]:
    """When the first frame that is shown is shown, on the clock of the file, and the keyframes are."""
    shown, keys = [], []
    with open_container(source) as container:
        for packet in container.demux(container.streams[stream.index]):
            if packet.pts is None or not packet.size:
                continue
            if not packet.is_discard:
                shown.append(float(packet.pts * packet.time_base))
            if packet.is_keyframe:
                keys.append(float(packet.pts * packet.time_base))
    if not shown:
        raise MediaError(source, "its frames have no times to cut at, encode it again first")
    return min(shown), keys
