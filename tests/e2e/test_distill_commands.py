"""A cheap student from the command line: trained without captions, indexed, exported, set beside its teacher."""

import json
from pathlib import Path

import pytest
from command_line import run_cli

from perceiver_vl.data.synthetic.writing import write_world
from small_encoders import save_dual

SMALL = ["model.image_size=32", "model.patch_size=8", "model.hidden_size=32", "model.num_latents=4"]
SMALL += ["model.num_blocks=1", "data.num_frames=2", "training.max_steps=3", "training.per_device_train_batch_size=4"]
SMALL += ["training.warmup_steps=1", "training.logging_steps=1", "training.report_to=none", "training.use_cpu=true"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`media`, a small CLIP (`clip`), and its student (`student`)."""
    folder = tmp_path_factory.mktemp("students")
    write_world(folder / "media", clips=10, held_out=3, size=32)
    save_dual(folder / "clip", "clip")
    words = [f"teacher.model={folder / 'clip'}", f"data.train.folder={folder / 'media'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        made = run_cli("train", "distill", *words, *SMALL, f"output={folder / 'student'}", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["steps"] == 3
    return folder


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


def test_a_student_is_indexed_searched_and_evaluated(place: Path, tmp_path: Path) -> None:
    words = ["index", "--model", place / "student", "--media", place / "media", "--out", tmp_path / "index"]
    made = run_cli(*map(str, words))
    assert (made.code, "no better than chance" in made.err) == (0, False)
    found = run_cli("search", "--index", str(tmp_path / "index"), "a dog", "--json")
    assert json.loads(found.out)[0]["searched"] == 10
    words = ["evaluate", "--model", place / "student", "--task", "retrieval", "--data", place / "media", "--json"]
    scored = run_cli(*map(str, words))
    assert scored.code == 0
    streams = {one["stream"]: one["text_to_video"] for one in json.loads(scored.out)["streams"]}
    assert streams["cascade"] == streams["multi"]  # nothing was learned of matching, and nothing is made of it


def test_a_student_is_exported(place: Path, tmp_path: Path) -> None:
    made = run_cli("export", "--model", str(place / "student"), str(tmp_path / "out"))
    assert made.code == 0, made.err
    assert {"vision.onnx", "text.onnx"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_student_is_set_beside_its_teacher(place: Path) -> None:
    words = ["bench", "distill", "--model", place / "student", "--teacher", place / "clip", "--data", place / "media"]
    words += ["--split", "test", "--num-frames", "1,4", "--runs", "1"]
    shown = run_cli(*map(str, words))
    assert shown.code == 0, shown.err
    assert "cosine" in shown.out
    told = json.loads(run_cli(*map(str, words), "--json").out)
    assert [one["num_frames"] for one in told["measured"]] == [1, 1, 4, 4]
    teacher, student = told["measured"][:2]
    assert student["gflops"] < teacher["gflops"]


def test_the_page_of_a_run_shows_what_it_has(place: Path, tmp_path: Path) -> None:
    made = run_cli("report", str(place / "student"), "--out", str(tmp_path / "page.html"), "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["missing"] == ["examples: the recipe has no data.validation"]


def test_a_teacher_that_there_is_not_is_one_line(place: Path, tmp_path: Path) -> None:
    words = ["teacher.model=nowhere", f"data.train.folder={place / 'media'}", f"output={tmp_path / 'run'}"]
    made = run_cli("train", "distill", *words, *SMALL)
    assert made.code == 2
    assert made.err.count("\n") == 1
    assert "nowhere: no such folder" in made.err
    assert not (tmp_path / "run").exists()
