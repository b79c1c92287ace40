"""Perceiver IO's models: parts and the whole, folders, what they refuse."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_perceiver_io import KINDS, small_config, small_inputs, small_perceiver_io
from torch import Tensor
from transformers import AutoConfig, AutoModel

from perceiver_vl.models.perceiver_io import PerceiverIOConfig, PerceiverIOModel
from perceiver_vl.models.perceiver_io.inputs import neighbourhoods
from perceiver_vl.models.perceiver_io.published import PUBLISHED
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, checkpoint, differs


def logits_of(kind: str, model: Any, **more: Any) -> Tensor:
    logits = model(**small_inputs(kind), **more).logits
    return torch.cat([one.flatten() for one in logits.values()]) if isinstance(logits, dict) else logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_each_weight_once_and_gives_the_model_again(kind: str, tmp_path: Path) -> None:
    model = small_perceiver_io(kind)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert_same(logits_of(kind, again), logits_of(kind, model))
    assert len(model.encoder.blocks if kind == "array" else model.perceiver.encoder.blocks) == 2
    assert type(AutoConfig.from_pretrained(tmp_path)) is PerceiverIOConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is PerceiverIOModel


@pytest.mark.parametrize(
    "chunks", [{"chunk_size": 5}, {"query_chunk_size": 7}, {"chunk_size": 1, "query_chunk_size": 1}]
)
@pytest.mark.parametrize("kind", ["array", "flow", "multimodal"])
def test_reading_and_asking_in_chunks_is_reading_and_asking(kind: str, chunks: dict[str, int]) -> None:
    model = small_perceiver_io(kind)
    assert_same(logits_of(kind, model, **chunks), logits_of(kind, model))


def test_an_image_may_be_read_in_chunks() -> None:
    model = small_perceiver_io("image-fourier")
    assert_same(logits_of("image-fourier", model, chunk_size=10), logits_of("image-fourier", model))


def test_no_query_sees_another() -> None:
    """So any points may be asked for alone (paper, 3.2): training asks for a few."""
    model, inputs = small_perceiver_io("multimodal"), small_inputs("multimodal")
    points = {"image": torch.tensor([3, 100, 191]), "audio": torch.tensor([5, 0])}
    some, every = model(**inputs, points=points).logits, model(**inputs).logits
    assert_same(some["image"], every["image"][:, points["image"]])
    assert_same(some["audio"], every["audio"].unflatten(1, (6, 4))[:, points["audio"]].flatten(1))
    assert_same(some["label"], every["label"])


def test_a_label_that_is_masked_has_no_influence() -> None:
    inputs = small_inputs("multimodal")
    other = inputs | {"label": inputs["label"] + 1}
    hidden = small_perceiver_io("multimodal")
    assert_same(hidden(**other).logits["label"], hidden(**inputs).logits["label"])
    shown = small_perceiver_io("multimodal", label_mask_probability=0.0)
    assert differs(shown(**other).logits["label"], shown(**inputs).logits["label"])


def test_shorter_texts_are_asked_for_less() -> None:
    model, ids = small_perceiver_io("language"), small_inputs("language")["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 7:] = 0
    assert_same(model(ids[:, :7]).logits, model(ids, mask).logits[:, :7])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight_that_takes_part(kind: str) -> None:
    model = small_perceiver_io(kind).train()
    logits_of(kind, model).square().sum().backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == ({"embeddings.mask.audio", "embeddings.mask.image"} if kind == "multimodal" else set())


@pytest.mark.parametrize("kind", ["array", "language"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for enable in (False, True):
        model = small_perceiver_io(kind).train()
        checkpoint(model, enable)
        logits_of(kind, model).square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_same(checkpointed, plain)


@pytest.mark.parametrize("kind", ["text", "image-conv", "flow"])
def test_losses_go_down(kind: str) -> None:
    model, inputs = small_perceiver_io(kind).train(), small_inputs(kind)
    labels = torch.tensor([0, 3]) if kind != "flow" else torch.randn(2, 8, 12, 2).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_published_sizes_have_the_published_parameters() -> None:
    """Appendix of the paper, in millions: bytes 201, images with Fourier features 48.4."""
    with torch.device("meta"):
        found = {
            task: PerceiverIOModel(PerceiverIOConfig(**PUBLISHED[task])).num_parameters() / 1e6 for task in PUBLISHED
        }
    assert found["language"] == pytest.approx(201, abs=3)
    assert found["image-fourier"] == pytest.approx(48.4, abs=0.3)


def test_neighbourhoods_are_the_pixels_around() -> None:
    frames = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).view(1, 2, 3, 4, 5)
    around = neighbourhoods(frames)
    assert around.shape == (1, 2, 27, 4, 5)
    for row, column, channel in ((0, 1, 2), (2, 0, 0), (1, 1, 1)):
        assert around[0, 1, 9 * row + 3 * column + channel, 2, 2] == frames[0, 1, channel, 1 + row, 1 + column]
    assert around[0, 0, :9, 0].eq(0).all()


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("array", {"num_latents": 0}, "num_latents=0: need at least 1"),
        ("array", {"num_attention_heads": 3}, "num_attention_heads=3: must divide qk_size=16 evenly"),
        ("language", {"decoder_qk_size": 12}, "num_decoder_heads=8: must divide decoder_qk_size=12 evenly"),
        ("flow", {"image_size": [8]}, "image_size=[8], max_resolution=[8]: need two numbers each"),
        ("multimodal", {"audio_samples": 25}, "samples_per_patch=4, video_patch_size=4: must divide audio_samples=25"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_config(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        (
            "language",
            {"input_ids": torch.zeros(1, 13, dtype=torch.long)},
            "input_ids: 13 bytes, the positions are of 12",
        ),
        (
            "image-fourier",
            {"pixel_values": torch.zeros(1, 1, 8, 12)},
            "pixel_values (1, 1, 8, 12): need (batch, 3, H, W)",
        ),
        (
            "image-learned",
            {"pixel_values": torch.zeros(1, 3, 8, 8)},
            "pixel_values of [8, 8]: learned positions are of",
        ),
        ("flow", {"frames": torch.zeros(1, 2, 3, 8, 12)}, "frames (1, 2, 3, 8, 12): need (batch, 2, 27, 8, 12)"),
        (
            "multimodal",
            small_inputs("multimodal") | {"audio": torch.zeros(2, 20, 1)},
            "audio (2, 20, 1): need (batch, 24",
        ),
        (
            "multimodal",
            small_inputs("multimodal") | {"points": {"image": torch.tensor([192])}},
            "points of image: need",
        ),
    ],
)
def test_inputs_of_another_kind_are_refused_in_a_line(kind: str, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        small_perceiver_io(kind)(**inputs)
