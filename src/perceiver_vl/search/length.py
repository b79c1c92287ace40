"""How long a moment is: what a window should gain with the logarithm of its length, learned from known windows.

A model that was trained on single clips scores a window by how well all of it fits, so a short part of a moment scores
as well as the moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perceiver_vl.search.windows import Query, Stretch, scales, score

_WEIGHTS = np.linspace(-5.0, 15.0, 201)


@dataclass(frozen=True)
class KnownWindows:
    """The windows of a video as a query scores them, `(K,)`: scores, logarithms of their seconds, and the overlap of
    each (intersection over union) with the known one that it overlaps most.
    """

    scores: npt.NDArray[np.float64]
    logarithms: npt.NDArray[np.float64]
    overlaps: npt.NDArray[np.float64]


def known_windows(stretch: Stretch, query: Query, truth: Sequence[tuple[float, float]], longest: float) -> KnownWindows:
    """All windows of a stretch at several scales."""
    windows = score(stretch, query, *scales(stretch, 0.0, longest))
    begin, end = stretch.starts[windows.starts], stretch.ends[windows.ends - 1]
    overlaps = np.zeros(len(windows))
    for start, stop in truth:
        common = np.maximum(np.minimum(end, stop) - np.maximum(begin, start), 0.0)
        overlaps = np.maximum(overlaps, common / (end - begin + stop - start - common))
    return KnownWindows(windows.scores.astype(np.float64), np.log(end - begin), overlaps)


def fit_length_weight(known: Sequence[KnownWindows]) -> float:
    """The weight, from -5 to 15, with which the best windows overlap most with the known ones, on the mean; of those
    that are as good the smallest. 0 where there is nothing to learn from.
    """
    means = np.zeros(len(_WEIGHTS))
    for one in known:
        if len(one.scores):
            totals = one.scores + _WEIGHTS[:, None] * one.logarithms  # (weights, K)
            means += one.overlaps[totals.argmax(1)]
    best = np.flatnonzero(means >= means.max() - 1e-9)
    return float(_WEIGHTS[best[np.abs(_WEIGHTS[best]).argmin()]])
