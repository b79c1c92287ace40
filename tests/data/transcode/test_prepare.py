"""Prepared folders: small, of the same times and words, and whole whatever happened while they were made."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perceiver_vl import MediaError, PerceiverVLError, UsageError
from perceiver_vl.cli import main
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.transcode.one_file import TranscodeSettings, target_size
from perceiver_vl.data.transcode.prepare import PrepareReport, prepare
from perceiver_vl.data.transcode.prepared import describe_prepared, verify_prepared
from perceiver_vl.media.decode import load_clip

ODD = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "odd_media"
RATE = 30
FORMATS = [TranscodeSettings(), TranscodeSettings(format="h264"), TranscodeSettings(size=(32, 48))]
THIN = {"fps": 4.0, "min_frames": 1}


def write_numbered(path: Path, count: int) -> Path:
    """A clip with one keyframe whose frames show their number as eight black or white bars, its binary digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "1000", "crf": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(count):
            bars = [255 * (number >> digit & 1) for digit in range(8)]
            pixels = np.broadcast_to(np.repeat(bars, 8)[None, :, None], (48, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: Any) -> list[int]:
    """What frames of any size show."""
    bars = np.asarray(frames).mean((1, 3)).reshape(len(frames), 8, -1).mean(-1) > 127
    return [sum(int(bar) << digit for digit, bar in enumerate(of_one)) for of_one in bars]


def write_rows(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def run(source: Path, out: Path, settings: TranscodeSettings | None = None, **options: Any) -> PrepareReport:
    return prepare(read_folder(source, need=None), out, settings, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two clips and a picture with captions."""
    folder = tmp_path / "source"
    write_numbered(folder / "clips/a.mp4", 90)
    write_numbered(folder / "clips/b.mp4", 20)
    Image.new("RGB", (600, 400), "red").save(folder / "c.png")
    rows = [("clips/a.mp4", ["one", "two"], "train"), ("clips/b.mp4", ["three"], "test"), ("c.png", ["red"], "test")]
    write_rows(folder, *({"file_name": name, "text": texts, "split": split} for name, texts, split in rows))
    return folder


# --- What is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", FORMATS, ids=str)
def test_sampled_frames_are_those_of_the_original_at_that_time(tmp_path: Path, settings: TranscodeSettings) -> None:
    original = write_numbered(tmp_path / "source" / "a.mp4", 200)
    settings = TranscodeSettings(settings.size, **THIN, format=settings.format)
    report = run(original.parent, tmp_path / "out", settings)
    assert report.frames == 27  # ceil(4 * 200 / 30)
    for count in (1, 5, 8, 27):
        raw, small = load_clip(original, count), load_clip(tmp_path / "out/a.mp4", count)
        assert len(small.frames) == count
        assert small.duration == pytest.approx(raw.duration, abs=1e-3)
        assert numbers(small.frames) == [round(seconds * RATE) for seconds in small.timestamps]
        assert np.abs(small.timestamps - raw.timestamps).max() <= 1 / 4 + 1 / RATE
    assert numbers(load_clip(tmp_path / "out/a.mp4", timestamps=[0, 2.5, 6.6]).frames)[:2] == [0, 75]


@given(
    times=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    fps=st.sampled_from([2.0, 7.5, 100.0]),
    format=st.sampled_from(["jpeg", "h264"]),
)
def test_times_of_a_variable_rate_stay(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], fps: float, format: Any
) -> None:
    folder = tmp_path_factory.mktemp("vfr")
    (folder / "source").mkdir()
    shown = np.concatenate([[0], np.cumsum(times)]) / 20
    with av.open(str(folder / "source/a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        for number, seconds in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 + 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 20), Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    run(folder / "source", folder / "out", TranscodeSettings(fps=fps, min_frames=1, format=format))
    clip = load_clip(folder / "out/a.mkv.mp4", 1000)
    seen = [round((float(frame.mean()) - 20) / 5) for frame in clip.frames]
    assert clip.timestamps == pytest.approx(shown[seen], abs=2e-3)
    wanted = {int(np.searchsorted(shown, tick / fps + 1e-3)) - 1 for tick in range(int(shown[-1] * fps) + 1)}
    assert set(seen) >= wanted
    assert len(seen) <= len(wanted) + 1


@pytest.mark.parametrize(
    ("settings", "codec", "every"),
    [
        (TranscodeSettings(), "mjpeg", 1),
        (TranscodeSettings(format="h264"), "h264", 4),
        (TranscodeSettings(format="h264", keyframes=7), "h264", 7),
    ],
    ids=str,
)
def test_keyframes_are_dense_and_nothing_is_reordered(
    source: Path, tmp_path: Path, settings: TranscodeSettings, codec: str, every: int
) -> None:
    run(source, tmp_path / "out", settings)
    with av.open(str(tmp_path / "out/clips/a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == codec
        packets = [packet for packet in container.demux() if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, 64, every))
    assert all(packet.pts == packet.dts for packet in packets)


def test_a_short_clip_keeps_more_frames(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", TranscodeSettings(min_frames=20))
    for name, kept in (("a", 20), ("b", 20)):
        assert len(load_clip(tmp_path / f"out/clips/{name}.mp4", 1000).frames) == kept


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (360, 640, 256, (256, 456)),
        (640, 360, 256, (456, 256)),
        (100, 50, 256, (100, 50)),
        (101, 51, 256, (100, 52)),
        (1, 1, 256, (2, 2)),
        (360, 640, (224, 224), (224, 224)),
    ],
)
def test_the_short_side_is_reduced_and_nothing_enlarged(
    height: int, width: int, size: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    assert target_size(height, width, size) == expected


def test_pictures_become_upright_jpegs(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    picture = Image.new("RGBA", (80, 40), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.convert("RGB").save(folder / "a.jpg", exif=exif)
    picture.save(folder / "b.png")
    frames = [Image.new("RGB", (80, 40), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "c.gif", save_all=True, append_images=frames[1:], duration=500)
    report = run(folder, tmp_path / "out", TranscodeSettings(size=20))
    assert report.files == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("[a-c]*")) == ["a.jpg", "b.png.jpg", "c.gif.mp4"]
    for name, size in (("a.jpg", (20, 40)), ("b.png.jpg", (40, 20))):
        with Image.open(tmp_path / "out" / name) as small:
            assert (small.format, small.mode, small.size) == ("JPEG", "RGB", size)
            assert small.getexif().get(0x0112) is None
    clip = load_clip(tmp_path / "out" / "c.gif.mp4", 8)
    assert clip.timestamps.tolist() == [0.0, 0.5]
    assert clip.duration == 1.0
    assert clip.frames[0].mean((0, 1)).argmax() == 0
    assert clip.frames[1].mean((0, 1)).argmax() == 2


def test_parts_are_cut_out_once_for_all_their_records(source: Path, tmp_path: Path) -> None:
    part = {"file_name": "clips/a.mp4", "start": 1, "end": 2.5}
    write_rows(
        source,
        {**part, "text": "one"},
        {**part, "question": "why?", "answer": "so", "second_file_name": "c.png"},
        {"file_name": "clips/a.mp4", "end": "0:02", "text": "two"},
        {"file_name": "clips/b.mp4", "start": 9, "text": "nothing is there"},
    )
    report = run(source, tmp_path / "out", TranscodeSettings(fps=10, min_frames=1))
    first, second, third = read_folder(tmp_path / "out", need=None).records
    assert first.file_name == second.file_name == "clips/a@1-2.5.mp4"
    assert (second.question, second.answers, second.second_file_name) == ("why?", ("so",), "c.png.jpg")
    assert all(record.start is record.end is None for record in (first, second, third))
    clip = load_clip(first.path, 1000)
    assert numbers(clip.frames) == list(range(30, 75, 3))
    assert clip.timestamps == pytest.approx(np.arange(15) / 10, abs=1e-3)
    assert clip.duration == pytest.approx(1.5, abs=1e-3)
    assert numbers(load_clip(third.path, 1000).frames) == list(range(0, 60, 3))
    assert [problem.file_name for problem in report.skipped] == ["clips/b.mp4"]
    assert "from 9 s to its end" in report.skipped[0].reason


def test_the_metadata_says_what_the_source_said(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    report = run(source, tmp_path / "out")
    assert contents(source) == before
    said = [(record.texts, record.split) for record in read_folder(source).records]
    assert [(record.texts, record.split) for record in read_folder(tmp_path / "out").records] == said
    manifest = json.loads((tmp_path / "out/prepare.json").read_text())
    assert manifest["complete"]
    assert manifest["settings"] == {"size": 256, "fps": 4, "min_frames": 64, "format": "jpeg", "keyframes": None}
    assert (manifest["records"], manifest["files"]) == (report.records, report.files) == (3, 3)
    assert (
        manifest["bytes"] == report.bytes == sum((tmp_path / "out" / name).stat().st_size for name in lines(tmp_path))
    )


def lines(tmp_path: Path) -> dict[str, Any]:
    """File name → its line in the list of files."""
    found = map(json.loads, (tmp_path / "out/prepare.files.jsonl").read_text().splitlines())
    return {line["file_name"]: line for line in found}


def test_every_file_is_listed_with_its_checksum(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    listed, there = lines(tmp_path), contents(tmp_path / "out")
    assert set(there) - set(listed) == {"metadata.jsonl", "prepare.json", "prepare.files.jsonl"}
    assert {name: line["sha256"] for name, line in listed.items()} == {name: there[name] for name in listed}
    assert listed["clips/a.mp4"]["frames"] == 64
    assert listed["clips/a.mp4"]["duration"] == pytest.approx(3.0)
    assert listed["c.png.jpg"]["duration"] is None


def test_folders_of_classes_stay_folders_of_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("train/dog/a.png", "train/cat/b.png", "test/cat/c.png")):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "source" / name)
    run(tmp_path / "source", tmp_path / "out")
    before, after = (read_folder(tmp_path / name, need="label") for name in ("source", "out"))
    assert after.classes == before.classes == ("cat", "dog")
    said = [(record.label, record.split) for record in before.records]
    assert [(record.label, record.split) for record in after.records] == said


def test_names_of_classes_stay(source: Path, tmp_path: Path) -> None:
    write_rows(source, {"file_name": "c.png", "label": "red"}, {"file_name": "clips/a.mp4", "label": "grey"})
    run(source, tmp_path / "out")
    found = read_folder(tmp_path / "out", need="label")
    assert ([record.label for record in found.records], found.classes) == ([1, 0], ("grey", "red"))


def test_files_that_would_get_one_name_get_two(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("a.png.jpg", "blue"), ("A.PNG", "lime")):
        Image.new("RGB", (8, 8), colour).save(folder / name, "PNG")
    write_rows(folder, *({"file_name": name, "text": name} for name in ("a.png", "a.png.jpg", "A.PNG")))
    report = run(folder, tmp_path / "out")
    records = read_folder(tmp_path / "out").records
    assert len({record.file_name.casefold() for record in records}) == report.files == 3
    seen = {record.texts[0]: load_clip(record.path, 1).frames.mean((0, 1, 2)).argmax() for record in records}
    assert seen == {"a.png": 0, "a.png.jpg": 2, "A.PNG": 1}


@pytest.mark.skipif(not ODD.is_dir(), reason="the folder of unusual media is not beside the repository")
def test_unusual_media_are_written_or_named(tmp_path: Path) -> None:
    entries = [json.loads(line) for line in (ODD / "manifest.jsonl").open(encoding="utf-8")]
    source = tmp_path / "source"
    for entry in entries:
        (source / entry["file"]).parent.mkdir(parents=True, exist_ok=True)
        (source / entry["file"]).symlink_to((ODD / entry["file"]).resolve())
    write_rows(source, *({"file_name": entry["file"], "text": entry["what"]} for entry in entries))
    report = run(source, tmp_path / "out", TranscodeSettings(size=32, fps=1, min_frames=2))
    skipped = {problem.file_name for problem in report.skipped}
    assert skipped == {entry["file"] for entry in entries if not entry["readable"]}
    for record in read_folder(tmp_path / "out").records:
        assert len(load_clip(record.path, 2).frames) >= 1


# --- Again ----------------------------------------------------------------------------------------------------------


def test_again_only_what_is_new_changed_or_gone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(source, out).written == 3
    before, files = contents(out), {path: path.stat().st_mtime_ns for path in out.glob("c*/**/*.mp4")}
    again = run(source, out)
    assert (again.written, again.removed, again.files) == (0, 0, 3)
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in files} == files

    write_numbered(source / "clips/a.mp4", 60)
    write_numbered(source / "clips/d.mp4", 5)
    write_rows(source, *({"file_name": name, "text": name} for name in ("clips/a.mp4", "clips/d.mp4", "c.png")))
    later = run(source, out)
    assert (later.written, later.removed, later.files) == (2, 1, 3)
    assert not (out / "clips/b.mp4").exists()
    assert load_clip(out / "clips/a.mp4", 1).duration == pytest.approx(2, abs=1e-3)
    assert [record.file_name for record in read_folder(out).records] == ["clips/a.mp4", "clips/d.mp4", "c.png.jpg"]
    assert verify_prepared(out).problems == []


def test_what_was_lost_is_written_again(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out/clips/a.mp4").unlink()
    (tmp_path / "out/c.png.jpg").write_bytes(b"")
    assert run(source, tmp_path / "out").written == 2
    assert contents(tmp_path / "out") == before


def test_a_source_may_move(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    source.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "out").written == 0
    write_numbered(tmp_path / "other" / "e.mp4", 5)
    with pytest.raises(UsageError, match=r"^[^\n]+made of [^\n]+moved, give another folder[^\n]+$"):
        run(tmp_path / "other", tmp_path / "out")


def test_broken_files_are_skipped_and_tried_again(source: Path, tmp_path: Path) -> None:
    good = (source / "clips/b.mp4").read_bytes()
    (source / "clips/b.mp4").write_bytes(b"no video")
    report = run(source, tmp_path / "out")
    assert [problem.file_name for problem in report.skipped] == ["clips/b.mp4"]
    assert [record.file_name for record in read_folder(tmp_path / "out").records] == ["clips/a.mp4", "c.png.jpg"]
    assert json.loads((tmp_path / "out/prepare.json").read_text())["skipped"] == [vars(report.skipped[0])]
    with pytest.raises(MediaError, match=r"b\.mp4"):
        run(source, tmp_path / "out", strict=True)
    (source / "clips/b.mp4").write_bytes(good)
    assert run(source, tmp_path / "out").written == 1


def test_nothing_but_broken_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.mp4").write_bytes(b"no video")
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+nothing could be prepared of 1 records[^\n]+a\.mp4[^\n]+$"):
        run(tmp_path / "source", tmp_path / "out")


def test_several_processes_do_the_same(source: Path, tmp_path: Path) -> None:
    (source / "clips/broken.mp4").write_bytes(b"no video")
    write_rows(source, *({"file_name": f"clips/{name}.mp4", "text": name} for name in ("a", "b", "broken")))
    one, two = run(source, tmp_path / "one"), run(source, tmp_path / "two", workers=2)
    assert one.hash == two.hash
    assert one.skipped == two.skipped
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_killed_in_the_middle_nothing_is_half_written_and_a_rerun_completes(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    first = write_numbered(source / "00.mp4", 200)
    for number in range(1, 40):
        shutil.copy(first, source / f"{number:02}.mp4")
    words = [sys.executable, "-m", "perceiver_vl", "prepare", source, out, "--workers", "2", "--format", "h264"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ((out / "prepare.files.jsonl").exists() and (out / "prepare.files.jsonl").stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = list(out.glob("*.mp4"))
    assert 0 < len(written) < 40
    assert not (out / "metadata.jsonl").exists()
    assert describe_prepared(out) == f"{describe(out)}; incomplete"
    for path in written:
        assert len(load_clip(path, 1000).frames) == 64
    with pytest.raises(UsageError, match="did not end"):
        verify_prepared(out)

    report = run(source, out, TranscodeSettings(format="h264"), about={"benchmark": None, "split": None})
    assert (report.files, report.skipped) == (40, [])
    assert report.written < 40
    assert verify_prepared(out).problems == []
    assert not list(out.rglob(".*.part"))


def describe(out: Path) -> str:
    settings = json.loads((out / "prepare.json").read_text())["settings"]
    return " ".join(f"{name}={value}" for name, value in settings.items() if value is not None)


def test_a_full_disk_is_one_line_and_loses_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    limited = f"{limit}; from perceiver_vl.cli import main; main()"
    words = [sys.executable, "-c", limited, "prepare", source, out, "--workers", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "cannot be written (File too large)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in out.rglob("*.part")] == []
    assert sorted(contents(out)) == ["c.png.jpg", "prepare.files.jsonl", "prepare.json"]
    report = run(source, out, about={"benchmark": None, "split": None})
    assert (report.written, report.files) == (2, 3)


# --- Refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_to_is_refused(source: Path, tmp_path: Path) -> None:
    for out in (source, source / "small", tmp_path, source / "c.png"):
        with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
            run(source, out)
        assert str(refused.value).startswith(f"{out}: ")
    (tmp_path / "held").mkdir()
    (tmp_path / "held/letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        run(source, tmp_path / "held")
    assert [path.name for path in (tmp_path / "held").iterdir()] == ["letter.txt"]
    with pytest.raises(PerceiverVLError, match="cannot be written"):
        run(source, tmp_path / "held/letter.txt/out")


def test_other_settings_need_another_folder(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", TranscodeSettings(size=(32, 32)))
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match=r"made with size=\[32, 32\], not 64; ask for that or give another folder"):
        run(source, tmp_path / "out", TranscodeSettings(size=64))
    with pytest.raises(UsageError, match="made with split=None, not train"):
        run(source, tmp_path / "out", TranscodeSettings(size=(32, 32)), about={"split": "train"})
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 33},
        {"size": (224, 0)},
        {"size": 100_000},
        {"fps": 0},
        {"fps": -1},
        {"fps": float("nan")},
        {"min_frames": 0},
        {"format": "gif"},
        {"keyframes": 4},
        {"format": "h264", "keyframes": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^{list(wrong)[-1]}=[^\n]+$"):
        TranscodeSettings(**wrong)


# --- The command ----------------------------------------------------------------------------------------------------


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    monkeypatch.setattr("sys.argv", ["perceiver-vl", "prepare", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_the_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (source, out, "--split", "test", "--size", "16x32", "--workers", 1)
    code, said, _ = command(monkeypatch, capsys, *words)
    assert code == 0
    assert "2 records of 2 files" in said
    assert load_clip(out / "clips/b.mp4", 1).frames.shape[1:3] == (16, 32)
    code, said, _ = command(monkeypatch, capsys, *words, "--json")
    assert (code, json.loads(said)["written"], json.loads(said)["files"]) == (0, 0, 2)
    assert command(monkeypatch, capsys, "--verify", out)[0] == 0
    (out / "clips/b.mp4").write_bytes(b"")
    code, said, wrong = command(monkeypatch, capsys, "--verify", out, "--json")
    assert code == 1
    assert [problem["file_name"] for problem in json.loads(said)["problems"]] == ["clips/b.mp4"]
    assert "b.mp4: truncated: 0 bytes" in wrong


def test_the_command_reads_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n02/c.JPEG"):
        (tmp_path / "imagenet" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "imagenet" / name)
    words = (tmp_path / "imagenet", tmp_path / "out", "--benchmark", "imagenet", "--workers", 1)
    assert command(monkeypatch, capsys, *words)[0] == 0
    records = read_folder(tmp_path / "out", need="label").records
    said = [("train/n01/a.JPEG", 0, "train"), ("train/n02/b.JPEG", 1, "train"), ("val/n02/c.JPEG", 1, "validation")]
    assert [(record.file_name, record.label, record.split) for record in records] == said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["SOURCE"], "OUT is missing"),
        (["SOURCE", "OUT", "--size", "large"], "size=large"),
        (["SOURCE", "OUT", "--size", "2x3x4"], "size=2x3x4"),
        (["SOURCE", "OUT", "--format", "gif"], "format=gif"),
        (["SOURCE", "OUT", "--split", "holdout"], "split=holdout"),
        (["SOURCE", "OUT", "--benchmark", "nothing"], "nothing: unknown benchmark"),
        (
            ["SOURCE", "OUT", "--benchmark", "imagenet", "--columns", "text=x"],
            "metadata, columns: for a folder",
        ),
        (["SOURCE", "SOURCE/small"], "lies in the folder that is read"),
        (["--verify", "SOURCE"], "not a prepared folder"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line(
    words: list[str],
    named: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = [word.replace("SOURCE", str(source)).replace("OUT", str(tmp_path / "out")) for word in words]
    code, said, wrong = command(monkeypatch, capsys, *places)
    assert (code, said) == (2, "")
    assert wrong.startswith("error: ")
    assert wrong.count("\n") == 1
    assert named in wrong
    assert not (tmp_path / "out").exists()


# --- Verifying ------------------------------------------------------------------------------------------------------


def test_verifying_finds_what_has_changed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="not a prepared folder"):
        verify_prepared(source)
    run(source, out)
    assert (verify_prepared(out).files, verify_prepared(out).problems) == (4, [])
    content = bytearray((out / "clips/a.mp4").read_bytes())
    content[-1] ^= 1
    (out / "clips/a.mp4").write_bytes(content)
    (out / "clips/b.mp4").unlink()
    (out / "metadata.jsonl").write_text("")
    reasons = {problem.file_name: problem.reason for problem in verify_prepared(out, workers=2).problems}
    assert reasons == {
        "clips/a.mp4": "altered: its SHA-256 is not that of the manifest",
        "clips/b.mp4": "no such file, named in the manifest",
        "metadata.jsonl": "altered: its SHA-256 is not that of the manifest",
    }


def test_an_evaluation_record_can_say_how_media_were_prepared(source: Path, tmp_path: Path) -> None:
    assert describe_prepared(source) is None
    report = run(source, tmp_path / "out", TranscodeSettings(format="h264"))
    expected = f"size=256 fps=4.0 min_frames=64 format=h264 keyframes=4; sha256 {report.hash}"
    assert describe_prepared(tmp_path / "out") == expected
    (tmp_path / "out/prepare.json").write_text("{")
    with pytest.raises(PerceiverVLError, match=r"prepare\.json: damaged"):
        describe_prepared(tmp_path / "out")
