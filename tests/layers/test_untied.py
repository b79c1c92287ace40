"""Keys and values of two kinds of inputs in one softmax, and layer scale, held against what is written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.layers.attention import Attention, AttentionBlock
from perceiver_vl.layers.experts import ScaledLinear
from perceiver_vl.layers.partial_attention import merge
from tiny import assert_same, differs


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, no weight zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.double().parameters():
            value += 0.3 * torch.randn_like(value)
    return module


def written_out(attention: Attention, queries: Tensor, inputs: Tensor, mask: Tensor, boundary: int) -> Tensor:
    """One query, one head, one input at a time."""
    heads, out = attention.num_heads, torch.zeros_like(queries)
    other = attention.untied
    for clip in range(len(queries)):
        keys, values = [], []
        for place, one in enumerate(inputs[clip]):
            own = attention if place < boundary else other
            key = own.k_proj(one).unflatten(0, (heads, -1))
            keys.append(key if own.k_norm is None else own.k_norm(key))
            values.append(own.v_proj(one).unflatten(0, (heads, -1)))
        for number, query in enumerate(queries[clip]):
            q = attention.q_proj(query).unflatten(0, (heads, -1))
            q = q if attention.q_norm is None else attention.q_norm(q)
            scores = torch.stack([(q * key).sum(-1) for key in keys]) * q.shape[-1] ** -0.5  # (M,H)
            weights = scores.masked_fill(~mask[clip][:, None], -torch.inf).softmax(0)
            found = (weights[..., None] * torch.stack(values)).sum(0)
            out[clip, number] = attention.out_proj(found.flatten())
    return out


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:], mask[1, 1] = False, False
    return torch.randn(2, 3, 12).double(), torch.randn(2, 7, 10).double(), mask


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("boundary", [0, 4, 7])
def test_each_kind_has_its_own_and_all_share_a_softmax(qk_norm: bool, implementation: str, boundary: int) -> None:
    attention = Attention(12, 3, input_size=10, qk_norm=qk_norm, untied=True, implementation=implementation)
    stirred(attention)
    queries, inputs, mask = drawn()
    wanted = written_out(attention, queries, inputs, mask, boundary)
    assert_same(attention(queries, inputs, mask, boundary=boundary), wanted)
    assert_same(attention(queries, inputs, mask, boundary=boundary, absorb=True), wanted)
    assert_same(attention.forward_with_weights(queries, inputs, mask, boundary=boundary)[0], wanted)
    first = attention.partial_attention(queries, inputs[:, :boundary], mask[:, :boundary])
    second = attention.keys_values(inputs[:, boundary:], mask[:, boundary:], boundary=0)
    merged = merge(first, attention.attend(attention.project_queries(queries), second))
    assert_same(attention.output_projection(merged, torch.float64), wanted)


def test_parts_of_a_block_know_their_kind() -> None:
    block = stirred(AttentionBlock(12, 3, input_size=10, untied=True, layer_scale=0.3))
    queries, inputs, mask = drawn()
    wanted = block(queries, inputs, mask, boundary=4)
    parts = [(inputs[:, :4], mask[:, :4]), (inputs[:, 4:], mask[:, 4:], 0)]
    assert_same(block.forward_parts(queries, parts), wanted)
    across = [(inputs[:, :2], mask[:, :2]), (inputs[:, 2:], mask[:, 2:], 2)]
    assert_same(block.forward_parts(queries, across), wanted)
    assert differs(block(queries, inputs, mask), wanted)


def test_the_two_begin_alike_and_nothing_more_is_drawn() -> None:
    torch.manual_seed(0)
    tied = Attention(12, 3, input_size=10, qk_norm=True)
    after = torch.rand(3)
    torch.manual_seed(0)
    untied = Attention(12, 3, input_size=10, qk_norm=True, untied=True)
    assert torch.equal(torch.rand(3), after)
    queries, inputs, mask = (one.float() if one.is_floating_point() else one for one in drawn())
    assert torch.equal(untied(queries, inputs, mask, boundary=4), tied(queries, inputs, mask))
    assert torch.equal(tied(queries, inputs, mask, boundary=4), tied(queries, inputs, mask))
    (untied(queries, inputs, mask, boundary=4).square().sum()).backward()
    found = {name: value.grad for name, value in untied.named_parameters()}
    assert differs(found["k_proj.weight"], found["untied.k_proj.weight"])
    assert all(value is not None and value.abs().max() > 0 for name, value in found.items() if name != "k_proj.bias")


def test_layer_scale_weighs_what_is_added() -> None:
    block = stirred(AttentionBlock(12, 3, layer_scale=0.1))
    x = torch.randn(2, 5, 12).double()
    attention, mlp = block.attention, block.mlp
    normed = block.norm1(x)
    weights = attention.weights(normed, normed)
    found = (weights @ attention.v_proj(normed).unflatten(-1, (3, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    out = attention.out_proj
    x1 = x + (found @ out.weight.T + out.bias) * out.scale
    hidden = F.gelu(mlp.fc1(block.norm2(x1)))
    wanted = x1 + (hidden @ mlp.fc2.weight.T + mlp.fc2.bias) * mlp.fc2.scale
    assert_same(block(x), wanted)
    plain = mlp.fc2.plain()
    assert type(plain) is torch.nn.Linear
    assert_same(plain(hidden), mlp.fc2(hidden))


def test_one_wide_head_is_scaled_too_where_queries_stay_where_they_are() -> None:
    attention = stirred(Attention(8, 1, layer_scale=0.5))
    assert isinstance(attention.out_proj, ScaledLinear)
    queries, inputs = torch.randn(1, 40, 8).double(), torch.randn(1, 3, 8).double()
    assert_same(attention(queries, inputs, absorb=True), attention(queries, inputs))
