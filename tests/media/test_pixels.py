"""What frames look like: turned, stretched, deinterlaced, tone-mapped, laid on white, scaled."""

import sys
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_clips import numbers_of, write_numbered
from PIL import Image

from perceiver_vl.media.colour import BT2020, HLG, PQ, to_sdr
from perceiver_vl.media.decode import load_clip, load_frames
from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.utils.errors import MediaError

Frames = npt.NDArray[np.uint8]


def write_frames(path: Path, frames: list[Any], codec: str, pixel_format: str, **options: Any) -> Path:
    """PyAV frames, as they are, ten a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, pixel_format
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def bars(*columns: int) -> Frames:
    """Black (48, 64, 3) with white bars, 8 wide."""
    frame = np.zeros((48, 64, 3), np.uint8)
    for column in columns:
        frame[:, column : column + 8] = 255
    return frame


@pytest.mark.parametrize("size", [None, (48, 64), (24, 32), (96, 96)])
def test_interlaced_frames_show_one_moment(tmp_path: Path, size: tuple[int, int] | None) -> None:
    woven = bars(8)
    woven[1::2] = bars(40)[1::2]  # the second field, a moment later
    frames = [av.VideoFrame.from_ndarray(woven, format="rgb24") for _ in range(8)]
    path = write_frames(tmp_path / "a.mp4", frames, "libx264", "yuv420p", **{"x264-params": "tff=1", "qp": 1})
    for count in (1, 8):
        found = load_frames(path, count, size=size)
        width = found.shape[2]
        first, second = (found[:, :, (c + 2) * width // 64 : (c + 6) * width // 64] for c in (8, 40))
        assert first.mean() > 235
        assert second.mean() < 20
    flat = write_frames(tmp_path / "b.mp4", frames, "libx264", "yuv420p", qp=1)
    assert np.abs(load_frames(flat, 1)[0].astype(int) - woven).mean() < 8  # nobody said that it is interlaced


def pq(light: float) -> float:
    """cd/m² → the signal, 0..1 (SMPTE ST 2084)."""
    power = (light / 10_000) ** (2610 / 16384)
    return float(((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32))


def grays(*signals: float) -> npt.NDArray[np.uint16]:
    return np.repeat(np.array(signals)[None, :, None] * 65535, 3, 2).round().astype(np.uint16)


def test_dark_light_is_kept_and_highlights_are_rolled_off() -> None:
    lights = [0, 1, 10, 50, 100, 203, 500, 1000, 4000]
    found = to_sdr(grays(*map(pq, lights)), PQ)[0]
    assert (np.ptp(found, axis=-1) <= 1).all()  # gray stays gray
    levels = found[:, 1].astype(int)
    for light, level in zip(lights[:4], levels, strict=False):
        assert level == pytest.approx(255 * (light / 203) ** (1 / 2.4), abs=1.5)
    assert (np.diff(levels) >= 0).all()
    assert 150 < levels[lights.index(203)] < levels[lights.index(500)] < 255 == levels[-1] == levels[-2]


def test_hlg_and_pq_of_the_same_light_agree() -> None:
    def hlg(light: float) -> float:
        scene = (light / 1000) ** (1 / 1.2)  # gray, on a screen of 1000 cd/m²
        return (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073

    lights = [1, 10, 100, 203, 600, 1000]
    difference = to_sdr(grays(*map(hlg, lights)), HLG).astype(int) - to_sdr(grays(*map(pq, lights)), PQ)
    assert np.abs(difference).max() <= 1


def test_colours_of_a_wide_gamut_become_those_of_a_narrow_one() -> None:
    bt709_red_in_bt2020 = np.array([[[0.6274, 0.0691, 0.0164]]]) ** (1 / 2.4)  # BT.2087
    found = to_sdr((bt709_red_in_bt2020 * 65535).astype(np.uint16), 1)[0, 0].tolist()
    assert found == pytest.approx([255, 0, 0], abs=12)


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("size", [None, (24, 32)])
def test_a_video_of_high_dynamic_range_is_mapped(tmp_path: Path, transfer: int, size: tuple[int, int] | None) -> None:
    level = 0.5081 if transfer == PQ else 0.5  # PQ: 100 cd/m²
    pixels = np.full((48, 64, 3), round(255 * level), np.uint8)
    frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format="yuv420p10le", dst_colorspace=BT2020
    )
    frame.colorspace, frame.color_trc, frame.color_primaries = BT2020, transfer, BT2020
    name = "smpte2084" if transfer == PQ else "arib-std-b67"
    tags = f"log-level=none:colorprim=bt2020:colormatrix=bt2020nc:transfer={name}"
    path = write_frames(tmp_path / "a.mkv", [frame] * 3, "libx265", "yuv420p10le", **{"x265-params": tags})
    found = load_frames(path, 1, size=size)
    expected = to_sdr(grays(round(255 * level) / 255), transfer)
    assert expected[0, 0, 0] > pixels[0, 0, 0] + 10  # brighter than the signal looks
    assert np.abs(found.astype(int) - int(expected[0, 0, 0])).max() <= 4


def test_transparency_of_a_video_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[:, 16:, 3] = 128
    rgba[:, 40:] = (255, 0, 0, 255)
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
    found = load_frames(write_frames(tmp_path / "a.mov", [frame], "png", "rgba"), 1)[0]
    assert found[20, [8, 30, 50]].tolist() == [[255] * 3, [127] * 3, [255, 0, 0]]
    small = load_frames(tmp_path / "a.mov", 1, size=(24, 32))[0]
    assert small[12, [3, 15, 26]].tolist() == [[255] * 3, [127] * 3, [255, 0, 0]]


@pytest.mark.parametrize(("space", "name"), [(1, "bt709"), (5, "smpte170m")])
def test_the_colours_that_a_video_is_tagged_with_are_used(tmp_path: Path, space: int, name: str) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:] = 30, 200, 60
    frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", dst_colorspace=space)
    frame.colorspace = space
    options = {"x264-params": f"colormatrix={name}", "qp": 1}
    path = write_frames(tmp_path / "a.mp4", [frame], "libx264", "yuv420p", **options)
    for size in (None, (20, 20)):
        assert np.abs(load_frames(path, 1, size=size).astype(int) - pixels[0, 0]).max() <= 4


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p", "yuv444p", "gray", "gbrp10le"])
def test_other_depths_and_layouts(tmp_path: Path, pixel_format: str) -> None:
    path = write_numbered(tmp_path / "a.mkv", 9, codec="ffv1", pixel_format=pixel_format)
    for size in (None, (64, 64)):
        assert numbers_of(load_frames(path, 9, size=size)) == list(range(9))


def test_frames_that_change_their_size_all_have_that_of_the_first(tmp_path: Path) -> None:
    small = write_numbered(tmp_path / "a.h264", 5, rate=25)
    large = write_numbered(tmp_path / "b.h264", 5, rate=25, size=(64, 128))
    path = tmp_path / "c.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    found = load_clip(path, 10)
    assert found.frames.shape[1:3] == (32, 64)
    assert numbers_of(found.frames) == [*range(5), *range(5)]


@given(st.tuples(*[st.integers(1, 200)] * 4), st.integers(0, 9))
def test_resizing_is_that_of_pillow(sides: tuple[int, int, int, int], seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (*sides[:2], 3), np.uint8)
    expected = np.asarray(Image.fromarray(frame).resize(sides[:1:-1], Image.Resampling.BICUBIC))
    difference = np.abs(resize_frame(frame, sides[2:]).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.05
    frame.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resize_frame(frame, sides[2:]).shape == (*sides[2:], 3)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    picture = rough.resize((1600, 1200), Image.Resampling.BICUBIC)
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(tmp_path / "a.jpg", quality=95, exif=exif)
        whole = load_frames(tmp_path / "a.jpg", 1)[0]
        assert whole.shape == ((1200, 1600, 3) if orientation == 1 else (1600, 1200, 3))
        difference = np.abs(
            load_frames(tmp_path / "a.jpg", 1, size=(64, 96))[0].astype(int) - resize_frame(whole, (64, 96))
        )
        assert difference.mean() < 1


@pytest.mark.parametrize("down", [1, -1])
@pytest.mark.parametrize("right", [1, -1])
@pytest.mark.parametrize("transposed", [False, True])
def test_all_eight_orientations_are_upright(tmp_path: Path, transposed: bool, right: int, down: int) -> None:
    """Phones turn and mirror by the display matrix: x' = ax + cy, y' = bx + dy."""
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32], stored[:16, 32:], stored[16:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    a, b, c, d = (0, down, right, 0) if transposed else (right, 0, 0, down)
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv444p"
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")), *stream.encode(None)]:
            container.mux(packet)
    expected = np.zeros((64, 32, 3) if transposed else (32, 64, 3), np.uint8)
    for y, x in np.ndindex(32, 64):
        column, row = a * x + c * y, b * x + d * y
        expected[row % len(expected), column % expected.shape[1]] = stored[y, x]  # % as -1 is the last
    if right < 0 or down < 0:  # -x goes to the last but x, where Python's -0 is the first
        expected = np.roll(expected, (-1 if down < 0 else 0, -1 if right < 0 else 0), (0, 1))
    clip = load_clip(tmp_path / "clip.mp4", 1)
    assert clip.shape == expected.shape[:2]
    np.testing.assert_allclose(clip.frames[0].astype(int), expected, atol=12)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_transparency_beside_the_picture_is_laid_on_white(tmp_path: Path, codec: str) -> None:
    with av.open(tmp_path / "clip.webm", "w") as container:
        stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuva420p"
        for alpha in (0, 255):
            frame = av.VideoFrame(64, 64, "yuva420p")
            for plane, value in zip(frame.planes, (16, 128, 128, alpha), strict=True):  # black
                plane.update(bytes([value]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clear, solid = load_clip(tmp_path / "clip.webm", 2).frames[:, 32, 32]
    assert (clear > 250).all()
    assert (solid < 10).all()


def test_photographs_of_phones_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="it is not installed: pip install 'perceiver-vl[heic]'")
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:48, :32], pixels[:48, 32:], pixels[48:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "photo.heic", quality=95)
    clip = load_clip(tmp_path / "photo.heic", 1)
    assert clip.shape == (96, 64)
    for y, x in ((20, 10), (20, 50), (70, 10), (70, 50)):
        np.testing.assert_allclose(clip.frames[0, y, x].astype(int), pixels[y, x], atol=12)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(MediaError, match=r"photo\.heic: a HEIC photograph, to read it: pip install"):
        load_clip(tmp_path / "photo.heic", 1)


def test_avif_that_calls_itself_mif1_is_laid_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.avif")
    content = bytearray((tmp_path / "clear.avif").read_bytes())
    assert content[4:12] == b"ftypavif"
    content[8:12] = b"mif1"
    (tmp_path / "clear.avif").write_bytes(content)
    assert (load_clip(tmp_path / "clear.avif", 1).frames > 250).all()
