"""The models beside ours: as deep and as wide, and what transformers has under their names."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perceiver_vl import PerceiverVLConfig
from perceiver_vl.bench.measuring import count
from perceiver_vl.bench.peers import PEERS, build_peer, fuse_attention
from perceiver_vl.models.perceiver_vl.flops import block_flops, embedding_flops
from tiny import tiny_config

CONFIG = tiny_config(max_frames=8)
BY_NAME = {peer.name: peer for peer in PEERS}
WORDS = torch.arange(5, 11)[None]


def clip(frames: int, size: int = 16) -> torch.Tensor:
    return torch.randn(1, frames, 3, size, size, generator=torch.Generator().manual_seed(frames))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_peer(BY_NAME[name], CONFIG, "cpu")


@pytest.mark.parametrize("name", BY_NAME)
def test_clips_of_any_length_and_size_are_read(name: str) -> None:
    model = built(name)
    with torch.inference_mode():
        for frames, size in ((1, 16), (5, 16), (2, 24)):
            assert model(input_ids=WORDS, pixel_values=clip(frames, size)).isfinite().all()


@pytest.mark.parametrize("name", ["vilt", "timesformer"])
def test_the_fused_attention_is_the_attention(name: str) -> None:
    model = built(name)
    fused = [part for part in model.modules() if "forward" in vars(part)]
    assert len(fused) == {"vilt": 6, "timesformer": 12}[name]
    with torch.inference_mode():
        found = model(input_ids=WORDS, pixel_values=clip(3))
        for part in fused:
            del part.forward
        written_out = model(input_ids=WORDS, pixel_values=clip(3))
        fuse_attention(model)
        torch.testing.assert_close(model(input_ids=WORDS, pixel_values=clip(3)), found)
    torch.testing.assert_close(found, written_out)


def test_a_joint_transformer_costs_what_its_formula_says() -> None:
    inputs = 3 * 4 + 1 + 6  # patches, class token, words
    depth, d = CONFIG.num_blocks * CONFIG.self_attentions_per_block, CONFIG.hidden_size
    expected = embedding_flops(CONFIG, 3) + depth * block_flops(CONFIG, inputs, inputs) + 2 * d * d
    shell = build_peer(BY_NAME["vilt"], CONFIG, "meta")
    for model, device in ((built("vilt"), "cpu"), (shell, "meta")):
        words, pixels = WORDS.to(device), clip(3).to(device)
        with torch.inference_mode():
            assert count(lambda m=model, w=words, p=pixels: m(input_ids=w, pixel_values=p)) == expected  # type: ignore[misc]


def test_only_clip_sees_frames_apart() -> None:
    first, second = clip(1), clip(2)[:, 1:]
    together = torch.cat([first, second], dim=1)
    with torch.inference_mode():
        for name in ("clip", "timesformer"):
            model = built(name)
            encode = (
                (lambda x, m=model: m.video(x[:, 0]).image_embeds)
                if name == "clip"
                else (lambda x, m=model: m(None, x))
            )
            mean = (encode(first) + encode(second)) / 2
            expected = F.normalize(mean, dim=-1) if name == "clip" else mean
            assert torch.allclose(model(pixel_values=together), expected, atol=1e-6) == (name == "clip")


@pytest.mark.parametrize(("name", "millions"), [("vilt", 112), ("timesformer", 187), ("clip", 152), ("perceiver", 119)])
def test_the_base_size_is_that_of_the_others_base_size(name: str, millions: int) -> None:
    model = build_peer(BY_NAME[name], PerceiverVLConfig(), "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.08)
