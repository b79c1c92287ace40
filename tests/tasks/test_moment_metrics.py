"""The figures of moment retrieval, beside what they are by their definition, and the traps of the official scripts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl.data.datasets.moment_queries import MomentQuery
from perceiver_vl.tasks.moment_metrics import (
    PRECISION_IOUS,
    Scored,
    average_precisions,
    corpus_figures,
    didemo_figures,
    highlight_figures,
    retrieval_figures,
    temporal_iou,
)


def query(qid: str, *windows: tuple[float, float], **more: object) -> MomentQuery:
    return MomentQuery(qid, "words", "video", windows, duration=150.0, **more)  # type: ignore[arg-type]


def iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    common = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return common / (one[1] - one[0] + other[1] - other[0] - common)


def test_overlaps() -> None:
    found = temporal_iou([(0, 10), (20, 30), (5, 5)], [(0, 10), (5, 15)])
    np.testing.assert_allclose(found, [[1, 1 / 3], [0, 0], [0, 0]])
    assert temporal_iou([], [(0, 1)]).shape == (0, 1)


def slowly(windows: list[Scored], truth: list[tuple[float, float]], least: float) -> float:
    """Average precision as ActivityNet's kit defines it: greedy by score, interpolated over every recall."""
    taken: list[tuple[float, float]] = []
    outcomes = []
    for start, end, _ in sorted(windows, key=lambda one: -one[2]):
        for true in sorted(truth, key=lambda one: -iou((start, end), one)):
            if iou((start, end), true) >= least and true not in taken:
                taken.append(true)
                outcomes.append(True)
                break
        else:
            outcomes.append(False)
    points = [
        (sum(outcomes[:count]) / len(truth), sum(outcomes[:count]) / count) for count in range(1, len(outcomes) + 1)
    ]
    area = 0.0
    for hits in range(1, len(truth) + 1):
        area += max((precision for recall, precision in points if recall >= hits / len(truth) - 1e-12), default=0.0)
    return area / len(truth)


spans = st.tuples(st.integers(0, 60), st.integers(1, 30)).map(lambda pair: (float(pair[0]), float(sum(pair))))


@given(windows=st.lists(spans, max_size=12), truth=st.lists(spans, min_size=1, max_size=4, unique=True))
def test_average_precision_is_that_of_its_definition(
    windows: list[tuple[float, float]], truth: list[tuple[float, float]]
) -> None:
    scored = [(*window, float(-place)) for place, window in enumerate(windows)]
    found = average_precisions(scored, truth)
    wanted = [slowly(scored, truth, least) for least in PRECISION_IOUS]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_a_query_by_hand() -> None:
    figures = retrieval_figures(
        [query("1", (0, 10), (50, 60))],
        {"1": [(0, 8, 0.9), (50, 60, 0.5), (90, 99, 0.7), *[(0, 1, 0.1)] * 10]},
        {},
    ).official
    assert figures["R1@0.7"] == 100  # 0.8 of the best of its windows
    assert figures["mIoU"] == 80
    # by score: a hit up to 0.8, a miss, a hit at second place in the file but third by score
    assert figures["mAP@0.5"] == pytest.approx(100 * (1 / 1 + 2 / 3) / 2, abs=0.01)
    assert figures["mAP"] == pytest.approx(100 * (7 * (1 + 2 / 3) / 2 + 3 * (1 / 3) / 2) / 10, abs=0.01)


def test_only_the_first_ten_windows_of_the_file_count() -> None:
    wrong: list[Scored] = [(100.0 + place, 101.0 + place, 0.1) for place in range(10)]
    figures = retrieval_figures([query("1", (0, 10))], {"1": [*wrong, (0, 10, 0.9)]}, {})
    assert figures.official["mAP"] == 0
    figures = retrieval_figures([query("1", (0, 10))], {"1": [*wrong[:9], (0, 10, 0.9)]}, {})
    assert figures.official["mAP"] == 100


def test_unanswered_queries_leave_the_official_mean_and_count_as_nothing_beside_it() -> None:
    queries = [query("1", (0, 10)), query("2", (0, 10)), query("3", (0, 10))]
    figures = retrieval_figures(queries, {"1": [(0, 10, 1.0)], "2": []}, {})
    assert (figures.queries, figures.answered) == (3, 1)
    for name in ("R1@0.5", "mAP", "mIoU"):
        assert figures.official[name] == 100
        assert figures.all_queries[name] == pytest.approx(33.33)
    nothing = retrieval_figures(queries, {}, {})
    assert set(nothing.official.values()) == {0.0}


def test_highlights() -> None:
    one = MomentQuery("1", "a", "v", ((0, 8),), 10.0, ((0, (4, 1, 1)), (1, (4, 4, 1)), (3, (2, 2, 2))))
    precision, hit = highlight_figures(one, [0.9, 0.8, 0.1, 0.2, 0.0])
    assert hit == 1.0
    assert precision == pytest.approx((1 + 1 / 2 + 0) / 3)  # the third calls no clip very good
    precision, hit = highlight_figures(one, [0.1, 0.1, 0.1, 0.9, 0.1])
    assert hit == 0.0
    assert precision == pytest.approx((2 / 5 + 1 / 5) / 3)  # clips of one score come together
    assert highlight_figures(one, [])[1] == 0.0
    assert highlight_figures(one, [0.5] * 99)[1] == 1.0  # more than there are: the first
    figures = retrieval_figures([one], {"1": [(0, 8, 1.0)]}, {"1": [0.9, 0.8, 0.1, 0.2, 0.0]})
    assert figures.official["HL-Hit1"] == 100


def test_didemo_takes_the_three_annotators_that_agree_best() -> None:
    one = MomentQuery("1", "a", "v", ((0, 5),), choices=((0, 0), (0, 0), (0, 0), (5, 5)))
    figures = didemo_figures([one], {"1": [(0, 0), (5, 5), (0, 1)]}).official
    assert (figures["Rank@1"], figures["Rank@5"], figures["mIoU"]) == (100, 100, 100)
    figures = didemo_figures([one], {"1": [(0, 1), (0, 0), (5, 5)]}).official
    assert (figures["Rank@1"], figures["Rank@5"], figures["mIoU"]) == (0, 100, 50)
    figures = didemo_figures([one], {"1": [(1, 1)]}).official
    assert (figures["Rank@5"], figures["mIoU"]) == (100, 0)  # behind the one candidate: second
    both = didemo_figures([one, MomentQuery("2", "a", "v", ((0, 5),), choices=((0, 0),))], {"1": [(0, 0)]})
    assert (both.official["Rank@1"], both.all_queries["Rank@1"]) == (100, 50)


def test_a_corpus_wants_the_video_and_the_window() -> None:
    queries = [query("1", (0, 10)), query("2", (20, 30))]
    found: dict[str, list[tuple[str, Scored]]] = {
        "1": [("other", (0.0, 10.0, 1.0)), ("video", (0.0, 6.0, 0.9))],
        "2": [("video", (20.0, 30.0, 1.0))],
    }
    figures = corpus_figures(queries, found).official
    assert figures["corpus R1@0.5"] == 50
    assert figures["corpus R5@0.5"] == 100
    assert figures["corpus R100@0.7"] == 50
