"""A benchmark of moments from its official file: what is asked, what is counted, and what goes to the server."""

import json
from pathlib import Path

import pytest

from perceiver_vl import UsageError
from perceiver_vl.inference.moment_evaluation import MomentEvaluation, evaluate_moments
from perceiver_vl.search import MomentOptions, Searcher
from small_media import write_clip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_clip(folder / f"v{number}_0.0_9.0.mp4", seed=number, frames=90)
    return folder


def highlights(path: Path) -> Path:
    rows = [
        {
            "qid": number,
            "query": f"a red square moves {number}",
            "vid": f"v{number}_0.0_9.0",
            "duration": 9,
            "relevant_windows": [[0, 4]],
            "relevant_clip_ids": [0, 1],
            "saliency_scores": [[4, 4, 4], [1, 2, 3]],
        }
        for number in range(4)  # the last has no video
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_qvhighlights(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    annotations = highlights(tmp_path / "val.jsonl")
    found = evaluate_moments(model_folder, videos, annotations, index=tmp_path / "index", corpus=True)
    assert (found.format, found.videos, found.without_video, found.segments) == ("qvhighlights", 3, 1, 15)
    assert (found.figures.queries, found.figures.answered) == (4, 3)
    assert {"R1@0.5", "mAP", "mIoU", "HL-mAP", "HL-Hit1"} <= set(found.figures.official)
    for name, value in found.figures.official.items():
        assert found.figures.all_queries[name] == pytest.approx(0.75 * value, abs=0.02)
    assert found.corpus is not None
    assert found.corpus.official["corpus R100@0.5"] >= found.corpus.official["corpus R1@0.5"]
    assert any("1 queries are about videos that are not there" in note for note in found.notes)
    assert any("leave unanswered queries out" in note for note in found.notes)
    lines = [json.loads(line) for line in found.submission().splitlines()]
    assert [(one["qid"], one["vid"]) for one in lines] == [(n, f"v{n}_0.0_9.0") for n in range(4)]
    moments = Searcher(tmp_path / "index").moments(
        "a red square moves 1", MomentOptions(max_length=150, top_k=10, per_video=10)
    )
    own = [one for one in moments.moments if one.file_name.startswith("v1")]
    assert lines[1]["pred_relevant_windows"][0][:2] == [own[0].start, own[0].end]
    assert len(lines[1]["pred_saliency_scores"]) == 5
    assert lines[3]["pred_relevant_windows"] == []
    assert "predictions" not in json.loads(json.dumps(found.to_dict()))
    other = evaluate_moments(model_folder, videos, annotations, segments=3, baselines=True)
    assert {"whole video", "best fixed window", "segment by segment", "windows of 3 s", "windows of 6 s"} < set(
        other.baselines
    )
    assert set(other.baselines["windows of 3 s"].official) == set(other.figures.official)
    whole = other.baselines["whole video"]
    assert (whole.official["R1@0.3"], whole.official["mIoU"]) == (100, pytest.approx(44.44))
    assert "HL-mAP" not in other.figures.official  # clips of two seconds are rated
    assert other.segments == 9


def test_lengths_are_learned_from_other_annotations(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    annotations = highlights(tmp_path / "val.jsonl")
    (tmp_path / "long.txt").write_text("v0_0.0_9.0 0 8##a red square\nv1_0.0_9.0 0 9##a blue circle")
    plain = evaluate_moments(model_folder, videos, annotations)
    learned = evaluate_moments(model_folder, videos, annotations, calibrate=tmp_path / "long.txt")
    assert plain.length_weight is None
    assert learned.length_weight is not None

    def seconds(found: MomentEvaluation) -> float:
        first = [one["pred_relevant_windows"][0] for one in found.predictions if one["pred_relevant_windows"]]
        return sum(end - start for start, end, _ in first)

    assert learned.length_weight > 0
    assert seconds(learned) > seconds(plain)
    (tmp_path / "other.txt").write_text("AAAAA 0 5##a person sits down")
    with pytest.raises(UsageError, match=r"calibrate=.*other\.txt: its videos are not in the folder"):
        evaluate_moments(model_folder, videos, annotations, calibrate=tmp_path / "other.txt")


def test_rows_that_cannot_be_asked_do_not_end_it(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    rows = "v0_0.0_9.0 0 4##a red square\nv1_0.0_9.0 0 4##\nv1_0.0_9.0 0 inf##a ring\nv2_0.0_9.0 2 5##a blue circle\n"
    (tmp_path / "sta.txt").write_text(rows)
    (tmp_path / "others.txt").write_text("v1_0.0_9.0 0 8##a red square\nv1_0.0_9.0 1 8##")
    found = evaluate_moments(model_folder, videos, tmp_path / "sta.txt", calibrate=tmp_path / "others.txt")
    assert (found.figures.queries, found.figures.answered) == (2, 2)
    assert [str(one) for one in found.skipped] == [
        "v1_0.0_9.0: query 2: no words, left out",
        "v1_0.0_9.0: query 3: a window from 0 to inf s, left out",
        "v1_0.0_9.0: query 2: no words, left out",
    ]


def test_of_one_qid_the_last_query_counts(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    row = {"qid": 1, "query": "red", "vid": "v0_0.0_9.0", "duration": 9, "relevant_windows": [[0, 4]]}
    rows = [row, row | {"query": "blue", "vid": "v1_0.0_9.0"}, row | {"qid": 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = evaluate_moments(model_folder, videos, tmp_path / "rows.jsonl")
    assert found.figures.queries == 2
    assert [(one["qid"], one["query"], one["vid"]) for one in found.predictions] == [
        (1, "blue", "v1_0.0_9.0"),
        (2, "red", "v0_0.0_9.0"),
    ]
    assert any("1 qids are of several queries, such as 1" in note for note in found.notes)


def test_another_index_is_asked_for_by_its_name_here(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    annotations = highlights(tmp_path / "val.jsonl")
    evaluate_moments(model_folder, videos, annotations, index=tmp_path / "index")
    with pytest.raises(UsageError, match="leave that out or use index='OTHER'"):
        evaluate_moments(model_folder, videos, annotations, index=tmp_path / "index", segments=3)


def test_a_wrong_file_to_calibrate_with_is_told_before_any_work(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet(*_: object, **__: object) -> None:
        raise AssertionError("videos are indexed")

    monkeypatch.setattr("perceiver_vl.inference.moment_evaluation.build_index", not_yet)
    (tmp_path / "queries.jsonl").write_text('{"query": "red", "file": "a.mp4"}\n{"query": "blue", "file": "b.mp4"}\n')
    for name, message in (("queries.jsonl", "which an index is calibrated with"), ("none.txt", "no such file")):
        with pytest.raises(UsageError, match=f"{name}: .*{message}"):
            evaluate_moments("model", videos, highlights(tmp_path / "val.jsonl"), calibrate=tmp_path / name)


def test_didemo_ranks_every_candidate(model_folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "a.mp4", seed=1, frames=278)
    rows = [{"annotation_id": 5, "description": "a red square", "video": "a.mov", "times": [[0, 0]] * 3 + [[1, 5]]}]
    (tmp_path / "didemo.json").write_text(json.dumps(rows))
    found = evaluate_moments(model_folder, tmp_path / "videos", tmp_path / "didemo.json", segment_fps=0.4)
    assert set(found.figures.official) == {"Rank@1", "Rank@5", "mIoU"}
    windows = found.predictions[0]["pred_relevant_windows"]
    assert len({(round(start / 5), round(end / 5 + 0.3)) for start, end, _ in windows}) == 21
    with pytest.raises(UsageError, match="the candidates of DiDeMo are of 5 s"):
        evaluate_moments(model_folder, tmp_path / "videos", tmp_path / "didemo.json", segments=2)


def test_what_cannot_be_scored(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("AAAAA 0 5##a person sits down")
    with pytest.raises(UsageError, match=r"has none of the videos of .*other\.txt, such as AAAAA"):
        evaluate_moments(model_folder, videos, tmp_path / "other.txt")
    row = {"qid": 1, "query": "red", "vid": "v1_0.0_9.0", "duration": 9}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(UsageError, match="does not say what is right"):
        evaluate_moments(model_folder, videos, tmp_path / "test.jsonl")
    found = evaluate_moments(model_folder, videos, tmp_path / "test.jsonl", labelled=False)
    assert len(found.predictions[0]["pred_relevant_windows"]) > 0
