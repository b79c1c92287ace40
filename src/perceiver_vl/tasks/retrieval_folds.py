"""Retrieval on parts of a split: COCO 1k, the mean over five parts of 1,000 test pictures, beside COCO 5k, all of them.

The parts follow each other in the order of the split, and every figure is the mean of those of the parts, as in the
code that the protocol comes from (github.com/fartashf/vsepp, evaluation.py, `fold5`; five captions a picture).
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from perceiver_vl.data.sources import Subset, VideoDataset
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.retrieval import Recall, RetrievalResult, StreamResult, evaluate_retrieval
from perceiver_vl.utils.errors import UsageError


def evaluate_in_folds(
    model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor, source: VideoDataset, folds: int, **how: Any
) -> RetrievalResult:
    """`evaluate_retrieval(model, processor, part, **how)` on `folds` equal parts, their figures averaged.

    Raises what that raises, and `UsageError` where a part would have fewer than two clips.
    """
    if folds < 1 or (folds > 1 and len(source) < 2 * folds):
        raise UsageError(f"folds={folds}: need 1, or parts of at least two clips, of {len(source)}")
    ends = [round(len(source) * fold / folds) for fold in range(folds + 1)]
    parts = [Subset(source, end, first) for first, end in pairwise(ends)]
    found = [evaluate_retrieval(model, processor, part, **how) for part in parts]
    return replace(
        found[0],
        folds=folds,
        clips=sum(one.clips for one in found),
        captions=sum(one.captions for one in found),
        seconds_per_clip=_mean([one.seconds_per_clip for one in found]),
        streams=[_mean_stream(of_one) for of_one in zip(*(one.streams for one in found), strict=True)],
        skipped=[problem for one in found for problem in one.skipped],
        damaged=[name for one in found for name in one.damaged],
    )


def _mean_stream(found: Sequence[StreamResult]) -> StreamResult:
    return StreamResult(
        found[0].stream,
        text_to_video=_mean_recall([one.text_to_video for one in found]),
        video_to_text=_mean_recall([one.video_to_text for one in found]),
        seconds_per_query=_mean([one.seconds_per_query for one in found]),
        flops_per_query=_mean([one.flops_per_query for one in found]),
    )


def _mean_recall(found: Sequence[Recall]) -> Recall:
    return Recall(**{name: _mean([getattr(one, name) for one in found]) for name in asdict(found[0])})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
