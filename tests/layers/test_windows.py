"""Every window of a row of parts is what these parts merge to, and what decoding them together gives."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.layers.partial_attention import PartialAttention, every_window, merge, merge_windows, unpack
from perceiver_vl.layers.windows import Packed, WindowTable
from tiny import tiny_model

HEADS = 3


def all_windows(parts: int) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = np.array(list(itertools.combinations(range(parts + 1), 2))).T
    return starts, ends


def drawn(parts: int, spread: float, silent: float, seed: int) -> Packed:
    """Parts `(S,4·H+H)` whose log-sum-exps spread so far about 0, and a share of which is silent."""
    draw = np.random.default_rng(seed)
    packed = draw.normal(size=(parts, 5 * HEADS))
    packed[:, -HEADS:] *= spread
    quiet = draw.random((parts, HEADS)) < silent
    packed[:, -HEADS:][quiet] = -np.inf
    packed[:, : 4 * HEADS] *= np.repeat(~quiet, 4, axis=1)
    return packed.astype(np.float32)


@given(
    parts=st.integers(1, 20), spread=st.sampled_from([0.0, 2.0, 60.0]), silent=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_every_window_is_what_its_parts_merge_to(parts: int, spread: float, silent: float, seed: int) -> None:
    packed = drawn(parts, spread, silent, seed)
    starts, ends = all_windows(parts)
    found = WindowTable(packed, HEADS).merge(starts, ends)
    single = [unpack(torch.from_numpy(packed[place : place + 1]).double(), HEADS) for place in range(parts)]
    one_by_one = [window.pack() for start in range(parts) for window in itertools.accumulate(single[start:], merge)]
    np.testing.assert_allclose(found, torch.cat(one_by_one).numpy(), rtol=1e-6, atol=1e-6)


@given(segments=st.integers(1, 10), loudness=st.sampled_from([1.0, 8.0]), seed=st.integers(0, 20))
def test_every_window_scores_as_the_decoder_over_its_latents(segments: int, loudness: float, seed: int) -> None:
    """In float32, as an index stores them; loud latents are heard above all others."""
    model = tiny_model(PerceiverVLForRetrieval, seed).float()
    draw = torch.Generator().manual_seed(seed)
    loud = loudness ** torch.randn(segments, 1, 1, generator=draw)
    latents = loud * torch.randn(segments, 6, 16, generator=draw)
    text = torch.randn(1, 4, 16, generator=draw)
    starts, ends = all_windows(segments)
    with torch.inference_mode():
        windows = WindowTable(model.partial_match(latents).numpy(), 4).merge(starts, ends)
        found = model.merge_matches(torch.from_numpy(windows), model.partial_match(text))
        pairs = zip(starts, ends, strict=True)
        direct = torch.cat([model.match(latents[start:end].flatten(0, 1)[None], text) for start, end in pairs])
    torch.testing.assert_close(found, direct, rtol=1e-5, atol=1e-5)


def test_a_quiet_end_is_not_lost_behind_a_loud_beginning() -> None:
    """Ten hours at two seconds: what the differences of prefix sums in float64 do not give."""
    packed = drawn(18_000, 1.0, 0.0, 0)
    packed[:100, -HEADS:] += 60
    starts = np.arange(100, 18_000, 700)
    found = WindowTable(packed, HEADS).merge(starts, starts + 30)
    for start, window in zip(starts.tolist(), found, strict=True):
        alone = WindowTable(packed[start : start + 30], HEADS).merge(np.array([0]), np.array([30]))
        np.testing.assert_allclose(window, alone[0], rtol=1e-6, atol=1e-6)
    weights = np.exp(packed[:, -HEADS:].astype(np.float64))
    prefix = np.concatenate([np.zeros((1, HEADS)), weights.cumsum(0)])
    with np.errstate(divide="ignore"):
        subtracted = np.log(prefix[starts + 30] - prefix[starts])
    assert np.abs(subtracted - found[:, -HEADS:]).max() > 1e-3


def test_windows_that_are_none() -> None:
    table = WindowTable(drawn(5, 1.0, 0.0, 0), HEADS)
    assert len(table) == 5
    assert table.merge(np.array([], int), np.array([], int)).shape == (0, 15)
    for start, end in [(2, 2), (3, 1), (-1, 2), (0, 6)]:
        with pytest.raises(ValueError, match="windows of 5 parts"):
            table.merge(np.array([start]), np.array([end]))


def test_a_window_of_silent_parts_is_silent() -> None:
    packed = drawn(6, 1.0, 0.0, 0)
    packed[2:4, :12], packed[2:4, -HEADS:] = 0, -np.inf
    window = WindowTable(packed, HEADS).merge(np.array([2]), np.array([4]))
    assert isinstance(unpack(torch.from_numpy(window), HEADS), PartialAttention)
    assert not window[0, :12].any()
    assert (window[0, -HEADS:] == -np.inf).all()


@given(
    parts=st.integers(1, 9), rows=st.integers(1, 2), spread=st.sampled_from([0.0, 2.0, 60.0]), seed=st.integers(0, 99)
)  # fmt: skip
def test_windows_that_are_learned_from_are_those_of_the_table(parts: int, rows: int, spread: float, seed: int) -> None:
    packed = np.stack([drawn(parts, spread, 0.0, seed + row) for row in range(rows)])
    found = merge_windows(torch.from_numpy(packed).double(), HEADS)
    starts, ends = (one.numpy() for one in every_window(parts))
    assert len(starts) == parts * (parts + 1) // 2
    for row in range(rows):
        wanted = WindowTable(packed[row], HEADS).merge(starts, ends)
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_gradients_of_windows_are_those_of_their_definition() -> None:
    packed = torch.from_numpy(drawn(4, 2.0, 0.0, 0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda parts: merge_windows(parts, HEADS), (packed,))
