"""Experts: merged maps, gates that see no token, experts that tokens choose, and branches left out."""

import pytest
import torch
import torch.nn.functional as F

from perceiver_vl.layers.experts import AttributeGate, DropPath, ExpertLinear, Routing, ScaledLinear, TokenExperts
from tiny import assert_same


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_two_experts_are_the_sum_of_two_maps() -> None:
    experts, x = ExpertLinear(4, 5, 3).double(), torch.randn(2, 6, 4).double()
    experts.routing = Routing(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]).double(), 2, 6)
    each = [F.linear(x, weight, bias) for weight, bias in zip(experts.weight, experts.bias, strict=True)]
    wanted = torch.cat([0.75 * each[0][:, :2] + 0.25 * each[2][:, :2], 0.5 * (each[1] + each[0])[:, 2:]], 1)
    assert_same(experts(x), wanted)


def test_the_last_tokens_alone_go_where_they_went_among_all() -> None:
    experts, x = ExpertLinear(4, 4, 3, initial_scale=0.1).double(), torch.randn(1, 6, 4).double()
    experts.routing = Routing(torch.tensor([[0, 1], [1, 2]]), torch.full((2, 2), 0.5).double(), 4, 6)
    whole = experts(x)
    for last in range(1, 7):
        assert_same(experts(x[:, 6 - last :]), whole[:, 6 - last :])


def test_tokens_are_routed_nowhere_before_it_is_said() -> None:
    with pytest.raises(ValueError, match="routing=None"):
        ExpertLinear(4, 4, 2)(torch.randn(1, 2, 4))


def test_a_gate_chooses_two_whose_shares_sum_to_one_and_is_noisy_in_training_alone() -> None:
    gate = AttributeGate(8, 6, 4, activation=True, noise=10.0, eps=1e-5).eval()
    bits = torch.randint(2, (5, 8)).float()
    experts, shares = gate(bits)
    assert experts.shape == shares.shape == (5, 2)
    assert_same(shares.sum(-1), torch.ones(5), 1e-6)
    assert torch.equal(gate(bits)[1], shares)
    gate.train()
    assert not torch.equal(gate(bits)[1], gate(bits)[1])


def test_every_token_goes_through_the_two_experts_it_scores_highest() -> None:
    layer, x = TokenExperts(4, 6, 3, F.silu).double(), torch.randn(2, 5, 4).double()
    found = layer(x)
    for row, column in ((0, 0), (1, 3)):
        token = x[row, column]
        chances = layer.router(token).softmax(-1)
        best = chances.topk(2)
        wanted = torch.zeros(4).double()
        for share, expert in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            hidden = F.silu(layer.fc1[expert] @ token) * (layer.gate[expert] @ token)
            wanted += share * (layer.fc2[expert] @ hidden)
        assert_same(found[row, column], wanted)


def test_a_branch_is_left_out_for_some_examples_and_larger_for_the_others() -> None:
    x = torch.ones(1000, 3)
    dropped = DropPath(0.25).train()(x)
    assert {round(value, 4) for value in dropped.unique().tolist()} == {0.0, round(1 / 0.75, 4)}
    assert dropped[:, 0].mean().item() == pytest.approx(1.0, abs=0.06)
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert torch.equal(DropPath(0.25).eval()(x), x)


def test_layer_scale_weighs_every_channel() -> None:
    layer = ScaledLinear(3, 2, 0.5)
    x = torch.randn(4, 3)
    assert_same(layer(x), 0.5 * F.linear(x, layer.weight, layer.bias), 1e-6)
