"""Whose time counts: joined recordings, clocks that leap, containers that know only in what order to decode."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from perceiver_vl.media.decode import frame_times, load_clip, sampled_count

FIRST, SECOND = range(4, 124, 8), range(132, 252, 8)


def write(path: Path, shades: range, codec: str, *, start: float = 0.0, keyframes: int = 250) -> Path:
    """A clip of gray frames at 25 a second; `start`: what its clock says at the first."""
    options = {"qp": "4", "bf": "2", "threads": "1", "g": str(keyframes)}
    with av.open(path, "w", options={"mpegts_copyts": "1"} if path.suffix == ".ts" else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number, shade in enumerate(shades):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
            frame.time_base = Fraction(1, 25)
            frame.pts = round(25 * start) + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def join(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def assert_both_parts(path: Path) -> None:
    times, duration = frame_times(path)
    np.testing.assert_allclose(times, np.arange(30) / 25, atol=2e-3)
    assert duration == pytest.approx(1.2, abs=2e-3)
    clip = load_clip(path, 100)
    shades = clip.frames[:, 32, 32, 0].astype(int)
    np.testing.assert_allclose(shades, [*FIRST, *SECOND], atol=5)
    assert (clip.lost, clip.missing) == (False, 0)
    assert [round(shade) for shade in load_clip(path, 2).frames[:, 32, 32, 0]] == [shades[7], shades[22]]
    assert load_clip(path, timestamps=[1.0]).frames[0, 32, 32, 0] == shades[25]
    assert sampled_count(path, fps=1) == 2


@pytest.mark.parametrize(("ending", "codec"), [(".ts", "libx264"), (".ts", "mpeg2video"), (".mpg", "mpeg2video")])
def test_joined_recordings_are_one_after_the_other(tmp_path: Path, ending: str, codec: str) -> None:
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    assert_both_parts(join(tmp_path / f"ab{ending}", write(first, FIRST, codec), write(second, SECOND, codec)))


@pytest.mark.parametrize("start", [36000.0, 3600.0, 20.0])
def test_a_clock_that_leaps_makes_no_hole(tmp_path: Path, start: float) -> None:
    first = write(tmp_path / "a.ts", FIRST, "libx264")
    assert_both_parts(join(tmp_path / "ab.ts", first, write(tmp_path / "b.ts", SECOND, "libx264", start=start)))
    late = write(tmp_path / "late.ts", FIRST, "libx264", start=start)
    assert_both_parts(join(tmp_path / "ba.ts", late, write(tmp_path / "early.ts", SECOND, "libx264")))


def test_a_large_file_that_is_read_again_has_the_same_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.media.video.KEPT_PACKET_BYTES", 100)
    first = write(tmp_path / "a.ts", FIRST, "libx264", keyframes=5)
    assert_both_parts(join(tmp_path / "ab.ts", first, write(tmp_path / "b.ts", SECOND, "libx264", keyframes=5)))


def test_a_frame_that_is_meant_to_stay_stays(tmp_path: Path) -> None:
    with av.open(tmp_path / "slides.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number, seconds in enumerate((0, 60, 7200)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 80 * number, np.uint8), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), 1000 * seconds
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert frame_times(tmp_path / "slides.mkv")[0].tolist() == [0, 60, 7200]


@pytest.mark.parametrize("between", [0, 3])
def test_frames_of_avi_come_in_the_order_in_which_they_are_shown(tmp_path: Path, between: int) -> None:
    shades = [8 * number + 4 for number in range(30)]
    with av.open(tmp_path / "clip.avi", "w") as container:
        options = {"bf": str(between), "qp": "4", "threads": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = load_clip(tmp_path / "clip.avi", 100)
    np.testing.assert_allclose(clip.frames[:, 32, 32, 0].astype(int), shades, atol=5)
    np.testing.assert_allclose(clip.timestamps, np.arange(30) / 25)
    assert (clip.lost, clip.missing) == (False, 0)
    single = [load_clip(tmp_path / "clip.avi", timestamps=[time]).frames[0, 32, 32, 0] for time in clip.timestamps]
    assert single == clip.frames[:, 32, 32, 0].tolist()
