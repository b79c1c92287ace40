"""Moments: every window's score is that of the decoder over its segments, in the order of brute force."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from perceiver_vl import UsageError
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search import Filters, MomentOptions, Searcher, build_index
from perceiver_vl.search.calibrate import calibrate, read_queries
from perceiver_vl.search.length import fit_length_weight, known_windows
from perceiver_vl.search.rows import Vectors
from perceiver_vl.search.table import SEGMENTS, open_table
from perceiver_vl.search.windows import Query, Stretch, distinct, neighbours, scales, score, score_together
from small_media import write_clip

QUERY = "a red square moves left"


@pytest.fixture(scope="module")
def indexed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    media, index = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("index")
    for number in range(5):
        write_clip(media / f"clip{number}.mp4", seed=number, frames=60 + 20 * number)
    write_clip(media / "short.mp4", seed=9, frames=4)
    build_index(model_folder, media, index, segments=0.5, segment_fps=4, batch_size=8)
    return index


@pytest.fixture(scope="module")
def directly(model_folder: Path, indexed: Path) -> dict[tuple[str, float, float], float]:
    """The decoder's logit over the latents of every window of one video, by its times, from the frames themselves."""
    from perceiver_vl.media.segments import find_segments, read_segments

    model, processor = load_retriever(model_folder, "cpu")
    path = Path(open_table(indexed).settings.media) / "clip2.mp4"
    segments, _ = find_segments(path, "0.5")
    frames = [one.frames for one in read_segments(path, segments, 4, 4, size=(64, 64))]
    with torch.inference_mode():
        latents = model.encode_vision(**processor(videos=frames))
        text = model.encode_text(**processor(text=[QUERY]))
        return {
            ("clip2.mp4", segments[first].start, segments[after - 1].end): model.match(
                latents[first:after].flatten(0, 1)[None], text
            ).item()
            for first, after in itertools.combinations(range(len(segments) + 1), 2)
        }


def test_every_window_scores_and_ranks_as_direct_decoding(
    indexed: Path, directly: dict[tuple[str, float, float], float]
) -> None:
    result = Searcher(indexed).moments(
        QUERY,
        MomentOptions(top_k=1000, per_video=1000, max_length=100, rerank="mixed"),
        Filters(where="file = 'clip2.mp4'"),
    )
    assert result.windows > 20
    for moment in result.moments:
        assert moment.score == moment.mixed_score
        assert moment.score == pytest.approx(directly[moment.file_name, moment.start, moment.end], abs=1e-5)
    scores = [moment.score for moment in result.moments]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(max(directly.values()), abs=1e-5)  # so few windows that all were tried
    for point in result.curves["clip2.mp4"]:
        assert point.score == pytest.approx(directly["clip2.mp4", point.start, point.end], abs=1e-5)
    assert [point.start for point in result.curves["clip2.mp4"]] == pytest.approx(np.arange(20) / 2)


def test_combined_scores_add_both_streams(indexed: Path) -> None:
    searcher = Searcher(indexed)
    scale = searcher.queries.logit_scale
    for rerank in ("combined", "none"):
        for moment in searcher.moments(QUERY, MomentOptions(rerank=rerank)).moments:
            wanted = moment.multi_score
            if moment.mixed_score is not None:
                wanted = scale * moment.multi_score + moment.mixed_score
            assert moment.score == pytest.approx(wanted, abs=1e-4)
            assert (moment.mixed_score is None) == (rerank == "none")


