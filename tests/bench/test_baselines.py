"""The models beside ours: as deep and as wide, and what transformers has under their names."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViltConfig
from transformers.models.vilt.modeling_vilt import ViltEncoder

from perceiver_vl import PerceiverVLConfig
from perceiver_vl.bench.baselines import BASELINES, build_baseline, fuse_attention
from perceiver_vl.bench.joint_transformer import JointTransformer
from perceiver_vl.bench.profiling import count_flops
from perceiver_vl.models.perceiver_vl.flops import block_flops, embedding_flops
from tiny import tiny_config

CONFIG = tiny_config(max_frames=8)
NAMES = [one.name for one in BASELINES]
WORDS = torch.arange(5, 11)[None]


def clip(frames: int, size: int = 16) -> torch.Tensor:
    return torch.randn(1, frames, 3, size, size, generator=torch.Generator().manual_seed(frames))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_baseline(name, CONFIG, "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_any_length_and_size_are_read(name: str) -> None:
    model = built(name)
    with torch.inference_mode():
        for frames, size in ((1, 16), (5, 16), (2, 24)):
            assert model(input_ids=WORDS, pixel_values=clip(frames, size)).isfinite().all()


def test_the_fused_attention_is_the_attention() -> None:
    model = built("timesformer")
    fused = [part for part in model.modules() if "forward" in vars(part)]
    assert len(fused) == 12
    with torch.inference_mode():
        found = model(input_ids=WORDS, pixel_values=clip(3))
        for part in fused:
            del part.forward
        written_out = model(input_ids=WORDS, pixel_values=clip(3))
        fuse_attention(model.video)
        torch.testing.assert_close(model(input_ids=WORDS, pixel_values=clip(3)), found)
    torch.testing.assert_close(found, written_out)


def test_the_joint_transformer_is_vilt() -> None:
    """With the weights of transformers' ViLT it finds what that finds, and its class token alone is the same."""
    layers, width = 3, CONFIG.hidden_size
    config = ViltConfig(
        hidden_size=width,
        num_attention_heads=CONFIG.num_attention_heads,
        num_hidden_layers=layers,
        intermediate_size=CONFIG.intermediate_size,
        layer_norm_eps=CONFIG.layer_norm_eps,
    )
    torch.manual_seed(0)
    theirs, ours = ViltEncoder(config).eval(), JointTransformer(CONFIG, layers).eval()
    for layer, block in zip(theirs.layer, ours.blocks, strict=True):
        attention = layer.attention.attention
        for source, target in (
            (layer.layernorm_before, block.norm1),
            (layer.layernorm_before, block.input_norm),
            (attention.query, block.attention.q_proj),
            (attention.key, block.attention.k_proj),
            (attention.value, block.attention.v_proj),
            (layer.attention.output.dense, block.attention.out_proj),
            (layer.layernorm_after, block.norm2),
            (layer.intermediate.dense, block.mlp.fc1),
            (layer.output.dense, block.mlp.fc2),
        ):
            target.load_state_dict(source.state_dict())
    with torch.inference_mode():
        ours.class_token.normal_()
        tokens, mask = torch.randn(2, 7, width), torch.ones(2, 7, dtype=torch.bool)
        mask[1, 4:] = False
        whole = torch.cat([ours.class_token.expand(2, 1, -1), tokens], dim=1)
        expected = ours.norm(theirs(whole).last_hidden_state)
        torch.testing.assert_close(ours.encode(tokens), expected)
        torch.testing.assert_close(ours.encode(tokens, class_token_only=True), expected[:, :1])
        masked = ours.encode(tokens, mask)
        torch.testing.assert_close(masked[0], expected[0])
        torch.testing.assert_close(masked[1, :5], ours.encode(tokens[1:, :4])[0])


def test_a_joint_transformer_costs_what_its_formula_says() -> None:
    inputs = 3 * 4 + 1 + 6  # patches, class token, words
    depth, d = CONFIG.num_blocks * CONFIG.self_attentions_per_block, CONFIG.hidden_size
    expected = embedding_flops(CONFIG, 3) + depth * block_flops(CONFIG, inputs, inputs) + 2 * d * d
    shell = build_baseline("vilt", CONFIG, "meta")
    for model, device in ((built("vilt"), "cpu"), (shell, "meta")):
        words, pixels = WORDS.to(device), clip(3).to(device)
        with torch.inference_mode():
            assert count_flops(lambda m=model, w=words, p=pixels: m(input_ids=w, pixel_values=p)) == expected  # type: ignore[misc]


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
    model = build_baseline(name, PerceiverVLConfig(), "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.08)
