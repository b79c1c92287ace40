"""Fewer keys, held against loops written out; and sizes as numbers that are added to scores."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.layers.attention import Attention, AttentionBlock
from perceiver_vl.layers.partial_attention import merge
from perceiver_vl.layers.token_reduction import (
    PointPredictor,
    even_points,
    merge_tokens,
    merging_flops,
    roll_over_time,
    route_regions,
    sample_points,
    select_by_text,
    selecting_flops,
    summarise_frames,
)
from tiny import assert_same, differs


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


# --- Merging --------------------------------------------------------------------------------------------------------


def merged_by_hand(tokens: list[Tensor], sizes: list[float], count: int) -> list[tuple[Tensor, float, list[int]]]:
    """Value, size and members of each token that is left."""
    now = [(token, size, [place]) for place, (token, size) in enumerate(zip(tokens, sizes, strict=True))]
    while len(now) > max(1, count):
        even, odd = now[::2], now[1::2]
        merges = len(now) - max(1, count, (len(now) + 1) // 2)
        pairs = []
        for place, (token, size, _) in enumerate(even):
            alike = [cosine(token, other) if weight > 0 else -2.0 for other, weight, _ in odd]
            best = max(range(len(odd)), key=lambda one: alike[one])
            pairs.append((2.0 if size == 0 else alike[best], place, best))
        going = {place: best for _, place, best in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:merges]}
        left = [one for place, one in enumerate(even) if place not in going]
        for place, one in enumerate(odd):
            group = [one, *[even[other] for other, best in going.items() if best == place]]
            total = sum(size for _, size, _ in group)
            mean = sum(size * value for value, size, _ in group) / max(total, 1e-6)
            left.append((torch.as_tensor(mean), total, [member for _, _, members in group for member in members]))
        now = left
    return now


@pytest.mark.parametrize("number", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("padding", [False, True])
def test_the_most_alike_are_merged(number: int, count: int, padding: bool) -> None:
    tokens = drawn(3, number, 6, seed=number)
    sizes = torch.ones(3, number).double()
    if padding:
        sizes[0, number // 2 :], sizes[1, ::3] = 0, 0
        sizes[2, 0] = 3
    found = merge_tokens(tokens, count, sizes)
    for example in range(3):
        wanted = merged_by_hand(list(tokens[example]), sizes[example].tolist(), count)
        assert found.tokens.shape[1] == len(wanted)
        for place, (value, size, members) in enumerate(wanted):
            assert found.sizes[example, place] == size
            assert sorted(members) == (found.places[example] == place).nonzero()[:, 0].tolist()
            if size > 0:
                assert_same(found.tokens[example, place], value)
    assert torch.equal(found.sizes.sum(1), sizes.sum(1))


def test_nothing_is_merged_where_there_is_room() -> None:
    tokens = drawn(2, 5, 6)
    found = merge_tokens(tokens, 5)
    assert found.tokens is tokens
    assert torch.equal(found.sizes, torch.ones(2, 5).double())
    assert torch.equal(found.places, torch.arange(5).expand(2, -1))


def test_padding_changes_nothing() -> None:
    tokens, sizes = drawn(1, 8, 6), torch.ones(1, 8).double()
    sizes[0, 5:] = 0
    other = tokens.clone()
    other[0, 5:] = drawn(3, 6, seed=7)
    one, two = merge_tokens(tokens, 5, sizes), merge_tokens(other, 5, sizes)
    assert torch.equal(one.places[0, :5], two.places[0, :5])
    assert_same(one.tokens[one.sizes > 0], two.tokens[two.sizes > 0])
    assert one.sizes.sum() == 5


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_to_what_was_alike_is_the_same(implementation: str, qk_norm: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, qk_norm=qk_norm, implementation=implementation).double()
    kinds, queries = drawn(2, 4, 8), drawn(2, 3, 8, seed=1)
    tokens = kinds.repeat_interleave(2, 1)  # each one twice, the second beside the first
    found = merge_tokens(tokens, 4)
    assert torch.equal(found.sizes, torch.full((2, 4), 2.0).double())
    assert_same(attention(queries, found.tokens, found.sizes.log()), attention(queries, tokens))
    weights = attention.weights(queries, found.tokens, found.sizes.log())
    assert_same(weights, attention.weights(queries, tokens).unflatten(-1, (4, 2)).sum(-1))


def test_gradients_pass_through_the_means() -> None:
    tokens = drawn(2, 7, 4).requires_grad_()
    found = merge_tokens(tokens, 3)
    (found.tokens * found.sizes[..., None]).sum().backward()
    assert tokens.grad is not None
    assert_same(tokens.grad, torch.ones_like(tokens))


@pytest.mark.parametrize("number", [1, 6, 9])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_merging_costs_what_the_formula_says(number: int, count: int) -> None:
    with FlopCounterMode(display=False) as counter:
        merge_tokens(drawn(1, number, 6), count)
    assert counter.get_total_flops() == merging_flops(number, count, 6)


# --- Sizes in attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("absorb", [False, True])
def test_sizes_count_in_whole_and_in_parts(implementation: str, absorb: bool) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8, 2, implementation=implementation).double().eval()
    queries, inputs = drawn(2, 1, 8), drawn(2, 9, 8, seed=1)
    sizes = torch.tensor([[1, 2, 3, 0, 0, 1, 5, 1, 0], [0, 0, 0, 0, 1, 2, 0, 0, 0]]).double()
    with torch.no_grad():
        whole = block(queries, inputs, sizes.log(), absorb=absorb)
        for example in range(2):
            times = sizes[example].long()
            assert_same(
                whole[example : example + 1],
                block(queries[example : example + 1], inputs[example : example + 1].repeat_interleave(times, 1)),
            )
        parts = [
            block.partial_attention(queries, inputs[:, some], sizes[:, some].log(), absorb=absorb)
            for some in (slice(0, 4), slice(4, 9))
        ]
        assert_same(block.from_partial_attention(queries, merge(*parts)), whole)
        assert_same(block.forward_with_weights(queries, inputs, sizes.log())[0], whole)
        nothing = torch.full((2, 9), -torch.inf).double()
        assert_same(block(queries, inputs, nothing), block(queries, inputs, nothing.isfinite()))


def test_a_row_of_nothing_gives_no_gradient_that_is_no_number() -> None:
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(0)
        attention = Attention(8, 2, implementation=implementation).double()
        inputs = drawn(2, 5, 8).requires_grad_()
        sizes = torch.tensor([[1.0, 2, 1, 0, 1], [0, 0, 0, 0, 0]]).double()
        attention(drawn(2, 3, 8, seed=1), inputs, sizes.log()).square().sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.isfinite().all()
        assert inputs.grad[0].abs().sum() > 0


# --- Summaries, and rolling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_example", [False, True])
def test_of_every_few_frames_one_is_whole(per_example: bool) -> None:
    tokens, mask = drawn(2, 5, 3, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    places = torch.arange(5)
    found, logs = summarise_frames(tokens, mask, places.expand(2, -1) if per_example else places, 3)
    for example in range(2):
        wanted: list[tuple[Tensor, float]] = []
        for frame in range(5):
            if mask[example, frame] and frame % 3 == 0:
                wanted += [(token, 0.0) for token in tokens[example, frame]]
        for frame in range(5):
            if mask[example, frame] and frame % 3:
                wanted.append((tokens[example, frame].mean(0), math.log(3)))
        real = logs[example].isfinite()
        assert_same(found[example, real], torch.stack([value for value, _ in wanted]))
        assert_same(logs[example, real], torch.tensor([size for _, size in wanted], dtype=torch.float64))
    if not per_example:
        assert found.shape[1] == 2 * 3 + 3


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.6, 1.0])
def test_a_share_comes_from_the_neighbours(channels: bool, share: float) -> None:
    tokens = drawn(3, 5, 6, 7)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0]]).bool()
    found = roll_over_time(tokens, mask, share, channels=channels)
    size = 7 if channels else 6
    count = max(1, round(share * size))
    rolling = list(range(count)) if channels else [place for place in range(size) if place * count % size < count]
    assert len(rolling) == count
    wanted = tokens.clone()
    for example in range(3):
        real = mask[example].nonzero()[:, 0].tolist()
        for number, frame in enumerate(real):
            for turn, place in enumerate(rolling):
                other = real[(number + (1 if turn % 2 else -1)) % len(real)]
                if channels:
                    wanted[example, frame, :, place] = tokens[example, other, :, place]
                else:
                    wanted[example, frame, place] = tokens[example, other, place]
    assert torch.equal(found, wanted)
    assert torch.equal(found[2], tokens[2])  # an image has no neighbours


# --- What words ask for ---------------------------------------------------------------------------------------------


def selected_by_hand(
    tokens: Tensor, sizes: Tensor, keys: Tensor, words: Tensor, counts: tuple[int, int, int]
) -> list[tuple[Tensor, float]]:
    """Value and size of what is left of one example."""
    kept, recovered, merged = counts
    real = [place for place in range(len(tokens)) if sizes[place] > 0]
    score = {place: sum(cosine(keys[place], word) for word in words) / len(words) for place in real}
    order = sorted(real, key=lambda place: (-score[place], place))
    first, others = order[:kept], order[kept:]
    nearest = {place: max(cosine(keys[place], keys[one]) for one in first) for place in others}
    others.sort(key=lambda place: nearest[place])
    found = [(tokens[place], float(sizes[place])) for place in first + others[:recovered]]
    rest = sorted(others[recovered:])
    if rest:
        centres = [rest[(2 * number + 1) * len(rest) // (2 * merged)] for number in range(merged)]
        groups: list[list[int]] = [[] for _ in centres]
        for place in rest:
            alike = [cosine(keys[place], keys[centre]) for centre in centres]
            groups[max(range(merged), key=lambda one: round(alike[one], 12))].append(place)
        for group in groups:
            if group:
                total = float(sum(sizes[place] for place in group))
                found.append((torch.stack([sizes[place] * tokens[place] for place in group]).sum(0) / total, total))
    return found


@pytest.mark.parametrize("counts", [(4, 2, 2), (1, 0, 3), (3, 3, 1)])
def test_words_choose_what_is_unlike_comes_back_and_the_rest_is_merged(counts: tuple[int, int, int]) -> None:
    tokens, keys, words = drawn(3, 13, 5), drawn(3, 13, 6, seed=1), drawn(3, 4, 6, seed=2)
    text_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    sizes = torch.ones(3, 13).double()
    sizes[0, 3], sizes[1, 9:], sizes[2, 1:7] = 4, 0, 0
    found, logs = select_by_text(tokens, sizes, keys, words, text_mask, counts)
    assert found.shape == (3, sum(counts), 5)
    for example in range(3):
        real = logs[example].isfinite()
        wanted = selected_by_hand(
            tokens[example], sizes[example], keys[example], words[example][text_mask[example]], counts
        )
        assert_same(found[example, real], torch.stack([value for value, _ in wanted]))
        assert_same(logs[example, real].exp(), torch.tensor([size for _, size in wanted]).double())
    assert_same(logs.exp().sum(1), sizes.sum(1))
    with FlopCounterMode(display=False) as counter:
        select_by_text(tokens[:1], sizes[:1], keys[:1], words[:1], text_mask[:1], counts)
    assert counter.get_total_flops() == selecting_flops(13, 5, 6, counts)


def test_few_tokens_are_all_read() -> None:
    tokens, keys, words = drawn(1, 6, 5), drawn(1, 6, 6, seed=1), drawn(1, 2, 6, seed=2)
    sizes = torch.tensor([[1.0, 1, 1, 0, 2, 1]]).double()
    found, logs = select_by_text(tokens, sizes, keys, words, torch.ones(1, 2).bool(), (3, 2, 1))
    assert found is tokens
    assert torch.equal(logs, sizes.log())


def test_being_chosen_has_a_gradient() -> None:
    torch.manual_seed(0)
    attention, words = Attention(6, 2).double(), drawn(2, 3, 6, seed=2).requires_grad_()
    tokens, keys = drawn(2, 11, 6), drawn(2, 11, 6, seed=1).requires_grad_()
    sizes = torch.ones(2, 11).double()
    sizes[1, 3:] = 0
    found, logs = select_by_text(tokens, sizes, keys, words, torch.ones(2, 3).bool(), (3, 1, 2))
    attention(drawn(2, 4, 6, seed=3), found, logs).square().sum().backward()
    for grown in (keys.grad, words.grad):
        assert grown is not None
        assert grown.isfinite().all()
        assert grown[0].abs().sum() > 0
    assert keys.grad is not None
    assert not keys.grad[1, 3:].any()  # padding


# --- Points and regions ---------------------------------------------------------------------------------------------


def test_points_are_read_between_the_centres() -> None:
    frames = drawn(2, 3, 4, 5, 6).requires_grad_()  # rows 4, columns 5
    points = torch.rand(2, 3, 7, 2, generator=torch.Generator().manual_seed(0)).double()
    points[0, 0, 0], points[0, 0, 1] = torch.tensor([0.0, 1.0]), torch.tensor([0.5 / 4, 2.5 / 5])
    points.requires_grad_()
    found = sample_points(frames, points)
    grid = (points.flip(-1) * 2 - 1).flatten(0, 1)[:, :, None]  # columns first
    wanted = torch.nn.functional.grid_sample(
        frames.permute(0, 1, 4, 2, 3).flatten(0, 1), grid, padding_mode="border", align_corners=False
    )
    assert_same(found, wanted[..., 0].transpose(1, 2).unflatten(0, (2, 3)))
    assert_same(found[0, 0, 1], frames[0, 0, 0, 2])
    given = torch.autograd.grad(found.square().sum(), [frames, points], retain_graph=True)
    expected = torch.autograd.grad(wanted.square().sum(), [frames, points])
    assert_same(given[0], expected[0])
    inner = torch.ones_like(points, dtype=torch.bool)
    inner[0, 0, :2] = False  # on an edge and on a centre, where a slope has two sides
    assert_same(given[1][inner], expected[1][inner])
    assert given[1].abs().sum() > 0


def test_points_begin_evenly_and_move() -> None:
    torch.manual_seed(0)
    predictor = PointPredictor(8, 5)
    with torch.no_grad():
        predictor.fc2.weight.zero_()
        predictor.fc2.bias.copy_(even_points(5).logit().flatten())
    points = predictor(torch.randn(2, 3, 8), torch.randn(2, 4, 8))
    assert points.shape == (2, 4, 5, 2)
    assert torch.allclose(points[1, 2], even_points(5), atol=1e-6)
    spread = even_points(16)
    assert len({(int(4 * row), int(4 * column)) for row, column in spread.tolist()}) >= 12
    points.square().sum().backward()
    assert predictor.fc2.weight.grad is not None
    assert predictor.fc2.weight.grad.abs().sum() > 0


def test_the_regions_that_are_wanted_most_are_read_whole() -> None:
    frames, mask = drawn(2, 3, 4, 6, 5), torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    direction = drawn(5, seed=4)
    found, is_real = route_regions(frames, mask, 2, 2, lambda means, real: means @ direction)
    assert found.shape == (2, 3 * 2 * 4, 5)
    for example in range(2):
        regions = [
            frames[example, frame, row : row + 2, column : column + 2].flatten(0, 1)
            for frame in range(3)
            if mask[example, frame]
            for row in (0, 2)
            for column in (0, 2, 4)
        ]
        regions.sort(key=lambda region: -float(region.mean(0) @ direction))
        number = 2 * int(mask[example].sum())
        assert_same(found[example, is_real[example]], torch.cat(regions[:number]))
        assert int(is_real[example].sum()) == 4 * number
    everything, is_real = route_regions(frames, mask, 2, 100, lambda means, real: means @ direction)
    assert everything.shape == (2, 3 * 24, 5)
    assert differs(everything, frames.flatten(1, 3))
    assert_same(everything[0].sort(0).values, frames[0].flatten(0, 2).sort(0).values)
