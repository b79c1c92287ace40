"""One video file: the times of all its frames, found without decoding, and the decoding of a few of them."""

import contextlib
import io
import itertools
import math
import os
import sys
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from perceiver_vl.media.rendering import Renderer
from perceiver_vl.media.sampling import DecodedFrame, Seconds, told_time
from perceiver_vl.media.source import MAX_FRAMES, MAX_VIDEO_PIXELS, PixelCount, Source, check_pixels
from perceiver_vl.utils.errors import MediaError

KEPT_PACKET_BYTES = 16 << 20  # a video stream up to this size is read from disk once, a larger one twice
SINGLE_THREAD_PIXELS = 640 * 480  # below this, starting decoder threads costs more than they save
SKIP_GAP = 8  # packets that must lie between two wanted frames for starting anew at a keyframe to pay
MOST_ROUNDING = 0.0005  # seconds: half the unit of Matroska, whose times are whole milliseconds
_NO_TIME = -(1 << 63)
_SEAM_PACKETS = 2  # before a part of its own that may be marked as damaged
LEAP = 10.0  # seconds without a frame, after which a clock was set anew and nothing stood still
_LEAPING = (
    "mpegts",
    "mpeg",
    "flv",
)  # containers of broadcasts and streams: where others leap, a frame is meant to stay

# The containers of video, and of sound so that it can be named. Not those that are text or lists of other files, which
# FFmpeg would follow (concat, hls, dash), or draw (tty), nor pictures
FORMATS = (
    "aac amr amv apng asf avi av1 avs bink caf cavsvideo cdxl dirac dnxhd dv film_cpk flac flv gxf h261 h263 h264 hevc "
    "ivf live_flv lmlm4 m4v matroska mjpeg mov mp3 mpeg mpegts mpegvideo mtv mv mvi mxf nsv nut obu ogg r3d rm roq smk "
    "smush swf thp vc1 vivo vvc wav wtv xmv yuv4mpegpipe"
).replace(" ", ",")
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_INTRA = (PictureType.I, PictureType.SI, PictureType.BI, PictureType.NONE)  # none where the codec does not tell


