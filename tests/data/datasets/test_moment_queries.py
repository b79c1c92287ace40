"""The official files of moment retrieval, each known by its content; what is odd in them is told."""

import json
from pathlib import Path

import pytest

from perceiver_vl import UsageError
from perceiver_vl.data.datasets.moment_queries import read_moment_queries

OFFICIAL = (Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "official_formats").resolve()
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no folder shared/ beside the repository")


@needs_official
@pytest.mark.parametrize(
    ("file", "kind", "queries"),
    [
        ("qvhighlights/highlight_val_release.jsonl", "qvhighlights", 30),
        ("qvhighlights/highlight_train_release.jsonl", "qvhighlights", 30),
        ("didemo/val_data.json", "didemo", None),
        ("didemo/test_data.json", "didemo", None),
        ("activitynet_captions/val_1.json", "activitynet-captions", None),
        ("activitynet_captions/train.json", "activitynet-captions", None),
    ],
)
def test_official_samples_are_read(file: str, kind: str, queries: int | None) -> None:
    found = read_moment_queries(OFFICIAL / file)
    assert found.format == kind
    assert len(found.queries) == (queries or len(found.queries)) > 0
    assert len({one.qid for one in found.queries}) == len(found.queries)
    for one in found.queries:
        assert one.query
        assert one.video
        assert all(0 <= start < end for start, end in one.windows)
        assert bool(one.choices) == (kind == "didemo")
        assert (one.saliency is not None) == (kind == "qvhighlights")


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_each_format(tmp_path: Path) -> None:
    charades = read_moment_queries(write(tmp_path / "a.txt", "AO8RW 0.0 6.9##a person puts a book down.\n\nX 1 2##b\n"))
    assert (charades.format, len(charades.queries)) == ("charades-sta", 2)
    assert charades.queries[0].query == "a person puts a book down."
    assert charades.queries[0].windows == ((0.0, 6.9),)
    tvr = {"desc_id": 7, "desc": "he smiles", "vid_name": "friends_1", "duration": 60.0, "ts": [1.5, 4]}
    [one] = read_moment_queries(write(tmp_path / "b.jsonl", tvr)).queries
    assert (one.qid, one.video, one.windows, one.duration) == ("7", "friends_1", ((1.5, 4.0),), 60.0)
    row = {"qid": 3, "query": "a", "vid": "v", "duration": 10, "relevant_windows": [[0, 4], [6, 8]]}
    row |= {"relevant_clip_ids": [0, 1], "saliency_scores": [[1, 2, 3], [4, 4, 4]]}
    [one] = read_moment_queries(write(tmp_path / "c.jsonl", row)).queries
    assert (one.windows, one.saliency) == (((0.0, 4.0), (6.0, 8.0)), ((0, (1, 2, 3)), (1, (4, 4, 4))))
    didemo = [{"annotation_id": 1, "description": "d", "video": "v.mov", "times": [[0, 0], [1, 2]], "num_segments": 6}]
    [one] = read_moment_queries(write(tmp_path / "d.json", didemo)).queries
    assert (one.windows, one.choices) == (((0.0, 5.0), (5.0, 15.0)), ((0, 0), (1, 2)))
    captions = {"v_x": {"duration": 20.0, "timestamps": [[0, 5], [3, 30]], "sentences": [" one", "two"]}}
    found = read_moment_queries(write(tmp_path / "e.json", captions))
    assert [(one.qid, one.query) for one in found.queries] == [("v_x#0", "one"), ("v_x#1", "two")]
    assert found.notes == ["1 queries have a window beyond the end of their video"]


def test_windows_that_end_before_they_start_are_left_out_and_told(tmp_path: Path) -> None:
    found = read_moment_queries(write(tmp_path / "a.txt", "v 5 2##backwards\nv 1 1##nothing\nv 1 2##good\n"))
    assert [one.query for one in found.queries] == ["good"]
    assert [str(one) for one in found.skipped] == [
        "v: query 1: a window from 5 to 2 s, left out",
        "v: query 2: a window from 1 to 1 s, left out",
    ]
    row = {"qid": 1, "query": "a", "vid": "v", "duration": 9, "relevant_windows": [[4, 2], [1, 3]]}
    found = read_moment_queries(write(tmp_path / "b.jsonl", row))
    assert found.queries[0].windows == ((1.0, 3.0),)
    assert [str(one) for one in found.skipped] == ["v: query 1: a window from 4 to 2 s, left out"]


