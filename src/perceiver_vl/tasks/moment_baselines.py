"""What answers without the words or the video, or looks at each segment by itself, reaches: figures to stand beside."""

from collections.abc import Sequence

import numpy as np

from perceiver_vl.data.datasets.moment_queries import MomentQuery
from perceiver_vl.tasks.moment_metrics import MomentFigures, Scored, retrieval_figures

_PLACES = np.linspace(0.05, 0.95, 19)
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def trivial_figures(queries: Sequence[MomentQuery]) -> dict[str, MomentFigures]:
    """Of queries whose `duration` is known: the whole video; its middle, as long as the median window of the file; and
    the window, as a share of the video about a place, that overlaps most with the windows of this very file: the best
    that none without words can exceed.
    """
    known = [query for query in queries if query.duration and query.windows]
    if not known:
        return {}
    lengths = [end - start for query in known for start, end in query.windows]
    median = float(np.median(lengths))
    guesses: dict[str, dict[str, list[Scored]]] = {
        "whole video": {query.qid: [(0.0, query.duration or 0.0, 1.0)] for query in known},
        "middle of the video": {query.qid: [_about(query, 0.5, median)] for query in known},
    }
    every = [
        {query.qid: [_about(query, place, share * (query.duration or 0.0))] for query in known}
        for place in _PLACES.tolist()
        for share in _SHARES
    ]
    guesses["best fixed window"] = max(every, key=lambda guess: retrieval_figures(known, guess, {}).official["mIoU"])
    return {name: retrieval_figures(known, guess, {}) for name, guess in guesses.items()}


def joined_windows(curve: Sequence[Scored]) -> list[Scored]:
    """Windows of who scores each segment of a video by itself, `curve` (start, end, score): neighbours that are all at
    least half as far above the mean as the best is are one window, which scores as the best of them. Best first.
    """
    if not curve:
        return []
    scores = [score for _, _, score in curve]
    level = min((sum(scores) / len(scores) + max(scores)) / 2, max(scores))  # rounded, half may be more than all
    windows: list[Scored] = []
    joins = False
    for start, end, score in curve:
        if score >= level:
            before = windows.pop() if joins else (start, end, score)
            windows.append((before[0], end, max(before[2], score)))
        joins = score >= level
    return sorted(windows, key=lambda window: -window[2])


def _about(query: MomentQuery, place: float, length: float) -> Scored:
    duration = query.duration or 0.0
    start = min(max(0.0, place * duration - length / 2), max(0.0, duration - length))
    return start, min(duration, start + length), 1.0
