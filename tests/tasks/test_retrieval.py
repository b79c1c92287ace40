"""Retrieval: ranks and recalls against their definitions, and the streams against the model's own answers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import ComputeBudget, MediaError, PerceiverVLError, PerceiverVLForRetrieval, UsageError
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, partial_match_flops, pooling_flops
from perceiver_vl.models.perceiver_vl.retrieval import combined_scores
from perceiver_vl.tasks.retrieval import STREAMS, evaluate_retrieval
from perceiver_vl.tasks.retrieval_result import Recall, RetrievalResult, recall_of
from tiny import AGGREGATIONS, differs, tiny_config, tiny_model, tiny_processor

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROCESSOR = tiny_processor([" ".join(LETTERS)] * 2)


class LetteredClips:
    """Clip i has frames of the colour i and `owners.count(i)` captions; caption q of all is the letter q."""

    def __init__(self, owners: list[int], broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.owners, self.broken = owners, broken

    def __len__(self) -> int:
        return max(self.owners) + 1

    def record(self, index: int) -> Record:
        letters = tuple(LETTERS[caption] for caption, owner in enumerate(self.owners) if owner == index)
        return Record(f"{index}.mp4", Path(f"{index}.mp4"), letters)

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        if index in self.broken:
            raise MediaError(f"{index}.mp4", "damaged")
        return np.full((num_frames, 16, 16, 3), index, np.uint8)


class TableModel(PerceiverVLForRetrieval):
    """Knows which caption and which clip it is given, and looks their score up in tables `(Q,C)`."""

    def __init__(self, multi: Tensor, matching: Tensor) -> None:
        super().__init__(tiny_config())
        self.multi, self.matching = multi, matching
        ids = PROCESSOR.tokenizer.convert_tokens_to_ids(list(LETTERS))
        self.caption_of = {token: caption for caption, token in enumerate(ids)}

    logit_scale = 1.0  # type: ignore[assignment]

    def encode_vision(self, pixel_values: Tensor, *_: Any, **__: Any) -> Tensor:
        return ((pixel_values[:, 0, 0, 0, 0] + 1) / 2 * 255).round()[:, None, None]

    def encode_text(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.tensor([float(self.caption_of[token]) for token in input_ids[:, 1].tolist()])[:, None, None]

    def encode_and_pool_vision(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        latents = self.encode_vision(*inputs)
        return latents, self.pool_vision(latents)

    def encode_and_pool_text(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        latents = self.encode_text(*inputs)
        return latents, self.pool_text(latents)

    def pool_vision(self, vision_latents: Tensor, _: Tensor | None = None) -> Tensor:
        return torch.nn.functional.one_hot(vision_latents[:, 0, 0].long(), self.multi.shape[1]).double()

    def pool_text(self, text_latents: Tensor, _: Tensor | None = None) -> Tensor:
        return self.multi[text_latents[:, 0, 0].long()]

    def partial_match(self, latents: Tensor) -> Tensor:
        return latents[:, 0]

    def merge_matches(self, vision: Tensor, text: Tensor) -> Tensor:
        return self.matching[text[..., 0].long(), vision[..., 0].long()]


def evaluate(
    owners: list[int],
    multi: Any,
    matching: Any = None,
    broken: set[int] = frozenset(),
    **arguments: Any,  # type: ignore[assignment]
) -> RetrievalResult:
    multi = torch.as_tensor(multi, dtype=torch.float64)
    matching = torch.zeros_like(multi) if matching is None else torch.as_tensor(matching, dtype=torch.float64)
    return evaluate_retrieval(TableModel(multi, matching), PROCESSOR, LetteredClips(owners, broken), **arguments)


def recall(ranks: list[int]) -> Recall:
    """By its definition."""
    r1, r5, r10 = (100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10))
    return Recall(r1, r5, r10, float(np.median(ranks)), float(np.mean(ranks)))


def assert_recall(found: Recall, ranks: list[int]) -> None:
    wanted = recall(ranks)
    for name in ("r1", "r5", "r10", "median_rank", "mean_rank"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name)), name


# --- Ranks ----------------------------------------------------------------------------------------------------------


def test_recall_is_the_share_of_ranks_up_to_k() -> None:
    assert recall_of(torch.tensor([1, 5, 6, 10, 11])) == Recall(20.0, 40.0, 80.0, 6.0, 6.6)
    assert recall_of(torch.tensor([1, 2])).median_rank == 1.5


def test_ranks_of_one_caption_a_clip() -> None:
    scores = [[9, 1, 2, 3], [5, 4, 3, 2], [1, 2, 0, 3], [0, 0, 0, 7]]
    result = evaluate([0, 1, 2, 3], scores, streams=["multi"]).stream("multi")
    assert_recall(result.text_to_video, [1, 2, 4, 1])
    assert_recall(result.video_to_text, [1, 1, 4, 1])


def test_ties_count_as_misses() -> None:
    result = evaluate([0, 1, 2], torch.zeros(3, 3), torch.zeros(3, 3), streams=["multi", "mixed"])
    for stream in ("multi", "mixed"):
        assert_recall(result.stream(stream).text_to_video, [3, 3, 3])
        assert_recall(result.stream(stream).video_to_text, [3, 3, 3])
    result = evaluate([0, 1, 2], [[5, 5, 0], [0, 5, 5], [0, 0, 5]], streams=["multi"])
    assert_recall(result.stream("multi").text_to_video, [2, 2, 1])
    assert_recall(result.stream("multi").video_to_text, [1, 2, 2])


def test_every_caption_is_a_query_and_the_best_caption_counts_for_its_clip() -> None:
    owners = [0, 0, 1, 2, 2]
    scores = [[9, 1, 1], [1, 8, 2], [7, 6, 5], [0, 7, 4], [3, 2, 6]]
    result = evaluate(owners, scores, streams=["multi"])
    assert (result.clips, result.captions) == (3, 5)
    assert_recall(result.stream("multi").text_to_video, [1, 3, 2, 2, 1])
    assert_recall(result.stream("multi").video_to_text, [1, 3, 1])


def test_captions_per_clip_keeps_the_first_ones() -> None:
    scores = [[1, 2], [9, 2], [5, 6], [7, 0]]
    result = evaluate([0, 0, 1, 1], scores, streams=["multi"], captions_per_clip=1)
    assert result.captions == 2
    assert_recall(result.stream("multi").text_to_video, [2, 1])
    assert_recall(result.stream("multi").video_to_text, [2, 1])


@st.composite
def tables(draw: Callable[..., Any]) -> tuple[list[int], set[int], Tensor, Tensor]:
    """Owners of captions, broken clips, and two tables of scores in which ties are common."""
    clips = draw(st.integers(2, 6))
    owners = sorted([*range(clips), *draw(st.lists(st.integers(0, clips - 1), max_size=6))])
    broken = draw(st.sets(st.integers(0, clips - 1), max_size=clips - 2))
    numbers = st.lists(st.integers(-3, 3), min_size=len(owners) * clips, max_size=len(owners) * clips)
    multi, matching = (torch.tensor(draw(numbers)).reshape(len(owners), clips).double() for _ in range(2))
    return owners, broken, multi, matching


@given(tables())
def test_ranks_are_what_counting_says(world: tuple[list[int], set[int], Tensor, Tensor]) -> None:
    owners, broken, multi, matching = world
    clips = [clip for clip in range(multi.shape[1]) if clip not in broken]
    queries = [caption for caption, owner in enumerate(owners) if owner not in broken]
    result = evaluate(owners, multi, matching, broken, streams=["multi", "mixed"], batch_size=2)
    assert sorted(problem.file_name for problem in result.skipped) == sorted(f"{clip}.mp4" for clip in broken)
    for stream, table in (("multi", multi), ("mixed", matching)):
        of_text = [sum(bool(table[q, c] >= table[q, owners[q]]) for c in clips) for q in queries]
        of_clips = []
        for clip in clips:
            best = max(float(table[q, clip]) for q in queries if owners[q] == clip)
            of_clips.append(1 + sum(bool(table[q, clip] >= best) for q in queries if owners[q] != clip))
        assert_recall(result.stream(stream).text_to_video, of_text)
        assert_recall(result.stream(stream).video_to_text, of_clips)


# --- The cascade ----------------------------------------------------------------------------------------------------


def cascade_order(multi: Tensor, matching: Tensor, shortlist: int) -> list[int]:
    """One query's clips, best first: the shortlist by the combined scores, then the rest by the multi-stream."""
    order = multi.argsort(descending=True)
    candidates, rest = order[:shortlist], order[shortlist:]
    combined = combined_scores(multi[candidates], matching[candidates])
    return [*candidates[combined.argsort(descending=True)].tolist(), *rest.tolist()]


