"""The single stream over every pair, without any cache: what a joint transformer can do, too."""

import time
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor

_PAIRS = 64


@torch.inference_mode()
def rank_jointly(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    num_frames: int,
    budget: ComputeBudget,
) -> dict[str, Any]:
    """R@1 of the first caption of each clip among all clips, and of the clips among the captions: n² joint passes; and
    the milliseconds of a text with every clip, decoding left out.
    """
    clips = [source.frames(index, budget.frames or num_frames) for index in range(len(source))]
    texts = [source.record(index).texts[0] for index in range(len(source))]
    vision = processor(videos=clips, num_frames=max(map(len, clips)))
    words = processor(text=texts)
    start = time.perf_counter()
    scores = torch.cat([_scores(model, vision, words, row, budget) for row in range(len(texts))]).view(len(texts), -1)
    seconds = time.perf_counter() - start
    own = scores.diagonal()
    return {
        "r1": _first(scores, own[:, None], 1),
        "v2t_r1": _first(scores, own[None], 0),
        "milliseconds_per_query": 1e3 * seconds / len(texts),
    }


def _scores(model: PerceiverVLForRetrieval, vision: Any, words: Any, row: int, budget: ComputeBudget) -> Tensor:
    """One text with every clip → `(C,)`."""
    found = []
    for pixel_values, frame_mask in zip(
        vision["pixel_values"].split(_PAIRS), vision["frame_mask"].split(_PAIRS), strict=True
    ):
        ids, mask = (words[name][row].expand(len(pixel_values), -1) for name in ("input_ids", "attention_mask"))
        found.append(model.match_jointly(ids, mask, pixel_values, frame_mask, budget))
    return torch.cat(found)


def _first(scores: Tensor, own: Tensor, dim: int) -> float:
    """Share of rows (columns) whose own score is above all others, in per cent; a tie is a miss."""
    return 100 * ((scores >= own).sum(dim) == 1).double().mean().item()
