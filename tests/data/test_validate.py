"""Checking data: counts against what is published, faults by name, exit codes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.cli import main
from perceiver_vl.data.datasets.table import BENCHMARKS
from perceiver_vl.data.validate import Check, SplitCheck, check_data

SHARED = (Path(__file__).resolve().parents[2] / ".." / "shared").resolve()
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder shared/ beside the repository")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """NLVR2 with three statements on two pairs of development, of which one picture is broken, and one of test."""
    rows = {
        "dev.json": [("dev-1-0-0", "One."), ("dev-1-0-1", "Two."), ("dev-1-1-0", "Three.")],
        "test1.json": [("test1-5-0-0", "Four.")],
    }
    for name, sentences in rows.items():
        lines = [{"identifier": key, "sentence": text, "label": "True"} for key, text in sentences]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("dev-1-0-img0", "dev-1-0-img1", "dev-1-1-img0", "test1-5-0-img0"):
        picture(tmp_path / "images" / f"{name}.png")
    broken = tmp_path / "images" / "dev-1-1-img1.png"
    broken.write_bytes((tmp_path / "images" / "dev-1-0-img0.png").read_bytes()[:20])
    return tmp_path


def rows(check: Check) -> dict[str, tuple[int, int, int, int]]:
    return {split.split: (split.records, split.media, split.missing, split.unusable) for split in check.splits}


def test_counts_stand_beside_those_that_are_published(pairs: Path) -> None:
    check = check_data("nlvr2", pairs)
    assert rows(check) == {"validation": (3, 4, 0, 0), "test": (1, 0, 1, 0)}
    assert check.splits[0] == SplitCheck("validation", 3, 4, 0, 0, published_records=6_982)
    assert check.absent == ["train", "test_unseen"]
    assert [(problem.file_name, problem.reason) for problem in check.problems] == [
        ("test1-5-0-img1", "named in the annotations but not there")
    ]
    assert not check.complete


def test_one_split_alone_and_complete(pairs: Path) -> None:
    check = check_data("nlvr2", pairs, split="dev")
    assert rows(check) == {"validation": (3, 4, 0, 0)}
    assert check.absent == []
    assert check.complete


def test_decoding_finds_what_a_look_does_not(pairs: Path) -> None:
    check = check_data("nlvr2", pairs, split="dev", decode=True)
    assert rows(check) == {"validation": (3, 4, 0, 1)}
    (problem,) = check.problems
    assert problem.file_name == "images/dev-1-1-img1.png"
    assert problem.reason
    assert check.decoded


def test_an_empty_file_is_found_without_decoding(pairs: Path) -> None:
    (pairs / "images" / "dev-1-0-img1.png").write_bytes(b"")
    check = check_data("nlvr2", pairs, split="dev")
    assert rows(check) == {"validation": (3, 4, 0, 1)}
    assert check.problems[0].reason == "empty file (0 bytes)"


def test_a_medium_of_many_rows_is_counted_once(tmp_path: Path) -> None:
    questions = [{"answer": "a", "id": n, "question": "what?", "video_id": n % 2} for n in range(10)]
    (tmp_path / "val_qa.json").write_text(json.dumps(questions))
    (tmp_path / "video0.mp4").write_bytes(b"media")
    check = check_data("msrvtt-qa", tmp_path)
    assert rows(check) == {"validation": (10, 1, 1, 0)}
    assert [problem.file_name for problem in check.problems] == ["video1"]


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    lines = [("a.png", "train"), ("b.png", "val"), ("gone.png", "val")]
    table = "".join(json.dumps({"file_name": name, "text": "one", "split": split}) + "\n" for name, split in lines)
    (tmp_path / "metadata.jsonl").write_text(table)
    check = check_data("folder", tmp_path, decode=True)
    assert rows(check) == {"train": (1, 1, 0, 0), "validation": (1, 1, 0, 0), "left out": (1, 0, 1, 0)}
    assert not check.complete
    assert check_data("folder", tmp_path, split="train").complete


def test_a_folder_with_metadata_and_columns_of_other_names(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text('{"file": "a.png", "captions": ["one"]}\n')
    columns = {"file_name": "file", "text": "captions"}
    check = check_data("folder", tmp_path, metadata="list.jsonl", columns=columns)
    assert rows(check) == {"no split": (1, 1, 0, 0)}
    with pytest.raises(UsageError, match="nlvr2 has files and columns of its own"):
        check_data("nlvr2", tmp_path, metadata="list.jsonl")


def test_more_files_than_wait_for_a_thread_at_a_time(tmp_path: Path) -> None:
    count = 4_200
    (tmp_path / "results_2M_val.csv").write_text("videoid,name\n" + "".join(f"{n},one\n" for n in range(count)))
    for number in range(count):
        (tmp_path / f"{number}.mp4").write_bytes(b"" if number in (0, count - 1) else b"media")
    check = check_data("webvid", tmp_path)
    assert rows(check) == {"validation": (count, count, 0, 2)}
    assert [problem.file_name for problem in check.problems] == ["0.mp4", f"{count - 1}.mp4"]


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown benchmark"):
        check_data("nothing", tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        check_data("nlvr2", tmp_path / "nowhere")
    with pytest.raises(PerceiverVLError):
        check_data("folder", tmp_path)


# --- The commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `perceiver-vl data WORDS…`: its exit code and what it printed."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["perceiver-vl", "data", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err  # type: ignore[return-value]

    return run


def test_the_command_fails_if_anything_is_amiss_and_says_what_it_looked_at(
    run: Callable[..., tuple[int, str, str]], pairs: Path
) -> None:
    code, out, err = run("check", "nlvr2", pairs)
    assert code == 1
    assert "6,982" in out
    assert "train, test_unseen" in out
    assert "--decode" in out
    assert "test1-5-0-img1: named in the annotations but not there" in err
    code, out, err = run("check", "nlvr2", pairs, "--split", "val")
    assert (code, err) == (0, "")
    code, out, _ = run("check", "nlvr2", pairs, "--split", "val", "--decode")
    assert code == 1
    assert "one frame of every file was decoded" in out
    code, _, err = run("check", "nlvr-2", pairs)
    assert code == 2
    assert err == "error: nlvr-2: unknown benchmark, did you mean nlvr2? perceiver-vl data list names them all\n"


def test_the_command_as_json(run: Callable[..., tuple[int, str, str]], pairs: Path) -> None:
    code, out, _ = run("check", "nlvr2", pairs, "--split", "test", "--json")
    assert code == 1
    result: dict[str, Any] = json.loads(out)
    assert result["complete"] is False
    assert result["splits"][0]["published_records"] == 6_967
    assert result["problems"] == [{"file_name": "test1-5-0-img1", "reason": "named in the annotations but not there"}]


def test_the_list_names_every_benchmark(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    listed = json.loads(out)
    assert [benchmark["name"] for benchmark in listed] == list(BENCHMARKS)
    assert all(benchmark["download"] and benchmark["layout"] for benchmark in listed)
    code, out, _ = run("list", "vqav2")
    assert code == 0
    assert "443,757" in out
    assert "v2_mscoco_train2014_annotations.json" in out
    code, out, _ = run("list")
    assert code == 0
    assert "msrvtt-1ka" in out


def test_the_page_tells_of_every_benchmark() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in BENCHMARKS if f"`{name}`" not in page] == []


@needs_shared_data
def test_real_media_of_official_annotations(tmp_path: Path) -> None:
    (tmp_path / "annotations").symlink_to(SHARED / "data" / "official_formats" / "vqav2")
    (tmp_path / "images").symlink_to(SHARED / "data" / "vqa_mini")
    check = check_data("vqav2", tmp_path, decode=True)
    assert check.splits == [SplitCheck("train", 3, 1, 0, 0, published_records=443_757, published_media=82_783)]
    assert check.complete
