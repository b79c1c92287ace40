"""Every way to ask for frames gives exactly the frames asked for, in many codecs and containers."""

from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_clips import numbers_of, write_numbered, write_numbered_animation

from perceiver_vl.media.decode import Clip, frame_times, load_clip, load_frames, stream_clip
from perceiver_vl.media.sampling import sample_indices
from perceiver_vl.utils.errors import MediaError, UsageError

COUNT = 50
UNEVEN = [n + 3 * (n // 5) + 11 * (n // 20) for n in range(COUNT)]  # in tenths of a second
GAPS = [*(100 * (after - time) for time, after in pairwise(UNEVEN)), 300]  # milliseconds

KINDS: dict[str, dict[str, Any]] = {
    "h264_b_frames.mp4": {"bf": 3, "g": 12},
    "h264_one_keyframe.mkv": {"bf": 2, "g": 1000},
    "h264_open_gop.mp4": {"bf": 3, "x264-params": "open-gop=1:keyint=12:min-keyint=12"},
    "h264_intra_refresh.mp4": {"x264-params": "intra-refresh=1:keyint=10"},
    "h264.ts": {"bf": 2, "g": 12},
    "h264_uneven.mp4": {"bf": 2, "g": 12, "times": UNEVEN},
    "h264_uneven.mkv": {"bf": 2, "g": 12, "times": UNEVEN},
    "h264_without_times.h264": {"bf": 2, "g": 12, "rate": 25},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none:keyint=12:bframes=3"},
    "hevc_10_bit.mkv": {
        "codec": "libx265",
        "pixel_format": "yuv420p10le",
        "x265-params": "log-level=none:keyint=12:open-gop=1",
    },
    "vp9.webm": {"codec": "libvpx-vp9", "g": 12, "auto-alt-ref": 1, "lag-in-frames": 8, "cpu-used": 8},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "mpeg2.ts": {"codec": "mpeg2video", "rate": 25, "bf": 2, "g": 12},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25, "bf": 2, "g": 12},
    "mpeg4.avi": {"codec": "mpeg4", "bf": 2, "g": 12},
    "ffv1.mkv": {"codec": "ffv1"},
}
ANIMATIONS = ("animation.gif", "animation.webp", "animation.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbered")
    for name, settings in KINDS.items():
        write_numbered(folder / name, COUNT, **settings)
    for name in ANIMATIONS:
        write_numbered_animation(folder / name, COUNT, GAPS)
    return folder


def true_times(name: str) -> list[float]:
    if "uneven" in name or name in ANIMATIONS:
        return [time / 10 for time in UNEVEN]
    return [n / KINDS[name].get("rate", 10) for n in range(COUNT)]


@pytest.fixture(params=[*KINDS, *ANIMATIONS])
def clip(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, list[float]]:
    """A file, and when its frames are shown."""
    return folder / request.param, true_times(request.param)


def check(found: Clip, wanted: list[int], times: list[float]) -> None:
    assert numbers_of(found.frames) == wanted
    np.testing.assert_allclose(found.timestamps, [times[n] for n in wanted], atol=6e-4)
    assert (found.lost, found.missing) == (False, 0)


def shown(times: list[float], instant: float) -> int:
    return bisect_right(times, instant + 1e-6) - 1


def test_by_number(clip: tuple[Path, list[float]]) -> None:
    path, times = clip
    for count in (1, 4, 60):
        check(load_clip(path, count), sample_indices(COUNT, count), times)
    for seed in range(3):
        found = load_clip(path, 6, rng=np.random.default_rng(seed))
        check(found, sample_indices(COUNT, 6, np.random.default_rng(seed)), times)


def test_by_time(clip: tuple[Path, list[float]]) -> None:
    path, times = clip
    found_times, duration = frame_times(path)
    np.testing.assert_allclose(found_times, times, atol=6e-4)
    assert duration is not None
    assert duration > times[-1]
    instants = [times[30] + 0.01, 0.0, times[7], times[7] + 0.01, times[8] - 0.01, (times[-1] + duration) / 2]
    check(load_clip(path, timestamps=instants), [shown(times, instant) for instant in instants], times)
    for fps in (1.7, 60.0):
        ticks = [tick / fps for tick in range(round(duration * fps + 1)) if tick / fps < duration - 1e-3]
        check(load_clip(path, fps=fps), [shown(times, tick) for tick in ticks], times)


def test_a_part_of_it(clip: tuple[Path, list[float]]) -> None:
    path, times = clip
    start, end = times[13] + 0.01, times[38] + 0.01
    inside = range(13, 39)
    check(load_clip(path, 5, start=start, end=end), [inside[i] for i in sample_indices(26, 5)], times)
    check(load_clip(path, 99, start=start), list(range(13, COUNT)), times)
    check(load_clip(path, 99, end=times[9]), list(range(9)), times)
    check(load_clip(path, 99, start=times[20] + 0.011, end=times[20] + 0.012), [20], times)
    ticks = [start + tick / 3 for tick in range(100) if start + tick / 3 < end]
    check(load_clip(path, fps=3, start=start, end=end), [shown(times, tick) for tick in ticks], times)


def test_from_memory_and_in_chunks(clip: tuple[Path, list[float]]) -> None:
    path, times = clip
    content = path.read_bytes()
    requests: list[dict[str, Any]] = [
        {"num_frames": 7},
        {"num_frames": 99, "start": times[30]},
        {"fps": 5.0, "size": (64, 64)},
        {"timestamps": [times[3], times[3], times[40] + 0.01]},
    ]
    for request in requests:
        whole = load_clip(path, **request)
        for source in (path, content):
            chunks = list(stream_clip(source, **request, chunk=3))
            assert [len(chunk.frames) for chunk in chunks[:-1]] == [3] * (len(chunks) - 1)
            np.testing.assert_array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)
            np.testing.assert_array_equal(np.concatenate([chunk.timestamps for chunk in chunks]), whole.timestamps)
            assert {chunk.duration for chunk in chunks} == {whole.duration}
        np.testing.assert_array_equal(load_clip(content, **request).frames, whole.frames)


