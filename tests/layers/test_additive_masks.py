"""Numbers that are added to scores, and those that fall with distance."""

import math

import pytest
import torch

from perceiver_vl.layers.attention import Attention
from perceiver_vl.layers.positions import distance_bias
from tiny import assert_same


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("v_size", [12, 36])
def test_a_mask_in_numbers_is_added_to_the_scores(implementation: str, v_size: int) -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3, v_size=v_size, implementation=implementation).double()
    queries, inputs, added = (torch.randn(*shape).double() for shape in ((2, 4, 12), (2, 5, 12), (2, 3, 4, 5)))
    q, k, v = (
        project(x).unflatten(-1, (3, -1)).transpose(1, 2)
        for project, x in ((attention.q_proj, queries), (attention.k_proj, inputs), (attention.v_proj, inputs))
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(4) + added).softmax(-1)
    wanted = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    assert_same(attention(queries, inputs, added), wanted)
    assert_same(attention.weights(queries, inputs, added), weights)
    hidden = torch.rand(2, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    numbers = torch.zeros(2, 1, 1, 5).double().masked_fill(hidden[:, None, None], -torch.inf).expand(2, 3, 4, 5)
    assert_same(attention(queries, inputs, numbers), attention(queries, inputs, ~hidden))


def test_the_bias_falls_with_the_distance() -> None:
    bias = distance_bias(8, 3, 5)
    assert bias.shape == (8, 3, 5)
    assert_same(bias[:, 2, 4], torch.zeros(8).double())  # the last query is the last input
    assert_same(bias[:, 0, 0], torch.tensor([-2.0 * 2**-n for n in range(1, 9)]).double())
    assert_same(distance_bias(3, 1, 2)[:, 0, 0], torch.tensor([-(2.0**-4), -(2.0**-8), -(2.0**-2)]).double())
    assert distance_bias(2, 5, 3)[0, 0, 0] == -2 * 2.0**-4  # more queries than inputs begin before them
