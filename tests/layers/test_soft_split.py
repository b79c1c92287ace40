"""Soft splits and tubelets, held against what is unfolded and gathered by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.layers.patch_stem import SoftSplitStem, patch_projection, split_flops, split_strides, tubelets
from tiny import assert_same


def stirred(stem: SoftSplitStem) -> SoftSplitStem:
    """In float64, no weight zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in stem.double().parameters():
            value += 0.3 * torch.randn_like(value)
    return stem


@pytest.mark.parametrize(
    ("patch", "strides"),
    [(1, (1,)), (2, (2,)), (3, (3,)), (4, (4,)), (6, (2, 3)), (8, (4, 2)), (12, (4, 3)), (16, (4, 2, 2)), (7, (7,))],
)
def test_there_is_a_token_for_each_patch(patch: int, strides: tuple[int, ...]) -> None:
    assert split_strides(patch) == strides
    stem = stirred(SoftSplitStem(16, patch))
    assert stem(torch.randn(2, 3, 2 * patch, 3 * patch).double()).shape == (2, 6, 16)


@pytest.mark.parametrize("patch", [4, 6, 8])
def test_a_stem_unfolds_projects_and_folds_in_turn(patch: int) -> None:
    stem = stirred(SoftSplitStem(10, patch))
    frames = torch.randn(2, 3, 3 * patch, 2 * patch).double()
    x, strides = frames, split_strides(patch)
    for number, stride in enumerate(strides):
        kernel, rows = 2 * stride - 1, x.shape[2] // stride
        windows = F.unfold(x, kernel, padding=stride // 2, stride=stride).transpose(1, 2)  # (F,places,C·k·k)
        tokens = windows @ stem.splits[number].weight.flatten(1).T + stem.splits[number].bias
        if number + 1 < len(strides):
            mlp, norm = stem.mlps[number], stem.norms[number]
            normed = F.layer_norm(tokens, (10,), norm.weight, norm.bias, norm.eps)
            tokens = tokens + F.gelu(normed @ mlp.fc1.weight.T + mlp.fc1.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
            x = tokens.transpose(1, 2).unflatten(2, (rows, -1))
    assert_same(stem(frames), tokens)


def test_a_token_sees_beyond_its_patch_and_not_far() -> None:
    stem = stirred(SoftSplitStem(8, 8))
    frames = torch.randn(1, 3, 32, 32).double()
    before = stem(frames).unflatten(1, (4, 4))
    frames[..., 7, 12] += 1  # the last row of the patches above, in the second column
    changed = (stem(frames).unflatten(1, (4, 4)) - before).abs().amax(-1)[0] > 1e-9
    assert changed[0, 1]
    assert changed[1, 1]
    assert not changed[2:].any()
    assert not changed[:, 3].any()


@pytest.mark.parametrize("patch", [3, 4, 6, 16])
def test_costs_are_what_the_formula_says(patch: int) -> None:
    with FlopCounterMode(display=False) as counter:
        SoftSplitStem(16, patch)(torch.randn(1, 3, 2 * patch, 2 * patch))
    assert counter.get_total_flops() == split_flops(16, patch, 3, 2 * patch)


def shown(mask: list[int], place: int) -> int:
    """The frame that is seen at a place: itself, the last real one before, or the first real one."""
    real = [number for number, value in enumerate(mask) if value]
    before = [number for number in real if number <= place]
    return before[-1] if before else (real[0] if real else 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_tubelet_shows_the_last_real_frame_again(size: int) -> None:
    masks = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    frames, mask = torch.randn(5, 5, 3, 2, 2), torch.tensor(masks).bool()
    grouped, real = tubelets(frames, mask, size)
    groups = -(-5 // size)
    assert grouped.shape == (5, groups, 3 * size, 2, 2)
    for clip, places in enumerate(masks):
        for group in range(groups):
            for number in range(size):
                place = min(group * size + number, 4)
                wanted = frames[clip, shown(places, place)]
                assert torch.equal(grouped[clip, group, 3 * number : 3 * number + 3], wanted)
            assert bool(real[clip, group]) == any(places[group * size : group * size + size])


def test_a_projection_of_tubelets_is_the_one_in_three_dimensions() -> None:
    projection = torch.nn.Conv2d(6, 7, 4, stride=4).double()
    frames, mask = torch.randn(2, 4, 3, 8, 12).double(), torch.ones(2, 4, dtype=torch.bool)
    grouped, _ = tubelets(frames, mask, 2)
    found = patch_projection(grouped.flatten(0, 1), projection).unflatten(0, (2, 2))
    weight: Tensor = projection.weight.unflatten(1, (2, 3)).transpose(1, 2)  # (D,C,t,p,p)
    wanted = F.conv3d(frames.transpose(1, 2), weight, projection.bias, stride=(2, 4, 4))  # (B,D,G,rows,columns)
    assert_same(found, wanted.flatten(3).permute(0, 2, 3, 1))