def test_lengths_and_numbers_are_as_asked_for(indexed: Path) -> None:
    searcher = Searcher(indexed)
    result = searcher.moments(QUERY, MomentOptions(top_k=7, per_video=2, min_length=1.5, max_length=3))
    assert len(result.moments) == 7
    assert [moment.rank for moment in result.moments] == list(range(1, 8))
    names = [moment.file_name for moment in result.moments]
    assert max(map(names.count, names)) == 2
    for moment in result.moments:
        assert 1.5 <= moment.end - moment.start <= 3.0
        assert 0 <= moment.start < moment.end <= moment.duration
        assert moment.path.is_file()
    pairs = itertools.combinations([m for m in result.moments if m.file_name == names[0]], 2)
    for one, other in pairs:
        common = min(one.end, other.end) - max(one.start, other.start)
        assert common <= 0.5 * (max(one.end, other.end) - min(one.start, other.start)) + 1e-9
    assert result.notes[-1].startswith("1 videos have no window of 1.5 to 3 s")
    none = searcher.moments(QUERY, MomentOptions(min_length=50, max_length=60))
    assert (none.moments, none.windows) == ([], 0)


def test_a_large_library_goes_through_a_shortlist(indexed: Path) -> None:
    searcher = Searcher(indexed)
    whole = searcher.moments(QUERY, MomentOptions(max_length=2))
    few = searcher.moments(QUERY, MomentOptions(max_length=2, everything=1, shortlist=5))
    all_listed = searcher.moments(QUERY, MomentOptions(max_length=2, everything=1, shortlist=1000))
    assert (whole.method, few.method) == ("exact", "of 5 segments by vector")
    assert few.searched == whole.searched == 101
    assert 0 < few.windows < whole.windows
    assert all_listed.moments == whole.moments
    assert {(one.file_name, one.start) for one in few.moments} & {(one.file_name, one.start) for one in whole.moments}


def test_filters_hold(indexed: Path) -> None:
    result = Searcher(indexed).moments(QUERY, filters=Filters(longer=9))
    assert {moment.file_name for moment in result.moments} <= {"clip2.mp4", "clip3.mp4", "clip4.mp4"}


def test_results_are_plain_values(indexed: Path) -> None:
    plain = json.loads(json.dumps(Searcher(indexed).moments(QUERY).as_dict()))
    first = plain["moments"][0]
    assert set(first) >= {"file_name", "start", "end", "score", "rank"}
    assert set(plain["curves"][first["file_name"]][0]) == {"start", "end", "score"}
    assert plain["found"] is None  # never calibrated


def test_nothing_is_found_where_the_best_is_no_better_than_chance(indexed: Path, tmp_path: Path) -> None:
    import shutil

    index = Path(shutil.copytree(indexed, tmp_path / "index"))
    words = ["red", "a blue circle", "moves left", "a yellow star blinks"]
    lines: list[dict[str, object]] = [{"query": words[n % 4], "file": f"clip{n % 5}.mp4"} for n in range(20)]
    lines[0] |= {"start": 1.0, "end": 3.0}
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    searcher = Searcher(index)
    found = calibrate(searcher, read_queries(tmp_path / "queries.jsonl"), false_alarms=0.2)
    assert (found.queries, found.timed) == (20, 1)
    assert open_table(index, name=SEGMENTS).settings.length_weight == found.length_weight
    assert found.false_alarms <= 0.2
    assert 0 <= found.found <= 1
    results = [Searcher(index).moments(one) for one in words]
    assert all(result.threshold == found.threshold for result in results)
    for result in results:
        assert result.found == (result.surprise > found.threshold) == bool(result.moments)
        assert Searcher(index).moments(result.query, MomentOptions(always=True)).moments
    assert any(not result.found for result in results)
    build_index(None, None, index)
    assert open_table(index, name=SEGMENTS).settings.surprise == found.threshold
    open_table(index, name=SEGMENTS).check()


