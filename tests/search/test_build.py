"""Indexing: once, incrementally, whatever is broken and whenever it is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_vl import ComputeBudget, MediaError, PerceiverVLError, UsageError
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search import IndexReport, build_index
from perceiver_vl.search.found import content_id
from perceiver_vl.search.rows import numbers
from perceiver_vl.search.skipped import read_skipped
from perceiver_vl.search.table import locked, open_table
from small_media import write_clip, write_image

SOURCE = Path(__file__).resolve().parents[2] / "src"


def counts(report: IndexReport) -> tuple[int, int, int, int, int]:
    return report.encoded, report.unchanged, report.removed, len(report.skipped), report.total


def column(index: Path, name: str) -> dict[str, Any]:
    """A column by file."""
    rows = open_table(index).rows()
    values = numbers(rows[name]) if name in ("vector", "partial_attention") else rows[name].to_pylist()
    return dict(zip(rows["file"].to_pylist(), values, strict=True))


def vectors(index: Path) -> dict[str, np.ndarray]:
    return column(index, "vector")


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def test_second_run_encodes_nothing_and_writes_nothing(model_folder: Path, media: Path, tmp_path: Path) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*") if path.name != ".lock"}

    first = build_index(model_folder, media, tmp_path / "index")
    before = written()
    second = build_index(model_folder, media, tmp_path / "index")
    assert counts(first) == (8, 0, 0, 0, 8)
    assert counts(second) == (0, 8, 0, 0, 8)
    assert written() == before


def test_report_is_a_line_and_plain_values(model_folder: Path, media: Path, tmp_path: Path) -> None:
    (media / "broken.mp4").write_bytes(b"nothing")
    report = build_index(model_folder, media, tmp_path / "index")
    assert "8 encoded" in report.summary()
    assert "1 skipped" in report.summary()
    assert json.loads(json.dumps(report.as_dict()))["skipped"][0]["file_name"] == "broken.mp4"


def test_stored_rows_are_what_the_model_says(model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index", batch_size=3, commit_clips=3)
    model, processor = load_retriever(model_folder, "cpu")
    found, partial_attentions = vectors(tmp_path / "index"), column(tmp_path / "index", "partial_attention")
    assert len(found) == 8
    for name, vector in found.items():
        inputs = processor(videos=[media / name])
        with torch.inference_mode():
            expected = model.encode_vision(**inputs)
            np.testing.assert_allclose(vector, model.pool_vision(expected)[0].numpy(), atol=1e-5)
            matched = model.partial_match(expected)[0].numpy()
        np.testing.assert_allclose(partial_attentions[name], matched, rtol=1e-5, atol=1e-5)


def test_a_row_says_what_the_file_is(model_folder: Path, media: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif.get_ifd(0x8769)[0x9003] = 6, "2021:07:04 18:30:00"
    exif.get_ifd(0x8769)[0x9011] = "+02:00"
    Image.new("RGB", (40, 30)).save(media / "turned.jpg", exif=exif)
    build_index(model_folder, media, tmp_path / "index")
    rows = {row["file"]: row for row in open_table(tmp_path / "index").rows().to_pylist()}
    image, clip = rows["turned.jpg"], rows["trip/clip4.mp4"]
    assert (image["kind"], image["width"], image["height"], image["duration"]) == ("image", 30, 40, None)
    assert image["created"] == datetime(2021, 7, 4, 16, 30, tzinfo=UTC)
    assert clip["kind"] == "video"
    assert clip["duration"] == pytest.approx(0.8, abs=0.05)
    assert (clip["start"], clip["end"]) == (None, None)
    status = (media / "trip" / "clip4.mp4").stat()
    assert clip["size"] == status.st_size
    assert clip["created"].timestamp() == pytest.approx(status.st_mtime, abs=1e-3)  # as nothing else tells


def test_new_changed_and_removed_clips(model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index", commit_clips=3)
    before = vectors(tmp_path / "index")
    (media / "image0.png").unlink()
    write_clip(media / "clip1.mp4", seed=99)
    write_clip(media / "clip9.mp4", seed=9)
    report = build_index(model_folder, media, tmp_path / "index", commit_clips=3)
    after = vectors(tmp_path / "index")
    assert counts(report) == (2, 6, 1, 0, 8)
    assert set(after) == set(before) - {"image0.png"} | {"clip9.mp4"}
    assert not np.allclose(after["clip1.mp4"], before["clip1.mp4"], atol=1e-3)
    for name in set(before) - {"image0.png", "clip1.mp4"}:
        np.testing.assert_array_equal(after[name], before[name])


def test_updated_index_equals_a_fresh_one(model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index", commit_clips=3)
    (media / "clip0.mp4").unlink()
    write_image(media / "image1.png", seed=77)
    build_index(model_folder, media, tmp_path / "index", commit_clips=3)
    build_index(model_folder, media, tmp_path / "fresh")
    updated, fresh = vectors(tmp_path / "index"), vectors(tmp_path / "fresh")
    assert set(updated) == set(fresh)
    for name, vector in fresh.items():
        np.testing.assert_allclose(updated[name], vector, atol=1e-5)


def test_captions_follow_the_metadata_without_encoding(model_folder: Path, media: Path, tmp_path: Path) -> None:
    def write(lines: list[dict[str, object]]) -> None:
        (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def captions() -> dict[str, list[str]]:
        return {name: texts for name, texts in column(tmp_path / "index", "captions").items() if texts}

    write([{"file_name": "clip0.mp4", "text": ["one", "two"]}, {"file_name": "clip1.mp4"}])
    report = build_index(model_folder, media, tmp_path / "index")
    assert report.notes[0] == "6 media files have no row in metadata.jsonl, taken without words: clip2.mp4"
    assert counts(report) == (8, 0, 0, 0, 8)
    assert captions() == {"clip0.mp4": ["one", "two"]}
    write([{"file_name": "clip0.mp4", "text": "three"}, {"file_name": "gone.mp4"}])
    report = build_index(model_folder, media, tmp_path / "index")
    assert counts(report) == (0, 8, 0, 1, 8)
    assert captions() == {"clip0.mp4": ["three"]}
    assert report.skipped[0].file_name == "gone.mp4"


def test_a_file_of_two_splits_is_one_clip_with_the_captions_of_both(
    model_folder: Path, media: Path, tmp_path: Path
) -> None:
    lines = [{"file_name": "clip0.mp4", "text": split, "split": split} for split in ("train", "test")]
    (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_index(model_folder, media, tmp_path / "index")
    assert column(tmp_path / "index", "captions")["clip0.mp4"] == ["train", "test"]
    build_index(model_folder, media, tmp_path / "one", split="train")
    assert column(tmp_path / "one", "captions") == {"clip0.mp4": ["train"]}


def test_broken_files_are_skipped_reported_and_remembered_until_they_change(
    model_folder: Path, media: Path, tmp_path: Path
) -> None:
    (media / "a_broken.mp4").write_bytes(b"not a video")
    (media / "empty.jpg").touch()
    for expected in [(8, 0, 0, 2, 8), (0, 8, 0, 2, 8)]:
        report = build_index(model_folder, media, tmp_path / "index")
        assert counts(report) == expected
        assert {problem.file_name for problem in report.skipped} == {"a_broken.mp4", "empty.jpg"}
        assert all(problem.reason and "\n" not in problem.reason for problem in report.skipped)
    write_clip(media / "a_broken.mp4", seed=5)
    assert counts(build_index(model_folder, media, tmp_path / "index")) == (1, 8, 0, 1, 9)


def test_too_many_broken_files_stop_a_run_and_keep_what_was_encoded(
    model_folder: Path, media: Path, tmp_path: Path
) -> None:
    for number in range(16):
        (media / f"z{number}.mp4").write_bytes(b"not a video")
    index = tmp_path / "index"
    for encoded in (8, 8):  # again: what is known to be broken counts still
        with pytest.raises(
            PerceiverVLError, match=r"16 of 24 clips cannot be read[^\n]+max_failed_fraction=0.5"
        ) as stop:
            build_index(model_folder, media, index, max_failed_fraction=0.5, batch_size=1)
        one_line(stop)
        assert len(vectors(index)) == encoded
    assert counts(build_index(model_folder, media, index, max_failed_fraction=0.7)) == (0, 8, 0, 16, 8)
    with pytest.raises(PerceiverVLError, match="cannot be read"):
        build_index(model_folder, media, tmp_path / "other", batch_size=1)
    assert set(vectors(index)) == {name for name in vectors(index) if not name.startswith("z")}


def test_files_that_are_gone_in_numbers_do_not_empty_the_index(model_folder: Path, media: Path, tmp_path: Path) -> None:
    lines = [{"file_name": f"clip{number}.mp4"} for number in range(4)]
    lines += [{"file_name": f"{number}.mp4"} for number in range(18)]
    for number in range(18):
        (media / f"{number}.mp4").write_bytes((media / "clip0.mp4").read_bytes())
    (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_index(model_folder, media, tmp_path / "index")
    for number in range(18):
        (media / f"{number}.mp4").unlink()
    with pytest.raises(PerceiverVLError, match=r"^18 of 26 clips cannot be read"):
        build_index(model_folder, media, tmp_path / "index")
    assert len(vectors(tmp_path / "index")) == 26


def test_the_skipped_files_lie_beside_the_index(model_folder: Path, media: Path, tmp_path: Path) -> None:
    (media / "a_broken.mp4").write_bytes(b"not a video")
    names = ["clip0.mp4", "gone.mp4", "a_broken.mp4"]
    (media / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    report = build_index(model_folder, media, tmp_path / "index")
    listed = read_skipped(tmp_path / "index")
    assert [(one.file, one.reason) for one in listed] == [(one.file_name, one.reason) for one in report.skipped]
    assert [one.file for one in listed] == ["gone.mp4", "a_broken.mp4"]
    assert report.damaged == []


def test_a_clip_that_breaks_leaves_the_index(model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index")
    (media / "clip0.mp4").write_bytes(b"spoilt")
    assert counts(build_index(model_folder, media, tmp_path / "index")) == (0, 7, 0, 1, 7)
    assert "clip0.mp4" not in vectors(tmp_path / "index")


def test_strict_stops_at_the_first_broken_file_and_keeps_what_was_encoded(
    model_folder: Path, media: Path, tmp_path: Path
) -> None:
    (media / "clip2.mp4").write_bytes(b"not a video")
    with pytest.raises(MediaError) as error:
        build_index(model_folder, media, tmp_path / "index", strict=True)
    assert "clip2.mp4" in one_line(error)
    assert set(vectors(tmp_path / "index")) == {"clip0.mp4", "clip1.mp4"}
    build_index(model_folder, media, tmp_path / "index")
    with pytest.raises(MediaError):  # also when the file is known to be broken
        build_index(model_folder, media, tmp_path / "index", strict=True)
    assert len(vectors(tmp_path / "index")) == 7


def test_a_killed_run_loses_only_the_part_in_progress(model_folder: Path, media: Path, tmp_path: Path) -> None:
    for number in range(20, 40):
        write_clip(media / f"clip{number}.mp4", seed=number, frames=30)
    index = tmp_path / "index"
    code = (
        "import sys; from perceiver_vl.search import build_index\n"
        "build_index(*sys.argv[1:], batch_size=1, commit_clips=1, device='cpu')"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(model_folder), str(media), str(index)], env=environment)
    try:
        while process.poll() is None and len(list(index.glob("clips.lance/data/*"))) < 4:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    survived = len(vectors(index))
    assert 3 <= survived < 28
    report = build_index(model_folder, media, index)
    assert (report.encoded, report.unchanged) == (28 - survived, survived)
    build_index(model_folder, media, tmp_path / "whole")
    resumed, whole = vectors(index), vectors(tmp_path / "whole")
    assert set(resumed) == set(whole)
    for name, vector in whole.items():
        np.testing.assert_allclose(resumed[name], vector, atol=1e-5)


def test_two_runs_at_once_are_refused(model_folder: Path, media: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "index"), pytest.raises(UsageError, match="another run") as error:
        build_index(model_folder, media, tmp_path / "index")
    one_line(error)


def test_a_clip_takes_as_many_bytes_whatever_the_latents(model_folder: Path, media: Path, tmp_path: Path) -> None:
    for latents in (1, 6):
        index = tmp_path / str(latents)
        build_index(model_folder, media, index, budget=ComputeBudget(latents=latents))
        assert numbers(open_table(index).rows()["partial_attention"]).nbytes == 8 * 4 * (32 + 4)


@pytest.mark.parametrize(("made", "named"), [(1, "an older version"), (9, "a newer version")])
def test_an_index_of_another_format_is_refused_and_left_as_it_is(
    model_folder: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int, named: str
) -> None:
    index = tmp_path / "index"
    with monkeypatch.context() as other:
        other.setattr("perceiver_vl.search.rows.FORMAT", made)
        defaults = (None, None, None, (), (), None, None, None, None, made)
        other.setattr("perceiver_vl.search.rows.IndexSettings.__init__.__defaults__", defaults)
        build_index(model_folder, media, index)
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    (media / "clip0.mp4").unlink()
    for attempt in (lambda: build_index(model_folder, media, index), lambda: open_table(index)):
        with pytest.raises(UsageError, match=named) as error:
            attempt()
        assert str(index) in one_line(error)
        assert "new place" in one_line(error)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before


def test_damaged_weights_are_noticed(model_folder: Path, media: Path, tmp_path: Path) -> None:
    model, processor = load_retriever(model_folder, "cpu")
    torch.nn.init.constant_(model.perceiver_vl.encoder.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(PerceiverVLError, match="not numbers") as error:
        build_index(tmp_path / "model", media, tmp_path / "index")
    one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"budget": ComputeBudget(latents=3)}, "budget"),
        (lambda: {"num_frames": 2}, "frames"),
    ],
)
def test_another_setting_is_refused(
    model_folder: Path, media: Path, tmp_path: Path, change: Callable[[], dict[str, object]], message: str
) -> None:
    build_index(model_folder, media, tmp_path / "index")
    with pytest.raises(UsageError, match=message) as error:
        build_index(model_folder, media, tmp_path / "index", **change())  # type: ignore[arg-type]
    assert str(tmp_path / "index") in one_line(error)


def test_another_model_is_refused(model_folder: Path, other_model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index")
    with pytest.raises(UsageError, match="another model") as error:
        build_index(other_model_folder, media, tmp_path / "index")
    assert str(model_folder) in one_line(error)
    assert model_fingerprint(model_folder) != model_fingerprint(other_model_folder)


def test_a_folder_may_move_but_not_be_swapped(model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index")
    moved = media.rename(tmp_path / "moved")
    assert counts(build_index(model_folder, moved, tmp_path / "index")) == (0, 8, 0, 0, 8)
    assert open_table(tmp_path / "index").settings.media == str(moved)
    write_clip(tmp_path / "elsewhere" / "other.mp4", seed=1)
    with pytest.raises(UsageError, match="none of them") as error:
        build_index(model_folder, tmp_path / "elsewhere", tmp_path / "index")
    one_line(error)
    assert len(vectors(tmp_path / "index")) == 8


def test_budget_sets_frames_and_latents(model_folder: Path, media: Path, tmp_path: Path) -> None:
    build_index(model_folder, media, tmp_path / "index", budget=ComputeBudget(frames=2, latents=4, cross_attentions=1))
    settings = open_table(tmp_path / "index").settings
    assert (settings.frames, settings.budget) == (2, "frames=2,latents=4,cross_attentions=1")
    build_index(model_folder, media, tmp_path / "full")
    small, full = (column(tmp_path / name, "partial_attention") for name in ("index", "full"))
    assert not np.allclose(small["clip0.mp4"], full["clip0.mp4"], atol=1e-2)


def test_only_an_index_or_an_empty_folder_is_written_to(model_folder: Path, media: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="other things") as error:
        build_index(model_folder, media, tmp_path / "docs")
    one_line(error)
    with pytest.raises(UsageError, match="cannot be made"):
        build_index(model_folder, media, tmp_path / "docs" / "letter.txt")


def test_values_that_cannot_work_are_named(model_folder: Path, media: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 5}, "num_frames=5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"budget": ComputeBudget(latents=7)}, "latents=7"),
        ({"split": "train"}, "split=train"),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            build_index(model_folder, media, tmp_path / "index", **options)  # type: ignore[arg-type]
        one_line(error)
    with pytest.raises(UsageError, match="no such folder"):
        build_index(model_folder, tmp_path / "nowhere", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_file_that_moved_was_copied_or_touched_is_not_encoded_again(
    model_folder: Path, media: Path, tmp_path: Path
) -> None:
    build_index(model_folder, media, tmp_path / "index")
    before = vectors(tmp_path / "index")
    (media / "clip0.mp4").rename(media / "trip" / "renamed.mp4")
    shutil.copy(media / "clip1.mp4", media / "copy.mp4")
    for path in (media / "clip2.mp4", media / "image0.png"):
        os.utime(path, (1, 1))
    first, second = (media / f"image{number}.png" for number in (1, 2))  # swapped
    first.rename(media / "away.png")
    second.rename(first)
    (media / "away.png").rename(second)
    report = build_index(model_folder, media, tmp_path / "index")
    assert (report.encoded, report.moved, report.removed, report.total) == (0, 6, 0, 9)
    assert "6 moved" in report.summary()
    after = vectors(tmp_path / "index")
    assert set(after) == set(before) - {"clip0.mp4"} | {"trip/renamed.mp4", "copy.mp4"}
    for name, was in (("trip/renamed.mp4", "clip0.mp4"), ("copy.mp4", "clip1.mp4"), ("clip2.mp4", "clip2.mp4")):
        np.testing.assert_array_equal(after[name], before[was])
    np.testing.assert_array_equal(after["image1.png"], before["image2.png"])
    assert counts(build_index(model_folder, media, tmp_path / "index")) == (0, 9, 0, 0, 9)


def test_old_vectors_serve_until_new_ones_are_there(model_folder: Path, media: Path, tmp_path: Path) -> None:
    """All files change, and the run ends before one of them is encoded."""
    build_index(model_folder, media, tmp_path / "index")
    before = vectors(tmp_path / "index")
    for number in range(4):
        write_clip(media / f"clip{number}.mp4", seed=50 + number)
    (media / "clip0.mp4").write_bytes(b"not a video any more")
    with pytest.raises(MediaError):
        build_index(model_folder, media, tmp_path / "index", strict=True, batch_size=1)
    after = vectors(tmp_path / "index")
    assert after.keys() == before.keys()
    for name, vector in before.items():
        np.testing.assert_array_equal(after[name], vector)


def test_contents_that_differ_anywhere_have_other_ids_as_far_as_is_promised(tmp_path: Path) -> None:
    def id_of(content: bytes) -> str:
        (tmp_path / "file").write_bytes(content)
        return content_id(tmp_path / "file")

    small = bytes(range(256)) * 4096  # 1 MiB: every byte counts
    ids = {id_of(small), id_of(small[:-1]), id_of(b""), id_of(b"a")}
    ids |= {id_of(small[:place] + b"?" + small[place + 1 :]) for place in (1, 70_000, len(small) - 2)}
    large = small * 3  # 16 stretches of it
    ids |= {id_of(large), id_of(large[1:]), id_of(b"?" + large[1:]), id_of(large[:-1] + b"?")}
    assert len(ids) == 11


def test_a_file_that_cannot_be_looked_at_keeps_its_clip(
    model_folder: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(model_folder, media, tmp_path / "index")
    real = Path.stat

    def stat(path: Path, **how: Any) -> os.stat_result:
        if path.name == "clip0.mp4":
            raise PermissionError(13, "Permission denied")
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    report = build_index(model_folder, media, tmp_path / "index")
    assert [(one.file_name, one.reason) for one in report.skipped] == [("clip0.mp4", "Permission denied")]
    assert "clip0.mp4" in vectors(tmp_path / "index")


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit on the size of files")
def test_a_full_disk_is_one_line_and_nothing_is_lost(model_folder: Path, media: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(model_folder, media, index)
    before = vectors(index)
    write_clip(media / "new.mp4", seed=9)
    code = """import resource, sys
