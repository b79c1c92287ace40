"""Latents read and think: depth, aggregation, LayerDrop and budgets."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from perceiver_vl import ComputeBudget, PerceiverVLModel
from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from tiny import AGGREGATIONS, assert_same, differs, tiny_inputs, tiny_model


@contextmanager
def counted(model: PerceiverVLModel):  # type: ignore[no-untyped-def]
    """Which reads (block, modality) and how many self-attentions of each block ran meanwhile, as a Counter."""
    ran: Counter[tuple[int, str]] = Counter()

    def counter(number: int, what: str) -> Callable[..., None]:
        return lambda *_: ran.update([(number, what)])

    hooks = []
    modalities = model.encoder.modalities
    for place, block in enumerate(model.encoder.blocks):
        number, name = place // len(modalities), modalities[place % len(modalities)]
        hooks.append(block.cross_attention.register_forward_hook(counter(number, name)))
        hooks += [
            self_attention.register_forward_hook(counter(number, "self-attention"))
            for self_attention in block.self_attentions
        ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def blocks_in(model: nn.Module) -> int:
    return sum(isinstance(module, AttentionBlock) for module in model.modules())


# --- Input order, modalities, depth ---------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_input_array_is_not_seen(aggregation: str, seed: int) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation)
    inputs = tiny_inputs(seed=seed)
    inputs["frame_mask"][1, 2], inputs["attention_mask"][1, 4:] = 0, 0
    array = model.embed_inputs(**inputs)
    for part in (array.vision, array.vision_mask, array.text, array.text_mask):
        assert part is not None
    draw = torch.Generator().manual_seed(seed)
    v, t = (torch.randperm(part.shape[1], generator=draw) for part in (array.vision, array.text))
    shuffled = InputArray(array.vision[:, v], array.vision_mask[:, v], array.text[:, t], array.text_mask[:, t])
    assert_same(model.encode(shuffled), model.encode(array))


def test_joint_reads_one_array_whatever_is_vision_or_text_in_it() -> None:
    model = tiny_model(PerceiverVLModel)
    array = model.embed_inputs(**tiny_inputs())
    exchanged = InputArray(array.text, array.text_mask, array.vision, array.vision_mask)
    assert_same(model.encode(exchanged), model.encode(array))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("part", ["vision", "text"])
def test_both_modalities_reach_the_latents(aggregation: str, part: str) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation)
    array = model.embed_inputs(**tiny_inputs())
    tokens: Tensor = getattr(array, part)
    changed = replace(array, **{part: tokens + torch.randn_like(tokens)})
    assert differs(model.encode(changed), model.encode(array))


@pytest.mark.parametrize(
    ("aggregation", "cross_attentions"), [("joint", 1), ("separate", 2), ("separate_plus", 2), ("text_first", 2)]
)
def test_every_aggregation_is_as_deep(aggregation: str, cross_attentions: int) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation, self_attentions_per_block=3)
    assert blocks_in(model) == 3 * (cross_attentions + 3)
    with counted(model) as ran:
        model(**tiny_inputs())
    assert sum(times for (_, what), times in ran.items() if what == "self-attention") == 9
    assert sum(times for (_, what), times in ran.items() if what != "self-attention") == 3 * cross_attentions


@pytest.mark.parametrize(
    ("aggregation", "order"),
    [
        ("separate", "vision text think think think"),
        ("separate_plus", "vision think think text think"),
        ("text_first", "text vision think think think"),
    ],
)
def test_the_order_within_a_block_is_that_of_figure_3(aggregation: str, order: str) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation, self_attentions_per_block=3, num_blocks=1)
    array = model.embed_inputs(**tiny_inputs())
    blocks = dict(zip(model.encoder.modalities, model.encoder.blocks, strict=True))
    latents = (model.encoder.latents + model.encoder.latent_positions).expand(2, -1, -1)
    self_attentions = iter([one for block in blocks.values() for one in block.self_attentions])
    for step in order.split():
        if step == "think":
            latents = next(self_attentions)(latents)
        else:
            latents = blocks[step].cross_attention(latents, getattr(array, step), getattr(array, f"{step}_mask"))
    assert_same(model.encode(array), model.encoder.norm(latents))


# --- Latents and budgets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["learned", "fourier"])
def test_latents_are_told_apart_by_their_positions(position: str) -> None:
    model = tiny_model(PerceiverVLModel, latent_position=position)
    with torch.no_grad():
        model.encoder.latents.fill_(0.1)
    latents = model(**tiny_inputs(batch=1)).last_hidden_state[0]
    assert (torch.cdist(latents, latents) + torch.eye(6)).min() > 1e-3
    learned = "encoder.latent_positions" in dict(model.named_parameters())
    assert learned == (position == "learned")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cross_attentions", [1, 2, 3])
def test_fewer_cross_attentions_leave_out_the_later_ones_and_no_self_attention(
    aggregation: str, cross_attentions: int
) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation)
    inputs = tiny_inputs()
    with counted(model) as ran:
        model(**inputs, budget=ComputeBudget(cross_attentions=cross_attentions))
    assert {number for number, what in ran if what != "self-attention"} == set(range(cross_attentions))
    assert all(ran[number, "self-attention"] == 2 for number in range(3))


@pytest.mark.parametrize("cross_attentions", [1, 2, 3])
def test_a_budget_of_cross_attentions_is_the_model_without_the_others(cross_attentions: int) -> None:
    model = tiny_model(PerceiverVLModel)
    array = model.embed_inputs(**tiny_inputs())
    latents = (model.encoder.latents + model.encoder.latent_positions).expand(2, -1, -1)
    for number, block in enumerate(model.encoder.blocks):
        if number < cross_attentions:
            latents = block.cross_attention(latents, *array.joined)
        for self_attention in block.self_attentions:
            latents = self_attention(latents)
    assert_same(model.encode(array, ComputeBudget(cross_attentions=cross_attentions)), model.encoder.norm(latents))


@pytest.mark.parametrize("position", ["learned", "fourier"])
@pytest.mark.parametrize("latents", [1, 4, 6])
def test_a_budget_of_latents_uses_the_first_rows(position: str, latents: int) -> None:
    model = tiny_model(PerceiverVLModel, latent_position=position)
    inputs = tiny_inputs()
    found = model(**inputs, budget=ComputeBudget(latents=latents)).last_hidden_state
    assert found.shape == (2, latents, 16)
    with torch.no_grad():
        model.encoder.latents[latents:] = 100.0
    assert torch.equal(model(**inputs, budget=ComputeBudget(latents=latents)).last_hidden_state, found)
    if latents < 6:
        assert differs(model(**inputs).last_hidden_state[:, :latents], found)


# --- LayerDrop ------------------------------------------------------------------------------------------------------


def cross_attentions_kept(model: PerceiverVLModel, seeds: range) -> Counter[tuple[int, str]]:
    inputs = tiny_inputs(batch=1, frames=1, words=2)
    with counted(model) as ran, torch.no_grad():
        for seed in seeds:
            model.seed_layer_drop(seed)
            model(**inputs)
    return ran


@pytest.mark.parametrize("aggregation", ["joint", "separate"])
def test_layer_drop_drops_as_often_as_it_says_and_never_the_first(aggregation: str) -> None:
    trials, drop = 400, 0.3
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation, layer_drop=drop, self_attentions_per_block=1)
    kept = cross_attentions_kept(model.train(), range(trials))
    bound = 5 * math.sqrt(trials * drop * (1 - drop))
    for read in model.encoder.modalities:
        assert kept[0, read] == trials
        for number in (1, 2):
            assert abs(kept[number, read] - trials * (1 - drop)) < bound
    assert all(kept[number, "self-attention"] == trials for number in range(3))


def test_cross_attentions_are_dropped_independently_of_each_other() -> None:
    trials = 300
    model = tiny_model(PerceiverVLModel, modality_aggregation="separate", self_attentions_per_block=1).train()
    both = Counter[tuple[bool, ...]]()
    for seed in range(trials):
        ran = cross_attentions_kept(model, range(seed, seed + 1))
        both[tuple(bool(ran[number, read]) for number in (1, 2) for read in ("vision", "text"))] += 1
    assert len(both) == 16  # each of the sixteen patterns is due about 19 times


@pytest.mark.parametrize(("drop", "left"), [(0.0, {0, 1, 2}), (1.0, {0})])
def test_the_two_ends_of_layer_drop(drop: float, left: set[int]) -> None:
    kept = cross_attentions_kept(tiny_model(PerceiverVLModel, layer_drop=drop).train(), range(50))
    assert {number for number, what in kept if what == "joint"} == left


def test_layer_drop_leaves_evaluation_alone() -> None:
    model, inputs = tiny_model(PerceiverVLModel, layer_drop=1.0), tiny_inputs()
    found = model(**inputs).last_hidden_state
    model.seed_layer_drop(3)
    assert torch.equal(model(**inputs).last_hidden_state, found)
    assert differs(model.train()(**inputs).last_hidden_state, found)
    assert torch.equal(model.eval()(**inputs).last_hidden_state, found)


def test_one_seed_serves_all_forwards_until_it_is_changed() -> None:
    model, inputs = tiny_model(PerceiverVLModel).train(), tiny_inputs()
    outputs = []
    for seed in range(12):
        model.seed_layer_drop(seed)
        first = model(**inputs).last_hidden_state
        torch.manual_seed(seed + 100)  # the global generator is not what LayerDrop draws from
        assert torch.equal(model(**inputs).last_hidden_state, first)
        outputs.append(first)
    assert any(differs(output, outputs[0]) for output in outputs)
    model.seed_layer_drop(0)
    assert torch.equal(model(**inputs).last_hidden_state, outputs[0])


def test_a_seeded_layer_drop_takes_nothing_from_the_global_generator() -> None:
    model, inputs = tiny_model(PerceiverVLModel).train(), tiny_inputs()
    model.seed_layer_drop(1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model(**inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_every_forward_draws_anew() -> None:
    model, inputs = tiny_model(PerceiverVLModel).train(), tiny_inputs()
    model.seed_layer_drop(1)
    model.seed_layer_drop(None)
    torch.manual_seed(0)
    outputs = [model(**inputs).last_hidden_state for _ in range(12)]
    assert any(differs(output, outputs[0]) for output in outputs)


def test_layer_drop_and_a_budget_act_together() -> None:
    model = tiny_model(PerceiverVLModel, layer_drop=0.0).train()
    with counted(model) as ran:
        model(**tiny_inputs(), budget=ComputeBudget(cross_attentions=2))
    assert {number for number, what in ran if what == "joint"} == {0, 1}
