"""Retrieval: text to video and video to text, in three streams and in the cascade of them (paper 3.5, Figure 6).

multi: a dot product a pair. mixed: a decoder cross-attention a pair, merged from what its query finds on each side,
which is computed once. single: a joint encoding a pair. cascade: the multi-stream picks a shortlist for each query, the
mixed (or single) stream re-ranks it, the scores combined. Shapes: C clips, Q captions, D width, H heads, E retrieval
vector.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from perceiver_vl.data.prefetch import ClipReader, ReadBatch
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import Subset, VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.flops import (
    cached_vision_flops,
    clip_tokens,
    encoder_flops,
    matching_flops,
    merge_flops,
    partial_match_flops,
    pooling_flops,
    pretrained_flops,
)
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.retrieval import combined_scores
from perceiver_vl.tasks.evaluation import evaluating, vision_batch_of
from perceiver_vl.tasks.retrieval_result import (
    RetrievalResult,
    StreamResult,
    clip_ranks_of,
    mean_of_folds,
    ranks_of,
    recall_of,
)
from perceiver_vl.tasks.task import Task
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

STREAMS = ("multi", "mixed", "single", "cascade", "cascade-single")
_PAIR_BYTES = 1 << 28  # memory that the input arrays of one batch of single-stream pairs may take


@dataclass
class _Encoded:
    """Everything that is computed once: partial attentions `(·,D+H)` and unit vectors `(·,E)` of clips and captions."""

    indices: list[int]  # of the clips in the source
    vision_partial: Tensor
    vision_features: Tensor
    text_partial: Tensor
    text_features: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    owner: Tensor  # (Q,) which clip each caption belongs to
    steps: int  # frames of a clip; of a `modality` steps of the longest example
    modality: str | None


@torch.inference_mode()
def evaluate_retrieval(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    *,
    streams: Iterable[str] = ("multi", "mixed", "cascade"),
    num_frames: int | None = None,
    captions_per_clip: int | None = None,
    shortlist: int = 20,
    folds: int = 1,
    budget: ComputeBudget = FULL_BUDGET,
    batch_size: int = 32,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    progress: bool = False,
    shared: bool = False,
) -> RetrievalResult:
    """Rank all clips of `source` for each caption, and all captions for each clip.

    Every caption is a query; a clip's best-ranked caption counts in the other direction, as the benchmarks do.
    `captions_per_clip` keeps the first captions only (None: all). `shortlist`: candidates that a cascade re-ranks.
    `folds`: so many equal parts of the split, in its order, are ranked apart, and every figure is the mean of theirs:
    COCO 1k is the mean over five parts of 1,000 test pictures, beside COCO 5k, all of them
    (github.com/fartashf/vsepp, evaluation.py, `fold5`; five captions a picture).
    Clips that cannot be read are left out, and listed in `skipped`; `strict` raises `MediaError` at the first.
    `shared`: all processes of the group call this, take a share of the work each, and get the same result.
    Raises `UsageError` for an unknown stream and for parts of fewer than two clips; `PerceiverVLError` if fewer than
    two clips are left, or more than the share `max_failed_fraction` cannot be read.
    """
    if folds < 1 or (folds > 1 and len(source) < 2 * folds):
        raise UsageError(f"folds={folds}: need 1, or parts of at least two clips, of {len(source)}")
    streams = tuple(streams)
    _check_request(streams, num_frames, captions_per_clip, shortlist, batch_size)
    model.config.check_budget(budget)
    num_frames = budget.frames or num_frames or processor.image_processor.num_frames
    if num_frames > model.config.max_frames:
        raise UsageError(f"num_frames={num_frames}: need 1 to {model.config.max_frames}, the model's max_frames")
    ends = [round(len(source) * fold / folds) for fold in range(folds + 1)]
    found = []
    for part in (Subset(source, end, first) for first, end in pairwise(ends)):
        with evaluating(model), ProgressBars(progress) as bar:
            reader = ClipReader(part, num_frames, batch_size, strict, max_failed_fraction, ProcessGroup(shared))
            encoded, clip_seconds, text_seconds = _encode(model, processor, reader, captions_per_clip, budget, bar)
            clips, queries = len(encoded.vision_features), len(encoded.owner)
            scorer = _Scorer(model, processor, encoded, reader, min(shortlist, clips), budget, bar)
            results = [_stream_result(stream, scorer, text_seconds) for stream in streams]
        found.append(
            RetrievalResult(
                clips=clips,
                captions=queries,
                shortlist=min(shortlist, clips),
                budget=str(budget),
                seconds_per_clip=clip_seconds / clips,
                flops_per_clip=scorer.flops_per_clip(),
                streams=results,
                skipped=reader.problems,
                damaged=reader.damaged(),
            )
        )
    return mean_of_folds(found)


class Retrieval(Task[RetrievalResult]):
    """Text to video and video to text.

    Examples: a clip or image and its captions, each of them a query. Query and head: VTM's learned vector and one
    logit; multi has a projection a side. Loss: that of `training.losses`. Metrics: R@1, R@5, R@10, median and mean
    rank, in both directions. No submission file: the ranks are the result.
    """

    name = "retrieval"
    model_class = PerceiverVLForRetrieval
    need = "text"
    evaluate = staticmethod(evaluate_retrieval)


def _stream_result(stream: str, scorer: "_Scorer", text_seconds: float) -> StreamResult:
    """Score all pairs by `stream`, after so many seconds of encoding captions, and rank both directions."""
    owner = scorer.encoded.owner
    start = time.perf_counter()
    text_scores, clip_scores = scorer.score(stream)
    seconds = text_seconds * (stream != "single") + time.perf_counter() - start
    return StreamResult(
        stream,
        text_to_video=recall_of(ranks_of(text_scores, owner)),
        video_to_text=recall_of(clip_ranks_of(clip_scores, owner)),
        seconds_per_query=seconds / len(owner),
        flops_per_query=scorer.flops(stream),
    )


def _check_request(
    streams: Iterable[str], num_frames: int | None, captions_per_clip: int | None, shortlist: int, batch_size: int
) -> None:
    for stream in streams:
        if stream not in STREAMS:
            raise UsageError(f"stream {stream!r}: unknown, choose from {', '.join(STREAMS)}")
    if shortlist < 1:
        raise UsageError(f"shortlist={shortlist}: need at least one candidate")
    counts = {"num_frames": num_frames, "captions_per_clip": captions_per_clip, "batch_size": batch_size}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{name}={count}: need at least 1")


def _encode(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    reader: ClipReader,
    captions_per_clip: int | None,
    budget: ComputeBudget,
    bar: ProgressBars,
) -> tuple[_Encoded, float, float]:
    """Encode all clips, then all captions of those that could be read; with the seconds that each took."""
    start = time.perf_counter()
    group = reader.group
    advance = bar.stage("Encoding clips", len(group.share(reader.indices)))
    seen: list[tuple[Tensor, ...]] = []
    kinds: list[tuple[int, str | None]] = []

    def see(batch: ReadBatch) -> None:
        clips = vision_batch_of(batch, processor, reader.num_frames, model.device)
        kinds.append((clips.pixel_values.shape[1], clips.modality))
        latents, features = model.encode_and_pool_vision(clips.pixel_values, clips.frame_mask, budget, clips.modality)
        found = model.partial_match(latents)[clips.rows], features.float()[clips.rows]
        seen.append((torch.tensor(batch.indices, device=model.device), *found))
        advance(len(batch.indices))

    reader.read(see)
    if len(reader.indices) < 2:
        why = f", the first that failed: {reader.problems[0].reason}" if reader.problems else ""
        raise PerceiverVLError(f"retrieval needs at least two clips that can be read, found {len(reader.indices)}{why}")
    vision = group.tensors_of_all(lambda: seen, model.device)
    indices, vision_partial, vision_features = (torch.cat(parts) for parts in zip(*vision, strict=True))
    in_order = indices.argsort()  # clips that several records are about come together
    vision_partial, vision_features = vision_partial[in_order], vision_features[in_order]
    clip_seconds = time.perf_counter() - start

    captions = [reader.source.record(index).texts[:captions_per_clip] for index in reader.indices]
    owner = torch.tensor([clip for clip, texts in enumerate(captions) for _ in texts], device=model.device)
    start = time.perf_counter()
    words = processor(text=[text for texts in captions for text in texts]).to(model.device)
    advance = bar.stage("Encoding captions", len(group.share(range(len(owner)))))

    def read() -> list[tuple[Tensor, ...]]:
        found: list[tuple[Tensor, ...]] = []
        batches = list(zip(words["input_ids"].split(64), words["attention_mask"].split(64), strict=True))
        for ids, mask in group.share(batches):
            latents, features = model.encode_and_pool_text(ids, mask, budget)
            found.append((model.partial_match(latents), features.float()))
            advance(len(ids))
        return found

    text = group.tensors_of_all(read, model.device)
    text_partial, text_features = (torch.cat(parts) for parts in zip(*text, strict=True))
    text_seconds = time.perf_counter() - start
    if not all(made.isfinite().all() for made in (vision_partial, vision_features, text_partial, text_features)):
        raise PerceiverVLError("the model's latents are not finite numbers, it cannot rank anything: train it again")
    tokens = words["input_ids"], words["attention_mask"]
    steps, modality = max((one for of_one in group.of_all(lambda: kinds) for one in of_one), key=lambda one: one[0])
    found = vision_partial, vision_features, text_partial, text_features
    kind = (reader.num_frames, None) if modality is None else (steps, modality)
    encoded = _Encoded(reader.indices, *found, *tokens, owner, *kind)
    return encoded, clip_seconds, text_seconds


class _Scorer:
    """Scores of one stream for all pairs, as (Q,C) for text queries and (C,Q) for clip queries."""

    def __init__(
        self,
        model: PerceiverVLForRetrieval,
        processor: PerceiverVLProcessor,
        encoded: _Encoded,
        reader: ClipReader,
        shortlist: int,
        budget: ComputeBudget,
        bar: ProgressBars,
    ) -> None:
        self.model, self.processor, self.encoded, self.reader = model, processor, encoded, reader
        self.budget, self.bar = budget, bar
        self.shortlist = shortlist

    def score(self, stream: str) -> tuple[Tensor, Tensor]:
        """The scores of `stream`."""
        if stream.startswith("cascade"):
            return self._cascade(self._single if stream == "cascade-single" else self._mixed)
        if stream == "multi":
            multi = self._multi()
            return multi, multi.T
        every_pair = torch.ones_like(self._multi(), dtype=torch.bool)
        scores = self._single(every_pair) if stream == "single" else self._mixed(every_pair)
        return scores, scores.T

    def flops(self, stream: str) -> float:
        """Operations for one more text query against all clips, which are there as the stream meets them.

        multi and mixed: encoded, pooled and attended to by the matching query; single: with what they contribute to any
        text (`cache_vision`).
        """
        config, budget = self.model.config, self.budget
        clips, tokens = len(self.encoded.vision_features), self.encoded.attention_mask.shape[1]
        latents = budget.latents or config.num_latents
        text_latents = budget.text_latents or config.num_text_latents or config.num_latents
        text = encoder_flops(config, text_tokens=tokens, budget=budget) + pretrained_flops(config, 0, tokens)
        multi = text + pooling_flops(config) + clips * 2 * (config.projection_dim or config.hidden_size)
        partial, merging = partial_match_flops(config, text_latents), merge_flops(config)
        clip = cached_vision_flops(config, self.encoded.steps, tokens, budget, self.encoded.modality)
        single_pair = clip + matching_flops(config, latents)
        cost = {
            "multi": multi,
            "mixed": text + partial + clips * merging,
            "single": clips * single_pair,
            "cascade": multi + partial + self.shortlist * merging,
            "cascade-single": multi + self.shortlist * single_pair,
        }
        return float(cost[stream])

    def flops_per_clip(self) -> float:
        """Operations for encoding, pooling and summarising a clip."""
        config, latents = self.model.config, self.budget.latents or self.model.config.num_latents
        steps, modality = self.encoded.steps, self.encoded.modality
        encoding = encoder_flops(config, steps, budget=self.budget, modality=modality)
        if modality is None:
            encoding += pretrained_flops(config, steps)
        return float(encoding + pooling_flops(config) + partial_match_flops(config, latents))

    def _multi(self) -> Tensor:
        return self.model.logit_scale * self.encoded.text_features @ self.encoded.vision_features.T

    def _mixed(self, wanted: Tensor) -> Tensor:
        """Matching logits where `wanted (Q,C)`, minus infinity elsewhere."""
        scores = torch.full(wanted.shape, -torch.inf, device=wanted.device)
        pairs = wanted.nonzero()
        group = self.reader.group
        advance = self.bar.stage("Mixed stream: matching pairs", len(group.share(range(len(pairs)))))
        for texts, clips in (batch.T for batch in group.share(pairs.split(1024))):
            found = self.encoded.vision_partial[clips], self.encoded.text_partial[texts]
            scores[texts, clips] = self.model.merge_matches(*found).float()
            advance(len(texts))
        return group.largest(scores)

    def _single(self, wanted: Tensor) -> Tensor:
        """The same by joint encoding; each clip is embedded and projected once for all the texts that want it."""
        encoded, reader = self.encoded, self.reader
        scores = torch.full(wanted.shape, -torch.inf, device=wanted.device)
        words = self.model.perceiver_vl.embed_inputs(encoded.input_ids, encoded.attention_mask)
        place = {index: column for column, index in enumerate(encoded.indices)}
        advance = self.bar.stage("Single stream: encoding pairs", int(wanted.sum()) // reader.group.processes)

        def encode(batch: ReadBatch) -> None:
            clips = vision_batch_of(batch, self.processor, reader.num_frames, self.model.device)
            for index, row in zip(batch.indices, batch.rows, strict=True):
                clip = place[index]
                asking = wanted[:, clip].nonzero().squeeze(1)
                if len(asking):
                    seen = clips.pixel_values[row : row + 1], clips.frame_mask[row : row + 1]
                    scores[asking, clip] = self._single_of(*seen, clips.modality, words, asking)
                    advance(len(asking))

        reader.read(encode)
        return reader.group.largest(scores)

    def _single_of(
        self, pixel_values: Tensor, frame_mask: Tensor, modality: str | None, words: InputArray, texts: Tensor
    ) -> Tensor:
        """Matching logits `(R,)` of one clip with the texts at these places `(R,)`."""
        model = self.model
        assert words.text is not None
        assert words.text_mask is not None
        tokens = clip_tokens(model.config, pixel_values.shape[1], modality) + words.text.shape[1]
        pairs_at_once = max(1, _PAIR_BYTES // (tokens * model.config.hidden_size * 4))
        cache = model.cache_vision(pixel_values, frame_mask, self.budget, modality)
        found = []
        for some in texts.split(pairs_at_once):
            pairs = InputArray(text=words.text[some], text_mask=words.text_mask[some], vision_cache=cache)
            if words.text_base is not None and cache.base is not None:
                pairs.text_base, pairs.vision_base = words.text_base[some], cache.base.expand(len(some), -1)
            found.append(model.match_inputs(pairs, self.budget).float())
        return torch.cat(found)

    def _cascade(self, rerank: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The shortlist of each query re-ranked on top, the rest below it in the order of the multi-stream."""
        multi = self._multi()
        for_texts = multi.topk(self.shortlist, dim=1).indices
        for_clips = multi.T.topk(min(self.shortlist, len(multi)), dim=1).indices
        wanted = torch.zeros_like(multi, dtype=torch.bool).scatter_(1, for_texts, True)
        wanted |= torch.zeros_like(multi.T, dtype=torch.bool).scatter_(1, for_clips, True).T
        matching = rerank(wanted)
        return _on_top(multi, matching, for_texts), _on_top(multi.T, matching.T, for_clips)


def _on_top(multi: Tensor, matching: Tensor, candidates: Tensor) -> Tensor:
    """Multi-stream scores in which the candidates are lifted above the rest, in the order of their combined scores."""
    combined = combined_scores(multi.gather(1, candidates), matching.gather(1, candidates))
    lift = multi.amax(1, keepdim=True) - combined.amin(1, keepdim=True) + 1.0
    return multi.scatter(1, candidates, combined + lift)