@pytest.mark.parametrize("line", ["nothing", '{"query": "a"}', "[1]", "[" * 100_000])
def test_queries_that_are_none(line: str, tmp_path: Path, indexed: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(line)
    with pytest.raises(UsageError, match=r"queries\.jsonl: not queries, need lines as"):
        read_queries(tmp_path / "queries.jsonl")
    (tmp_path / "queries.jsonl").write_text('{"query": "a", "file": "clip1.mp4", "start": 3, "end": 2}')
    with pytest.raises(UsageError, match="'a' from 3 to 2 s, need seconds"):
        read_queries(tmp_path / "queries.jsonl")
    (tmp_path / "queries.jsonl").write_text('{"query": " ", "file": "clip1.mp4"}')
    with pytest.raises(UsageError, match=r"queries\.jsonl: query ' ', need lines as"):
        read_queries(tmp_path / "queries.jsonl")
    with pytest.raises(UsageError, match="need at least 20"):
        calibrate(Searcher(indexed), [("a", "clip1.mp4", ())])
    with pytest.raises(UsageError, match=r"gone\.mp4: no video of the index"):
        calibrate(Searcher(indexed), [("a", "gone.mp4", ())] * 20)


def test_a_file_of_annotations_or_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text, kind in [
        ("v 0 1##a dog", "charades-sta"),
        ('{"qid": 1, "query": "a", "vid": "v", "duration": 9, "relevant_windows": [[0, 1]]}', "qvhighlights"),
        ('{"v": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["a"]}}', "activitynet-captions"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=f"annotations of {kind}, .* but not queries, need lines as"):
            read_queries(path)
    for content, message in ((None, "no such file, need"), (b"\xff\x00", "cannot be read as text, need")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=f"file: {message}"):
            read_queries(path)
        path.touch()
    with pytest.raises(UsageError, match="is a directory, need"):
        read_queries(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"per_video": 0}, "per_video=0: need at least 1"),
        ({"min_length": 5, "max_length": 2}, "min_length=5, max_length=2"),
        ({"rerank": "best"}, "rerank='best'"),
        ({"max_length": float("inf")}, "max_length=inf"),
    ],
)
def test_options_that_cannot_be(indexed: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Searcher(indexed).moments(QUERY, MomentOptions(**options))  # type: ignore[arg-type]


def test_an_index_without_segments_says_how_to_get_them(model_folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "media" / "a.mp4", seed=1)
    build_index(model_folder, tmp_path / "media", tmp_path / "index")
    searcher = Searcher(tmp_path / "index")
    with pytest.raises(UsageError, match=r"has no segments, index again with perceiver-vl index --out .* --segments 2"):
        searcher.moments(QUERY)


# Windows


def stretch(lengths: list[float]) -> Stretch:
    ends = np.cumsum(lengths)
    draw = np.random.default_rng(0)
    vectors, partials = (draw.normal(size=(len(lengths), size)).astype(np.float32) for size in (4, 10))
    return Stretch("a.mp4", float(ends[-1]), np.concatenate([[0.0], ends[:-1]]), ends, vectors, partials)


def loudness(clips: Vectors) -> Vectors:
    return clips[:, -1]


def test_scales_double_and_last_as_long_as_asked_for() -> None:
    parts = stretch([2.0] * 40)
    starts, ends = scales(parts, 0, 60)
    assert sorted(set((ends - starts).tolist())) == [1, 2, 4, 8, 16, 30]
    assert len(starts) == 40 + 39 + 37 + 33 + 25 + 11
    starts, ends = scales(parts, 5, 9)
    assert set((ends - starts).tolist()) == {4}
    uneven = stretch([1.0, 7.0, 0.5, 0.5, 30.0, 1.0])
    starts, ends = scales(uneven, 0, 8)
    seconds = uneven.ends[ends - 1] - uneven.starts[starts]
    assert seconds.max() == 8.0
    assert (2, 4) in set(zip(starts.tolist(), ends.tolist(), strict=True))
    assert len(scales(stretch([5.0]), 0, 2)[0]) == 0


def test_neighbours_are_windows_about_one() -> None:
    parts = stretch([2.0] * 40)
    starts, ends = neighbours(parts, 10, 14, 0, 60)
    assert (10, 14) in set(zip(starts.tolist(), ends.tolist(), strict=True))
    assert starts.min() == 8
    assert ends.max() == 16
    assert (starts < ends).all()
    starts, ends = neighbours(parts, 0, 1, 0, 60)
    assert set(zip(starts.tolist(), ends.tolist(), strict=True)) == {(0, 1), (0, 2), (1, 2)}


def test_long_videos_are_scored_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = stretch([1.0] * 300)
    query = Query(np.ones(4, np.float32), 2.0, loudness, 2)
    starts, ends = scales(parts, 0, 64)
    at_once = score(parts, query, starts, ends)
    monkeypatch.setattr("perceiver_vl.search.windows.STARTS_AT_ONCE", 7)
    monkeypatch.setattr("perceiver_vl.search.windows.WINDOWS_AT_ONCE", 5)
    in_parts = score(parts, query, starts, ends)
    np.testing.assert_array_equal(at_once.starts, in_parts.starts)
    np.testing.assert_allclose(at_once.scores, in_parts.scores, rtol=1e-5)


def test_what_length_is_worth_is_learned_from_known_windows() -> None:
    """A part of a moment scores as well as all of it, but for the noise of each segment."""
    parts, draw = stretch([1.0] * 60), np.random.default_rng(0)
    known = []
    for start in (3, 20, 41, 30):
        inside = (np.arange(60) >= start) & (np.arange(60) < start + 8)
        values = (draw.normal(0, 0.2, 60) + 4 * inside)[:, None]
        packed = np.concatenate([np.repeat(values, 8, axis=1), np.zeros((60, 2))], axis=1).astype(np.float32)
        row = Stretch("a.mp4", 60.0, parts.starts, parts.ends, parts.vectors, packed)
        query = Query(np.ones(4, np.float32), 0.0, lambda rows: rows[:, 0], 2)
        found = known_windows(row, query, [(start, start + 8)], 32.0)
        assert np.exp(found.logarithms[found.scores.argmax()]) < 4
        known.append(found)
    weight = fit_length_weight(known)
    assert weight > 0
    for one in known:
        assert one.overlaps[(one.scores + weight * one.logarithms).argmax()] > one.overlaps[one.scores.argmax()]
    assert fit_length_weight([]) == 0.0


def test_longer_windows_gain_with_the_logarithm_of_their_length() -> None:
    parts = stretch([1.0] * 20)
    plain = Query(np.ones(4, np.float32), 1.0, loudness, 2)
    weighted = Query(np.ones(4, np.float32), 1.0, loudness, 2, length_weight=0.5)
    places = scales(parts, 0, 16)
    one, other = score(parts, plain, *places), score(parts, weighted, *places)
    np.testing.assert_allclose(other.scores - one.scores, 0.5 * np.log(one.ends - one.starts), atol=1e-5)


def test_several_stretches_are_scored_together_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.search.windows.STARTS_AT_ONCE", 20)
    rows = [stretch([1.0] * length) for length in (3, 1, 16, 30, 2)]
    query = Query(np.ones(4, np.float32), 2.0, loudness, 2)
    places = [scales(one, 2, 16) for one in rows]
    together = list(score_together(rows, query, places))
    assert [len(one) for one in together] == [len(starts) for starts, _ in places]
    assert len(together[1]) == 0
    for row, found, asked in zip(rows, together, places, strict=True):
        alone = score(row, query, *asked)
        np.testing.assert_array_equal(found.starts, alone.starts)
        np.testing.assert_array_equal(found.ends, alone.ends)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-4, atol=1e-5)


def test_distinct_windows_overlap_little_and_the_best_comes_first() -> None:
    parts = stretch([1.0] * 30)
    query = Query(np.ones(4, np.float32), 0.0, loudness, 2)
    windows = score(parts, query, *scales(parts, 0, 16))
    found = distinct(parts, windows, 100, 0.5)
    assert found.scores[0] == windows.scores.max()
    for one, other in itertools.combinations(range(len(found)), 2):
        common = min(found.ends[one], found.ends[other]) - max(found.starts[one], found.starts[other])
        together = max(found.ends[one], found.ends[other]) - min(found.starts[one], found.starts[other])
        assert common <= 0.5 * together
    assert len(distinct(parts, windows, 3, 0.5)) == 3
