"""Latents and tokens that take part: drawn for a step of training, chosen by what they attend to; and early exits."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import ComputeBudget, PerceiverVLForRetrieval, PerceiverVLModel, UsageError
from perceiver_vl.layers.token_selection import drawn_latents, kept_tokens, most_diverse
from perceiver_vl.models.budget import TrainingBudget
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.flops import cached_vision_flops, encoder_flops
from tiny import AGGREGATIONS, assert_same, differs, tiny_config, tiny_inputs, tiny_model

VISION = ("pixel_values", "frame_mask")
TEXT = ("input_ids", "attention_mask")


def padded(batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    inputs = tiny_inputs(batch, frames=3, seed=seed)
    inputs["frame_mask"][0, 1:], inputs["attention_mask"][1, 4:] = 0, 0
    return inputs


def encoded_by(model: PerceiverVLModel, array: InputArray, which: int | Tensor) -> Tensor:
    """What these latents, and no others, make of an input array."""
    encoder = model.encoder
    latents = encoder.first_latents(which).expand(len(array), -1, -1)
    found: Tensor = encoder(array.by_block(encoder.modalities, len(encoder.blocks)), latents=latents)
    return found


# --- Draws ----------------------------------------------------------------------------------------------------------


@given(pool=st.integers(1, 20), seed=st.integers(0, 2**62))
def test_drawn_latents_are_different_ones_and_fewer_are_among_more(pool: int, seed: int) -> None:
    before: set[int] = set()
    for count in range(1, pool + 1):
        found = drawn_latents(pool, count, seed).tolist()
        assert found == sorted(set(found))
        assert len(found) == count
        assert before < set(found) <= set(range(pool))
        before = set(found)


@given(pool=st.integers(1, 20), seed=st.integers(0, 2**62), batch=st.integers(1, 3))
def test_examples_may_draw_latents_of_their_own(pool: int, seed: int, batch: int) -> None:
    for count in range(1, pool + 1):
        found = drawn_latents(pool, count, seed, batch)
        assert found.shape == (batch, count)
        assert torch.equal(found, drawn_latents(pool, count, seed, batch))
        for row in found.tolist():
            assert row == sorted(set(row))
            assert set(row) <= set(range(pool))
    several = drawn_latents(40, 20, seed, 2)
    assert not torch.equal(several[0], several[1])


def test_every_latent_is_drawn_as_often() -> None:
    times = Counter(place for seed in range(400) for place in drawn_latents(8, 2, seed).tolist())
    assert set(times) == set(range(8))
    assert all(60 < count < 140 for count in times.values())


@given(
    frames=st.integers(1, 4),
    patches=st.integers(1, 9),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**62),
    class_token=st.booleans(),
)
def test_of_each_frame_the_same_share_is_kept_and_never_none(
    frames: int, patches: int, share: float, seed: int, class_token: bool
) -> None:
    kept = kept_tokens(frames, patches + class_token, share, seed, class_token)
    assert torch.equal(kept, kept.unique())
    for frame in range(frames):
        of_frame = kept[kept // (patches + class_token) == frame] % (patches + class_token)
        assert (0 in of_frame.tolist()) or not class_token
        assert len(of_frame) == max(1, round(share * patches)) + class_token
    assert torch.equal(kept, kept_tokens(frames, patches + class_token, share, seed, class_token))


def test_a_training_budget_reads_with_the_drawn_latents() -> None:
    model, inputs = tiny_model(PerceiverVLModel), padded()
    rows = drawn_latents(6, 2, seed=5)
    assert rows.tolist() != [0, 1]
    wanted = encoded_by(model, model.embed_inputs(**inputs), rows)
    assert_same(model(**inputs, budget=TrainingBudget(latents=2, seed=5)).last_hidden_state, wanted)
    first = model(**inputs, budget=ComputeBudget(latents=2)).last_hidden_state
    assert differs(first, wanted)
    assert_same(first, encoded_by(model, model.embed_inputs(**inputs), 2))


def test_the_text_stream_draws_from_its_own_latents() -> None:
    model, inputs = tiny_model(PerceiverVLModel), padded()
    words = {name: inputs[name] for name in TEXT}
    wanted = encoded_by(model, model.embed_inputs(**words), drawn_latents(4, 2, seed=3))
    assert_same(model(**words, budget=TrainingBudget(text_latents=2, seed=3)).last_hidden_state, wanted)


def test_a_training_budget_of_everything_is_the_full_one() -> None:
    model, inputs = tiny_model(PerceiverVLModel), padded()
    found = model(**inputs, budget=TrainingBudget(latents=6, seed=3)).last_hidden_state
    assert torch.equal(found, model(**inputs).last_hidden_state)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_that_are_dropped_are_as_good_as_masked_and_cost_nothing(aggregation: str, class_token: bool) -> None:
    model = tiny_model(PerceiverVLModel, modality_aggregation=aggregation, frame_class_token=class_token)
    inputs, budget = padded(), TrainingBudget(token_share=0.5, seed=7)
    whole = model.embed_inputs(**inputs)
    assert whole.vision_mask is not None
    kept = kept_tokens(3, 4 + class_token, 0.5, 7, class_token)
    masked = torch.zeros_like(whole.vision_mask).index_fill(1, kept, True) & whole.vision_mask
    wanted = model.encode(InputArray(whole.vision, masked, whole.text, whole.text_mask))
    dropped = model.embed_inputs(**inputs, budget=budget)
    assert dropped.vision is not None
    assert dropped.vision.shape[1] == 3 * (2 + class_token)
    assert_same(model(**inputs, budget=budget).last_hidden_state, wanted)
    assert differs(wanted, model(**inputs).last_hidden_state)


# --- Early exits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_an_exit_gives_the_latents_of_its_block(aggregation: str, blocks: int) -> None:
    model, inputs = tiny_model(PerceiverVLModel, modality_aggregation=aggregation), padded()
    after: list[Tensor] = []
    each = len(model.encoder.modalities)
    for block in model.encoder.blocks[each - 1 :: each]:
        block.register_forward_hook(lambda *call: after.append(call[-1]))
    model(**inputs)
    wanted = model.encoder.norm(after[blocks - 1])
    after.clear()
    found = model(**inputs, budget=ComputeBudget(blocks=blocks)).last_hidden_state
    assert torch.equal(found, wanted)
    assert len(after) == blocks


@pytest.mark.parametrize("budget", [ComputeBudget(blocks=2, cross_attentions=1), ComputeBudget(blocks=1, latents=3)])
def test_a_cached_clip_is_left_at_the_same_exit(budget: ComputeBudget) -> None:
    model, inputs = tiny_model(PerceiverVLModel), padded()
    cache = model.cache_vision(**{name: inputs[name] for name in VISION}, budget=budget)
    assert len(cache.later) == (budget.cross_attentions or budget.blocks or 0) - 1
    words = {name: inputs[name] for name in TEXT}
    found = model(**words, vision_cache=cache).last_hidden_state
    assert_same(found, model(**inputs, budget=budget).last_hidden_state)


def test_an_exit_that_is_not_there_is_refused() -> None:
    model = tiny_model(PerceiverVLModel)
    with pytest.raises(UsageError, match=r"^budget blocks=4: more than 3, [^\n]+$"):
        model(**tiny_inputs(), budget=ComputeBudget(blocks=4))


# --- The diverse choice ---------------------------------------------------------------------------------------------


def chosen_by_definition(attention: Tensor, count: int) -> list[int]:
    """One example's `(N,M)`, step by step as the paper has it."""
    rows = [row / max(float(row.norm()), 1e-12) for row in attention]
    similar = [[abs(float(a @ b)) if i != j else -1.0 for j, b in enumerate(rows)] for i, a in enumerate(rows)]
    chosen = [min(range(len(rows)), key=lambda i: max(similar[i]))]
    while len(chosen) < count:
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(min(left, key=lambda i: max(similar[i][j] for j in chosen)))
    return chosen


