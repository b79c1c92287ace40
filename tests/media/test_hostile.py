"""Damaged and hostile files: frames or a `MediaError`; never a crash, a hang, a leak, or more than the limits."""

import io
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate_media import bounded_child, growth, mutated, outcome
from numbered_clips import numbers_of, write_numbered, write_numbered_animation
from PIL import Image

from perceiver_vl.media import source
from perceiver_vl.media.decode import load_clip, load_frames, stream_clip
from perceiver_vl.utils.errors import MediaError

ODD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "odd_media"
MANIFEST = [json.loads(line) for line in (ODD / "manifest.jsonl").open()] if ODD.is_dir() else []
needs_odd_media = pytest.mark.skipif(not MANIFEST, reason="the folder of unusual media is not beside the repository")
SECONDS = 60  # after which a file counts as hung
SMALL = [entry["file"] for entry in MANIFEST if 0 < (ODD / entry["file"]).stat().st_size < 300_000]


@pytest.fixture(scope="module")
def child() -> Iterator[Pool]:
    with bounded_child() as pool:
        yield pool


@needs_odd_media
def test_files_cut_at_every_sixteenth(child: Pool) -> None:
    cut = []
    for entry in MANIFEST:
        content = (ODD / entry["file"]).read_bytes()
        cut += [content[: len(content) * part // 16] for part in range(16)]
    found = Counter(child.map_async(outcome, cut, chunksize=16).get(4 * SECONDS))
    assert found["frames"] + found["some"] > len(cut) // 10
    assert found["refused"] > len(cut) // 10


@needs_odd_media
@settings(max_examples=80)
@given(file=st.sampled_from(SMALL or [""]), seed=st.integers(0, 2**32 - 1))
def test_files_damaged_at_random(child: Pool, file: str, seed: int) -> None:
    content = mutated((ODD / file).read_bytes(), np.random.default_rng(seed))
    assert child.apply_async(outcome, (content,)).get(SECONDS) in ("frames", "some", "refused")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png"])
def test_nothing_is_left_behind(child: Pool, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix in (".mp4", ".webm"):
        write_numbered(path, 20, codec="libx264" if name == "a.mp4" else "libvpx-vp9")
    else:
        write_numbered_animation(path, 20)
    content = path.read_bytes()
    damaged = content[: len(content) // 2] + bytes(50) + content[len(content) // 2 + 50 :]
    for data in (content, damaged):
        assert child.apply_async(growth, (data,)).get(SECONDS) < 8


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    path = write_numbered_animation(tmp_path / "a.gif", 20)
    content = path.read_bytes()
    whole = load_clip(path, 20)
    assert (whole.lost, whole.missing) == (False, 0)
    half = load_clip(content[: len(content) // 2], 20)
    assert half.lost
    count = len(half.frames)
    assert numbers_of(half.frames) == list(range(count))
    parts = list(stream_clip(content[: len(content) // 2], 20, chunk=4))
    assert sum(part.missing for part in parts) == half.missing
    assert parts[-1].lost


def test_frames_lost_in_the_middle_have_stand_ins(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", 30, codec="mjpeg", pixel_format="yuvj420p")
    content = bytearray(path.read_bytes())
    starts = [place for place in range(len(content)) if content[place : place + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 30
    for number in (10, 11):
        length = content[starts[number] :].index(b"\xff\xd9")
        content[starts[number] : starts[number] + length] = bytes(length)
    sparse = load_clip(bytes(content), timestamps=[0.55, 1.05, 2.55])
    assert numbers_of(sparse.frames) == [5, 12, 25]
    np.testing.assert_allclose(sparse.timestamps, [0.5, 1.2, 2.5])
    assert (sparse.lost, sparse.missing) == (True, 1)
    dense = load_clip(bytes(content), 30)
    assert numbers_of(dense.frames) == [*range(10), *range(12, 30)]
    assert (dense.lost, dense.missing) == (True, 2)


# Limits


@pytest.fixture
def still(tmp_path: Path) -> Path:
    return write_numbered(tmp_path / "a.mp4", 40)


def test_a_file_may_not_expand_without_end(still: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FREE_PIXELS", 10_000)
    monkeypatch.setattr(source, "FREE_PICTURE_PIXELS", 10_000)
    monkeypatch.setattr(source, "MAX_PICTURE_EXPANSION", 1)
    monkeypatch.setattr(source, "MAX_EXPANSION", 1)
    assert len(load_frames(still, 1, end=0.1)) == 1
    for path in (still, write_numbered_animation(tmp_path / "a.gif", 40)):
        with pytest.raises(MediaError, match=r"expands to more than \d+ pixels"):
            load_frames(path, 40)


def test_a_clip_may_not_take_all_memory(still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.media.decode.MAX_CLIP_BYTES", 100_000)
    with pytest.raises(MediaError, match=r"40 frames of 32x64 take more than the 100000 bytes allowed.*stream_clip"):
        load_frames(still, 40)
    assert len(load_frames(still, 40, size=(16, 16))) == 40
    assert sum(len(clip.frames) for clip in stream_clip(still, 40, chunk=8)) == 40


def test_neither_a_file_nor_a_request_may_have_frames_without_end(
    still: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MediaError, match=r"fps=1e\+20 asks for \d+ frames, more than the"):
        load_clip(still, fps=1e20)
    monkeypatch.setattr("perceiver_vl.media.video.MAX_FRAMES", 39)
    monkeypatch.setattr("perceiver_vl.media.pictures.MAX_FRAMES", 39)
    with pytest.raises(MediaError, match="more frames than the 39 allowed"):
        load_frames(still, 1)
    with pytest.raises(MediaError, match="40 frames are more than the 39 allowed"):
        load_frames(write_numbered_animation(tmp_path / "a.gif", 40), 1)


def test_a_frame_may_not_have_pixels_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write_numbered(tmp_path / "a.h264", 5, rate=25)
    large = write_numbered(tmp_path / "b.h264", 5, rate=25, size=(64, 128))
    monkeypatch.setattr("perceiver_vl.media.video.MAX_VIDEO_PIXELS", 64 * 64)
    with pytest.raises(MediaError, match="frames of 128x64 pixels are more than the 4096 allowed"):
        load_frames(large, 1)
    grown = load_clip(small.read_bytes() + large.read_bytes(), 10)  # grows after the header
    assert set(numbers_of(grown.frames)) <= set(range(5))
    assert grown.lost


def test_a_later_frame_of_an_animation_may_not_be_larger_than_any_picture() -> None:
    """Pillow makes room for where a frame of a GIF says that it lies, beyond the first."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    begin = data.index(b"\x2c\0\0\0\0")
    frame = data[begin:-1]
    away = frame[:1] + (11_000).to_bytes(2, "little") * 2 + frame[5:]
    with pytest.raises(MediaError, match="frames of 11008x11008 pixels are more than"):
        load_frames(data[:begin] + frame + away + b";", 2)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.mp4\n#EXT-X-ENDLIST\n"),
        lambda path: path.write_text("ffconcat version 1.0\nfile 'other.mp4'\n"),
        lambda path: path.write_text("\033[31mtext that a terminal would draw\n" * 100),
        lambda path: Image.new("RGB", (8, 8)).save(path, "EPS"),
        lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    ],
    ids=["hls", "concat", "text", "postscript", "svg"],
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_nothing_is_followed_or_run(tmp_path: Path, write: Callable[[Path], object], in_memory: bool) -> None:
    write_numbered(tmp_path / "other.mp4", 2)
    path = tmp_path / "list.mp4"
    write(path)
    with pytest.raises(MediaError, match="not a media file"):
        load_frames(path.read_bytes() if in_memory else path, 1)


def test_hours_of_frames_are_streamed_in_little_memory(tmp_path: Path) -> None:
    count, chunk = 3000, 16
    path = write_numbered(tmp_path / "long.mp4", count, preset="ultrafast", g=250)
    seen, held = 0, 0
    for clip in stream_clip(path, fps=10.0, chunk=chunk):
        held = max(held, clip.frames.nbytes)
        assert numbers_of(clip.frames[:1]) == [seen % 256]
        seen += len(clip.frames)
    assert seen == count
    assert held == chunk * math.prod((32, 64, 3))


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    stored = io.BytesIO()
    Image.new("RGB", (2000, 2000), "red").save(stored, "JPEG", progressive=True)
    content = stored.getvalue()
    assert load_frames(content, 1).shape == (1, 2000, 2000, 3)
    last = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(MediaError, match=r"expands to more than \d+ pixels, the most for a file of \d+ bytes"):
        load_frames(content[:-2] + last * 3000 + content[-2:], 1)


_PEAK = """
import resource, sys
from perceiver_vl.media.decode import load_frames
load_frames(sys.argv[1], 1, size=(32, 32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_frames(sys.argv[2], 1, size=(32, 32))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_large_picture_takes_its_pixels_and_its_frame_and_little_more(tmp_path: Path) -> None:
    for name, side in (("small.png", 64), ("large.png", 6000)):
        Image.new("RGBA", (side, side), (1, 2, 3, 128)).save(tmp_path / name)
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "small.png"), str(tmp_path / "large.png")]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)  # MiB
    pixels = 6000 * 6000 / (1 << 20)
    assert grown < 1.5 * (4 + 3) * pixels  # RGBA as decoded, RGB as given; with every step whole it was 20 a pixel


def test_of_large_pictures_one_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LARGE_PIXELS", 100)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    inside, most = Counter[str](), 0

    def slow(image: Image.Image) -> np.ndarray:
        nonlocal most
        inside["now"] += 1
        most = max(most, inside["now"])
        time.sleep(0.02)
        inside["now"] -= 1
        return np.zeros((40, 40, 3), np.uint8)

    monkeypatch.setattr("perceiver_vl.media.pictures.to_rgb", slow)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: load_frames(tmp_path / "a.png", 1), range(16)))
    assert most == 1
