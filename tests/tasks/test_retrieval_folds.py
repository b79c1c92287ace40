"""Retrieval in folds (COCO 1k), on cases worked by hand by the protocol's code, github.com/fartashf/vsepp.

There (`i2t`, `t2i`) a picture's rank is the least of its captions' ranks among all captions, a caption's the rank of
its picture; with `fold5` the split is cut into five parts in its order, and every figure is the mean over the parts.
"""

import numpy as np
import pytest
import torch
from test_retrieval import PROCESSOR, LetteredClips, TableModel, recall

from perceiver_vl import UsageError
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.tasks.retrieval_result import RetrievalResult

OWNERS = [0, 0, 1, 1, 2, 2, 3, 3]
# Captions by pictures; the second half of the pictures is the second fold
SCORES = [
    [9, 1, 8, 8],
    [1, 2, 9, 9],
    [3, 1, 9, 9],
    [4, 2, 0, 0],
    [7, 7, 5, 4],
    [8, 8, 2, 3],
    [9, 9, 6, 1],
    [9, 9, 0, 8],
]
# Fold 1: text → picture 1, 2, 2, 2. Picture → text: 0 has 9 and 1, others' 3 and 4: rank 1; 1 has 1 and 2, others' 1
# and 2: its best is tied with another's, which counts as a miss: rank 2.
# Fold 2: text → picture 1, 2, 2, 1. Picture → text: 2 has 5 and 2, others' 6 and 0: rank 2; 3 has 1 and 8: rank 1.
TEXT_RANKS = [[1, 2, 2, 2], [1, 2, 2, 1]]
PICTURE_RANKS = [[1, 2], [2, 1]]


def evaluate(folds: int, broken: set[int] = frozenset()) -> RetrievalResult:  # type: ignore[assignment]
    table = torch.tensor(SCORES, dtype=torch.float64)
    model = TableModel(table, table)
    return evaluate_retrieval(model, PROCESSOR, LetteredClips(OWNERS, broken), folds=folds, streams=["multi"])


def test_figures_are_the_means_over_the_parts() -> None:
    found = evaluate(2)
    assert (found.folds, found.clips, found.captions) == (2, 4, 8)
    stream = found.stream("multi")
    for direction, ranks in ((stream.text_to_video, TEXT_RANKS), (stream.video_to_text, PICTURE_RANKS)):
        parts = [recall(some) for some in ranks]
        for name in ("r1", "r5", "r10", "median_rank", "mean_rank"):
            wanted = np.mean([getattr(part, name) for part in parts])
            assert getattr(direction, name) == pytest.approx(wanted), name
    assert stream.text_to_video.r1 == pytest.approx((25 + 50) / 2)
    assert stream.video_to_text.r1 == 50.0


def test_one_part_is_the_whole() -> None:
    table = torch.tensor(SCORES, dtype=torch.float64)
    whole = evaluate_retrieval(TableModel(table, table), PROCESSOR, LetteredClips(OWNERS), streams=["multi"])
    found = evaluate(1)
    assert found.stream("multi").text_to_video == whole.stream("multi").text_to_video
    assert found.stream("multi").video_to_text == whole.stream("multi").video_to_text
    assert (found.folds, found.clips) == (1, 4)


@pytest.mark.parametrize("folds", [0, -1, 3])
def test_parts_that_cannot_be(folds: int) -> None:
    with pytest.raises(UsageError, match=rf"^folds={folds}: need 1, or parts of at least two clips, of 4$"):
        evaluate(folds)


def test_what_could_not_be_read_is_told_of_all_parts() -> None:
    table = torch.rand(8, 8, dtype=torch.float64)
    source = LetteredClips(list(range(8)), broken={1, 6})
    found = evaluate_retrieval(TableModel(table, table), PROCESSOR, source, folds=2, streams=["multi"])
    assert (found.clips, found.captions) == (6, 6)
    assert found.skipped == [SkippedSample("1.mp4", "damaged"), SkippedSample("6.mp4", "damaged")]
