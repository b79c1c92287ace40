"""The Perceiver: what it reads, that reading in parts is reading, and its folder."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_perceivers import small_config, small_perceiver
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from perceiver_vl.layers.positions import grid_positions
from perceiver_vl.models.perceiver import IterativePerceiverForClassification, IterativePerceiverModel
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, checkpoint, differs

SHARINGS = ("none", "all", "all_but_first")


def images(batch: int = 2, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, *(shape or (4, 5)), 2, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("cross", SHARINGS)
@pytest.mark.parametrize("own", SHARINGS)
def test_a_folder_holds_each_weight_once_and_gives_the_model_again(cross: str, own: str, tmp_path: Path) -> None:
    reads = 4 if cross == "none" else 3
    model = small_perceiver(share_cross_attentions=cross, share_self_attentions=own, num_cross_attentions=reads)
    model.save_pretrained(tmp_path)
    wanted = model(images()).logits
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is IterativePerceiverForClassification
    assert_same(loaded(images()).logits, wanted)
    assert_same(AutoModel.from_pretrained(tmp_path)(images()).last_hidden_state, model.perceiver(images())[0])
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    one_block = sum(weight.numel() for weight in model.perceiver.encoder.blocks[0].self_attentions.parameters())
    blocks = {"none": 4, "all": 1, "all_but_first": 2}[own]
    shared = sum(weight.numel() for name, weight in loaded.named_parameters() if ".self_attentions." in name)
    assert shared == blocks * one_block
    assert load_file(tmp_path / "model.safetensors").keys() == dict(loaded.named_parameters()).keys()


def test_the_paper_s_model_has_the_paper_s_parameters() -> None:
    with torch.device("meta"):
        shared = IterativePerceiverForClassification(small_config().__class__(num_labels=1000))
        apart = small_config().__class__(num_labels=1000, share_cross_attentions="none", share_self_attentions="none")
        assert shared.num_parameters() / 1e6 == pytest.approx(44.9, abs=0.05)
        assert IterativePerceiverForClassification(apart).num_parameters() / 1e6 == pytest.approx(326.2, abs=0.05)


@settings(max_examples=20, deadline=None)
@given(chunk=st.integers(1, 25), masked=st.booleans(), training=st.booleans(), cross=st.sampled_from(SHARINGS[1:]))
def test_reading_in_chunks_is_reading(chunk: int, masked: bool, training: bool, cross: str) -> None:
    model = small_perceiver(share_cross_attentions=cross).train(training)
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(chunk)) > 0.4 if masked else None
    assert_same(model(images(), mask, chunk_size=chunk).logits, model(images(), mask).logits)


def test_chunks_are_made_when_they_are_asked_for() -> None:
    """The array is never there as a whole: what the read gets at once is a chunk of it."""
    model, widest = small_perceiver(), []
    norm = model.perceiver.encoder.blocks[0].cross_attention.input_norm
    norm.register_forward_hook(lambda _, given, __: widest.append(given[0].shape[1]))
    model(images(), chunk_size=6)
    assert widest == [6, 6, 6, 2]


def test_pixels_may_come_in_any_order_that_keeps_their_positions() -> None:
    """The paper's claim (4.1): nothing but the positions tells what is next to what."""
    model, pixels = small_perceiver(), images().flatten(1, 2)
    places = grid_positions([4, 5]).expand(2, -1, -1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    wanted = model(images()).logits
    assert_same(model(pixels, positions=places).logits, wanted)
    assert_same(model(pixels[:, order], positions=places[:, order]).logits, wanted)
    assert differs(model(pixels[:, order], positions=places).logits, wanted)


def test_masked_inputs_have_no_influence() -> None:
    model, mask = small_perceiver(), torch.ones(2, 4, 5, dtype=torch.bool)
    mask[0, 1:] = False
    other = images()
    other[0, 1:] = 7.0
    assert_same(model(other, mask).logits, model(images(), mask).logits)
    assert differs(model(other).logits, model(images()).logits)


def test_bytes_are_numbers_from_minus_one_to_one() -> None:
    model, levels = small_perceiver(), torch.randint(256, (2, 4, 5, 2), dtype=torch.uint8)
    assert_same(model(levels).logits, model(levels.double() / 127.5 - 1).logits, 1e-6)


@pytest.mark.parametrize("shape", [[9], [4, 5], [2, 3, 4]])
def test_any_number_of_axes_of_any_size(shape: list[int]) -> None:
    """Sound, images, video; sizes other than those of training keep the frequencies."""
    model = small_perceiver(input_shape=shape)
    found = [model(images(2, *(size + more for size in shape))).logits for more in (0, 2)]
    assert found[0].shape == found[1].shape == (2, 3)
    assert all(one.isfinite().all() for one in found)


def test_points_are_no_more_than_their_positions() -> None:
    model = small_perceiver(num_channels=0, input_shape=[8, 8, 8])
    points = torch.rand(2, 30, 3, dtype=torch.float64) * 2 - 1
    wanted = model(positions=points).logits
    assert_same(model(positions=points.flip(1)).logits, wanted)
    assert_same(model(positions=points, chunk_size=7).logits, wanted)


@pytest.mark.parametrize("chunk", [None, 6])
def test_gradients_reach_every_weight(chunk: int | None) -> None:
    model = small_perceiver(pooling="query").train()
    model(images(), labels=torch.tensor([0, 2]), chunk_size=chunk).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = small_perceiver().train()
        checkpoint(model, enable)
        model(images(), labels=torch.tensor([0, 2])).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_same(checkpointed, plain)


def test_hidden_states_and_attentions() -> None:
    output = small_perceiver()(images(), output_hidden_states=True, output_attentions=True)
    assert [tuple(latents.shape) for latents in output.hidden_states] == [(2, 6, 12)] * 5
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 6, 6)] * 8
    base = small_perceiver().perceiver(images(), output_attentions=True)
    assert [tuple(weights.shape) for weights in base.cross_attentions] == [(2, 1, 6, 20)] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_latents": 0}, "num_latents=0: need at least 1"),
        ({"num_bands": -1}, "num_channels=2, num_bands=-1: need 0 or more of each"),
        ({"input_shape": []}, r"input_shape=[]: need the size of each axis, at least one axis"),
        ({"max_resolution": [4.0]}, "max_resolution=[4.0]: need one for each axis of input_shape=[4, 5]"),
        ({"num_attention_heads": 5}, "num_attention_heads=5: must divide attention_size=12 evenly"),
        ({"num_cross_attentions": 5}, "num_cross_attentions=5: each begins a block, so at most num_blocks=4"),
        (
            {"share_cross_attentions": "none"},
            "num_cross_attentions=3: with share_cross_attentions='none' need at least",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_config(**changes)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "inputs=None: need an array of 2 channels"),
        ({"inputs": torch.zeros(2, 4, 5, 3)}, "inputs (2, 4, 5, 3): need (batch, axis, axis, 2 channels)"),
        ({"inputs": torch.zeros(2, 20, 2)}, "inputs (2, 20, 2): need (batch, axis, axis, 2 channels)"),
        ({"inputs": torch.zeros(2, 4, 5, 2), "mask": torch.ones(2, 19)}, "mask (2, 19): need one value for each of 20"),
        (
            {"inputs": torch.zeros(2, 9, 2), "positions": torch.zeros(2, 8, 2)},
            "inputs (2, 9, 2): not those of positions",
        ),
        (
            {"inputs": torch.zeros(2, 9, 2), "positions": torch.zeros(2, 9, 3)},
            "positions (2, 9, 3): need (batch, points, 2)",
        ),
        ({"inputs": torch.zeros(2, 4, 5, 2), "chunk_size": 0}, "chunk_size=0: need at least 1 input at a time"),
    ],
)
def test_inputs_of_another_kind_are_refused_in_a_line(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_perceiver()(**inputs)


def test_latents_begin_as_the_paper_says() -> None:
    torch.manual_seed(0)
    latents = IterativePerceiverModel(small_config(num_latents=300, hidden_size=40)).encoder.latents
    assert isinstance(latents, Tensor)
    assert latents.std().item() == pytest.approx(0.02, rel=0.05)
