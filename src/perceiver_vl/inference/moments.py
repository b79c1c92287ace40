"""Where in a video something is shown, from files to moments in one call."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceiver_vl.media.segments import check_segments, find_segments, read_segments
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.search.encode import encode_clips
from perceiver_vl.search.moments import MomentOptions, find
from perceiver_vl.search.rows import Vectors
from perceiver_vl.search.windows import Query, Stretch
from perceiver_vl.utils.errors import MediaError, UsageError

_SEGMENTS_AT_ONCE = 16


class MomentsPipeline:
    """Finds moments of a few videos by words; what is asked more than once is better indexed (`Searcher.moments`)."""

    def __init__(self, model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(
        self,
        queries: str | Sequence[str],
        videos: str | Path | Sequence[str | Path],
        *,
        segments: float | str = 2.0,
        segment_fps: float = 1.0,
        options: MomentOptions | None = None,
        budget: ComputeBudget = FULL_BUDGET,
    ) -> list[Any]:
        """The best moments for a query in one video or several, best first; for several queries a list of such lists.

        `segments`, `segment_fps`: how videos are cut and read, as of `build_index`; `options` as of `Searcher.moments`.
        A moment has its `file`, `start` and `end` in seconds from the first frame, `score`, `multi_score` and
        `mixed_score`. Raises `UsageError` for options that cannot be, `MediaError` for a file that cannot be read or is
        no video.
        """
        options = options or MomentOptions()
        options.check()
        if not 0 < segment_fps <= 120:
            raise UsageError(f"segment_fps={segment_fps}: need frames a second, more than 0 and at most 120")
        self.model.config.check_budget(budget)
        paths = [videos] if isinstance(videos, str | Path) else list(videos)
        how = check_segments(str(segments))
        stretches = [self._encode(Path(path), how, segment_fps, budget) for path in paths]
        asked = [queries] if isinstance(queries, str) else list(queries)
        words = self.processor(text=asked).to(self.model.device)
        latents, features = self.model.encode_and_pool_text(words["input_ids"], words["attention_mask"], budget)
        texts = self.model.partial_match(latents)
        found = []
        for vector, text in zip(features.float().cpu().numpy(), texts, strict=True):
            match, scale = partial(self._match, text), float(self.model.logit_scale)
            learned = 0.0 if self.model.length_weight is None else self.model.length_weight.item()
            weight = learned if options.length_weight is None else options.length_weight
            query = Query(vector, scale, match, self.model.config.num_attention_heads, options.rerank, weight)
            found.append(
                [
                    {
                        "file": stretch.file,
                        "start": float(stretch.starts[windows.starts[place]]),
                        "end": float(stretch.ends[windows.ends[place] - 1]),
                        "score": float(windows.scores[place]),
                        "multi_score": float(windows.multi[place]),
                        "mixed_score": None if options.rerank == "none" else float(windows.mixed[place]),
                    }
                    for stretch, windows, place in find(stretches, query, options).best
                ]
            )
        return found[0] if isinstance(queries, str) else found

    def _match(self, text: Tensor, rows: Vectors) -> Vectors:
        logits = self.model.merge_matches(torch.from_numpy(rows).to(self.model.device), text)
        matched: Vectors = logits.float().cpu().numpy()
        return matched

    def _encode(self, path: Path, how: str, fps: float, budget: ComputeBudget) -> Stretch:
        cut, duration = find_segments(path, how)
        if not cut:
            raise MediaError(path, "a picture, it has no moments")
        most = min(self.model.config.max_frames, budget.frames or self.model.config.max_frames)
        size = self.processor.image_processor.size.height, self.processor.image_processor.size.width
        pieces = (one.frames for one in read_segments(path, cut, fps, most, size=size))
        vectors, partials = [], []
        for batch in _batches(pieces):
            of_batch = encode_clips(self.model, self.processor, batch, most, budget)
            vectors.append(of_batch[0].cpu().numpy())
            partials.append(of_batch[1].cpu().numpy())
        starts, ends = np.array([one.start for one in cut]), np.array([one.end for one in cut])
        return Stretch(str(path), duration, starts, ends, np.concatenate(vectors), np.concatenate(partials))


def _batches(pieces: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(pieces, _SEGMENTS_AT_ONCE)):
        yield batch