@given(seed=st.integers(0, 10_000), shortlist=st.integers(1, 9))
def test_the_cascade_re_ranks_the_shortlist_and_leaves_the_rest(seed: int, shortlist: int) -> None:
    torch.manual_seed(seed)
    multi, matching = 5 * torch.randn(7, 7).double(), 20 * torch.randn(7, 7).double()
    result = evaluate(list(range(7)), multi, matching, streams=["cascade"], shortlist=shortlist)
    assert result.shortlist == min(shortlist, 7)
    ranks = [1 + cascade_order(multi[q], matching[q], shortlist).index(q) for q in range(7)]
    assert_recall(result.stream("cascade").text_to_video, ranks)
    ranks = [1 + cascade_order(multi[:, c], matching[:, c], shortlist).index(c) for c in range(7)]
    assert_recall(result.stream("cascade").video_to_text, ranks)


def test_a_shortlist_of_one_is_the_multi_stream() -> None:
    torch.manual_seed(0)
    multi, matching = torch.randn(9, 9), torch.randn(9, 9)
    result = evaluate(list(range(9)), multi, matching, streams=["multi", "cascade"], shortlist=1)
    assert result.stream("cascade").text_to_video == result.stream("multi").text_to_video
    assert result.stream("cascade").video_to_text == result.stream("multi").video_to_text


