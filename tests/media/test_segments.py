"""Segments begin and end exactly when frames are shown, whatever the clock of the file, and each frame is in one."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_clips import numbers_of, write_numbered

from perceiver_vl.media.decode import frame_times
from perceiver_vl.media.segments import SCENES, check_segments, find_segments, read_segments
from perceiver_vl.utils.errors import MediaError, UsageError
from small_media import write_image

COUNT = 60
UNEVEN = [n + 3 * (n // 5) + 11 * (n // 20) for n in range(COUNT)]  # in tenths of a second
KINDS: dict[str, dict[str, Any]] = {
    "even.mp4": {"bf": 2, "g": 12},
    "uneven.mp4": {"bf": 2, "g": 12, "times": UNEVEN},
    "uneven.mkv": {"g": 12, "times": UNEVEN},
    "offset.mp4": {"g": 12, "times": [n + 37 for n in range(COUNT)]},
    "offset.ts": {"bf": 2, "g": 12, "times": [n + 37 for n in range(COUNT)]},
    "cut_by_an_edit_list.mp4": {"g": 60, "times": [n - 7 for n in range(COUNT)]},
    "without_times.h264": {"bf": 2, "g": 12, "rate": 25},
}


@pytest.fixture(scope="module", params=KINDS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[float]]:
    """A file, the number of its first frame, and the seconds at which its frames are shown."""
    how = KINDS[request.param]
    path = write_numbered(tmp_path_factory.mktemp("numbered") / request.param, COUNT, **how)
    times = [time / how.get("rate", 10) for time in how.get("times", range(COUNT)) if time >= 0]
    return path, COUNT - len(times), [time - times[0] for time in times]


@pytest.mark.parametrize("seconds", ["0.5", "1", "2"])
def test_segments_are_of_the_frames_that_are_shown_in_them(clip: tuple[Path, int, list[float]], seconds: str) -> None:
    path, number, times = clip
    segments, duration = find_segments(path, seconds)
    assert duration == pytest.approx(times[-1] + (times[-1] - times[-2]), abs=0.001)
    assert (segments[0].start, segments[0].first, segments[-1].end, segments[-1].after) == (0, 0, duration, len(times))
    for one, following in pairwise(segments):
        assert (one.end, one.after) == (following.start, following.first)
    for one in segments:
        assert one.start == pytest.approx(times[one.first], abs=0.0006)
        ticks = {int((times[frame] + 0.0006) / float(seconds)) for frame in range(one.first, one.after)}
        assert len(ticks) == 1
    for found in read_segments(path, segments, fps=100, most=1000, chunk=7):
        wanted = range(number + found.segment.first, number + found.segment.after)
        assert numbers_of(found.frames) == list(wanted)  # not one frame off


def test_frames_are_spread_over_their_segment_and_no_more_than_asked_for(clip: tuple[Path, int, list[float]]) -> None:
    path, number, _ = clip
    segments, _ = find_segments(path, "2")
    for fps, most in [(1.0, 4), (3.0, 4), (0.1, 4)]:
        found = list(read_segments(path, segments, fps, most))
        assert [one.segment for one in found] == segments
        for one in found:
            length = one.segment.end - one.segment.start
            frames = one.segment.after - one.segment.first
            assert len(one.frames) == min(most, max(1, round(length * fps)), frames)
            assert all(0 <= n - number - one.segment.first < frames for n in numbers_of(one.frames))
    later = list(read_segments(path, segments[1:], 3.0, 4))
    for one, again in zip(list(read_segments(path, segments, 3.0, 4))[1:], later, strict=True):
        np.testing.assert_array_equal(one.frames, again.frames)


def test_a_still_picture_is_one_segment_until_it_changes(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "slides.mkv", 4, times=[0, 90, 95, 130])
    segments, _ = find_segments(path, "2")
    assert [(one.start, one.first, one.after) for one in segments] == [(0, 0, 1), (9, 1, 3), (13, 3, 4)]


def test_scenes_are_cut_where_the_picture_changes_and_long_ones_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "scenes.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(100):
            shade = 20 if number < 17 else 230 if number < 40 else 90
            picture = np.full((48, 64, 3), shade, np.uint8)
            picture[10:20, number % 40 : number % 40 + 10] = 128
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    segments, duration = find_segments(path, SCENES)
    assert [one.first for one in segments] == [0, 17, 40, 70]
    assert segments[-1].end == duration == pytest.approx(20)


def test_a_segment_whose_frames_are_lost_shows_the_one_before(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.avi", 30, codec="mjpeg", pixel_format="yuvj420p")
    content = bytearray(path.read_bytes())
    starts = [place for place in range(len(content)) if content[place : place + 3] == b"\xff\xd8\xff"]
    for number in (0, 1, 10, 11, 28, 29):
        length = content[starts[number] :].index(b"\xff\xd9")
        content[starts[number] : starts[number] + length] = bytes(length)
    path.write_bytes(content)
    segments, _ = find_segments(path, "0.2")
    found = list(read_segments(path, segments, 10, 4))
    assert [one.segment for one in found] == segments
    whole = {place: [2 * place, 2 * place + 1] for place in range(1, 14)}
    wanted = whole | {0: [2], 5: [9], 14: [27]}
    assert {place: numbers_of(one.frames) for place, one in enumerate(found)} == wanted
    assert found[-1].clip.lost


def test_pictures_have_no_segments_and_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    assert find_segments(write_image(tmp_path / "image.png", 1), "2") == ([], 0.0)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        find_segments(tmp_path / "broken.mp4", "2")


def test_a_video_shorter_than_a_segment_is_one(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "short.mp4", 3)
    segments, duration = find_segments(path, "60")
    assert [(one.start, one.end) for one in segments] == [(0, duration)]
    assert frame_times(path)[1] == duration


@pytest.mark.parametrize(("value", "kept"), [("2", "2"), ("2.0", "2"), ("0.5", "0.5"), ("scenes", "scenes")])
def test_ways_to_cut(value: str, kept: str) -> None:
    assert check_segments(value) == kept


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "cuts", "", "1e9"])
def test_ways_that_cannot_work(value: str) -> None:
    with pytest.raises(UsageError, match=r"need seconds from 0\.1 to 600, or scenes"):
        check_segments(value)
