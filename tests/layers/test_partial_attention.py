"""Attention read in parts is attention read at once."""

import functools
import itertools
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.partial_attention import KeysValues, PartialAttention, attend, has_kernel, merge, unpack
from tiny import assert_same, tiny_model

chunkings = st.lists(st.integers(1, 4), min_size=1, max_size=4)
ways = st.sampled_from(["fused", "unfused", "eager", "gradient"])


def drawn(seed: int, inputs: int, masking: float, loudness: float = 3.0) -> tuple[Tensor, KeysValues]:
    """Queries `(2,3,4,5)` of two examples, and their inputs, of which about a share of `masking` is masked."""
    draw = torch.Generator().manual_seed(seed)
    q, keys, values = (torch.randn(2, 3, n, 5, generator=draw, dtype=torch.float64) for n in (4, inputs, inputs))
    return loudness * q, KeysValues(keys, values, torch.rand(2, inputs, generator=draw) >= masking)


def part(inputs: KeysValues, a: int, b: int) -> KeysValues:
    mask = None if inputs.mask is None else inputs.mask[:, a:b]
    return KeysValues(inputs.keys[:, :, a:b], inputs.values[:, :, a:b], mask)


def in_parts(q: Tensor, inputs: KeysValues, sizes: list[int], implementation: str = "sdpa") -> PartialAttention:
    edges = itertools.accumulate(sizes, initial=0)
    found = (attend(q, part(inputs, a, b), implementation=implementation) for a, b in itertools.pairwise(edges))
    return functools.reduce(merge, found)


@given(sizes=chunkings, masking=st.sampled_from([0.0, 0.5, 0.9, 1.0]), way=ways, seed=st.integers(0, 99))
def test_any_parts_merge_to_the_whole_even_where_all_is_masked(
    sizes: list[int], masking: float, way: str, seed: int
) -> None:
    q, inputs = drawn(seed, sum(sizes), masking)
    assert inputs.mask is not None
    q.requires_grad_(way == "gradient")
    with sdpa_kernel(SDPBackend.MATH) if way == "unfused" else nullcontext():
        found = in_parts(q, inputs, sizes, implementation="eager" if way == "eager" else "sdpa")
    mask = inputs.mask[:, None, None]
    assert_same(found.output, F.scaled_dot_product_attention(q, inputs.keys, inputs.values, attn_mask=mask))
    scores = (q @ inputs.keys.transpose(-1, -2) / 5**0.5).masked_fill(~mask, -torch.inf)
    assert_same(found.logsumexp, scores.logsumexp(-1))
    silent = ~inputs.mask.any(1)
    assert not found.output[silent].any()
    assert (found.logsumexp[silent] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(sizes=chunkings, masking=st.sampled_from([0.0, 0.5]))
def test_parts_merge_in_every_precision(dtype: torch.dtype, sizes: list[int], masking: float) -> None:
    q, inputs = drawn(1, sum(sizes), masking)
    low = KeysValues(inputs.keys.to(dtype), inputs.values.to(dtype), inputs.mask)
    found, wanted = in_parts(q.to(dtype), low, sizes), attend(q, inputs)
    assert found.logsumexp.dtype == torch.float32  # eight bits would lose what is quiet beside what is loud
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.output.double(), wanted.output, rtol=0, atol=2 * tolerance)
    torch.testing.assert_close(found.logsumexp.double(), wanted.logsumexp, rtol=tolerance, atol=2 * tolerance)


def test_merging_has_no_order_and_nothing_is_its_zero() -> None:
    q, inputs = drawn(3, 9, 0.3)
    a, b, c = (attend(q, part(inputs, n, n + 3)) for n in (0, 3, 6))
    nothing = PartialAttention(torch.zeros_like(a.output), torch.full_like(a.logsumexp, -torch.inf))
    wanted = merge(merge(a, b), c)
    for found in (
        merge(c, merge(b, a)),
        merge(merge(nothing, wanted), nothing),
    ):
        assert_same(found.output, wanted.output)
        assert_same(found.logsumexp, wanted.logsumexp)


def test_gradients_come_through_parts_that_may_be_empty() -> None:
    grads = []
    for sizes in ([6], [2, 1, 3]):
        q, inputs = drawn(4, 6, 0.0)
        inputs = KeysValues(inputs.keys, inputs.values, torch.tensor([[0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0]]).bool())
        leaves = [leaf.requires_grad_() for leaf in (q, inputs.keys, inputs.values)]
        (in_parts(q, inputs, sizes).output ** 2).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for found, wanted in zip(*grads, strict=True):
        assert found is not None
        assert found.any()
        assert_same(found, wanted)


@given(times=st.integers(1, 3), masking=st.sampled_from([0.0, 0.4]))
def test_inputs_shared_by_several_rows_of_queries_are_not_copied_but_serve_all(times: int, masking: float) -> None:
    _, inputs = drawn(5, 7, masking)
    q = torch.randn(2 * times, 3, 4, 5, dtype=torch.float64)
    assert inputs.mask is not None
    copied = (inputs.keys, inputs.values, inputs.mask)
    wanted = attend(q, KeysValues(*(value.repeat_interleave(times, 0) for value in copied)))
    found = attend(q, inputs)
    assert_same(found.output, wanted.output)
    assert_same(found.logsumexp, wanted.logsumexp)


