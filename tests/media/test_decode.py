import contextlib
import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perceiver_vl.media.decode import decoder_version, load_clip, load_frames
from perceiver_vl.media.files import MediaFiles, find_media, is_media
from perceiver_vl.media.pictures import to_rgb
from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.media.sampling import sample_indices
from perceiver_vl.utils.errors import MediaError, UsageError

ODD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "odd_media"
MANIFEST = [json.loads(line) for line in (ODD / "manifest.jsonl").open()] if ODD.is_dir() else []
needs_odd_media = pytest.mark.skipif(not MANIFEST, reason="the folder of unusual media is not beside the repository")


def odd_files(*readable):
    return [pytest.param(entry, id=entry["file"]) for entry in MANIFEST if entry["readable"] in readable]


def shades(count, height=48, width=64):
    """(count, H, W, 3): frame i is gray of level 10 + 4 i, so that a decoded frame tells its number."""
    return [np.full((height, width, 3), 10 + 4 * i, np.uint8) for i in range(count)]


def numbers(frames):
    return [round((float(frame.mean()) - 10) / 4) for frame in frames]


def write_video(
    path, frames, rate=10, codec="libx264", pixel_format="yuv420p", times=None, container_options=None, **options
):
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixel_format
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path):
    """Every frame, decoded one after the other: the slow way that sampling must agree with."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


# What decodes and what does not


@needs_odd_media
@pytest.mark.parametrize("entry", odd_files(True, "partial"))
def test_a_readable_file_gives_frames(entry, capfd):
    clip = load_clip(ODD / entry["file"], 8, size=(48, 64))
    assert clip.frames.shape == (len(clip.timestamps), 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert 1 <= len(clip.frames) <= entry.get("frames", 8)
    assert clip.lost == (entry["readable"] == "partial")
    assert np.all(np.diff(clip.timestamps) > 0)
    assert clip.timestamps[0] >= 0
    assert clip.duration is None or clip.duration > clip.timestamps[-1]
    assert "".join(capfd.readouterr()) == ""


@needs_odd_media
@pytest.mark.parametrize("entry", odd_files(False))
def test_an_unreadable_file_gives_one_line_and_nothing_else(entry, capfd):
    path = ODD / entry["file"]
    with pytest.raises(MediaError) as caught:
        load_clip(path, 8)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    assert "".join(capfd.readouterr()) == ""


@needs_odd_media
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("videos/empty.mp4", "empty file"),
        ("videos/text_named.mp4", "not a media file"),
        ("videos/audio_only.m4a", "no video stream (audio only)"),
        ("videos/truncated_no_index.mp4", "truncated"),
        ("images/cat_truncated.jpg", "truncated"),
        ("images/empty.jpg", "empty file"),
        ("images/pillow_broken_data_stream.png", "damaged"),
        ("images/missing.jpg", "no such file"),
        ("images", "is a folder"),
    ],
)
def test_the_reason_is_said(file, reason):
    with pytest.raises(MediaError) as caught:
        load_frames(ODD / file, 1)
    assert caught.value.reason.startswith(reason)
    assert caught.value.path == ODD / file


@needs_odd_media
@pytest.mark.parametrize("entry", [entry for entry in odd_files(True) if "width" in entry.values[0]])
def test_frames_are_upright(entry):
    _, height, width, _ = load_frames(ODD / entry["file"], 1).shape
    aspect = 4 / 3 if entry["file"].startswith("videos") else 1  # these clips have pixels a third wider than high
    assert (width, height) == (round(entry["width"] * aspect), entry["height"])


@needs_odd_media
@pytest.mark.parametrize("entry", [entry for entry in odd_files(True) if "/torchcodec" in entry.values[0]["file"]])
@pytest.mark.parametrize("count", [1, 3, 11])
def test_sampled_frames_are_those_of_a_full_decoding(entry, count):
    every = decode_all(ODD / entry["file"])
    wanted = sample_indices(len(every), count)
    np.testing.assert_array_equal(load_frames(ODD / entry["file"], count), [every[i] for i in wanted])


@needs_odd_media
@pytest.mark.parametrize("file", ["mpeg2.mpg", "vp9.webm", "long_gop.mp4", "variable_frame_rate.mp4"])
def test_sampled_frames_are_those_of_a_full_decoding_when_resized(file):
    every = decode_all(ODD / "videos" / file)
    expected = [resize_frame(every[i], (24, 32)) for i in sample_indices(len(every), 5)]
    np.testing.assert_array_equal(load_frames(ODD / "videos" / file, 5, size=(24, 32)), expected)


@needs_odd_media
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_rotated_video_equals_the_upright_one(angle):
    rotated = load_frames(ODD / f"videos/rotated_{angle}.mp4", 96, size=(120, 160))[::8]
    upright = load_frames(ODD / "videos/original_with_audio.mp4", 384, size=(120, 160))[:96:8]
    error = np.abs(rotated.astype(int) - upright).mean()
    mirrored = np.abs(rotated[:, ::-1].astype(int) - upright).mean()
    assert error < 6 < mirrored  # written again with loss, so not equal to the bit


@needs_odd_media
def test_pixels_that_are_not_square_are_made_square():
    assert load_frames(ODD / "videos/non_square_pixels.mp4", 1).shape == (1, 240, 320, 3)


@needs_odd_media
def test_picture_modes_agree():
    def cat(name):
        return load_frames(ODD / f"images/cat_{name}", 1)[0].astype(int)

    colour, gray = cat("rgb16.png"), cat("gray.jpg")
    assert np.abs(cat("cmyk.jpg") - colour).mean() < 5
    assert np.abs(cat("jpeg_named.png") - colour).mean() < 5
    assert np.abs(cat("gray16.png") - gray).mean() < 3
    half = colour.shape[1] // 2
    assert (cat("rgba.png")[:, : half - 2] == 255).all()
    assert np.abs(cat("rgba.png")[:, half + 2 :] - colour[:, half + 2 :]).mean() < 3


@needs_odd_media
def test_exif_orientations_show_the_same_picture():
    pictures = [
        load_frames(ODD / f"images/exif_Landscape_{k}.jpg", 1, size=(40, 60))[0].astype(int) for k in (1, 3, 6, 8)
    ]
    for picture in pictures[1:]:
        inner = np.abs(picture - pictures[0])[8:-8, 8:-8]
        assert np.median(inner) <= 2  # the number printed on each differs


@needs_odd_media
def test_damage_keeps_what_can_be_read(tmp_path):
    whole = (ODD / "videos/animated.gif").read_bytes()
    path = tmp_path / "cut.gif"
    path.write_bytes(whole[: len(whole) // 2])
    clip = load_clip(path, 4)
    assert clip.lost
    complete = load_clip(ODD / "videos/animated.gif", 16)
    np.testing.assert_array_equal(clip.frames[0], complete.frames[0])


@needs_odd_media
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything_else(tmp_path_factory, data):
    entry = data.draw(st.sampled_from([e for e in MANIFEST if e["file"].startswith(("images/pillow", "videos/o"))]))
    content = bytearray((ODD / entry["file"]).read_bytes()[: data.draw(st.integers(1, 60_000))])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=20)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "clip"
    path.write_bytes(content)
    with contextlib.suppress(MediaError):
        assert load_frames(path, 3, size=(16, 16)).shape[1:] == (16, 16, 3)


# Sampling


@given(total=st.integers(1, 5000), count=st.integers(1, 64), seed=st.none() | st.integers(0, 9))
def test_indices_lie_one_in_each_segment(total, count, seed):
    def indices():
        return sample_indices(total, count, None if seed is None else np.random.default_rng(seed))

    found = indices()
    assert found == indices()
    assert len(found) == min(total, count)
    for i, index in enumerate(found):
        assert i * total // len(found) <= index < (i + 1) * total // len(found)


def test_uniform_takes_the_middles(tmp_path):
    path = write_video(tmp_path / "clip.mp4", shades(40))
    clip = load_clip(path, 4)
    assert numbers(clip.frames) == [5, 15, 25, 35]
    np.testing.assert_allclose(clip.timestamps, [0.5, 1.5, 2.5, 3.5])
    assert clip.duration == pytest.approx(4.0)
    assert not clip.lost


def test_random_follows_its_generator(tmp_path):
    path = write_video(tmp_path / "clip.mp4", shades(40))

    def draw(seed):
        return numbers(load_frames(path, 4, rng=np.random.default_rng(seed)))

    assert draw(1) == draw(1) == sample_indices(40, 4, np.random.default_rng(1))
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_a_short_clip_gives_each_frame_once(tmp_path):
    path = write_video(tmp_path / "clip.mp4", shades(3))
    assert numbers(load_frames(path, 8)) == [0, 1, 2]


def test_times_of_a_variable_rate_are_kept(tmp_path):
    times = [0, 1, 2, 20, 21, 50]
    path = write_video(tmp_path / "clip.mkv", shades(6), times=times)
    np.testing.assert_allclose(load_clip(path, 6).timestamps, np.array(times) / 10, atol=1e-3)


@pytest.mark.parametrize("keyframe_every", [1, 12, 250])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_jumps_between_keyframes_change_nothing(tmp_path, keyframe_every, b_frames):
    rng = np.random.default_rng(0)
    frames = [np.roll(rng.integers(0, 256, (32, 48, 3), np.uint8), i, 1) for i in range(60)]
    path = write_video(tmp_path / "clip.mp4", frames, g=keyframe_every, bf=b_frames)
    every = decode_all(path)
    for count in (1, 2, 7, 60):
        expected = [every[i] for i in sample_indices(60, count)]
        np.testing.assert_array_equal(load_frames(path, count), expected)


def test_a_large_stream_is_not_kept_but_gives_the_same_frames(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (240, 320, 3), np.uint8)
    frames = [np.roll(noise, 7 * i, 0) for i in range(200)]
    path = write_video(tmp_path / "clip.mkv", frames, preset="ultrafast", qp=0, g=40)
    assert path.stat().st_size > 17_000_000
    every = decode_all(path)
    for count in (1, 5):
        expected = [every[i] for i in sample_indices(200, count)]
        np.testing.assert_array_equal(load_frames(path, count), expected)


def test_a_stream_without_times_is_counted(tmp_path):
    path = write_video(tmp_path / "clip.h264", shades(20), rate=25, bf=2)
    clip = load_clip(path, 4)
    assert numbers(clip.frames) == sample_indices(20, 4)
    np.testing.assert_allclose(clip.timestamps, np.array([2, 7, 12, 17]) / 25)


def test_a_cut_file_is_lost_but_read(tmp_path):
    path = write_video(tmp_path / "clip.mp4", shades(60), container_options={"movflags": "faststart"})
    whole = path.read_bytes()
    with av.open(str(path), "r") as container:
        middle = [packet.pos for packet in container.demux(video=0) if packet.size][20]
    path.write_bytes(whole[:middle])
    clip = load_clip(path, 60)
    assert clip.lost
    assert numbers(clip.frames)[:10] == list(range(10))


# Pictures


def test_an_animation_is_a_clip(tmp_path):
    frames = [Image.fromarray(frame) for frame in shades(6)]
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=200, **options)
        clip = load_clip(tmp_path / name, 3)
        assert numbers(clip.frames) == [1, 3, 5]
        np.testing.assert_allclose(clip.timestamps, [0.2, 0.6, 1.0])
        assert clip.duration == pytest.approx(1.2)


def test_the_pages_of_a_tiff_are_not_a_clip(tmp_path):
    pages = [Image.fromarray(frame) for frame in shades(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert numbers(load_frames(tmp_path / "a.tif", 8)) == [0]


def test_content_decides_not_the_name(tmp_path):
    video = write_video(tmp_path / "clip.mp4", shades(4)).rename(tmp_path / "clip.jpg")
    assert numbers(load_frames(video, 8)) == [0, 1, 2, 3]
    Image.fromarray(shades(1)[0]).save(tmp_path / "photo.bmp")
    assert numbers(load_frames((tmp_path / "photo.bmp").rename(tmp_path / "photo.mp4"), 8)) == [0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)), [0, 100, 255]),
        (Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), [0, 128, 255]),
        (Image.fromarray(np.array([[[9, 0], [9, 255], [0, 255]]], np.uint8), "LA"), [255, 9, 0]),
        (Image.fromarray(np.array([[0, 40, 255]], np.uint8)), [0, 40, 255]),
    ],
)
def test_values_are_scaled_not_clipped(image, expected):
    assert to_rgb(image)[0, :, 1].tolist() == expected


def test_a_picture_of_hostile_size_is_refused(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(MediaError, match="pixels"):
        load_frames(path, 1)
    Image.new("1", (11_000, 10_000)).save(path)
    with pytest.raises(MediaError, match="11000x10000 pixels"):
        load_frames(path, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_size_squashes(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, 32:] = 255
    if suffix == ".png":
        Image.fromarray(frame).save(path)
    else:
        write_video(path, [frame], codec="libx264rgb", pixel_format="rgb24", qp=0)
    np.testing.assert_array_equal(load_frames(path, 1, size=(20, 10))[0], resize_frame(frame, (20, 10)))
    np.testing.assert_array_equal(load_frames(path, 1)[0], frame)


# Arguments, folders, and the rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames=0: need at least one frame"),
        ({"num_frames": 2, "size": (0, 8)}, r"size=\(0, 8\)"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(UsageError, match=message):
        load_clip("any.mp4", **arguments)


def test_a_list_of_files_is_not_followed(tmp_path):
    write_video(tmp_path / "other.mp4", shades(2))
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile 'other.mp4'\n")
    with pytest.raises(MediaError):
        load_frames(path, 1)


def test_names_are_only_names(tmp_path):
    for name in ("http:clip%03d.mp4", "ünï.mp4", "-.mp4", "a b#?.mp4"):
        path = write_video(tmp_path / "clip.mp4", shades(2)).rename(tmp_path / name)
        assert numbers(load_frames(path, 2)) == [0, 1]


def test_a_media_error_survives_pickling():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "no\nframes")))
    assert (str(error), error.path, error.reason) == ("a.mp4: no frames", Path("a.mp4"), "no frames")


def test_find_media(tmp_path):
    for name in ("b/z.MP4", "b/a.gif", "c.webp", "notes.txt", ".hidden.mp4", ".cache/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_media(tmp_path) == MediaFiles(["b/a.gif", "b/z.MP4", "c.webp"])
    assert is_media("clip.MOV")
    assert not is_media("mp4")


def test_linked_folders_are_followed_once_and_what_cannot_be_listed_is_told(tmp_path, monkeypatch):
    for name in ("media/a.mp4", "elsewhere/b.mp4", "media/shut/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("2022", "../elsewhere"), ("again", "../elsewhere"), ("loop", "."), ("nowhere", "gone")):
        (tmp_path / "media" / link).symlink_to(target, target_is_directory=True)
    (tmp_path / "media" / "linked.mp4").symlink_to("a.mp4")
    real = os.scandir

    def scandir(place):
        if Path(place).name == "shut":
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_media(tmp_path / "media")
    assert found.files == ["2022/b.mp4", "a.mp4", "linked.mp4"]
    assert found.unlisted == {"shut": "Permission denied"}


def test_thumbnails_and_rubbish_are_left_out_and_told(tmp_path):
    for name in ("@eaDir/a.mp4/SYNOPHOTO_THUMB_M.jpg", "#recycle/b.mp4", "c.mp4", "._c.mp4", "sub/d.gif", "sub/e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_media(tmp_path)
    assert found == MediaFiles(["c.mp4", "sub/d.gif", "sub/e.mp4"], excluded=["#recycle", "@eaDir"])
    assert find_media(tmp_path, exclude=["*.gif", "sub/e*"]).files == ["c.mp4"]


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", shades(2))

    def refuse(*words, **how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MediaError, match=r"clip\.mp4: permission denied$"):
        load_frames(path, 1)
    with pytest.raises(MediaError, match="no such file"):
        load_frames(tmp_path / "a\0b.mp4", 1)
    with pytest.raises(MediaError, match="file name too long"):
        load_frames(tmp_path / ("a" * 300), 1)


def test_decoder_version_names_both():
    assert decoder_version().startswith(f"PyAV {av.__version__} (FFmpeg ")
    assert ", Pillow " in decoder_version()
