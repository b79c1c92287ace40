"""Perceiver TF: its folder, its cost, who influences whom in time, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForAudioFrameClassification

from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription, PerceiverTFModel
from perceiver_vl.models.perceiver_tf.convert import YOURMT3
from perceiver_vl.models.perceiver_tf.flops import forward_flops
from perceiver_vl.models.perceiver_tf.spectrum import spectrogram
from perceiver_vl.utils.errors import UsageError
from tiny import assert_same, differs

SMALL: dict[str, Any] = {
    "num_bins": 12,
    "num_pitches": 5,
    "conv_channels": 4,
    "num_conv_blocks": 2,
    "num_latents": 3,
    "hidden_size": 8,
    "num_blocks": 2,
    "num_local_layers": 1,
    "num_temporal_layers": 1,
    "num_attention_heads": 2,
    "num_cross_attention_heads": 4,
    "max_frames": 9,
    "instruments": ["horn", "harp"],
    "dropout": 0.0,
}
KINDS: dict[str, dict[str, Any]] = {
    "paper": {"frequency_positions": True},
    "yourmt3": {**YOURMT3, "positions": "kdt"},
    "experts": {"feed_forward": "experts", "num_experts": 3, "norm": "rms", "positions": "alibi"},
    "none": {"positions": "none", "attention_size": 16, "value_size": 4, "intermediate_ratio": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind: str = "paper", **changes: Any) -> PerceiverTFForTranscription:
    torch.manual_seed(0)
    model = PerceiverTFForTranscription(PerceiverTFConfig(**(SMALL | KINDS[kind] | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def sounds(frames: int = 6) -> Tensor:
    return torch.randn(2, frames, 12, generator=torch.Generator().manual_seed(1)).double()


@every_kind
def test_a_folder_gives_the_model_again(kind: str, tmp_path: Path) -> None:
    model = small(kind)
    model.save_pretrained(tmp_path)
    again = AutoModelForAudioFrameClassification.from_pretrained(tmp_path)
    assert type(again) is PerceiverTFForTranscription
    assert_same(again(sounds()).onset_logits, model(sounds()).onset_logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert_same(base(sounds()).last_hidden_state, model.perceiver_tf(sounds()).last_hidden_state)
    assert model(sounds()).frame_logits.shape == (2, 6, 2, 5)


@every_kind
@pytest.mark.parametrize("frames", [1, 6])
def test_a_transcription_costs_what_the_formula_says(kind: str, frames: int) -> None:
    model = small(kind).float().requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(sounds(frames)[:1].float())
    assert counter.get_total_flops() == forward_flops(model.config, frames)


@every_kind
def test_frames_meet_in_temporal_layers_alone(kind: str) -> None:
    """Nearby frames also meet in the convolutions, so it is features that come in."""
    features = torch.randn(1, 6, 3, 4, generator=torch.Generator().manual_seed(2)).double()
    other = features.clone()
    other[:, 2] = features[:, 3] ** 2
    apart = small(kind, num_temporal_layers=0).perceiver_tf
    found, changed = (apart(features=one).last_hidden_state for one in (features, other))
    same = [place for place in range(6) if place != 2]
    assert_same(changed[:, same], found[:, same], 1e-12)
    assert differs(changed[:, 2], found[:, 2])
    together = small(kind).perceiver_tf
    found, changed = (together(features=one).last_hidden_state for one in (features, other))
    assert all(differs(changed[:, place], found[:, place]) for place in range(6))


def test_frames_in_another_order_come_out_in_that_order_where_there_are_no_positions() -> None:
    features = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(2)).double()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    model = small("none").perceiver_tf
    assert_same(
        model(features=features[:, order]).last_hidden_state, model(features=features).last_hidden_state[:, order]
    )
    placed = small("yourmt3").perceiver_tf
    features = features.transpose(2, 3)[..., :3].transpose(2, 3)
    found = placed(features=features).last_hidden_state
    assert differs(placed(features=features[:, order]).last_hidden_state, found[:, order])


def test_a_read_that_replaces_the_latents_forgets_what_they_held() -> None:
    """But for where they look: with one key there is nothing to choose."""
    features = torch.randn(1, 1, 1, 4).double()
    for residual, forgets in ((False, True), (True, False)):
        model = small("paper", read_residual=residual, frequency_positions=False).perceiver_tf
        latents = torch.randn(2, 1, 1, 3, 8).double()
        found = [model.blocks[0].read(one[0], features[0]) for one in latents]
        assert torch.allclose(*found) == forgets


def test_notes_begin_rare(tmp_path: Path) -> None:
    model = PerceiverTFForTranscription(PerceiverTFConfig(**SMALL))
    assert (model.classifier.bias == -4.0).all()
    torch.nn.init.ones_(model.classifier.bias)
    model.save_pretrained(tmp_path)
    assert (PerceiverTFForTranscription.from_pretrained(tmp_path).classifier.bias == 1.0).all()


@every_kind
def test_every_weight_is_trained(kind: str) -> None:
    model, labels = small(kind).train(), (torch.rand(2, 6, 2, 5) > 0.5).double()
    output = model(sounds(), labels, labels)
    assert_same(model(sounds(), onsets=labels).loss + model(sounds(), frames=labels).loss, output.loss)
    output.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_bins_are_spaced_as_notes_are() -> None:
    """A tone is loudest in the bin of its pitch."""
    config = PerceiverTFConfig(
        sample_rate=8000, fft_size=2048, hop_length=256, num_bins=48, bins_per_octave=12, lowest_pitch=48
    )
    for pitch in (50, 64, 81):
        tone = torch.sin(2 * torch.pi * 440.0 * 2 ** ((pitch - 69) / 12) * torch.arange(8000) / 8000)
        found = spectrogram(tone[None], config)
        assert found.shape == (1, 31, 48)
        assert found[0, 15].argmax().item() == pitch - 48


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_latents": 0}, "num_latents=0: need at least 1"),
        ({"num_local_layers": -1}, "num_local_layers=-1, num_temporal_layers=1: need 0 or more"),
        ({"num_attention_heads": 3}, "num_attention_heads=3: must divide attention_size=8 and value_size=8 evenly"),
        ({"num_conv_blocks": 4}, "num_conv_blocks=4: halve num_bins=12 so often that none is left"),
        ({"num_bins": 2000}, "num_bins=2000: fft_size=2048 gives 1025"),
        ({"positive_weight": 0.0}, "positive_weight=0.0: need more than 0"),
        ({"instruments": []}, "instruments=[]: need one at least"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        PerceiverTFConfig(**(SMALL | changes))


def test_inputs_of_another_kind_are_refused_in_a_line() -> None:
    with pytest.raises(UsageError, match=r"^10 frames: need at most 9"):
        small()(sounds(10))
    with pytest.raises(UsageError, match=r"^spectrogram: need \(batch, frames, frequencies\)"):
        PerceiverTFModel(PerceiverTFConfig(**SMALL))(sounds()[0])