ENDLESS = [
    "v 0 inf##a\nv 0 nan##b\nv inf inf##c\nv 1 2##good",
    '{"qid": 1, "query": "a", "vid": "v", "duration": 9, "relevant_windows": [[0, Infinity]]}\n'
    '{"qid": 2, "query": "b", "vid": "v", "duration": 9, "relevant_windows": [[NaN, 3]]}\n'
    f'{{"qid": 3, "query": "c", "vid": "v", "duration": 9, "relevant_windows": [[0, 1{"0" * 400}]]}}\n'
    '{"qid": 4, "query": "good", "vid": "v", "duration": 9, "relevant_windows": [[1, 2]]}',
    '{"v": {"duration": 9, "timestamps": [[0, Infinity], [0, NaN], [-Infinity, 1], [1, 2]], '
    '"sentences": ["a", "b", "c", "good"]}}',
    '[{"annotation_id": 1, "description": "a", "video": "v", "times": [[0, Infinity]]}, '
    '{"annotation_id": 2, "description": "b", "video": "v", "times": [[NaN, NaN]]}, '
    '{"annotation_id": 3, "description": "c", "video": "v", "times": [[-Infinity, 0]]}, '
    '{"annotation_id": 4, "description": "good", "video": "v", "times": [[0, 1]]}]',
    '{"desc_id": 1, "desc": "a", "vid_name": "v", "duration": 9, "ts": [0, Infinity]}\n'
    '{"desc_id": 2, "desc": "b", "vid_name": "v", "duration": 9, "ts": [0, NaN]}\n'
    '{"desc_id": 3, "desc": "c", "vid_name": "v", "duration": 9, "ts": [-Infinity, 4]}\n'
    '{"desc_id": 4, "desc": "good", "vid_name": "v", "duration": 9, "ts": [1, 2]}',
]


@pytest.mark.parametrize("content", ENDLESS)
def test_windows_that_never_end_are_left_out_and_told(content: str, tmp_path: Path) -> None:
    found = read_moment_queries(write(tmp_path / "file", content))
    assert [one.query for one in found.queries] == ["good"]
    assert [one.file_name for one in found.skipped] == ["v"] * 3
    assert all("a window from " in one.reason and one.reason.endswith(" s, left out") for one in found.skipped)


@pytest.mark.parametrize(
    "content",
    [
        "v 0 1##a\nv 0 1##\nv 0 1## \n",
        '{"qid": 1, "query": "a", "vid": "v", "duration": 9}\n{"qid": 2, "query": "", "vid": "v", "duration": 9}\n'
        '{"qid": 3, "query": " ", "vid": "v", "duration": 9}',
        '{"v": {"duration": 9, "timestamps": [[0, 1], [0, 1], [0, 1]], "sentences": ["a", "", " "]}}',
        '[{"annotation_id": 1, "description": "a", "video": "v", "times": [[0, 1]]}, '
        '{"annotation_id": 2, "description": "", "video": "v", "times": [[0, 1]]}, '
        '{"annotation_id": 3, "description": "  ", "video": "v", "times": [[0, 1]]}]',
        '{"desc_id": 1, "desc": "a", "vid_name": "v", "duration": 9, "ts": [0, 1]}\n'
        '{"desc_id": 2, "desc": "", "vid_name": "v", "duration": 9, "ts": [0, 1]}\n'
        '{"desc_id": 3, "desc": " ", "vid_name": "v", "duration": 9, "ts": [0, 1]}',
    ],
)
def test_queries_without_words_are_left_out_and_told(content: str, tmp_path: Path) -> None:
    found = read_moment_queries(write(tmp_path / "file", content))
    assert [one.query for one in found.queries] == ["a"]
    assert [one.file_name for one in found.skipped] == ["v", "v"]
    assert all(one.reason.startswith("query ") and "no words, left out" in one.reason for one in found.skipped)


def test_queries_of_one_qid_are_told(tmp_path: Path) -> None:
    rows = [{"qid": qid, "query": "a", "vid": "v", "duration": 9, "relevant_windows": [[0, 1]]} for qid in (7, 8, 7, 9)]
    found = read_moment_queries(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert len(found.queries) == 4
    assert found.notes == ["1 qids are of several queries, such as 7; the last of each is scored"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello", "none of QVHighlights, Charades-STA"),
        ("", "none of QVHighlights"),
        ("v 1 two##a", "need VIDEO START END##SENTENCE"),
        ('{"qid": 1, "query": "a"}', "row 1: vid=None, need a string"),
        ('{"qid": 1, "query": "a", "vid": "v", "duration": "x", "relevant_windows": [[0, 1]]}', "duration='x', need a"),
        ('{"ts": [1], "desc_id": 1, "desc": "a", "vid_name": "v", "duration": 3}', r"ts=\[1\], need a pair"),
        ('{"v": {"duration": 9, "timestamps": [[0, 1]], "sentences": []}}', "as many as timestamps, 1"),
        ('{"qid": ' + "[" * 100_000, "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"qid": 1, "query": "a", "vid": "v", "duration": Infinity}', "duration=inf, need a number"),
        (
            '{"qid": 1, "query": "a", "vid": "v", "duration": 9, "relevant_clip_ids": [0], "saliency_scores": [[NaN]]}',
            "need whole numbers for each clip of relevant_clip_ids",
        ),
        ('{"query": "a", "file": "b.mp4"}', "queries and the files that show them, .* but not annotations, give the"),
        ('{"query": "a", "file": "b"}\n{"query": "c", "file": "d"}', "which an index is calibrated with"),
        ('{"text": "a", "name": "b"}\n{"text": "c", "name": "d"}', "none of QVHighlights, Charades-STA"),
        ("v 3 1##a", "no query with words and a window in it"),
    ],
)
def test_files_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read_moment_queries(write(tmp_path / "file", content))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.json: no such file, give the annotation file"):
        read_moment_queries(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match=": is a directory, give the annotation file"):
        read_moment_queries(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        read_moment_queries(tmp_path / "binary")