@given(batch=st.integers(1, 3), latents=st.integers(1, 7), inputs=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_choice_is_that_of_its_definition(batch: int, latents: int, inputs: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    attention = (3 * torch.randn(batch, latents, inputs, generator=draw, dtype=torch.float64)).softmax(-1)
    for count in range(1, latents + 1):
        found = most_diverse(attention, count)
        assert found.shape == (batch, count)
        for row in range(batch):
            chosen = found[row].tolist()
            assert len(set(chosen)) == count
            wanted = chosen_by_definition(attention[row], count)
            if inputs > 1:  # with one input all rows are the same
                assert chosen == wanted
        assert torch.equal(found, most_diverse(attention, latents)[:, :count])


def test_one_latent_is_the_most_isolated_and_equal_rows_are_not_taken_twice() -> None:
    attention = torch.tensor([[[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0], [0, 0, 1.0], [0, 1.0, 0]]])
    assert most_diverse(attention, 1).tolist() == [[4]]
    assert set(most_diverse(attention, 3)[0].tolist()) in ({4, 0, 2}, {4, 0, 3})
    assert sorted(most_diverse(torch.zeros(1, 4, 3), 4)[0].tolist()) == [0, 1, 2, 3]


def by_hand(model: PerceiverVLModel, array: InputArray, count: int) -> Tensor:
    """Joint: all latents read, the most diverse go on."""
    encoder = model.encoder
    latents = encoder.first_latents(6).expand(len(array), -1, -1)
    tokens, mask = array.joined
    read = encoder.blocks[0].cross_attention
    attention = read.attention.weights(read.norm1(latents), tokens, mask).mean(1).detach()
    assert (attention.masked_select(~mask[:, None].expand_as(attention)) == 0).all()
    latents = read(latents, tokens, mask)
    latents = torch.stack(
        [one[chosen_by_definition(pattern, count)] for one, pattern in zip(latents, attention, strict=True)]
    )
    for number, block in enumerate(encoder.blocks):
        if number:
            latents = block.cross_attention(latents, tokens, mask)
        for self_attention in block.self_attentions:
            latents = self_attention(latents)
    return encoder.norm(latents)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_most_diverse_latents_of_each_example_go_on(count: int) -> None:
    model, inputs = tiny_model(PerceiverVLModel), padded()
    budget = ComputeBudget(latents=count, latent_choice="diverse")
    found = model(**inputs, budget=budget).last_hidden_state
    assert_same(found, by_hand(model, model.embed_inputs(**inputs), count))
    alone = {name: value[1:2] for name, value in inputs.items()}
    assert_same(model(**alone, budget=budget).last_hidden_state, found[1:2])


def test_choosing_all_is_not_choosing() -> None:
    model, inputs = tiny_model(PerceiverVLModel), padded()
    budget = ComputeBudget(latents=6, text_latents=4, latent_choice="diverse")
    assert torch.equal(model(**inputs, budget=budget).last_hidden_state, model(**inputs).last_hidden_state)
    words = {name: inputs[name] for name in TEXT}
    assert torch.equal(model(**words, budget=budget).last_hidden_state, model(**words).last_hidden_state)
    few = ComputeBudget(text_latents=2, latent_choice="diverse")
    assert model(**words, budget=few).last_hidden_state.shape == (3, 2, 16)
    assert torch.equal(model(**inputs, budget=few).last_hidden_state, model(**inputs).last_hidden_state)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cross_attentions", [1, 3])
def test_a_cached_clip_is_chosen_from_as_the_clip_is(aggregation: str, cross_attentions: int) -> None:
    model, inputs = tiny_model(PerceiverVLModel, modality_aggregation=aggregation), padded(4)
    clips = {name: inputs[name][:2] for name in VISION}
    pairs = {name: inputs[name][:2].repeat_interleave(2, 0) for name in VISION} | {name: inputs[name] for name in TEXT}
    budget = ComputeBudget(latents=2, text_latents=3, cross_attentions=cross_attentions, latent_choice="diverse")
    cache = model.cache_vision(**clips, budget=budget)
    words = {name: inputs[name] for name in TEXT}
    wanted = model(**pairs, budget=budget).last_hidden_state
    assert wanted.shape == (4, 2, 16)
    assert_same(model(**words, vision_cache=cache).last_hidden_state, wanted)
    assert_same(model(vision_cache=cache).last_hidden_state, model(**clips, budget=budget).last_hidden_state)


def test_what_is_drawn_for_a_step_is_not_cached() -> None:
    with pytest.raises(UsageError, match=r"^budget latents=2: drawn for a step of training, [^\n]+$"):
        tiny_model(PerceiverVLModel).cache_vision(tiny_inputs(1)["pixel_values"], budget=TrainingBudget(latents=2))


def test_a_stored_partial_attention_is_not_chosen_from() -> None:
    model = tiny_model(PerceiverVLModel)
    clip = tiny_inputs(1)["pixel_values"]
    budget = ComputeBudget(latents=2, cross_attentions=1, latent_choice="diverse")
    refused = pytest.raises(UsageError, match=r"^budget latents=2,cross_attentions=1,latent_choice=diverse: [^\n]+$")
    with refused, model.long_vision([clip], budget=budget):
        pass
    with refused:
        model.cache_from_partial_attention(model.cache_vision(clip, budget=budget).first.pack(), budget)
    texts_choose = ComputeBudget(text_latents=2, cross_attentions=1, latent_choice="diverse")
    with model.long_vision([clip], budget=texts_choose) as cache:
        wanted = model(pixel_values=clip, budget=texts_choose).last_hidden_state
        assert_same(model(vision_cache=cache).last_hidden_state, wanted)


def counted(model: PerceiverVLModel, **inputs: Any) -> int:
    """Operations of a forward; the fused attention of a CPU is not counted, so the plain one runs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


# --- What they cost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    "dials",
    [
        {"blocks": 1},
        {"blocks": 2, "cross_attentions": 1, "latents": 3},
        {"latents": 2, "text_latents": 3, "latent_choice": "diverse"},
        {"latents": 2, "text_latents": 1, "latent_choice": "diverse", "blocks": 2},
    ],
)
def test_exits_and_choices_cost_what_the_formulas_say(aggregation: str, dials: dict[str, Any]) -> None:
    config, budget = tiny_config(modality_aggregation=aggregation), ComputeBudget(**dials)
    model, inputs = PerceiverVLModel(config).requires_grad_(False).double().eval(), tiny_inputs(batch=1)
    for names, frames, words in ((VISION + TEXT, 3, 6), (VISION, 3, 0), (TEXT, 0, 6)):
        some = {name: inputs[name] for name in names}
        assert counted(model, **some, budget=budget) == encoder_flops(config, frames, words, budget)
    cache = model.cache_vision(**{name: inputs[name] for name in VISION}, budget=budget)
    words = {name: inputs[name] for name in TEXT}
    assert counted(model, **words, vision_cache=cache) == cached_vision_flops(config, 3, 6, budget)


def test_every_stream_of_retrieval_takes_every_dial() -> None:
    model, inputs = tiny_model(PerceiverVLForRetrieval), padded()
    budget = ComputeBudget(frames=2, latents=3, text_latents=2, cross_attentions=1, blocks=2, latent_choice="diverse")
    vision = model.encode_vision(*(inputs[name] for name in VISION), budget)
    text = model.encode_text(*(inputs[name] for name in TEXT), budget)
    assert (vision.shape, text.shape) == ((3, 3, 16), (3, 2, 16))
    assert differs(model.match_jointly(**inputs, budget=budget), model.match_jointly(**inputs))