class VideoFile:
    """An open video: when its frames are shown, and the decoding of some of them.

    times: (count,) seconds from the first frame, increasing. duration: seconds. damaged: packets or the decoder have
    shown so far that parts of the file are missing or wrong.
    Inside, times are integers in units of `_unit` seconds: presentation times, or where a file has none, frame numbers.
    """

    def __init__(self, source: Source):
        self.name = source.name
        self.damaged = False
        self._source = source
        self._open()
        try:
            self._scan()
        except BaseException:
            self.close()
            raise
        self._reading, self._position = self._packets(), sys.maxsize  # nothing is left to read
        self._begun = False  # whether the decoder has seen the first packet
        self._count_pixels = PixelCount(source, source.most_pixels)

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    @property
    def shape(self) -> tuple[int, int] | None:
        """(H, W) of the first frame that was read, upright and with square pixels."""
        return self._render.shape

    @property
    def created(self) -> datetime | None:
        """When it was filmed, as the file says."""
        told = {**self._stream.metadata, **self._container.metadata}
        for name in ("com.apple.quicktime.creationdate", "creation_time", "date"):
            with contextlib.suppress(ValueError, KeyError):
                return told_time(told[name])
        return None

    def _open(self) -> None:
        # "file:" and the whitelists keep FFmpeg in this one file, whatever its name or its content looks like
        in_memory = self._source.data is not None
        self._container: Any = av.open(
            io.BytesIO(self._source.data) if self._source.data is not None else f"file:{self.name}",
            options={"protocol_whitelist": "" if in_memory else "file", "format_whitelist": FORMATS},
            metadata_errors="replace",
        )
        try:
            self._stream = self._best_stream()
        except BaseException:
            self._container.close()
            raise
        self._codec = codec = self._decoder()
        codec.thread_count = 1 if codec.width * codec.height <= SINGLE_THREAD_PIXELS else min(4, os.cpu_count() or 1)
        codec.thread_type = "AUTO"
        codec.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}  # for frames that grow later

    def _best_stream(self) -> Any:
        streams = self._container.streams
        videos = [s for s in streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            raise MediaError(self.name, "no video stream" + (" (audio only)" if streams.audio else ""))
        best = streams.best("video")
        stream = best if best in videos else videos[0]
        if stream.codec_context is None:
            raise MediaError(self.name, "no decoder for its video stream")
        check_pixels(self.name, stream.codec_context.width, stream.codec_context.height, MAX_VIDEO_PIXELS)
        return stream

    def _decoder(self) -> Any:
        """The stream's own; or the one that also reads the transparency which VP8 and VP9 keep beside the picture."""
        own = self._stream.codec_context
        described = {name.lower(): value for name, value in self._stream.metadata.items()}
        if described.get("alpha_mode") != "1" or own.name not in _WITH_ALPHA:
            return own
        decoder: Any = av.CodecContext.create(_WITH_ALPHA[own.name], "r")
        decoder.extradata, decoder.width, decoder.height = own.extradata, own.width, own.height
        return decoder

    def _scan(self) -> None:
        """Read all packets without decoding them; keep them if together they are small."""
        kept: list[Any] = []
        kept_bytes = 0
        times, keyframes, hidden = array("q"), array("q"), array("q")  # a time, and places, of packets
        last = (0, 0)  # time and duration of the last frame shown
        first = None
        for packet in self._packets():
            first = first or packet
            if packet.is_keyframe:
                keyframes.append(len(times))
            if packet.is_discard:  # what an edit list cuts off is decoded but not shown
                hidden.append(len(times))
            else:
                last = max(last, (packet.pts or 0, packet.duration or 0))
            times.append(_NO_TIME if packet.pts is None else packet.pts)
            if len(times) > MAX_FRAMES:
                raise MediaError(self.name, f"more frames than the {MAX_FRAMES} allowed")
            self.damaged |= packet.is_corrupt
            kept_bytes += packet.size
            if kept_bytes <= KEPT_PACKET_BYTES:
                kept.append(packet)
            else:
                kept.clear()
        if len(hidden) == len(times):
            raise MediaError(self.name, "no frames: truncated or damaged")
        self.damaged |= len(times) < len(self._stream.index_entries)  # the index tells of packets that are not there
        self._kept, self._first = kept, first
        self._set_times(np.asarray(times), np.asarray(keyframes), np.asarray(hidden), last[1])

    def _set_times(self, times: Any, keyframes: Any, hidden: Any, last_duration: int) -> None:
        rate = float(self._stream.average_rate or 25)
        in_order_of_decoding = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        self._timed = bool((times != _NO_TIME).all()) and not in_order_of_decoding
        if self._timed:
            self._unit = float(self._stream.time_base)
            self._times = np.unique(np.delete(times, hidden))
            order = np.argsort(times, kind="stable")
            self._places = order[np.searchsorted(times, self._times, sorter=order)]  # of the packet of each frame
            in_time = np.argsort(times[keyframes], kind="stable")
            self._keyframes, self._key_times = keyframes[in_time], times[keyframes][in_time]
            end = int(self._times[-1]) + (last_duration or 1 / (rate * self._unit))
            self.rounding = min(self._unit / 2, MOST_ROUNDING)
        else:
            self._unit = 1 / rate
            self._times = self._places = np.arange(len(times) - len(hidden))
            self._keyframes = self._key_times = np.zeros(0, np.int64)
            end = len(self._times)
            self.rounding = MOST_ROUNDING
        self.count = len(self._times)
        self.times: Seconds = np.subtract(self._times, self._times[0], dtype=np.float64) * self._unit
        self.duration = (end - int(self._times[0])) * self._unit

    def _packets(self) -> Iterator[Any]:
        """The packets of the stream, which is at its beginning, on one clock; damage ends them."""
        clock = _OneClock(self._stream, self._container.format.name)
        held = deque[Any]()
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    held.append(packet)
                    if clock.set(packet):
                        for one in held:  # the counters of another recording do not go on, which is no damage
                            one.is_corrupt = False
                    if len(held) > _SEAM_PACKETS:
                        yield held.popleft()
        except av.error.FFmpegError:
            self.damaged = True
        yield from held

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
        codec = self._codec
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

    def read(self, wanted: list[int], size: tuple[int, int] | None) -> Iterator[DecodedFrame]:
        """The frames at the increasing indices `wanted`, as far as they can be decoded.

        The next frame before the following wanted one stands in for one that is lost, with its own time; if none can
        be had at all, the last that was decoded.
        """
        self._render = render = Renderer(self._source, float(self._stream.sample_aspect_ratio or 1) or 1.0, size)
        origin, found = int(self._times[0]), False
        self._last: tuple[int, Any] | None = None
        for index, time, frame in self._decode(wanted):
            found = True
            yield DecodedFrame(index, (time - origin) * self._unit, render(frame), time == self._times[index])
        if not found and self._last is not None:
            time, frame = self._last
            yield DecodedFrame(wanted[0], (time - origin) * self._unit, render(frame), exact=False)

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, int, Any]]:
        ends = {index: int(self._times[following]) for index, following in itertools.pairwise(wanted)}
        for place, since, indices in self._stretches(wanted):
            pending = iter(indices)
            due: int | None = next(pending)
            for time, frame in self._decode_from(place, since, {int(self._times[index]) for index in indices}):
                while due is not None and time >= ends.get(due, math.inf):
                    due = next(pending, None)
                if due is not None and time >= self._times[due]:
                    yield due, time, frame
                    due = next(pending, None)
                if due is None:
                    break

    def _stretches(self, wanted: list[int]) -> Iterator[tuple[int, int, list[int]]]:
        """(place and time of a keyframe, indices to decode from there), so that little else is decoded."""
        start, stretch = (0, 0), list[int]()
        for index in wanted:
            before = bisect_right(self._key_times, self._times[index]) - 1
            key = (int(self._keyframes[before]), int(self._key_times[before])) if before >= 0 else (0, 0)
            if stretch and key[0] - self._places[stretch[-1]] < SKIP_GAP:
                stretch.append(index)
                continue
            if stretch:
                yield *start, stretch
            start, stretch = key, [index]
        if stretch:
            yield *start, stretch

    def _decode_from(self, place: int, since: int, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """(time, frame) of every frame from a keyframe on, or from the first packet if that is none after all."""
        sure = place == 0
        for time, frame in self._decode_packets(place, wanted):
            if not sure and time >= since:
                if time > since or frame.pict_type not in _INTRA:
                    break
                sure = True
            yield time, frame
        if not sure:  # as where a stream refreshes bit by bit, and has no frame that stands for itself
            self._keyframes, self._key_times = self._keyframes[:0], self._key_times[:0]
            yield from self._decode_packets(0, wanted)

    def _decode_packets(self, place: int, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        packets = self._packets_from(place)
        codec = self._codec
        count = itertools.count()
        skips = self._timed and codec.name == "h264"  # where a frame marked so is certainly used by no other
        for packet in itertools.chain(packets, [None]):
            if skips and packet is not None:  # frames that no other frame needs are not worth decoding
                codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            self._count_pixels.spend(codec.width * codec.height)
            try:
                frames = codec.decode(packet)
            except av.error.FFmpegError:
                self.damaged = True
                continue
            for frame in frames:
                self.damaged |= frame.is_corrupt
                time = frame.pts if self._timed else next(count)
                if time is not None:
                    self._last = time, frame
                    yield time, frame


class _OneClock:
    """Recordings that were joined (`cat a.ts b.ts`) each have a clock of their own: a part whose times begin again, or
    far from where the last part ended, is set to begin there.
    """

    def __init__(self, stream: Any, container: str) -> None:
        self._unit = float(stream.time_base)
        self._usual = max(1, round(1 / (float(stream.average_rate or 25) * self._unit)))
        leaps = any(name in _LEAPING for name in container.split(","))
        self._most = LEAP / self._unit if leaps else math.inf
        self._shift = 0
        self._last: int | None = None  # decoding time of the packet before, as it was set, and when it ends
        self._end = 0

    def set(self, packet: Any) -> bool:
        """Set the times of the next packet; whether a part begins with it."""
        decoded, began = packet.dts, False
        if decoded is not None:
            if self._last is not None:
                step = decoded + self._shift - self._last
                if step < -2 * self._usual or step > self._most:
                    self._shift, began = self._end - decoded, True
            self._last = decoded + self._shift
            self._end = self._last + (packet.duration or self._usual)
        if self._shift:
            packet.dts = None if decoded is None else self._last
            packet.pts = None if packet.pts is None else packet.pts + self._shift
        return began
