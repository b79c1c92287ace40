"""From a folder of videos to moments in files, by commands."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import run_cli

from perceiver_vl.media.decode import load_clip
from perceiver_vl.search import build_index
from small_media import write_clip


@pytest.fixture(scope="module")
def library(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `media` and their `index`; not to be changed."""
    folder = tmp_path_factory.mktemp("library")
    for number in range(3):
        write_clip(folder / "media" / f"<b>clip{number}.mp4", seed=number, frames=40)
    report = build_index(model_folder, folder / "media", folder / "index", segments=0.5, segment_fps=4)
    assert report.segments is not None
    assert report.segments.total == 24
    return folder


@pytest.fixture(autouse=True)
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take long to make, and have tests of their own."""
    monkeypatch.setattr("perceiver_vl.search.query_export.write_query_graph", lambda *_, **__: None)


def test_moments_are_listed_shown_and_cut(library: Path, tmp_path: Path) -> None:
    words = "search", "--index", library / "index", "a red square", "a blue circle", "--moments", "--top-k", "4"
    page, cuts = tmp_path / "found.html", tmp_path / "cuts"
    answer = run_cli(*words, "--max-length", "0:02", "--html", page, "--export", cuts, "--cut", "exact")
    assert answer.code == 0, answer.err
    assert "<b>clip" in answer.out
    assert re.search(r"\d+ windows of 24 segments scored in [\d.]+ ms \(exact\)", answer.out)
    assert "8 moments cut" in answer.out
    plain = json.loads(run_cli(*words, "--max-length", "0:02", "--json").out)
    moments = [(result["query"], moment) for result in plain for moment in result["moments"]]
    listed = json.loads((cuts / "moments.json").read_text())
    assert [(one["query"], one["start"], one["end"]) for one in listed] == [
        (query, one["start"], one["end"]) for query, one in moments
    ]
    for one in listed:
        assert one["problem"] is None
        assert one["end"] - one["start"] <= 2.0
        clip = load_clip(cuts / one["cut"], 100)
        assert len(clip.frames) == round(10 * (one["end"] - one["start"]))
    with (cuts / "moments.csv").open() as file:
        assert [row["cut"] for row in csv.DictReader(file)] == [one["cut"] for one in listed]
    edl = (cuts / "moments.edl").read_text()
    events = re.findall(r"^\d{3}  AX       V     C        (\S+) (\S+) (\S+) (\S+)$", edl, re.MULTILINE)
    assert len(events) == 8
    assert [event[2] for event in events][1:] == [event[3] for event in events][:-1]
    assert "* FRAME RATE: 10" in edl
    text = page.read_text()
    assert text.count("<polyline") == 8
    assert text.count("data:image/jpeg") == 64
    assert "<b>clip" not in text
    assert re.search(r"#t=\d+\.\d{3},\d+\.\d{3}", text)
    for left, width in re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)"', text):
        assert 0 <= float(left) < float(left) + float(width) <= 1000.01


def test_segments_are_made_by_a_command(library: Path, tmp_path: Path) -> None:
    shutil.copytree(library / "index", tmp_path / "index")
    report = run_cli("index", "--out", tmp_path / "index", "--json").json()["segments"]
    assert (report["total"], report["encoded"], report["skipped"]) == (24, 0, [])
    assert report["hours"] == pytest.approx(12 / 3600)
    other = run_cli("index", "--out", tmp_path / "index", "--segments", "1", "--segment-fps", "4")
    assert "made with segments 0.5, not 1; leave that out or use --out OTHER" in other.error(2)


def test_queries_come_one_a_line(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\nblue\n"))
    answer = run_cli("search", "--index", library / "index", "--moments", "--json")
    assert [json.loads(line)["query"] for line in answer.out.splitlines()] == ["red", "blue"]


def test_a_video_that_is_gone_is_told(library: Path, tmp_path: Path) -> None:
    shutil.copytree(library / "media", tmp_path / "media")
    (tmp_path / "media" / "<b>clip0.mp4").rename(tmp_path / "moved.mp4")
    shutil.copytree(library / "index", tmp_path / "index")
    assert run_cli("index", "--out", tmp_path / "index", "--media", tmp_path / "media").code == 0
    (tmp_path / "media" / "<b>clip1.mp4").unlink()
    words = "search", "--index", tmp_path / "index", "red", "--moments", "--export", tmp_path / "cuts"
    answer = run_cli(*words, "--html", tmp_path / "page.html")
    assert answer.code == 0, answer.err
    assert "not cut: <b>clip1.mp4: no such file" in answer.out
    assert "Cannot be shown: no such file" in (tmp_path / "page.html").read_text()
    rows = json.loads((tmp_path / "cuts" / "moments.json").read_text())
    assert {row["problem"] for row in rows if "clip1" in row["file_name"]} == {"no such file"}
    assert {row["problem"] for row in rows if "clip2" in row["file_name"]} == {None}


def test_nothing_found_is_said(library: Path, tmp_path: Path) -> None:
    index = shutil.copytree(library / "index", tmp_path / "index")
    lines = [{"query": f"a red square {n}", "file": f"<b>clip{n % 3}.mp4"} for n in range(20)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    search = "search", "--index", index, "--moments"
    answer = run_cli(*search, "--calibrate", tmp_path / "queries.jsonl")
    assert answer.code == 0, answer.err
    assert re.match(r"20 queries: the best window must stand out by [\d.]+ standard deviations; \d+ % do", answer.out)
    results = [run_cli(*search, words) for words in ("red", "blue circle", "a yellow star blinks", "meet", "grows")]
    assert any("nothing found" in one.out and "--always shows" in one.out for one in results)
    for one in results:
        assert ("nothing found" in one.out) == ("clip" not in one.out)
    assert all("clip" in run_cli(*search, words, "--always").out for words in ("red", "meet"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--per-video", "2"), "per-video: is of moments, ask for --moments"),
        (("--moments", "--hybrid"), "hybrid: moments are found by what is seen"),
        (("--moments", "--cut", "roughly"), "cut=roughly: choose keyframes or exact"),
        (("--moments", "--min-length", "9", "--max-length", "3"), "min_length=9.0, max_length=3.0: need seconds"),
        (("--moments", "--max-length", "long"), "max-length=long: need seconds or mm:ss"),
        (
            ("--moments", "--calibrate", "a.jsonl"),
            "calibrate=a.jsonl: asks the queries of its file alone, leave out 'red'",
        ),
    ],
)
def test_mistakes_are_told(library: Path, words: tuple[str, ...], message: str) -> None:
    answer = run_cli("search", "--index", library / "index", "red", *words)
    assert answer.code == 2
    assert message in answer.err


def test_what_cannot_be_calibrated_with(library: Path, tmp_path: Path) -> None:
    search = "search", "--index", library / "index", "--moments", "--calibrate"
    assert "nosuch.jsonl: no such file, need lines" in run_cli(*search, "nosuch.jsonl").error(2)
    assert "is of the whole index" in run_cli(*search, "nosuch.jsonl", "--type", "video").error(2)
    (tmp_path / "sta.txt").write_text("clip0 0 2##a red square")
    assert "annotations of charades-sta" in run_cli(*search, tmp_path / "sta.txt").error(2)


def test_moments_are_cut_into_a_folder_of_their_own(library: Path, tmp_path: Path) -> None:
    words = "search", "--index", library / "index", "a red square", "--moments", "--top-k", "1", "--export"
    before = {path: path.stat().st_mtime_ns for path in library.rglob("*")}
    (tmp_path / "link").symlink_to(library / "media")
    for folder in ("index", "index/cuts", "media", "media/cuts"):
        assert "name a new folder elsewhere" in run_cli(*words, library / folder).error(2)
    assert "the indexed media" in run_cli(*words, tmp_path / "link" / "cuts").error(2)
    assert {path: path.stat().st_mtime_ns for path in library.rglob("*")} == before
    assert run_cli(*words, tmp_path / "cuts").code == 0
    cuts = sorted(path.name for path in (tmp_path / "cuts").iterdir())
    assert f"export={tmp_path / 'cuts'}: is not empty, name a new folder" in run_cli(*words, tmp_path / "cuts").error(2)
    assert sorted(path.name for path in (tmp_path / "cuts").iterdir()) == cuts
    (tmp_path / "file").touch()
    assert "is a file, name a new folder" in run_cli(*words, tmp_path / "file").error(2)
    (tmp_path / "empty").mkdir()
    assert run_cli(*words, tmp_path / "empty").code == 0


def test_a_benchmark_is_evaluated(library: Path, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sta.txt").write_text("<b>clip0 0 2##a red square\n<b>clip1 1.5 4##a blue circle\nx 3 1##backwards\n")
    words = "evaluate", "--task", "moments", "--model", model_folder, "--data", library / "media"
    asked = *words, "--metadata", tmp_path / "sta.txt", "--segments", "0.5", "--submission", tmp_path / "found.jsonl"
    answer = run_cli(*asked)
    assert answer.code == 0, answer.err
    assert "charades-sta: 2 queries, 2 videos, 24 segments" in answer.out
    assert "x: query 3: a window from 3 to 1 s, left out" in answer.err
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 2
    found = run_cli(*asked, "--corpus", "--json").json()
    assert set(found["figures"]["official"]) == set(found["figures"]["all_queries"]) >= {"R1@0.7", "mIoU", "mAP"}
    assert "corpus R10@0.5" in found["corpus"]["official"]
    rows = [{"qid": 1, "query": "red", "vid": "<b>clip0", "duration": 4, "relevant_windows": [[1, 2]]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    beside = run_cli(*words, "--metadata", tmp_path / "rows.jsonl", "--segments", "0.5", "--baselines").out
    assert "middle of the video" in beside
    assert "windows of 4 s" in beside
    assert "this model" in beside
    for more, message in [
        ((), "name the annotation file of QVHighlights"),
        (("--metadata", "a", "--split", "test"), "split=test: says nothing of task moments"),
        (("--metadata", "a", "--streams", "multi"), "streams=multi: says nothing of task moments"),
    ]:
        assert message in run_cli(*words, *more).error(2)
    other = run_cli("evaluate", "--model", model_folder, "--data", library / "media", "--segments", "2")
    assert "segments=2: says nothing of task retrieval, it is for moments" in other.error(2)
