"""Answers without words or video, and of who scores each segment by itself."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl.tasks.moment_baselines import joined_windows

Curve = list[tuple[float, float, float]]


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    scores = draw(st.lists(st.integers(-50, 50).map(lambda tenths: tenths / 10), min_size=1, max_size=12))
    return [(2.0 * place, 2.0 * place + 2, score) for place, score in enumerate(scores)]


def test_neighbours_that_stand_out_are_one_window_with_the_score_of_the_best() -> None:
    # the mean is 3, so who has 6.5 stands out
    scores = (0, 7, 10, 0, 8, 0, 0, -1)
    curve = [(2.0 * place, 2.0 * place + 2, float(score)) for place, score in enumerate(scores)]
    assert joined_windows(curve) == [(2.0, 6.0, 10.0), (8.0, 10.0, 8.0)]
    assert joined_windows([]) == []


@given(curves())
def test_windows_are_apart_best_first_and_hold_the_best_segment(curve: Curve) -> None:
    windows = joined_windows(curve)
    best = max(score for _, _, score in curve)
    assert windows[0][2] == pytest.approx(best)
    assert [score for _, _, score in windows] == sorted((score for _, _, score in windows), reverse=True)
    in_order = sorted(windows)
    assert all(before[1] < after[0] for before, after in pairwise(in_order))
    level = min((sum(score for _, _, score in curve) / len(curve) + best) / 2, best)
    inside = {start for start, _, _ in curve if any(one[0] <= start < one[1] for one in windows)}
    assert inside == {start for start, _, score in curve if score >= level}
