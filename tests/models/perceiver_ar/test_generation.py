"""`generate` with a cache gives what it gives without, before and after the latents are full."""

from typing import Any

import pytest
import torch
from tiny_perceiver_ar import KINDS, tiny_ar, tokens
from torch import Tensor
from transformers import DynamicCache

from perceiver_vl import UsageError
from perceiver_vl.models.perceiver_ar import PerceiverARForCausalLM
from tiny import assert_same

HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "latents that grow": {"prefix_length": 9},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> PerceiverARForCausalLM:
    """One of each kind."""
    return tiny_ar(request.param)


@pytest.fixture
def prompt() -> dict[str, Tensor]:
    """Two rows of ten, of which one has three of padding."""
    given = tokens(10)
    mask = torch.ones_like(given)
    mask[0, :3] = 0
    return {"input_ids": given, "attention_mask": mask}


@pytest.mark.parametrize("how", HOW)
def test_a_cache_changes_nothing(model: PerceiverARForCausalLM, prompt: dict[str, Tensor], how: str) -> None:
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        output = model.generate(
            **prompt,
            **HOW[how],
            max_new_tokens=20,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(output)
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert found[0].sequences.shape[1] == 30
    for cached, plain in zip(found[0].logits, found[1].logits, strict=True):
        assert_same(cached, plain)


@pytest.mark.parametrize("lengths", [(9, 10, 12, 19), (3, 25, 26), (1, 2, 3, 4, 5, 6, 7, 8, 9)])
@pytest.mark.parametrize("prefix_length", [0, 8])
def test_any_steps_give_what_one_pass_gives(
    model: PerceiverARForCausalLM, lengths: tuple[int, ...], prefix_length: int
) -> None:
    given, cache, before = tokens(30), None, 0
    for length in (length for length in lengths if length > prefix_length):
        with torch.no_grad():
            output = model(given[:, before:length], prefix_length=prefix_length, past_key_values=cache, use_cache=True)
        cache, before = output.past_key_values, length
        wanted = model(given[:, :length], prefix_length=prefix_length).logits
        assert cache.get_seq_length() == length
        assert_same(output.logits, wanted[:, -output.logits.shape[1] :])


def test_padding_on_the_right_is_padding_on_the_left(model: PerceiverARForCausalLM, prompt: dict[str, Tensor]) -> None:
    left = model.generate(**prompt, max_new_tokens=15)
    right = {name: value.clone() for name, value in prompt.items()}
    for value in right.values():
        value[0] = value[0].roll(-3)
    found = model.generate(**right, max_new_tokens=15)
    assert torch.equal(found[:, 10:], left[:, 10:])


def test_a_batch_generates_what_its_rows_do(model: PerceiverARForCausalLM, prompt: dict[str, Tensor]) -> None:
    batch = model.generate(**prompt, max_new_tokens=15)
    alone = model.generate(prompt["input_ids"][:1, 3:], max_new_tokens=15)
    assert torch.equal(batch[0, 10:], alone[0, 7:])


def test_positions_of_several_axes_are_given_for_all_that_is_made() -> None:
    model = tiny_ar(position_tables=[14, 3])
    where = torch.stack([torch.arange(40) // 3, torch.arange(40) % 3], -1)[None]
    cached = model.generate(tokens(10), position_ids=where, max_new_tokens=15)
    assert torch.equal(cached, model.generate(tokens(10), position_ids=where, max_new_tokens=15, use_cache=False))
    logits = model(cached[:, :-1], position_ids=where).logits
    assert torch.equal(logits[:, -1].argmax(-1), cached[:, -1])
    with pytest.raises(UsageError, match="position_ids of shape"):
        model.generate(tokens(10), position_ids=where[:, :12], max_new_tokens=5)


def test_a_cache_goes_on_with_its_own_sequence_alone() -> None:
    model, given = tiny_ar(), tokens(12)
    with torch.no_grad():
        cache = model(given[:, :10], use_cache=True).past_key_values
    with pytest.raises(UsageError, match="past_key_values: of another sequence; leave it out"):
        model.generate(given.flip(1), past_key_values=cache, max_new_tokens=2)
    with pytest.raises(UsageError, match="past_key_values: of a sequence with other padding"):
        model(given[:, 10:], attention_mask=torch.zeros(2, 12), past_key_values=cache)
    with pytest.raises(UsageError, match="holds 10 tokens already"):
        model.generate(given[:, :10], past_key_values=cache, max_new_tokens=2)
    with pytest.raises(UsageError, match="past_key_values: of another sequence; leave it out"):
        model.generate(given[:, :10].flip(1), past_key_values=cache, max_new_tokens=2)
    for other in (tiny_ar(num_hidden_layers=3), tiny_ar(hidden_size=32)):
        with pytest.raises(UsageError, match="past_key_values: of another model; leave it out"):
            other(given[:, 10:], past_key_values=cache)
    with pytest.raises(UsageError, match="past_key_values of type DynamicCache: need what an earlier call"):
        model(given, past_key_values=DynamicCache())
    with pytest.raises(UsageError, match="past_key_values: of 2 sequences, here are 1"):
        model(given[:1, 10:], attention_mask=torch.ones(1, 12), past_key_values=cache)
    assert torch.equal(
        model.generate(given, past_key_values=cache, max_new_tokens=5), model.generate(given, max_new_tokens=5)
    )


def test_generation_past_the_table_is_refused_before_it_begins() -> None:
    with pytest.raises(UsageError, match=r"max_length=41: this model has 40 positions.*set max_new_tokens=30 or fewer"):
        tiny_ar().generate(tokens(10), max_new_tokens=31)
    with pytest.raises(UsageError, match=r"max_length=42: [^\n]+ takes 41; give a shorter prompt$"):
        tiny_ar().generate(tokens(41), max_new_tokens=1)
    assert tiny_ar().generate(tokens(10), max_new_tokens=30).shape == (2, 40)


def test_positions_from_the_end_take_no_cache() -> None:
    model = tiny_ar(position_tables=[40])
    with pytest.raises(UsageError, match="use use_cache=False"):
        model.generate(tokens(10), max_new_tokens=2)
    assert model.generate(tokens(10), max_new_tokens=2, use_cache=False).shape == (2, 12)
