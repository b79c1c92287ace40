"""Latents that are the last of their inputs: in one pass, and in parts as a cache has them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_vl.layers.causal import CausalCache, CausalLatents, Inputs, causal_mask
from perceiver_vl.layers.positions import RotaryPositions
from tiny import assert_same, differs


def made(own_norm: str, cross_attentions: tuple[int, ...], final_norm: bool = True) -> CausalLatents:
    torch.manual_seed(0)
    how = {"own_norm": own_norm}
    core = CausalLatents(
        16,
        4,
        2,
        cross_attentions=cross_attentions,
        cross_attention=how,
        final_norm=final_norm,
        query_projection=own_norm == "inputs",
        rotary=RotaryPositions(4),
    ).double()
    for parameter in core.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return core.eval()


def some(length: int, seed: int = 0) -> Inputs:
    """Two rows with padding in front."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, : length // 3] = False
    places = (mask.cumsum(1) - 1).clamp(min=0)
    return Inputs(torch.randn(2, length, 16, generator=draw).double(), mask, places)


@settings(max_examples=25, deadline=None)
@given(
    own_norm=st.sampled_from(["inputs", "queries"]),
    cross_attentions=st.sampled_from([(0,), (0, 0), (0, 1), (0, 2)]),
    steps=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    most=st.integers(1, 8),
    fixed=st.integers(0, 6),
    chunk=st.integers(1, 9),
)
def test_parts_give_what_one_pass_gives(
    own_norm: str, cross_attentions: tuple[int, ...], steps: list[int], most: int, fixed: int, chunk: int
) -> None:
    """Whatever comes at once, and whether latents are still added, or older ones become prefix."""
    core, inputs, cache, length = made(own_norm, cross_attentions), some(fixed + 1 + sum(steps)), CausalCache(), 0
    for step in (fixed + 1, *steps):
        length += step
        prefix = max(fixed, length - most)
        found = core.extend(cache, inputs[length - step : length], prefix, chunk=chunk)
        wanted = core(inputs[:length], prefix)
        assert found.shape[1] == min(step, length - prefix)
        assert_same(found, wanted[:, -found.shape[1] :])
        assert cache.length == length


def test_rows_of_a_cache_may_be_taken_anew() -> None:
    core, inputs, cache = made("inputs", (0, 1)), some(12), CausalCache()
    core.extend(cache, inputs[:9], 5)
    rows = torch.tensor([1, 1, 0])
    cache.reorder_cache(rows)
    taken = Inputs(*(part[rows] for part in vars(inputs).values()))
    for length in (10, 11):
        found = core.extend(cache, taken[length - 1 : length], length - 4)
        assert_same(found, core(taken[:length], length - 4)[:, -1:])


def test_a_cache_that_keeps_no_prefix_holds_none() -> None:
    core, cache = made("inputs", (0,)), CausalCache(keep_prefix=False)
    core.extend(cache, some(50), 46, chunk=10)
    assert cache.prefix == [None]


def test_the_diagonal_is_always_open_and_padding_is_seen_by_nobody_else() -> None:
    real = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    assert causal_mask(real, 3).int().tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ]
    assert torch.equal(causal_mask(real, 1), causal_mask(real, 3)[:, 2:])


@pytest.mark.parametrize("own_norm", ["inputs", "queries"])
def test_own_norm_says_which_norm_the_latents_keys_go_through(own_norm: str) -> None:
    core, inputs = made(own_norm, (0,)), some(6)
    before = core(inputs, 4)
    core.cross_attentions[0].input_norm.weight.data += 1  # type: ignore[union-attr, operator]
    assert differs(core(inputs, 4), before)
    without = made(own_norm, (0,))
    alone = without(inputs, 0)
    without.cross_attentions[0].input_norm.weight.data += 1  # type: ignore[union-attr, operator]
    assert differs(without(inputs, 0), alone) == (own_norm == "inputs")
