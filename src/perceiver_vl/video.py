"""One video file: the times of all its frames, found without decoding, and the decoding of a few of them."""

import contextlib
import itertools
import os
import sys
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from perceiver_vl.errors import MediaError

MAX_FRAME_PIXELS = 100_000_000  # a frame that claims more is refused before it is decoded
KEPT_PACKET_BYTES = 16 << 20  # a video stream up to this size is read from disk once, a larger one twice
SINGLE_THREAD_PIXELS = 640 * 480  # below this, starting decoder threads costs more than they save
SKIP_GAP = 8  # packets that must lie between two wanted frames for starting anew at a keyframe to pay
_TEXT_FORMATS = frozenset({"concat", "dash", "hls", "tty"})  # FFmpeg would follow lists, and draw any text


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise `MediaError` for frames of more than `MAX_FRAME_PIXELS`."""
    if width * height > MAX_FRAME_PIXELS:
        raise MediaError(path, f"frames of {width}x{height} pixels are more than the {MAX_FRAME_PIXELS} allowed")


class VideoFile:
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

    def __enter__(self) -> "VideoFile":
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
        check_pixels(self._path, codec.width, codec.height)
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