@pytest.mark.parametrize("name", [*KINDS, *ANIMATIONS])
def test_a_frame_does_not_depend_on_the_others(folder: Path, name: str) -> None:
    every = load_frames(folder / name, COUNT, size=(40, 40))
    for count in (3, 11):
        np.testing.assert_array_equal(
            load_frames(folder / name, count, size=(40, 40)), every[sample_indices(COUNT, count)]
        )


def test_a_picture_is_always_shown(folder: Path) -> None:
    path = write_numbered_animation(folder / "one.png", 1)
    for request in ({"timestamps": [0.0, 99.0]}, {"fps": 3.0}, {"num_frames": 4, "start": 5.0, "end": 6.0}):
        assert set(numbers_of(load_clip(path, **request).frames)) == {0}  # type: ignore[arg-type]
    assert load_clip(path, 1).duration is None


def test_times_that_the_clip_does_not_have(folder: Path) -> None:
    path = folder / "h264_b_frames.mp4"
    for request in (
        {"timestamps": [1.0, 5.0]},
        {"num_frames": 2, "start": 5.0},
        {"fps": 1.0, "start": 7.5, "end": 8.0},
    ):
        with pytest.raises(MediaError, match=r"nothing is shown at [57]\.[05]00 s: it ends after 5\.000 s"):
            load_clip(path, **request)  # type: ignore[arg-type]
    assert numbers_of(load_frames(path, 99, start=4.8, end=60)) == [48, 49]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no frames asked for: give one of num_frames, fps and timestamps"),
        ({"num_frames": 2, "fps": 1.0}, "num_frames and fps: give one of"),
        ({"fps": 0.0}, r"fps=0\.0: need more than 0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"timestamps": []}, "at least one"),
        ({"timestamps": [1.0, -2.0]}, r"-2\.0"),
        ({"timestamps": [1.0], "start": 0.5}, r"start=0\.5: timestamps already say when"),
        ({"num_frames": 2, "start": -1.0}, r"start=-1\.0"),
        ({"num_frames": 2, "start": 3.0, "end": 3.0}, r"end=3\.0: the interval is empty"),
        ({"num_frames": 2, "end": float("inf")}, "end=inf"),
        ({"fps": 1.0, "rng": np.random.default_rng(0)}, "need num_frames"),
    ],
)
def test_requests_that_cannot_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_clip("any.mp4", **arguments)
    with pytest.raises(UsageError, match=message):
        stream_clip("any.mp4", **arguments)


def test_streams_that_cannot_work() -> None:
    with pytest.raises(UsageError, match="must increase"):
        stream_clip("any.mp4", timestamps=[2.0, 1.0])
    with pytest.raises(UsageError, match="chunk=0"):
        stream_clip("any.mp4", 1, chunk=0)


def test_bytes_have_a_name_in_messages() -> None:
    with pytest.raises(MediaError, match=r"^shard\.tar/a\.mp4: not a media file"):
        load_clip(b"no video, only words", 1, name="shard.tar/a.mp4")
    with pytest.raises(MediaError, match=r"^bytes: empty file"):
        load_clip(b"", 1)
