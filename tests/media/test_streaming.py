"""Videos as browsers play them: which play as they are, and what is made of the others while they are watched."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from perceiver_vl.media.streaming import HEIGHT, how_it_plays, stream_mp4, stream_start
from perceiver_vl.utils.errors import MediaError


def write(path: Path, codec: str, sound: str | None = None, size: tuple[int, int] = (96, 64), seconds: int = 4) -> Path:
    """A video of 10 frames a second, of which each second is of another grey, with keyframes each second."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.options = {"g": "10", "sc_threshold": "0"}
        heard: Any = None
        if sound is not None:
            heard = container.add_stream(sound, rate=48000)
            heard.layout = "stereo"
        for number in range(10 * seconds):
            pixels = np.full((size[1], size[0], 3), 60 * (number // 10 % 4) + 20, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if heard is not None:
            for number in range(10 * seconds):
                tone = np.sin(np.arange(4800) / 20).astype(np.float32)
                frame: Any = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = 48000, 4800 * number, Fraction(1, 48000)
                container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return path


def watched(path: Path, start: float = 0.0) -> tuple[list[float], list[int], float, tuple[int, int]]:
    """Of the stream: the seconds and the grey of each frame, the seconds of sound, and the size."""
    data = b"".join(stream_mp4(path, start))
    assert data[4:8] == b"ftyp"
    assert b"moof" in data  # fragments, which need no end to be played
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(container.streams.video[0]))
        context = container.streams.video[0].codec_context
        assert context.name == "h264"
        size = context.width, context.height
    with av.open(io.BytesIO(data)) as container:
        heard = container.decode(container.streams.audio[0]) if container.streams.audio else ()
        samples = sum(one.samples for one in heard)
    greys = [int(np.asarray(one.to_ndarray(format="gray")).mean()) for one in frames]
    return [float(one.time) for one in frames], greys, samples / 48000, size


@pytest.mark.parametrize(
    ("name", "codec", "sound", "plays"),
    [
        ("a.mp4", "libx264", "aac", "file"),
        ("a.mp4", "libx264", None, "file"),
        ("a.mkv", "libx264", "aac", "stream"),
        ("a.webm", "libvpx-vp9", "libopus", "file"),
        ("a.mp4", "mpeg4", None, "stream"),
        ("a.avi", "mpeg4", None, "stream"),
        ("a.mpg", "mpeg2video", None, "stream"),
        ("a.mp4", "libx265", None, "stream"),
    ],
)
def test_what_browsers_play_as_it_is(name: str, codec: str, sound: str | None, plays: str, tmp_path: Path) -> None:
    if codec.startswith("lib") and codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    assert how_it_plays(write(tmp_path / name, codec, sound, seconds=1)) == plays


def test_what_is_no_video_shows_no_more_than_frames(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert how_it_plays(tmp_path / "a.mp4") == how_it_plays(tmp_path / "nothing.mp4") == "frames"
    with pytest.raises(MediaError, match="no such file"):
        next(stream_mp4(tmp_path / "nothing.mp4"))


def test_h264_is_copied_from_the_keyframe_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", "libx264", "aac")
    times, greys, sound, size = watched(path)
    assert (len(times), size) == (40, (96, 64))
    assert sound == pytest.approx(4, abs=0.1)
    begins = stream_start(path, 2.5)
    assert begins == pytest.approx(2.0, abs=0.01)
    times, later, sound, _ = watched(path, 2.5)
    assert times[0] == pytest.approx(0, abs=0.05)
    assert later == greys[20:]
    assert sound == pytest.approx(2, abs=0.1)


def test_others_are_encoded_again_from_the_second_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", "mpeg4", size=(1280, 960), seconds=3)
    assert stream_start(path, 1.5) == 1.5
    times, greys, sound, size = watched(path, 1.5)
    assert size == (640, HEIGHT)
    assert sound == 0
    assert times[-1] == pytest.approx(1.5, abs=0.1)
    assert greys[0] == pytest.approx(60 + 20, abs=4)
    assert greys[-1] == pytest.approx(120 + 20, abs=4)
    with pytest.raises(MediaError, match="nothing is shown at 99"):
        next(stream_mp4(path, 99.0))


def test_who_stops_watching_stops_the_work(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", "mpeg4", seconds=20)
    stream = stream_mp4(path)
    first = next(stream)
    stream.close()
    assert len(first) < sum(map(len, stream_mp4(path)))