def test_combined_scores_are_log_probabilities_of_both_streams() -> None:
    multi, matching = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.0, -2.0, 50.0])
    shares = [scores.exp() / scores.exp().sum() for scores in (multi, matching)]
    torch.testing.assert_close(combined_scores(multi, matching), shares[0].log() + shares[1].log())
    assert combined_scores(multi, torch.tensor([0.0, -1000.0, 0.0])).isfinite().all()


# --- The streams of a real model ------------------------------------------------------------------------------------

WORLD = World("validation", clips=7, num_frames=3, size=16, captions_per_clip=2)
WORLD_PROCESSOR = tiny_processor([text for index in range(7) for text in WORLD.captions(index)], num_frames=3)


def world_model(**changes: Any) -> PerceiverVLForRetrieval:
    return tiny_model(PerceiverVLForRetrieval, vocab_size=len(WORLD_PROCESSOR.tokenizer), **changes)


@pytest.mark.parametrize("aggregation", ["joint", "separate"])
def test_each_stream_ranks_by_what_the_model_says_of_each_pair(aggregation: str) -> None:
    model = world_model(modality_aggregation=aggregation)
    budget = ComputeBudget(frames=2, latents=4, text_latents=3, cross_attentions=2)
    clips = [WORLD_PROCESSOR(videos=WORLD.frames(index, 2), num_frames=2) for index in range(7)]
    texts = [WORLD_PROCESSOR(text=text) for index in range(7) for text in WORLD.captions(index)]
    tables = {stream: torch.zeros(14, 7).double() for stream in ("multi", "mixed", "single")}
    with torch.no_grad():
        for q, text in enumerate(texts):
            of_text = model.encode_text(**text, budget=budget)
            for c, clip in enumerate(clips):
                of_clip = model.encode_vision(**clip, budget=budget)
                tables["multi"][q, c] = (model.pool_text(of_text) * model.pool_vision(of_clip)).sum()
                tables["mixed"][q, c] = model.match(of_clip, of_text)[0]
                tables["single"][q, c] = model.match_jointly(**text, **clip, budget=budget)[0]
    result = evaluate_retrieval(
        model, WORLD_PROCESSOR, WORLD, streams=[*tables, "cascade-single"], budget=budget, batch_size=3, shortlist=3
    )
    owners = [q // 2 for q in range(14)]
    for stream, table in tables.items():
        ranks = [sum(bool(score >= row[owners[q]]) for score in row) for q, row in enumerate(table)]
        assert_recall(result.stream(stream).text_to_video, ranks)
    multi = model.logit_scale.item() * tables["multi"]
    ranks = [1 + cascade_order(multi[q], tables["single"][q], 3).index(owners[q]) for q in range(14)]
    assert_recall(result.stream("cascade-single").text_to_video, ranks)
    assert len({result.stream(stream).text_to_video for stream in tables}) > 1
    assert differs(tables["mixed"], tables["single"])


def test_what_was_evaluated_and_what_it_cost_is_told() -> None:
    model, budget = world_model(), ComputeBudget(latents=4)
    streams = ("multi", "mixed", "single", "cascade", "cascade-single")
    result = evaluate_retrieval(model, WORLD_PROCESSOR, WORLD, streams=streams, budget=budget, shortlist=2)
    assert (result.clips, result.captions, result.shortlist, result.budget) == (7, 14, 2, "latents=4")
    assert [stream.stream for stream in result.streams] == list(streams)
    encoding = encoder_flops(model.config, 3, budget=budget)
    assert result.flops_per_clip == encoding + pooling_flops(model.config) + partial_match_flops(model.config, 4)
    cost = {stream.stream: stream.flops_per_query for stream in result.streams}
    assert cost["multi"] < cost["cascade"] < cost["mixed"] < cost["single"]
    assert cost["cascade"] < cost["cascade-single"] < cost["single"] + cost["multi"]
    assert result.to_dict()["streams"][0]["text_to_video"]["r1"] == result.streams[0].text_to_video.r1


def counted(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, Any]:
    """Operations of a call, and what it gave; the fused attention of a CPU is not counted, so the plain one runs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = call(*args, **kwargs)
    return counter.get_total_flops(), found


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dials", [{}, {"frames": 2, "latents": 4, "text_latents": 3, "cross_attentions": 2}])
def test_one_text_query_costs_what_is_told(aggregation: str, dials: dict[str, int]) -> None:
    model, budget = world_model(modality_aggregation=aggregation).requires_grad_(False), ComputeBudget(**dials)
    words = WORLD_PROCESSOR(text=[text for index in range(7) for text in WORLD.captions(index)])
    query = words["input_ids"][:1], words["attention_mask"][:1]
    clips = [WORLD_PROCESSOR(videos=WORLD.frames(index, 3)) for index in range(7)]
    stored = torch.cat([model.partial_match(model.encode_vision(**clip, budget=budget)) for clip in clips])
    caches = [model.cache_vision(**clip, budget=budget) for clip in clips]
    encoding, latents = counted(model.encode_text, *query, budget)
    pooling, vector = counted(model.pool_text, latents)
    multi = encoding + pooling + counted(torch.matmul, vector, torch.randn(7, vector.shape[1]).to(vector).T)[0]
    summary, text = counted(model.partial_match, latents)
    mixed, shortlist = (summary + counted(model.merge_matches, some, text)[0] for some in (stored, stored[:2]))
    pair = {counted(model.match_jointly, *query, vision_cache=cache)[0] for cache in caches}
    assert len(pair) == 1
    result = evaluate_retrieval(model, WORLD_PROCESSOR, WORLD, streams=STREAMS, budget=budget, shortlist=2)
    assert {stream.stream: stream.flops_per_query for stream in result.streams} == {
        "multi": multi,
        "mixed": encoding + mixed,
        "single": 7 * sum(pair),
        "cascade": multi + shortlist,
        "cascade-single": multi + 2 * sum(pair),
    }


def test_more_queries_take_the_operations_that_are_told() -> None:
    model, streams = world_model(num_text_latents=3).requires_grad_(False), ("multi", "mixed", "single")
    evaluate = functools.partial(evaluate_retrieval, model, WORLD_PROCESSOR, WORLD, streams=streams)
    (few, _), (many, result) = (counted(evaluate, captions_per_clip=captions) for captions in (1, 2))
    words = WORLD_PROCESSOR(text=[text for index in range(7) for text in WORLD.captions(index)])
    encoding = encoder_flops(model.config, text_tokens=words["input_ids"].shape[1])
    told = sum(stream.flops_per_query for stream in result.streams) - encoding  # which multi and mixed share
    assert (many - few) / 7 == pytest.approx(told, rel=0.01)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_without_draws_and_given_back_as_it_was(training: bool) -> None:
    model = world_model(hidden_dropout_prob=0.5, layer_drop=1.0).train(training)
    first, second = (evaluate_retrieval(model, WORLD_PROCESSOR, WORLD, streams=["mixed"]) for _ in range(2))
    assert model.training == training
    assert first.stream("mixed").text_to_video == second.stream("mixed").text_to_video


def test_a_half_precision_model_ranks_much_as_it_did() -> None:
    model = world_model().float()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        result = evaluate_retrieval(model.to(dtype), WORLD_PROCESSOR, WORLD, streams=STREAMS, shortlist=3)
        found[dtype] = {stream.stream: stream.text_to_video.mean_rank for stream in result.streams}
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], abs=0.5)


# --- What goes wrong ------------------------------------------------------------------------------------------------


def test_broken_clips_are_skipped_and_listed() -> None:
    scores = torch.eye(4) * 5 - torch.arange(4)
    result = evaluate([0, 0, 1, 2, 3, 3], scores[[0, 0, 1, 2, 3, 3]], broken={2}, streams=["multi"], batch_size=2)
    assert (result.clips, result.captions) == (3, 5)
    assert result.skipped == [SkippedSample("2.mp4", "damaged")]
    assert_recall(result.stream("multi").text_to_video, [1, 1, 1, 1, 1])
    with pytest.raises(MediaError, match=r"2\.mp4: damaged"):
        evaluate([0, 1, 2, 3], scores, broken={2}, streams=["multi"], strict=True)


def test_too_many_broken_clips_stop_the_evaluation() -> None:
    owners, broken = list(range(24)), {1, 5, 9}
    with pytest.raises(
        PerceiverVLError, match=r"^3 of 24 clips cannot be read[^\n]+max_failed_fraction=0.1[^\n]+mp4: damaged$"
    ):
        evaluate(owners, torch.eye(24), broken=broken, streams=["multi"])
    allowed = evaluate(owners, torch.eye(24), broken=broken, streams=["multi"], max_failed_fraction=0.125)
    assert (allowed.clips, len(allowed.skipped), allowed.damaged) == (21, 3, [])


def test_fewer_than_two_clips_are_no_retrieval() -> None:
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+at least two clips[^\n]+found 1[^\n]+damaged$"):
        evaluate([0, 1, 2], torch.eye(3), broken={0, 2})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"streams": ["multi", "mixde"]}, "stream 'mixde'"),
        ({"shortlist": 0}, "shortlist=0"),
        ({"budget": ComputeBudget(latents=99)}, "budget latents=99"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+: [^\n]+$") as refused:
        evaluate([0, 1], torch.eye(2), **arguments)
    assert named in str(refused.value)


def test_a_model_gone_wrong_ranks_nothing() -> None:
    model = world_model()
    with torch.no_grad():
        model.perceiver_vl.encoder.latents.fill_(float("nan"))
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+not finite[^\n]+$"):
        evaluate_retrieval(model, WORLD_PROCESSOR, WORLD)
