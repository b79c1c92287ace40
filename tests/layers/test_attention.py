"""The one attention, against its definition."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl.layers.attention import Attention, AttentionBlock, has_plain_projections
from perceiver_vl.layers.partial_attention import merge
from perceiver_vl.layers.positions import fourier_features
from tiny import assert_same, differs


def attention_by_definition(attention: Attention, queries: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
    """One query of one head of one example at a time."""
    width = queries.shape[-1] // attention.num_heads
    attended = torch.zeros_like(queries)
    for b in range(len(queries)):
        q, k, v = attention.q_proj(queries[b]), attention.k_proj(inputs[b]), attention.v_proj(inputs[b])
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            for n in range(queries.shape[1]):
                logits = (k[:, part] @ q[n, part] / math.sqrt(width)).masked_fill(~mask[b], -torch.inf)
                attended[b, n, part] = logits.softmax(0) @ v[:, part]
    return attention.out_proj(attended)


@pytest.fixture
def block() -> AttentionBlock:
    torch.manual_seed(0)
    return AttentionBlock(hidden_size=12, num_heads=3, intermediate_size=24, eps=1e-6).double()


@pytest.fixture
def arrays() -> tuple[Tensor, Tensor, Tensor]:
    """Latents `(2,4,12)`, inputs `(2,7,12)` and a mask `(2,7)` of different lengths."""
    torch.manual_seed(1)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    return torch.randn(2, 4, 12).double(), torch.randn(2, 7, 12).double(), mask


def test_attention_is_what_its_definition_says(block: AttentionBlock, arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    latents, inputs, mask = arrays
    attention = block.attention
    assert_same(attention(latents, inputs, mask), attention_by_definition(attention, latents, inputs, mask))
    everywhere = torch.ones_like(mask)
    assert_same(attention(latents, inputs), attention_by_definition(attention, latents, inputs, everywhere))


def test_masked_inputs_have_no_influence(block: AttentionBlock, arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    latents, inputs, mask = arrays
    changed = torch.where(mask[..., None], inputs, 1000.0)
    assert_same(block(latents, changed, mask), block(latents, inputs, mask))
    assert differs(block(latents, changed), block(latents, inputs))


def test_the_order_of_the_inputs_is_not_seen(block: AttentionBlock, arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    latents, inputs, mask = arrays
    order = torch.randperm(7)
    assert_same(block(latents, inputs[:, order], mask[:, order]), block(latents, inputs, mask))


def test_a_thought_is_a_read_of_the_normed_latents(
    block: AttentionBlock, arrays: tuple[Tensor, Tensor, Tensor]
) -> None:
    latents, _, _ = arrays
    assert_same(block(latents), block(latents, block.norm1(latents)))
    assert differs(block(latents), block(latents, latents))


def test_attention_and_mlp_are_added_to_what_came_in(
    block: AttentionBlock, arrays: tuple[Tensor, Tensor, Tensor]
) -> None:
    latents, inputs, mask = arrays
    attended = latents + block.attention(block.norm1(latents), inputs, mask)
    assert_same(block(latents, inputs, mask), attended + block.mlp(block.norm2(attended)))


@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True), loudness=st.sampled_from([1.0, 100.0]))
def test_summaries_of_parts_merge_to_the_block_that_reads_all(cuts: list[int], loudness: float) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(hidden_size=12, num_heads=3, intermediate_size=24, eps=1e-6).double()
    latents, inputs = torch.randn(2, 4, 12).double(), loudness * torch.randn(2, 7, 12).double()
    edges = [0, *sorted(cuts), 7]
    parts = [block.partial_attention(latents, inputs[:, a:b]) for a, b in itertools.pairwise(edges)]
    merged = block.from_partial_attention(latents, functools.reduce(merge, parts))
    assert_same(merged, block(latents, inputs))


def test_dropout_acts_in_training_only(arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(12, 3, 24, eps=1e-6, dropout=0.5).double()
    latents, inputs, _ = arrays
    assert differs(block(latents, inputs), block(latents, inputs))
    block.eval()
    assert torch.equal(block(latents, inputs), block(latents, inputs))


def test_fourier_features_are_sines_and_cosines_up_to_nyquist() -> None:
    features = fourier_features([8], 3, dtype=torch.float64)
    positions = torch.linspace(-1, 1, 8, dtype=torch.float64)
    for column, frequency in enumerate([1.0, 2.5, 4.0]):  # 8 positions: at most 4 waves over [-1, 1]
        assert_same(features[:, column], (torch.pi * frequency * positions).sin())
        assert_same(features[:, 3 + column], (torch.pi * frequency * positions).cos())


@pytest.mark.parametrize("length", [1, 3, 128])
def test_fourier_features_tell_positions_apart(length: int) -> None:
    features = fourier_features([length], 16)
    assert features.shape == (length, 32)
    assert features.isfinite().all()
    distances = torch.cdist(features, features) + torch.eye(length)
    assert distances.min() > 1e-2


# --- Few queries ----------------------------------------------------------------------------------------------------


def projected(attention: Attention, *arguments: Tensor, absorb: bool) -> tuple[Tensor, int]:
    """The result, and how many keys were made for it."""
    made = []
    hook = attention.k_proj.register_forward_hook(lambda _, __, keys: made.append(keys.shape[1]))
    found = attention(*arguments, absorb=absorb)
    hook.remove()
    return found, sum(made)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@given(queries=st.integers(1, 3), inputs=st.integers(1, 40), seed=st.integers(0, 99), grad=st.booleans())
def test_few_queries_make_no_keys_and_find_the_same(
    implementation: str, queries: int, inputs: int, seed: int, grad: bool
) -> None:
    torch.manual_seed(seed)
    attention = Attention(12, 3, input_size=10, qk_size=6, v_size=9, implementation=implementation).double()
    q, x = torch.randn(2, queries, 12).double(), torch.randn(2, inputs, 10).double()
    mask = torch.rand(2, inputs) > 0.3
    mask[1] = False
    with torch.set_grad_enabled(grad):
        wanted, made = projected(attention, q, x, mask, absorb=False)
        assert made == inputs
        found, made = projected(attention, q, x, mask, absorb=True)
    assert_same(found, wanted)
    cheaper = 2 * queries * 10 * (15 + 6 * inputs) <= inputs * 15 * (10 + queries)
    assert made == (0 if cheaper else inputs)


def test_projections_that_do_more_than_their_weights_are_told() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    attention = Attention(12, 3)
    assert has_plain_projections(attention)
    attention.k_proj = Doubled(12, 12)
    assert not has_plain_projections(attention)
    with torch.device("meta"):
        assert not has_plain_projections(Attention(12, 3))
