"""The latent encoder and the query decoder, each used alone."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.perceiver import EncoderRecord, Inputs, LatentEncoder, QueryDecoder
from tiny import assert_same, differs


def encoder_of(**options: Any) -> LatentEncoder:
    """Three blocks of two self-attentions over five latents, in evaluation."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_latents": 5, "num_blocks": 3, "self_attentions_per_block": 2, "input_size": 8}
    encoder = LatentEncoder(12, 3, **(sizes | options)).double().eval()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    """`(2,7,8)`, and a mask of different lengths `(2,7)`."""
    torch.manual_seed(1)
    return torch.randn(2, 7, 8).double(), torch.arange(7) < torch.tensor([[7], [4]])


def by_hand(encoder: LatentEncoder, latents: Tensor, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Block after block."""
    for block in encoder.blocks:
        latents = block.cross_attention(latents, inputs, mask)
        for self_attention in block.self_attentions:
            latents = self_attention(latents)
    return encoder.norm(latents)  # type: ignore[no-any-return]


def test_blocks_follow_each_other(inputs: tuple[Tensor, Tensor]) -> None:
    encoder = encoder_of()
    assert encoder.latents is not None
    assert_same(encoder(*inputs), by_hand(encoder, encoder.latents.expand(2, -1, -1), *inputs))


def test_latents_may_be_handed_in(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, latents = encoder_of(num_latents=None), torch.randn(2, 4, 12).double()
    assert_same(encoder(*inputs, latents), by_hand(encoder, latents, *inputs))
    with pytest.raises(ValueError, match="has none of its own"):
        encoder(*inputs)


@pytest.mark.parametrize(
    ("sharing", "attentions"),
    [
        ({}, 3 * (1 + 2)),
        ({"share_cross_attentions": "all"}, 1 + 3 * 2),
        ({"share_self_attentions": "all"}, 3 + 2),
        ({"share_cross_attentions": "all_but_first", "share_self_attentions": "all"}, 2 + 2),  # the Perceiver's
    ],
)
def test_blocks_share_what_they_are_told_to(
    sharing: dict[str, str], attentions: int, inputs: tuple[Tensor, Tensor]
) -> None:
    encoder = encoder_of(**sharing)
    assert sum(isinstance(module, AttentionBlock) for module in encoder.modules()) == attentions
    assert encoder.latents is not None
    found = encoder(*inputs)
    assert_same(found, by_hand(encoder, encoder.latents.expand(2, -1, -1), *inputs))
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    of_all_but_the_first = encoder_of(share_cross_attentions="all_but_first").blocks
    assert of_all_but_the_first[1].cross_attention is of_all_but_the_first[2].cross_attention
    assert of_all_but_the_first[0].cross_attention is not of_all_but_the_first[1].cross_attention


def test_blocks_may_be_of_different_depths(inputs: tuple[Tensor, Tensor]) -> None:
    encoder = encoder_of(self_attentions_per_block=[0, 1, 3])
    assert [len(block.self_attentions) for block in encoder.blocks] == [0, 1, 3]
    assert encoder(*inputs).shape == (2, 5, 12)


@pytest.mark.parametrize(
    "options",
    [
        {"self_attentions_per_block": [1, 2]},
        {"self_attentions_per_block": [1, 2, 2], "share_self_attentions": "all"},
        {"self_attentions_per_block": [1, 2, 3], "share_self_attentions": "all_but_first"},
    ],
)
def test_depths_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need one number for each of 3 blocks"):
        encoder_of(**options)


def test_cross_attentions_may_differ_from_self_attentions(inputs: tuple[Tensor, Tensor]) -> None:
    encoder = encoder_of(cross_attention={"num_heads": 1, "qk_size": 8, "norm_inputs": True, "intermediate_size": 12})
    block = encoder.blocks[0]
    assert block.cross_attention.attention.num_heads == 1
    assert block.cross_attention.attention.q_proj.out_features == 8
    assert block.self_attentions[0].attention.num_heads == 3
    assert encoder(*inputs).shape == (2, 5, 12)


def test_an_exit_is_the_normed_state_after_its_block(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, record = encoder_of(), EncoderRecord(hidden_states=[])
    last = encoder(*inputs, record=record)
    states = record.hidden_states
    assert states is not None
    assert len(states) == 4  # before the first block and after each of three, the last one normed
    assert torch.equal(states[-1], last)
    assert encoder.latents is not None
    assert torch.equal(states[0], encoder.latents.expand(2, -1, -1))
    for blocks in (1, 2):
        assert torch.equal(encoder(*inputs, blocks=blocks), encoder.norm(states[blocks]))


def test_the_weights_of_all_attentions_can_be_noted(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, record = encoder_of(), EncoderRecord(cross_attentions=[], attentions=[])
    plain = encoder(*inputs)
    assert_same(encoder(*inputs, record=record), plain)
    assert record.cross_attentions is not None
    assert record.attentions is not None
    assert [weights.shape for weights in record.cross_attentions] == [(2, 3, 5, 7)] * 3
    assert [weights.shape for weights in record.attentions] == [(2, 3, 5, 5)] * 6
    assert all((weights[1, ..., 4:] == 0).all() for weights in record.cross_attentions)
    for weights in record.cross_attentions + record.attentions:
        assert_same(weights.sum(-1), torch.ones(2, 3, 5).double())


def test_blocks_may_attend_to_different_inputs_or_to_none(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, (tokens, mask) = encoder_of(), inputs
    assert encoder.latents is not None
    latents = encoder.latents.expand(2, -1, -1)
    others = torch.randn(2, 3, 8).double()
    found = encoder([Inputs(tokens, mask), None, Inputs(others)], latents=latents)
    wanted = latents
    for block, given in zip(encoder.blocks, ((tokens, mask), None, (others, None)), strict=True):
        wanted = wanted if given is None else block.cross_attention(wanted, *given)
        for self_attention in block.self_attentions:
            wanted = self_attention(wanted)
    assert_same(found, encoder.norm(wanted))


def test_inputs_in_parts_are_the_inputs_whole(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, (tokens, mask) = encoder_of(), inputs
    assert encoder.latents is not None
    latents = encoder.latents.expand(2, -1, -1)
    given = []
    for block in encoder.blocks:
        later = block.cross_attention.keys_values(tokens[:, 5:], mask[:, 5:])
        given.append(Inputs(parts=[(tokens[:, :2], mask[:, :2]), (tokens[:, 2:5], mask[:, 2:5]), later]))
    assert_same(encoder(given, latents=latents), encoder(tokens, mask))
    with pytest.raises(ValueError, match="give their tokens, too"):
        encoder(given, latents=latents, keep_latents=2)


def test_only_the_most_diverse_latents_go_on(inputs: tuple[Tensor, Tensor]) -> None:
    encoder = encoder_of()
    assert encoder(*inputs, keep_latents=2).shape == (2, 2, 12)
    some = encoder(*inputs, keep_latents=5)  # all of them, in the order of the choice
    assert_same(some.sort(1).values, encoder(*inputs).sort(1).values)


def test_layer_drop_is_drawn_from_its_seed_and_spares_the_first(inputs: tuple[Tensor, Tensor]) -> None:
    encoder = encoder_of(layer_drop=0.5, undropped=2).train()
    patterns = Counter[tuple[bool, ...]]()
    for seed in range(60):
        encoder.layer_drop_seed = seed
        attending = encoder.attending_blocks()
        assert attending == encoder.attending_blocks()
        assert torch.equal(encoder(*inputs), encoder(*inputs, attending=attending))
        patterns[tuple(attending)] += 1
    assert set(patterns) == {(True, True, True), (True, True, False)}
    assert min(patterns.values()) > 15
    assert encoder.eval().attending_blocks(2) == [True, True, False]


@pytest.mark.parametrize("absorb", [False, True])
def test_queries_attend_to_latents(absorb: bool) -> None:
    torch.manual_seed(0)
    decoder = QueryDecoder(12, 3, num_queries=4, input_size=8).double()
    latents, mask = torch.randn(2, 9, 8).double(), torch.arange(9) < torch.tensor([[9], [5]])
    assert decoder.queries is not None
    queries = decoder.queries.expand(2, -1, -1)
    found = decoder(latents, mask=mask, absorb=absorb)
    assert_same(found, decoder.norm(decoder.block(queries, latents, mask)))
    assert_same(decoder(latents, queries[:, :1], mask, absorb=absorb), found[:, :1])
    halves = decoder.partial_attention(latents, queries, absorb=absorb)
    assert_same(decoder.from_partial_attention(queries, halves), decoder(latents, queries))
    assert differs(decoder(latents), found)
    with pytest.raises(ValueError, match="has none of its own"):
        QueryDecoder(12, 3)(latents)
