"""Positions against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl.layers.positions import (
    LearnedPositions,
    RotaryPositions,
    fourier_features,
    fourier_features_at,
    resize_positions,
    sincos_positions_2d,
    sinusoidal_positions,
)
from tiny import assert_same, differs


def test_learned_positions_are_the_first_rows_of_a_table() -> None:
    positions = LearnedPositions(5, 4)
    assert torch.equal(positions(3), positions.weight[:3])
    assert positions().shape == (5, 4)
    with pytest.raises(ValueError, match="6 positions: the table has 5"):
        positions(6)


@pytest.mark.parametrize("length", [1, 7])
def test_sinusoidal_positions_are_those_of_the_transformer(length: int) -> None:
    found = sinusoidal_positions(length, 6)
    for position in range(length):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            assert found[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_fourier_features_of_one_axis_are_sines_and_cosines_up_to_nyquist() -> None:
    features = fourier_features([8], 3, dtype=torch.float64)
    positions = torch.linspace(-1, 1, 8, dtype=torch.float64)
    for column, frequency in enumerate([1.0, 2.5, 4.0]):  # 8 positions: at most 4 waves over [-1, 1]
        assert_same(features[:, column], (torch.pi * frequency * positions).sin())
        assert_same(features[:, 3 + column], (torch.pi * frequency * positions).cos())


def test_fourier_features_of_several_axes_have_those_of_each() -> None:
    features = fourier_features([3, 4], 2, max_resolution=[6, 10], raw=True, dtype=torch.float64)
    assert features.shape == (12, 2 + 2 * 2 * 2)
    row, column = 2, 1
    place = torch.tensor([1.0, -1 + 2 / 3], dtype=torch.float64)
    angles = torch.pi * place[:, None] * torch.tensor([[1.0, 3.0], [1.0, 5.0]], dtype=torch.float64)
    wanted = torch.cat([place, angles.sin().flatten(), angles.cos().flatten()])
    assert_same(features[4 * row + column], wanted)


def test_fourier_features_of_points_stand_in_either_order() -> None:
    points = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    sizes = [4, 6.5, 9]
    together = fourier_features_at(points, 2, max_resolution=sizes, raw=True)
    by_axis = fourier_features_at(points, 2, max_resolution=sizes, raw=True, by_axis=True)
    assert together.shape == by_axis.shape == (2, 5, 3 + 12)
    for axis, size in enumerate(sizes):
        angles = torch.pi * points[..., axis, None] * torch.tensor([1, size / 2], dtype=torch.float64)
        wanted = torch.cat([angles.sin(), angles.cos(), points[..., axis, None]], dim=-1)
        assert_same(by_axis[..., 5 * axis : 5 * axis + 5], wanted)
        columns = [3 + 2 * axis, 4 + 2 * axis, 9 + 2 * axis, 10 + 2 * axis, axis]
        assert_same(together[..., columns], wanted)


@pytest.mark.parametrize("length", [1, 3, 128])
def test_fourier_features_tell_positions_apart(length: int) -> None:
    features = fourier_features([length], 16)
    assert features.shape == (length, 32)
    assert features.isfinite().all()
    distances = torch.cdist(features, features) + torch.eye(length)
    assert distances.min() > 1e-2


def test_two_dimensional_positions_have_the_column_first() -> None:
    found = sincos_positions_2d(2, 3, 8)
    assert found.shape == (6, 8)
    row, column = 1, 2
    frequencies = torch.tensor([1.0, 1e-4])
    wanted = [(column * frequencies).sin(), (column * frequencies).cos()]
    wanted += [(row * frequencies).sin(), (row * frequencies).cos()]
    torch.testing.assert_close(found[3 * row + column], torch.cat(wanted))


def test_a_resized_table_keeps_its_corners() -> None:
    table = torch.randn(6, 4)
    assert resize_positions(table, (2, 3), (2, 3)) is table
    larger = resize_positions(table, (2, 3), (4, 5))
    assert larger.shape == (20, 4)
    torch.testing.assert_close(larger[[0, 4, 15, 19]], table[[0, 2, 3, 5]])


# --- Rotary ---------------------------------------------------------------------------------------------------------


def rotated(x: Tensor, position: float, pairs: list[tuple[int, int]], wavelengths: list[float]) -> Tensor:
    """One vector, its pairs of channels turned one by one."""
    found = x.clone()
    for (a, b), wavelength in zip(pairs, wavelengths, strict=True):
        angle = position / wavelength
        found[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        found[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
    return found


@pytest.mark.parametrize(
    ("how", "pairs", "wavelengths"),
    [
        ({}, [(0, 1), (2, 3), (4, 5), (6, 7)], [1, 10, 100, 1000]),
        ({"interleaved": False}, [(0, 4), (1, 5), (2, 6), (3, 7)], [1, 10, 100, 1000]),
        ({"share": 0.5}, [(0, 1), (2, 3)], [1, 100]),
        ({"share": 0.5, "inclusive": True}, [(0, 1), (2, 3)], [1, 10_000]),
    ],
)
def test_pairs_of_channels_are_turned_by_their_position(
    how: dict[str, float], pairs: list[tuple[int, int]], wavelengths: list[float]
) -> None:
    x = torch.randn(2, 3, 5, 8).double()
    found = RotaryPositions(8, **how)(x, torch.arange(5) + 3)  # type: ignore[arg-type]
    for place in range(5):
        torch.testing.assert_close(found[1, 2, place], rotated(x[1, 2, place], place + 3, pairs, wavelengths))


@given(shift=st.integers(-20, 20), interleaved=st.booleans())
def test_products_depend_on_the_distance_alone(shift: int, interleaved: bool) -> None:
    torch.manual_seed(0)
    rotary = RotaryPositions(8, interleaved=interleaved)
    q, k = torch.randn(1, 1, 4, 8).double(), torch.randn(1, 1, 6, 8).double()

    def scores(moved: int) -> Tensor:
        return rotary(q, torch.arange(4) + moved) @ rotary(k, torch.arange(6) + moved).transpose(-1, -2)

    torch.testing.assert_close(scores(shift), scores(0))
    assert differs(scores(0), q @ k.transpose(-1, -2))


def test_each_example_may_stand_elsewhere() -> None:
    rotary, x = RotaryPositions(4), torch.randn(2, 3, 5, 4)
    positions = torch.stack([torch.arange(5), torch.arange(5) + 7])
    found = rotary(x, positions)
    assert torch.equal(found[1:], rotary(x[1:], positions[1]))


def test_far_positions_are_told_apart_in_half_precision() -> None:
    rotary, x = RotaryPositions(4).to(torch.bfloat16), torch.ones(1, 1, 2, 4)
    wanted = rotary(x, torch.tensor([8000, 8001]))
    found = rotary(x.to(torch.bfloat16), torch.tensor([8000, 8001]))
    torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.0)
    assert differs(found[:, :, 0].float(), found[:, :, 1].float())
