"""How the right answers of retrieval ranked, and the mean over parts of a split."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.utils.console import out

RECALLS = ("r1", "r5", "r10")


@dataclass(frozen=True)
class Recall:
    """How the right answers ranked: R@k in per cent, ranks from 1. A tie counts as a miss: equal scores find
    nothing.
    """

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float

    def cells(self) -> list[str]:
        """All five, as a table has them."""
        return [f"{figure:.1f}" for figure in (self.r1, self.r5, self.r10, self.median_rank, self.mean_rank)]


@dataclass(frozen=True)
class StreamResult:
    """One stream's recall in both directions, and what a text query cost once the clips were encoded.

    `seconds_per_query`: a query's share of all that the scoring took; of the single stream that is also decoding and
    embedding each clip once. `flops_per_query`: what one more query takes.
    """

    stream: str
    text_to_video: Recall
    video_to_text: Recall
    seconds_per_query: float
    flops_per_query: float


@dataclass
class RetrievalResult:
    """All streams on the same clips and captions. `flops_per_clip`: encoding a clip once (multi, mixed and cascade).

    folds: parts of the split that were ranked apart, of whose figures these are the means (`mean_of_folds`).
    skipped: what could not be read; damaged: files that lacked frames and were used all the same.
    """

    clips: int
    captions: int
    shortlist: int
    budget: str
    seconds_per_clip: float
    flops_per_clip: float
    streams: list[StreamResult]
    folds: int = 1
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def stream(self, name: str) -> StreamResult:
        """The result of one stream."""
        return next(result for result in self.streams if result.stream == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """R@1, R@5 and R@10 of every stream, as `multi_r1` (text to video) and `multi_v2t_r1`."""
        found = {}
        for stream in self.streams:
            name = stream.stream.replace("-", "_")
            for k in RECALLS:
                found[f"{name}_{k}"] = getattr(stream.text_to_video, k)
                found[f"{name}_v2t_{k}"] = getattr(stream.video_to_text, k)
        return found

    def print(self) -> None:
        """Both directions of every stream, with its time and operations for one text query."""
        parts = f" in {self.folds} parts" if self.folds > 1 else ""
        title = f"{self.captions} captions, {self.clips} clips{parts}, budget {self.budget}, "
        title += f"shortlist {self.shortlist}"
        table = Table(title=title, collapse_padding=True, pad_edge=False)  # as narrow as a terminal of 80 columns
        figures = "R@1", "R@5", "R@10", "median rank", "mean rank", "ms a query", "MFLOPs a query"
        for column in ("stream", "query", *figures):
            table.add_column(column, justify="right" if column in figures else "left", no_wrap=column == "stream")
        for stream in self.streams:
            cost = f"{1e3 * stream.seconds_per_query:.2f}", f"{stream.flops_per_query / 1e6:.1f}"
            table.add_row(stream.stream, "text", *stream.text_to_video.cells(), *cost)
            table.add_row("", "video", *stream.video_to_text.cells(), "", "")
        out.print(table, soft_wrap=False)
        chance = ", ".join(f"R@{k} {100 * min(1.0, k * self.folds / self.clips):.1f}" for k in (1, 5, 10))
        out.print(f"chance, text → video: {chance}")
        once = f"{1e3 * self.seconds_per_clip:.1f} ms with decoding, {self.flops_per_clip / 1e9:.3g} GFLOPs"
        out.print(f"encoding a clip once (multi, mixed, cascade): {once}")


def ranks_of(scores: Tensor, own: Tensor) -> Tensor:
    """Scores `(Q,C)` → the rank of the candidate `own (Q,)` of each query `(Q,)`, from 1; what is equal to it stands
    before it.
    """
    return (scores >= scores.gather(1, own[:, None])).sum(1)


def clip_ranks_of(scores: Tensor, owner: Tensor) -> Tensor:
    """Scores `(C,Q)` of clips with all captions, `owner (Q,)` says whose these are → the rank of each clip's best own
    caption among the captions of others `(C,)`, from 1.
    """
    is_own = owner[None] == torch.arange(len(scores), device=owner.device)[:, None]
    best = scores.masked_fill(~is_own, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~is_own).sum(1)


def recall_of(ranks: Tensor) -> Recall:
    """Ranks (·,) from 1 → recalls in per cent, median (of an even number the mean of the two in the middle; the code of
    vsepp rounds that down) and mean.
    """
    ranks = ranks.double()
    r1, r5, r10 = (100.0 * (ranks <= k).double().mean().item() for k in (1, 5, 10))
    return Recall(r1, r5, r10, ranks.quantile(0.5).item(), ranks.mean().item())


def mean_of_folds(found: Sequence[RetrievalResult]) -> RetrievalResult:
    """The figures of parts of a split that were ranked apart, averaged; what they skipped together."""
    return replace(
        found[0],
        folds=len(found),
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
