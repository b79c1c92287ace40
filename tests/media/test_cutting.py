"""Stretches of videos as files: exactly the frames that are shown there, or those from the keyframe before on."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_clips import numbered_frame, numbers_of, write_numbered

from perceiver_vl.media.cutting import ENDINGS, check_cut, cut_video
from perceiver_vl.media.decode import load_clip
from perceiver_vl.utils.errors import MediaError, UsageError

KINDS: dict[str, dict[str, Any]] = {
    "even.mp4": {"bf": 2, "g": 12},
    "uneven.mkv": {"g": 12, "times": [n + 3 * (n // 5) for n in range(60)]},
    "offset.ts": {"bf": 2, "g": 12, "times": [n + 37 for n in range(60)]},
    "cut_by_an_edit_list.mp4": {"g": 12, "times": [n - 7 for n in range(60)]},
}


@pytest.fixture(params=KINDS)
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[int], list[float]]:
    """A file, the numbers of its frames that are shown, and when."""
    how = KINDS[request.param]
    path = write_numbered(tmp_path / request.param, 60, **how)
    shown = [(number, time / 10) for number, time in enumerate(how.get("times", range(60))) if time >= 0]
    return path, [number for number, _ in shown], [time - shown[0][1] for _, time in shown]


@pytest.mark.parametrize(("start", "end"), [(1.5, 3.0), (0.0, 0.7), (2.31, 4.0)])
def test_an_exact_cut_shows_what_is_shown_then(
    clip: tuple[Path, list[int], list[float]], start: float, end: float
) -> None:
    path, numbers, times = clip
    begun = max(time for time in times if time <= start + 1e-3)
    inside = [place for place, time in enumerate(times) if begun <= time < end - 1e-3]
    found = cut_video(path, start, end, path.with_suffix(".cut.mp4"), "exact")
    assert found == pytest.approx((times[inside[0]], end), abs=1e-3)
    cut = load_clip(path.with_suffix(".cut.mp4"), 1000)
    assert numbers_of(cut.frames) == [numbers[place] for place in inside]
    np.testing.assert_allclose(cut.timestamps, [times[place] - times[inside[0]] for place in inside], atol=0.0015)


@pytest.mark.parametrize("start", [0.0, 2.0])
def test_a_copy_begins_with_the_keyframe_before_and_loses_nothing(
    clip: tuple[Path, list[int], list[float]], start: float
) -> None:
    path, numbers, times = clip
    begun, ended = cut_video(path, start, 3.5, path.with_suffix(".cut.mkv"))
    assert begun <= start
    assert ended >= 3.5 - 0.4  # the last frame that is shown before
    cut = numbers_of(load_clip(path.with_suffix(".cut.mkv"), 1000).frames)
    wanted = [number for number, time in zip(numbers, times, strict=True) if begun - 1e-3 <= time < 3.5 - 1e-3]
    if begun < 0:  # the keyframe is among the frames that the edit list hides, and nothing is decoded without it
        wanted = [*range(numbers[0]), *wanted]
    assert cut[: len(wanted)] == wanted
    assert len(cut) <= len(wanted) + 3


@pytest.mark.parametrize("cut", ["keyframes", "exact"])
def test_sound_is_cut_with_the_picture(tmp_path: Path, cut: Any) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=10, options={"g": "10"})
        video.height, video.width, video.pix_fmt = 32, 64, "yuv420p"
        audio: Any = container.add_stream("aac", rate=16000)
        for number in range(40):
            frame: Any = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(video.encode(frame))
        for number in range(64):
            tone = np.sin(np.arange(1000) * 0.1).astype(np.float32)[None]
            heard: Any = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 16000, 1000 * number, Fraction(1, 16000)
            container.mux(audio.encode(heard))
        container.mux(video.encode())
        container.mux(audio.encode())
    out = tmp_path / f"cut{ENDINGS[cut]}"
    begun, _ = cut_video(path, 1.0, 3.0, out, cut)
    with av.open(str(out)) as container:
        samples = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
    assert samples / 16000 == pytest.approx(3.0 - begun, abs=0.2)
    assert numbers_of(load_clip(out, 1000).frames)[:20] == list(range(round(10 * begun), round(10 * begun) + 20))


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cut=roughly: choose keyframes or exact"):
        check_cut("roughly")
    path = write_numbered(tmp_path / "a.mp4", 10)
    with pytest.raises(MediaError, match=r"nothing is shown from 5\.000 to 0\.100 s"):
        cut_video(path, 5.0, 0.1, tmp_path / "cut.mp4", "exact")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    for cut in ("keyframes", "exact"):
        with pytest.raises(MediaError):
            cut_video(tmp_path / "broken.mp4", 0, 1, tmp_path / "cut", check_cut(cut))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mp4", "broken.mp4"]
