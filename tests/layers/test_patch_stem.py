"""A stem of convolutions and what mixes tokens over time, held against arithmetic written out."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl.layers.patch_stem import ConvolutionalStem, TemporalMixing, mixing_flops, stem_flops, stem_widths


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, no weight zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.double().parameters():
            value += 0.3 * torch.randn_like(value)
    return module


@pytest.mark.parametrize("patch", [1, 2, 8, 16])
def test_a_stem_gives_a_token_for_each_patch(patch: int) -> None:
    stem = stirred(ConvolutionalStem(16, patch))
    frames = torch.randn(2, 3, 2 * patch, 3 * patch).double()
    tokens = stem(frames)
    assert tokens.shape == (2, 6, 16)
    if patch > 1:
        assert stem_widths(16, patch)[-1] == 16


def test_a_stem_is_its_convolutions_norms_and_sums() -> None:
    stem = stirred(ConvolutionalStem(8, 4))
    frames = torch.randn(1, 3, 8, 8).double()
    x = frames
    for stage in range(2):
        halved = F.conv2d(x, stem.halve[stage].weight, stem.halve[stage].bias, stride=2, padding=1)
        x = F.gelu(normed(halved, stem.norms[stage]))
        added = F.conv2d(x, stem.add[stage].weight, stem.add[stage].bias, padding=1)
        x = x + F.gelu(normed(added, stem.add_norms[stage]))
    wanted = torch.einsum("bchw,dc->bhwd", x, stem.projection.weight[:, :, 0, 0]) + stem.projection.bias
    assert torch.allclose(stem(frames), wanted.flatten(1, 2), atol=1e-10)


def normed(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
    """Over channels and places together."""
    mean, deviation = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (deviation + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_mixing_adds_what_the_real_neighbours_have(kernel: int) -> None:
    mixing = stirred(TemporalMixing(6, kernel))
    tokens, mask = torch.randn(2, 4, 3, 6).double(), torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]]).bool()
    found = mixing(tokens, mask)
    seen = mixing.norm(tokens)
    for clip in range(2):
        for frame in range(4):
            total = mixing.over_time.bias.expand(3, -1)
            for tap in range(kernel):
                other = frame + tap - kernel // 2
                if 0 <= other < 4 and mask[clip, other]:
                    total = total + seen[clip, other] @ mixing.over_time.weight[:, :, tap].T
            wanted = tokens[clip, frame] + mixing.back(F.gelu(total))
            assert torch.allclose(found[clip, frame], wanted, atol=1e-10)


def test_mixing_starts_as_nothing_and_learns() -> None:
    mixing = TemporalMixing(6, 3)
    tokens, mask = torch.randn(1, 3, 2, 6), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(mixing(tokens, mask), tokens)
    mixing(tokens, mask).square().sum().backward()
    assert mixing.back.weight.grad.abs().max() > 0


@pytest.mark.parametrize("patch", [4, 16])
def test_costs_are_what_the_formulas_say(patch: int) -> None:
    with FlopCounterMode(display=False) as counter:
        ConvolutionalStem(16, patch)(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() == stem_flops(16, patch, 3, 32)
    with FlopCounterMode(display=False) as counter:
        TemporalMixing(16, 3)(torch.randn(1, 4, 5, 16), torch.ones(1, 4, dtype=torch.bool))
    assert counter.get_total_flops() == mixing_flops(16, 3, 20)