from perceiver_vl.utils.errors import PerceiverVLError
from perceiver_vl.search import build_index
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    build_index(None, None, sys.argv[1])
except PerceiverVLError as error:
    print(error)"""
    done = subprocess.run([sys.executable, "-c", code, str(index)], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.startswith(f"{index}: no space is left there; what was committed is kept")
    assert done.stdout.count("\n") == 1
    assert vectors(index).keys() == before.keys()
    assert build_index(None, None, index).encoded == 1


@pytest.mark.parametrize("listed", [False, True])
def test_a_folder_that_cannot_be_listed_keeps_its_clips(
    model_folder: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    if listed:
        names = [path.relative_to(media).as_posix() for path in media.rglob("*.*")]
        (media / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    build_index(model_folder, media, tmp_path / "index")
    (media / "image0.png").unlink()
    real = {name: getattr(os, name) for name in ("scandir", "stat")}

    def refusing(name: str) -> Callable[..., Any]:
        def call(place: Any, **how: Any) -> Any:
            if "trip" in str(place):
                raise PermissionError(13, "Permission denied")
            return real[name](place, **how)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refusing(name))
    report = build_index(model_folder, media, tmp_path / "index", max_failed_fraction=0.5)
    assert (report.removed, report.total) == (1, 7)
    assert any("Permission denied" in str(sample) for sample in report.skipped)
    monkeypatch.undo()
    assert "trip/clip4.mp4" in vectors(tmp_path / "index")


def test_an_index_knows_how_its_folder_was_read(
    model_folder: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"clip": f"clip{number}.mp4", "words": f"clip {number}", "part": "train"} for number in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"clip": "image0.png", "part": "test"}])))
    how = {"columns": {"file_name": "clip", "text": "words", "split": "part"}, "split": "train"}
    monkeypatch.chdir(tmp_path)
    build_index(model_folder, media, tmp_path / "index", metadata="list.jsonl", **how)  # type: ignore[arg-type]
    build_index(model_folder, media, tmp_path / "videos", exclude=["*.png"])
    before = column(tmp_path / "index", "captions")
    assert before == {f"clip{number}.mp4": [f"clip {number}"] for number in range(3)}
    monkeypatch.chdir(media)
    for verify in (False, True):
        assert counts(build_index(None, None, tmp_path / "index", verify=verify)) == (0, 3, 0, 0, 3)
        assert column(tmp_path / "index", "captions") == before
        assert counts(build_index(None, None, tmp_path / "videos", verify=verify)) == (0, 5, 0, 0, 5)
