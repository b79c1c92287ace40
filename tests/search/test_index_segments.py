"""Videos in segments: as the model says, streamed, resumed within a video, kept up to date, mended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.media.decode import frame_times, load_clip
from perceiver_vl.media.segments import find_segments
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search import build_index
from perceiver_vl.search.rows import numbers
from perceiver_vl.search.segments import segments_of
from perceiver_vl.search.table import SEGMENTS, open_table
from small_media import write_clip, write_image

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos of three seconds, a short one, and an image."""
    folder = tmp_path / "media"
    write_clip(folder / "a.mp4", seed=1, frames=30)
    write_clip(folder / "trip" / "b.mp4", seed=2, frames=31)
    write_clip(folder / "short.mp4", seed=3, frames=3)
    write_image(folder / "image.png", seed=4)
    return folder


def rows(index: Path) -> dict[str, pa.Table]:
    table = open_table(index, name=SEGMENTS)
    return {file: segments_of(table, file) for file in set(table.columns(["file"])["file"].to_pylist())}


def same(one: dict[str, pa.Table], other: dict[str, pa.Table]) -> None:
    assert one.keys() == other.keys()
    for file, found in one.items():
        assert found["start"].to_pylist() == other[file]["start"].to_pylist()
        assert found["end"].to_pylist() == other[file]["end"].to_pylist()
        for name in ("vector", "partial_attention"):
            np.testing.assert_allclose(numbers(found[name]), numbers(other[file][name]), atol=1e-5)