def test_one_row_of_queries_serves_all_inputs() -> None:
    q, inputs = drawn(6, 7, 0.4)
    found, wanted = attend(q[:1], inputs), attend(q[:1].expand(2, -1, -1, -1), inputs)
    assert_same(found.output, wanted.output)
    assert_same(found.repeat(3).output, wanted.output.repeat_interleave(3, 0))


def test_a_summary_is_stored_as_one_array() -> None:
    found = attend(*drawn(7, 6, 0.2))
    packed = found.pack()
    assert packed.shape == (2, 4, 15 + 3)
    assert torch.equal(unpack(packed, 3).output, found.output)
    assert torch.equal(unpack(packed, 3).logsumexp, found.logsumexp)


@pytest.mark.parametrize("residual", ["queries", "normed_queries", "none"])
@pytest.mark.parametrize("queries", [1, 4])  # one is met in the space of the inputs, four are not
@given(sizes=chunkings, masking=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_block_finishes_from_the_summaries_of_parts(
    residual: str, queries: int, sizes: list[int], masking: float
) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(12, 3, 24, eps=1e-6, norm_inputs=True, residual=residual).double().eval()  # type: ignore[arg-type]
    latents, inputs = torch.randn(2, queries, 12).double(), torch.randn(2, sum(sizes), 12).double()
    mask = torch.rand(2, sum(sizes)) >= masking
    edges = itertools.accumulate(sizes, initial=0)
    parts = [block.partial_attention(latents, inputs[:, a:b], mask[:, a:b]) for a, b in itertools.pairwise(edges)]
    found = block.from_partial_attention(latents, functools.reduce(merge, parts))
    assert_same(found, block(latents, inputs, mask))
    assert_same(found, block.train()(latents, inputs, mask))


# --- The mixed stream from summaries --------------------------------------------------------------------------------


@pytest.mark.parametrize("released", [False, True])
@given(clips=st.integers(1, 4), latents=st.integers(1, 9))
def test_pairs_are_matched_from_one_row_a_side(released: bool, clips: int, latents: int) -> None:
    quirks = {"cross_attention_residual": "normed_queries", "modality_embedding": False} if released else {}
    model = tiny_model(PerceiverVLForRetrieval, **quirks)
    vision, text = 3 * torch.randn(clips, latents, 16).double(), 3 * torch.randn(clips, 4, 16).double()
    stored = model.partial_match(vision), model.partial_match(text)
    assert stored[0].shape == (clips, 16 + 4)
    assert_same(model.merge_matches(*stored), model.match(vision, text))
    everything = model.merge_matches(stored[0], stored[1][:, None])
    assert everything.shape == (clips, clips)
    assert_same(everything, model.match_all(vision, text))
    assert_same(everything.diagonal(), model.match(vision, text))


def test_queries_of_another_precision_are_met_under_autocast() -> None:
    q, inputs = drawn(seed=0, inputs=7, masking=0.3)
    single = KeysValues(inputs.keys.float(), inputs.values.float(), inputs.mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q.bfloat16(), single)
    wanted = attend(q, inputs)
    torch.testing.assert_close(found.output.double(), wanted.output, atol=0.1, rtol=0)
    torch.testing.assert_close(found.logsumexp.double(), wanted.logsumexp, atol=0.1, rtol=0)


# --- On a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masking", ["none", "some", "a whole row", "each query its own"])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 13), (64, 1000)])
def test_the_kernels_of_cuda_find_what_is_written_out(dtype: torch.dtype, masking: str, sizes: tuple[int, int]) -> None:
    queries, inputs = sizes
    draw = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(2, 4, n, 16, generator=draw).to("cuda", dtype) for n in (queries, inputs, inputs))
    mask = None
    if masking != "none":
        shape = (2, queries, inputs) if masking == "each query its own" else (2, inputs)
        mask = (torch.rand(shape, generator=draw) > 0.4).cuda()
        if masking == "a whole row":
            mask[1] = False
    given = KeysValues(keys, values, mask)
    with torch.inference_mode():
        assert has_kernel(q, given)
        found = attend(q, given)
        wanted = attend(q.float(), KeysValues(keys.float(), values.float(), mask), implementation="eager")
    torch.testing.assert_close(
        found.output.float(), wanted.output, atol=2e-2 if dtype != torch.float32 else 1e-5, rtol=0
    )
    torch.testing.assert_close(
        found.logsumexp.float(), wanted.logsumexp, atol=2e-2 if dtype != torch.float32 else 1e-5, rtol=0
    )


@pytest.mark.gpu
def test_many_questions_on_a_gpu_write_out_no_scores() -> None:
    """64 questions of 128 latents about 64 frames of 145 tokens, at base size: their scores alone would be 3.7 GB."""
    q = torch.randn(64, 12, 128, 64, device="cuda", dtype=torch.bfloat16)
    inputs = KeysValues(*(torch.randn(1, 12, 64 * 145, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2)))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        attend(q, inputs)
    assert torch.cuda.max_memory_allocated() - before < 512 << 20
