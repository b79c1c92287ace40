"""The official metrics of moment retrieval: QVHighlights (Lei et al. 2021), Charades-STA (Gao et al. 2017), ActivityNet
Captions (Krishna et al. 2017), DiDeMo (Hendricks et al. 2017), and whole corpora (TVR, Lei et al. 2020).

The official scripts average over the queries that were answered, so that leaving hard ones out raises the mean; each
figure here comes twice, as they count and with unanswered queries as 0. Theirs also stop at empty windows, and give no
number where identifiers are texts in one file and numbers in the other; here these are unanswered, and the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.datasets.moment_queries import SALIENCY_CLIP, MomentQuery

Window = tuple[float, float]
Scored = tuple[float, float, float]
"""Start, end, score."""
Figures = dict[str, float]

RECALL_IOUS = (0.3, 0.5, 0.7)
PRECISION_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MOST_WINDOWS = 10
"""Of a query that mean average precision looks at, in the order of the file."""
CORPUS_RANKS = (1, 5, 10, 100)
CORPUS_IOUS = (0.5, 0.7)
DIDEMO_RATERS = 3
VERY_GOOD = 4
"""The rating from which on a clip is a highlight."""


@dataclass(frozen=True)
class MomentFigures:
    """Figures in per cent by name: `official`, over the queries that were `answered`, and `all_queries`, where those
    that were not count as 0.
    """

    official: Figures
    all_queries: Figures
    queries: int
    answered: int


def temporal_iou(windows: Sequence[Window], others: Sequence[Window]) -> npt.NDArray[np.float64]:
    """Intersection over union of each pair of windows → `(len(windows), len(others))`."""
    one, other = (np.asarray(some, np.float64).reshape(-1, 2) for some in (windows, others))
    common = np.minimum(one[:, None, 1], other[None, :, 1]) - np.maximum(one[:, None, 0], other[None, :, 0])
    common = np.maximum(common, 0.0)
    together = (one[:, 1] - one[:, 0])[:, None] + (other[:, 1] - other[:, 0])[None] - common
    return np.divide(common, together, out=np.zeros_like(common), where=together > 0)


def retrieval_figures(
    queries: Sequence[MomentQuery], found: Mapping[str, Sequence[Scored]], saliency: Mapping[str, Sequence[float]]
) -> MomentFigures:
    """R1 at overlaps of 0.3, 0.5 and 0.7 with the best of a query's windows, their mean overlap (mIoU), R5, and mean
    average precision over overlaps from 0.5 to 0.95, of windows by `qid`, best first; HL-mAP and HL-Hit1 of the
    `saliency` of clips of two seconds, where queries have ratings.
    """
    rows: list[Figures] = []
    answered: list[bool] = []
    for query in queries:
        windows = list(found.get(query.qid, ()))
        answered.append(bool(windows))
        rows.append(_of_query(query, windows, saliency.get(query.qid)))
    return _means(rows, answered)


def _of_query(query: MomentQuery, windows: Sequence[Scored], saliency: Sequence[float] | None) -> Figures:
    overlaps = temporal_iou([window[:2] for window in windows[:5]], query.windows).max(1, initial=0.0)
    first = float(overlaps[0]) if len(overlaps) else 0.0
    figures = {f"R1@{iou}": float(first >= iou) for iou in RECALL_IOUS}
    figures |= {f"R5@{iou}": float((overlaps >= iou).any()) for iou in RECALL_IOUS}
    figures["mIoU"] = first
    precisions = average_precisions(windows[:MOST_WINDOWS], query.windows)
    figures |= {"mAP": float(precisions.mean()), "mAP@0.5": float(precisions[0]), "mAP@0.75": float(precisions[5])}
    if query.saliency is not None:
        figures["HL-mAP"], figures["HL-Hit1"] = highlight_figures(query, saliency or ())
    return figures


def average_precisions(windows: Sequence[Scored], truth: Sequence[Window]) -> npt.NDArray[np.float64]:
    """Average precision at each of `PRECISION_IOUS`, `(10,)`: of windows in the order of their scores, each taking the
    true one that it overlaps most of those that none has taken before.
    """
    result = np.zeros(len(PRECISION_IOUS))
    ordered = sorted(windows, key=lambda window: -window[2])
    overlaps = temporal_iou([window[:2] for window in ordered], truth)
    for place, least in enumerate(PRECISION_IOUS):
        taken: set[int] = set()
        hits = np.zeros(len(ordered))
        for number, row in enumerate(overlaps):
            free = [true for true in np.argsort(row)[::-1].tolist() if true not in taken and row[true] >= least]
            if free:
                taken.add(free[0])
                hits[number] = 1
        result[place] = _area(hits, len(truth))
    return result


def _area(hits: npt.NDArray[np.float64], positives: int) -> float:
    """Under the curve of precision over recall, where precision is the best at that recall or more."""
    if not hits.any():
        return 0.0
    found = hits.cumsum()
    precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * hits).sum() / positives)


def highlight_figures(query: MomentQuery, saliency: Sequence[float]) -> tuple[float, float]:
    """Average precision over three raters, and whether the best clip is one that any of them calls very good."""
    assert query.saliency is not None
    if len(saliency) == 0:
        return 0.0, 0.0
    clips = int((query.duration or 0.0) / SALIENCY_CLIP)
    ratings = np.zeros((clips, 3))
    for clip, rated in query.saliency:
        if clip < clips:
            ratings[clip] = rated
    wanted = ratings >= VERY_GOOD
    scores = np.zeros(clips)
    scores[: len(saliency)] = saliency[:clips]
    precision = float(np.mean([_clip_precision(wanted[:, rater], scores) for rater in range(3)]))
    best = int(np.argmax(saliency))
    return precision, float(best < clips and wanted[best].any())


def _clip_precision(wanted: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """Mean over the recalls that are reached of the best precision at that recall or more; clips of one score count
    together.
    """
    if not wanted.any() or wanted.all():
        return float(wanted.any())
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each group of equal scores
    found, shown = wanted[order].cumsum()[last], last + 1
    precision = np.maximum.accumulate((found / shown)[::-1])[::-1]
    new = np.diff(found, prepend=0) > 0
    return float(precision[new].mean())


def corpus_figures(queries: Sequence[MomentQuery], found: Mapping[str, Sequence[tuple[str, Scored]]]) -> MomentFigures:
    """Video-corpus moment retrieval: R@1, 5, 10, 100 at overlaps of 0.5 and 0.7 of `(video, window)`, best first."""
    rows, answered = [], []
    for query in queries:
        some = list(found.get(query.qid, ()))
        answered.append(bool(some))
        overlaps = np.array(
            [temporal_iou([window[:2]], query.windows).max() if video == query.video else 0.0 for video, window in some]
        )
        rows.append(
            {
                f"corpus R{rank}@{iou}": float((overlaps[:rank] >= iou).any())
                for rank in CORPUS_RANKS
                for iou in CORPUS_IOUS
            }
        )
    return _means(rows, answered)


def didemo_figures(queries: Sequence[MomentQuery], found: Mapping[str, Sequence[tuple[int, int]]]) -> MomentFigures:
    """Rank@1, Rank@5 and mIoU of the 21 candidates in order, as first and last segments: by the three of the annotators
    that agree best. What is not among the candidates counts as behind the last.
    """
    rows, answered = [], []
    for query in queries:
        ranking = list(found.get(query.qid, ()))
        answered.append(bool(ranking))
        if not ranking:
            rows.append({"Rank@1": 0.0, "Rank@5": 0.0, "mIoU": 0.0})
            continue
        places = {candidate: rank for rank, candidate in enumerate(ranking, start=1)}
        ranks = sorted(places.get(choice, len(ranking) + 1) for choice in query.choices)[:DIDEMO_RATERS]
        overlaps = sorted(_segments_iou(ranking[0], choice) for choice in query.choices)[-DIDEMO_RATERS:]
        mean = float(np.mean(ranks))
        rows.append({"Rank@1": float(mean <= 1), "Rank@5": float(mean <= 5), "mIoU": float(np.mean(overlaps))})
    return _means(rows, answered)


def _segments_iou(one: tuple[int, int], other: tuple[int, int]) -> float:
    """As the official script has it: over the hull of both."""
    common = max(0, min(one[1], other[1]) + 1 - max(one[0], other[0]))
    return common / (max(one[1], other[1]) + 1 - min(one[0], other[0]))


def _means(rows: Sequence[Figures], answered: Sequence[bool]) -> MomentFigures:
    names = list(dict.fromkeys(name for row in rows for name in row))
    told = [row for row, is_answered in zip(rows, answered, strict=True) if is_answered]

    def mean(name: str, some: Sequence[Figures]) -> float:
        values = [row[name] for row in some if name in row]
        return round(100 * float(np.mean(values)), 2) if values else 0.0

    official, all_queries = ({name: mean(name, some) for name in names} for some in (told, rows))
    return MomentFigures(official, all_queries, len(rows), len(told))
