"""The one attention, against its definition."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_vl.layers.attention import Attention, AttentionBlock, has_plain_projections
from perceiver_vl.layers.partial_attention import merge
from perceiver_vl.layers.positions import RotaryPositions
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


def test_self_attention_is_cross_attention_to_the_normed_latents(
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


def test_norms_may_stand_after_each_sum(arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    """As in the first Transformer, whole or in parts, with weights and without an MLP."""
    latents, inputs, mask = arrays
    block = AttentionBlock(12, 3, 24, norm_first=False).double()
    assert block.mlp is not None
    assert block.norm2 is not None
    attended = block.norm1(latents + block.attention(latents, inputs, mask))
    wanted = block.norm2(attended + block.mlp(attended))
    assert_same(block(latents, inputs, mask), wanted)
    assert_same(block.forward_with_weights(latents, inputs, mask)[0], wanted)
    assert_same(block.forward_parts(latents, [(inputs[:, :3], mask[:, :3]), (inputs[:, 3:], mask[:, 3:])]), wanted)
    assert_same(block(latents), block(latents, latents))
    alone = AttentionBlock(12, 3, 0, norm_first=False).double()
    assert_same(alone(latents, inputs), alone.norm1(latents + alone.attention(latents, inputs)))


def test_an_mlp_may_be_added_to_what_its_norm_gives(arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    latents, inputs, mask = arrays
    block = AttentionBlock(12, 3, 24, mlp_residual="normed").double()
    assert block.mlp is not None
    assert block.norm2 is not None
    normed = block.norm2(latents + block.attention(block.norm1(latents), inputs, mask))
    assert_same(block(latents, inputs, mask), normed + block.mlp(normed))


@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True), loudness=st.sampled_from([1.0, 100.0]))
def test_partial_attentions_merge_to_the_block_that_attends_to_all(cuts: list[int], loudness: float) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(hidden_size=12, num_heads=3, intermediate_size=24, eps=1e-6).double()
    latents, inputs = torch.randn(2, 4, 12).double(), loudness * torch.randn(2, 7, 12).double()
    edges = [0, *sorted(cuts), 7]
    parts = [block.partial_attention(latents, inputs[:, a:b]) for a, b in itertools.pairwise(edges)]
    merged = block.from_partial_attention(latents, functools.reduce(merge, parts))
    assert_same(merged, block(latents, inputs))
    assert_same(block.forward_parts(latents, [inputs[:, a:b] for a, b in itertools.pairwise(edges)]), merged)


def test_dropout_acts_in_training_only(arrays: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(12, 3, 24, eps=1e-6, dropout=0.5).double()
    latents, inputs, _ = arrays
    assert differs(block(latents, inputs), block(latents, inputs))
    block.eval()
    assert torch.equal(block(latents, inputs), block(latents, inputs))


# --- What siblings need ---------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "widths": {"input_size": 10, "qk_size": 6, "v_size": 9},
    "without biases": {"bias": False, "output_bias": False},
    "query-key norm": {"qk_norm": True},
    "causal": {"causal": True},
    "rotary": {"rotary": RotaryPositions(4, share=0.5)},
    "rotary, causal": {"rotary": RotaryPositions(4), "causal": True},
    "key positions": {"key_positions": 9},
}


def made(options: dict[str, Any], implementation: str = "sdpa") -> Attention:
    """The same weights whatever the implementation, norms and tables off their starts."""
    torch.manual_seed(0)
    attention = Attention(12, 3, implementation=implementation, **options).double()
    for parameter in attention.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return attention


def scores_by_definition(attention: Attention, q: Tensor, x: Tensor, allowed: Tensor) -> Tensor:
    """Of one example: `q (N,12)`, `x (M,C)`, `allowed (N,M)` → weights `(H,N,M)`, one query and one input at a time."""
    keys = attention.k_proj(x)
    if attention.key_positions is not None:
        keys = keys + attention.key_positions[: len(x)]
    queries, heads = attention.q_proj(q), attention.num_heads
    width = queries.shape[-1] // heads
    scores = torch.full((heads, len(q), len(x)), -torch.inf, dtype=q.dtype)
    for h, n, m in itertools.product(range(heads), range(len(q)), range(len(x))):
        if not allowed[n, m] or (attention.causal and m > len(x) - len(q) + n):
            continue
        one, other = queries[n, h * width : (h + 1) * width], keys[m, h * width : (h + 1) * width]
        if attention.q_norm is not None and attention.k_norm is not None:
            one, other = attention.q_norm(one), attention.k_norm(other)
        if attention.rotary is not None:
            one, other = (
                attention.rotary(vector[None, None, None], torch.tensor([place]))[0, 0, 0]
                for vector, place in ((one, len(x) - len(q) + n), (other, m))
            )
        scores[h, n, m] = one @ other / math.sqrt(width)
    return scores.softmax(-1).nan_to_num()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("queries", [1, 5])
def test_every_option_is_what_its_definition_says(options: dict[str, Any], implementation: str, queries: int) -> None:
    attention = made(options, implementation)
    q, x = torch.randn(2, queries, 12).double(), torch.randn(2, 7, attention.k_proj.in_features).double()
    mask = torch.rand(2, queries, 7) > 0.3
    found = attention(q, x, mask)
    weights = attention.weights(q, x, mask)
    for b in range(2):
        wanted = scores_by_definition(attention, q[b], x[b], mask[b])
        assert_same(weights[b], wanted)
        values = attention.v_proj(x[b]).unflatten(-1, (3, -1)).transpose(0, 1)  # (H,M,d)
        assert_same(found[b], attention.out_proj((wanted @ values).transpose(0, 1).flatten(1)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_eager_and_fused_agree_in_value_and_gradient(options: dict[str, Any], masked: bool) -> None:
    found = []
    q, x = torch.randn(2, 5, 12).double(), None
    for implementation in ("sdpa", "eager"):
        attention = made(options, implementation)
        torch.manual_seed(1)
        x = torch.randn(2, 7, attention.k_proj.in_features).double().requires_grad_()
        mask = torch.arange(7) < torch.tensor([[7], [4]]) if masked else None
        output = attention(q, x, mask)
        output.square().sum().backward()
        found.append([output, x.grad, *(parameter.grad for parameter in attention.parameters())])
    for left, right in zip(*found, strict=True):
        assert left is not None
        assert right is not None
        assert_same(left, right, 1e-12)


def test_causal_attention_does_not_see_what_comes_later() -> None:
    attention = made({"causal": True, "rotary": RotaryPositions(4)})
    q, x = torch.randn(1, 4, 12).double(), torch.randn(1, 9, 12).double()
    before = attention(q, x)
    changed = x.clone()
    changed[:, 7:] = 100.0  # seen by the last two of four queries
    after = attention(q, changed)
    assert torch.equal(after[:, :2], before[:, :2])
    assert differs(after[:, 2], before[:, 2])


def test_positions_are_counted_from_the_start_unless_they_are_given() -> None:
    attention = made({"rotary": RotaryPositions(4)})
    q, x = torch.randn(2, 3, 12).double(), torch.randn(2, 6, 12).double()
    given = {"query_positions": torch.arange(3) + 3, "input_positions": torch.arange(6)}
    assert torch.equal(attention(q, x), attention(q, x, **given))
    moved = {name: positions + 5 for name, positions in given.items()}
    assert_same(attention(q, x, **moved), attention(q, x))
    assert differs(attention(q, x, query_positions=torch.arange(3)), attention(q, x))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"causal": True}, "give a mask"),
        ({"rotary": RotaryPositions(4)}, "positions=None"),
        ({"key_positions": 9}, "positions=None"),
    ],
)
def test_a_part_that_does_not_know_where_it_stands_is_refused(options: dict[str, Any], said: str) -> None:
    attention = made(options)
    q, x = torch.randn(2, 3, 12).double(), torch.randn(2, 6, 12).double()
    with pytest.raises(ValueError, match=said):
        attention.partial_attention(q, x, torch.ones(2, 6, dtype=torch.bool))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_parts_that_know_where_they_stand_merge_to_the_whole(options: dict[str, Any]) -> None:
    attention = made(options)
    q, x = torch.randn(2, 3, 12).double(), torch.randn(2, 6, attention.k_proj.in_features).double()
    places = torch.arange(6)
    seen = torch.ones(2, 3, 6, dtype=torch.bool).tril(3) if attention.causal else torch.ones(2, 3, 6, dtype=torch.bool)
    queries = attention.project_queries(q, places[3:])
    parts = [
        attention.attend(queries, attention.keys_values(x[:, some], seen[..., some], places[some]))
        for some in (slice(0, 4), slice(4, 6))
    ]
    assert_same(attention.output_projection(merge(*parts), q.dtype), attention(q, x))


def test_a_block_may_have_no_mlp() -> None:
    block = AttentionBlock(12, 3, 0).double()
    latents, inputs = torch.randn(2, 4, 12).double(), torch.randn(2, 7, 12).double()
    assert not [name for name, _ in block.named_parameters() if "mlp" in name or "norm2" in name]
    assert_same(block(latents, inputs), latents + block.attention(block.norm1(latents), inputs))


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


@pytest.mark.parametrize("bias", [True, False])
@given(queries=st.integers(1, 60), inputs=st.integers(1, 60), widths=st.tuples(*[st.sampled_from([4, 8])] * 4))
def test_one_wide_head_meets_the_narrower_side_and_finds_the_same(
    bias: bool, queries: int, inputs: int, widths: tuple[int, int, int, int]
) -> None:
    """Perceiver and Perceiver IO have one head as wide as the inputs, and flow asks with more queries than latents."""
    width, input_size, qk_size, v_size = widths
    sizes = {"input_size": input_size, "qk_size": qk_size, "v_size": v_size}
    attention = Attention(width, 1, **sizes, bias=bias, output_bias=bias).double()
    q, x = torch.randn(2, queries, width).double(), torch.randn(2, inputs, input_size).double()
    asked = []
    hook = attention.q_proj.register_forward_hook(lambda _, __, projected: asked.append(projected.shape[1]))
    with torch.no_grad():
        wanted = attention(q, x)
        found = attention(q, x, absorb=True)
    hook.remove()
    assert_same(found, wanted)
    if queries > 4 * inputs and qk_size == v_size == 8 and width == 4:
        assert asked == [queries]  # by the first alone: for the second they stayed as they were


def test_a_gated_mlp_weighs_one_half_by_the_other() -> None:
    block = AttentionBlock(12, 3, 5, gated_mlp=True).double()
    assert block.mlp is not None
    x = torch.randn(2, 4, 12).double()
    values, gates = block.mlp.fc1(x).split(5, dim=-1)
    assert_same(block.mlp(x), block.mlp.fc2(values * torch.nn.functional.gelu(gates)))


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
