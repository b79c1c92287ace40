"""Adapters of a pretrained encoder: where they lie, that they begin as nothing, and that nothing is left of them."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver_vl import PerceiverVLForRetrieval, UsageError
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from perceiver_vl.training.adapters import add_adapters, merged_adapters
from small_encoders import SMALL, save_dual, save_text, save_vision
from tiny import assert_same, differs


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A model over encoders of a kind."""

    def made(kind: str) -> PerceiverVLForRetrieval:
        if kind in ("clip", "siglip"):
            save_dual(tmp_path / kind, kind)
            initialise(tmp_path / "model", dual=tmp_path / kind, **SMALL)
        else:
            save_vision(tmp_path / kind, kind)
            save_text(tmp_path / "text")
            initialise(tmp_path / "model", vision=tmp_path / kind, text=tmp_path / "text", **SMALL)
        return PerceiverVLForRetrieval.from_pretrained(tmp_path / "model").double().eval()

    return made


def encoded(model: PerceiverVLForRetrieval) -> list[Tensor]:
    """What the encoders make of two frames and two texts."""
    draw, size = torch.Generator().manual_seed(0), model.config.image_size
    frames = torch.randn(2, 3, size, size, generator=draw, dtype=torch.float64)
    words = torch.randint(5, 20, (2, 6), generator=draw)
    base = model.perceiver_vl
    with torch.no_grad():
        return [base.vision_encoder(frames), *base.text_encoder(words, torch.ones_like(words))]


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers", "convnext", "clip", "siglip"])
def test_every_adapter_begins_as_nothing_learns_and_is_merged(kind: str, make: Any) -> None:
    model = make(kind)
    plain, names = encoded(model), sorted(model.state_dict())
    base = model.perceiver_vl
    for side, encoder in (("vision", base.vision_encoder), ("text", base.text_encoder)):
        weights = add_adapters(encoder, 2, f"encoders.{side}_lora")
        learning = {name for name, one in encoder.named_parameters() if one.requires_grad}
        assert len(learning) == len(weights) > 0
        assert all(".lora_" in name for name in learning)
    for one, wanted in zip(encoded(model), plain, strict=True):
        assert_same(one, wanted)

    found = [*base.vision_encoder(torch.randn(2, 3, *2 * [model.config.image_size]).double())[None]]
    found += base.text_encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    torch.stack([one.square().sum() for one in found]).sum().backward()
    for name, weight in model.named_parameters():
        if ".lora_B" in name:  # that of A waits for B, which begins as zeros
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 0, name
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))

    adapted, state = encoded(model), {name: one.clone() for name, one in model.state_dict().items()}
    assert all(differs(one, other) for one, other in zip(adapted, plain, strict=True))
    with merged_adapters(model):
        assert sorted(model.state_dict()) == names
        for one, wanted in zip(encoded(model), adapted, strict=True):
            assert_same(one, wanted)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()


def test_a_bert_has_them_where_peft_puts_them(make: Any) -> None:
    encoder = make("vit").perceiver_vl.text_encoder
    add_adapters(encoder, 3, "encoders.text_lora")
    places = {name.partition(".lora_")[0] for name, one in encoder.named_parameters() if one.requires_grad}
    assert {place.rpartition(".")[2] for place in places} == {"query", "value"}
    assert len(places) == 2 * 2  # of two blocks


def test_without_peft_a_line_says_what_to_install(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, found = make("vit").perceiver_vl.text_encoder, builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"^encoders.text_lora=4: [^\n]*pip install 'perceiver-vl\[lora\]'$"):
        add_adapters(encoder, 4, "encoders.text_lora")