def test_segments_are_what_the_model_says_of_their_frames(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    report = build_index(model_folder, videos, tmp_path / "index", segments=0.5, segment_fps=4, batch_size=4)
    assert report.segments is not None
    assert (report.total, report.segments.total, report.segments.encoded) == (4, 14, 14)
    assert report.segments.hours == pytest.approx(6.4 / 3600)
    assert "14 segments of 0.00 h of video (14 encoded)" in report.summary()
    found = rows(tmp_path / "index")
    assert {file: len(some) for file, some in found.items()} == {"a.mp4": 6, "trip/b.mp4": 7, "short.mp4": 1}
    model, processor = load_retriever(model_folder, "cpu")
    for file, some in found.items():
        segments, duration = find_segments(videos / file, "0.5")
        times = frame_times(videos / file)[0]
        for segment, row in zip(segments, some.to_pylist(), strict=True):
            assert (row["start"], row["end"], row["duration"]) == (segment.start, segment.end, duration)
            assert segment.start == times[segment.first]
            count = max(1, round(4 * (segment.end - segment.start)))
            frames = load_clip(videos / file, count, start=segment.start, end=segment.end, size=(64, 64)).frames
            with torch.inference_mode():
                inputs = processor(videos=[frames])
                latents = model.encode_vision(**inputs)
                np.testing.assert_allclose(row["vector"], model.pool_vision(latents)[0], atol=1e-5)
                np.testing.assert_allclose(row["partial_attention"], model.partial_match(latents)[0], atol=1e-5)


def test_an_index_gets_segments_later_and_then_keeps_them(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert build_index(model_folder, videos, index).segments is None
    added = build_index(None, None, index, segments="1").segments
    assert added is not None
    assert (added.encoded, added.total) == (8, 8)
    before = {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.name != ".lock"}
    again = build_index(None, None, index).segments
    assert again is not None
    assert (again.encoded, again.total) == (0, 8)
    assert {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.name != ".lock"} == before
    build_index(model_folder, videos, tmp_path / "fresh", segments=1.0)
    same(rows(index), rows(tmp_path / "fresh"))


def test_segments_follow_new_changed_moved_and_removed_files(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(model_folder, videos, index, segments=1)
    write_clip(videos / "new.mp4", seed=9, frames=20)
    write_clip(videos / "short.mp4", seed=8, frames=15)
    (videos / "trip" / "b.mp4").rename(videos / "moved.mp4")
    shutil.copy(videos / "a.mp4", videos / "copy.mp4")
    (videos / "a.mp4").unlink()
    report = build_index(None, None, index)
    assert report.segments is not None
    assert (report.segments.encoded, report.segments.total) == (4, 11)  # of the new one and the changed one
    build_index(model_folder, videos, tmp_path / "fresh", segments=1)
    same(rows(index), rows(tmp_path / "fresh"))
    moved = rows(index)["moved.mp4"].to_pylist()[0]
    assert moved["mtime"].value == (videos / "moved.mp4").stat().st_mtime_ns
    assert open_table(index, name=SEGMENTS).seal.rows == 11


def test_files_that_change_places_keep_the_right_segments(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    build_index(model_folder, videos, tmp_path / "index", segments=1)
    (videos / "a.mp4").rename(videos / "away.mp4")
    (videos / "trip" / "b.mp4").rename(videos / "a.mp4")
    (videos / "away.mp4").rename(videos / "trip" / "b.mp4")
    build_index(None, None, tmp_path / "index")
    build_index(model_folder, videos, tmp_path / "fresh", segments=1)
    same(rows(tmp_path / "index"), rows(tmp_path / "fresh"))


def test_a_killed_run_goes_on_within_the_video(model_folder: Path, tmp_path: Path) -> None:
    media, index = tmp_path / "media", tmp_path / "index"
    write_clip(media / "long.mp4", seed=1, frames=400)
    code = (
        "import sys; from perceiver_vl.search import build_index\n"
        "build_index(*sys.argv[1:], batch_size=1, commit_clips=1, device='cpu', segments=0.5)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(model_folder), str(media), str(index)], env=environment)
    try:
        while process.poll() is None and len(list(index.glob("segments.lance/data/*"))) < 4:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    survived = len(open_table(index, name=SEGMENTS))
    assert 3 <= survived < 80
    report = build_index(model_folder, media, index)
    assert report.segments is not None
    assert (report.encoded, report.segments.encoded, report.segments.total) == (0, 80 - survived, 80)
    build_index(model_folder, media, tmp_path / "whole", segments=0.5)
    same(rows(index), rows(tmp_path / "whole"))


def test_damage_is_noticed_and_mended(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(model_folder, videos, index, segments=0.5)
    before = rows(index)
    file = index / "segments.lance" / "data" / open_table(index, name=SEGMENTS).data_files()[0]
    content = bytearray(file.read_bytes())
    stored = np.asarray(before["a.mp4"]["vector"][3].as_py(), np.float32).tobytes()
    place = content.index(stored)
    content[place + 1] ^= 16
    file.write_bytes(content)
    with pytest.raises(PerceiverVLError, match=r"the row of a\.mp4 is not what was written\), mend it with .*--verify"):
        open_table(index, name=SEGMENTS).check()
    report = build_index(None, None, index, verify=True)
    assert report.segments is not None
    assert (report.segments.mended, report.segments.total) == (1, 14)
    same(rows(index), before)
    open_table(index, name=SEGMENTS).check()


def test_a_lost_row_in_the_middle_is_encoded_again(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(model_folder, videos, index, segments=0.5)
    before = rows(index)
    import lance

    lance.dataset(str(index / "segments.lance")).delete("file = 'a.mp4' AND start = 1.0")
    report = build_index(None, None, index)
    assert report.segments is not None
    assert report.segments.encoded == 6
    same(rows(index), before)


def test_scenes(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    report = build_index(model_folder, videos, tmp_path / "index", segments="scenes")
    assert report.segments is not None
    assert report.segments.total == 3  # nothing is cut in these
    assert open_table(tmp_path / "index").settings.segments == "scenes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": 3}, "made with segments 2, not 3"),
        ({"segment_fps": 3}, r"made with segment_fps 1\.0, not 3\.0"),
        ({"segments": "often"}, "segments=often: need seconds"),
        ({"segment_fps": 0}, "segment_fps=0: need frames a second"),
        ({"segments": 2, "ray": "local"}, "cut them by a run without ray"),
    ],
)
def test_other_settings_are_refused(
    model_folder: Path, videos: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    build_index(model_folder, videos, tmp_path / "index", segments=2)
    with pytest.raises(UsageError, match=message):
        build_index(model_folder, videos, tmp_path / "index", **options)


def test_frames_a_second_are_of_segments(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of segments"):
        build_index(model_folder, videos, tmp_path / "index", segment_fps=2)


def test_a_video_that_breaks_off_is_told_and_keeps_what_there_is(
    model_folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perceiver_vl.search import segments as module
    from perceiver_vl.utils.errors import MediaError

    real: Callable[..., Any] = module.read_segments

    def breaking(path: Path, *arguments: Any, **options: Any) -> Any:
        for number, one in enumerate(real(path, *arguments, **options)):
            if number == 2 and path.name == "a.mp4":
                raise MediaError(path, "expands to more than allowed")
            yield one

    index = tmp_path / "index"
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_segments", breaking)
        report = build_index(model_folder, videos, index, segments=0.5)
        assert [str(one) for one in report.skipped] == ["a.mp4: expands to more than allowed"]
        assert len(rows(index)["a.mp4"]) == 2
        with pytest.raises(MediaError, match="expands"):
            build_index(None, None, index, strict=True, batch_size=1)
    report = build_index(None, None, index)
    assert report.segments is not None
    assert report.skipped == []
    assert report.segments.total == 14
