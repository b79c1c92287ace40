"""A block with experts is, for each kind of input, the block of the weights that are chosen."""

from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.expert_block import ExpertBlock
from perceiver_vl.layers.experts import ExpertLinear
from tiny import assert_same

KINDS = ([[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]])


@pytest.fixture
def block() -> ExpertBlock:
    torch.manual_seed(0)
    made = ExpertBlock(12, 3, 20, num_attributes=2, num_experts=5, layer_scale=0.5).double()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def chosen(block: ExpertBlock, attributes: Tensor) -> AttentionBlock:
    """The block without experts of the two that the gates score highest, written out."""
    own = {}
    for name, value in block.state_dict().items():
        part, _, kind = name.rpartition(".")
        if name.startswith("gates."):
            continue
        if not isinstance(block.get_submodule(part), ExpertLinear) or kind == "scale":
            own[name] = value
            continue
        gate = block.gates[name.partition(".")[0]]
        hidden = torch.nn.functional.gelu(attributes @ gate.projection.weight.T + gate.projection.bias)
        chances = (gate.norm(hidden) @ gate.scores.weight.T).softmax(-1)[0]
        first, second = chances.argsort(descending=True)[:2].tolist()
        total = chances[first] + chances[second]
        own[name] = (chances[first] * value[first] + chances[second] * value[second]) / total
    plain = AttentionBlock(12, 3, 20, layer_scale=0.5).double()
    plain.load_state_dict(own)
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_block_of_the_weights_that_are_chosen(block: ExpertBlock, kind: list[list[float]]) -> None:
    attributes, latents = torch.tensor(kind).double(), torch.randn(2, 7, 12).double()
    plain = chosen(block, attributes)
    found = block(latents, attributes=attributes)
    assert_same(found, plain(latents))
    for one, other in zip(
        block.forward_with_weights(latents, attributes=attributes), plain.forward_with_weights(latents), strict=True
    ):
        assert_same(one, other)


def test_kinds_go_different_ways(block: ExpertBlock) -> None:
    latents = torch.randn(1, 4, 12).double()
    first, second, both = (block(latents, attributes=torch.tensor(kind).double()) for kind in KINDS)
    assert all((one - other).abs().max() > 1e-3 for one, other in ((first, second), (first, both), (second, both)))


def test_run_again_in_the_backward_pass_it_goes_the_way_it_went(block: ExpertBlock) -> None:
    """Two kinds forward, then both backward: what is run again must not take the experts of the last."""
    latents = torch.randn(1, 4, 12).double()

    def learned() -> list[Tensor]:
        block.zero_grad()
        sum(block(latents, attributes=torch.tensor(kind).double()).square().sum() for kind in KINDS[:2]).backward()
        return [parameter.grad.clone() for parameter in block.parameters() if parameter.grad is not None]

    wanted = learned()
    block.train()
    block.gradient_checkpointing = True
    runs = []
    block.norm1.register_forward_hook(lambda *_: runs.append(1))
    block._gradient_checkpointing_func = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    found = learned()
    assert len(runs) == 4
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
