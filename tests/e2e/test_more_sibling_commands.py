"""gCOG, Uni-Perceiver and Perceiver TF on the command line: their weights convert, their benches run, sound is
transcribed.
"""

from pathlib import Path

import mido
import torch
from command_line import run_cli
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from perceiver_vl.models.gcog import GCOGConfig, GCOGForClassification
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription
from perceiver_vl.models.uni_perceiver import UniPerceiverConfig, UniPerceiverEncoder


def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(rows, columns), f"{name}.bias": torch.randn(rows)}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}


def of_uni_perceiver(width: int = 8, experts: int = 3) -> dict[str, Tensor]:
    """An encoder of two layers as the authors' code saves it, the first with experts, among other things."""
    state: dict[str, Tensor] = {}
    maps = {"self_attn.qkv_proj": (3 * width, width), "self_attn.dense": (width, width)}
    maps |= {"linear1": (12, width), "linear2": (width, 12)}
    for layer in range(2):
        name = f"layers.{layer}"
        state |= {f"{name}.gamma_{number}": torch.randn(width) for number in (1, 2)}
        state |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        for place, shape in maps.items():
            if layer:
                state |= linear(f"{name}.{place}", *shape)
                continue
            for expert in range(experts):
                state |= linear(f"{name}.{place}.experts.deepspeed_experts.{expert}", *shape)
            gate = f"{name}.{place}.gate"
            state |= linear(f"{gate}.tag_transform.0", width, 8) | norm(f"{gate}.tag_transform.1", width)
            state[f"{gate}.wg.weight"] = torch.randn(experts, width)
    return {f"fused_encoder.{name}": value for name, value in state.items()}


def of_perceiver_tf(width: int = 8, latents: int = 3) -> dict[str, Tensor]:
    state = {
        "encoder.latent_array.latents": torch.randn(latents, width),
        "encoder.pos_emb._pos_emb": torch.randn(5, latents, width),
    }
    block = "encoder.blocks.0"
    for place, inputs in (
        ("spectral_cross_attention", 4),
        ("local_transformer.0.attention", width),
        ("temporal_transformer.0.attention", width),
    ):
        name = f"{block}.{place}"
        state |= linear(f"{name}.self.query", width, width) | linear(f"{name}.output.dense", width, width)
        state |= linear(f"{name}.self.key", width, inputs) | linear(f"{name}.self.value", width, inputs)
        state |= norm(f"{name}.self.layernorm1", width)
        state |= norm(f"{name}.self.layernorm2", inputs) if "spectral" in place else {}
    for place in ("local_transformer.0", "temporal_transformer.0"):
        state |= norm(f"{block}.{place}.layernorm", width)
        for number in (1, 2):
            state |= linear(f"{block}.{place}.mlp.dense{number}", width, width)
    for number, before in enumerate((1, 4)):
        name = f"pre_encoder.blocks.{number}"
        state |= {f"{name}.conv1.weight": torch.randn(4, before, 3, 3), f"{name}.conv2.weight": torch.randn(4, 4, 3, 3)}
        for one in ("bn1", "bn2"):
            state |= norm(f"{name}.{one}", 4)
            state |= {f"{name}.{one}.running_mean": torch.randn(4), f"{name}.{one}.running_var": torch.rand(4) + 0.5}
            state[f"{name}.{one}.num_batches_tracked"] = torch.tensor(7)
    state |= {"pre_encoder.blocks.0.shortcut.weight": torch.randn(4, 1, 1, 1)}
    return state | {"pre_encoder.blocks.0.shortcut.bias": torch.randn(4)}


def test_weights_of_uni_perceiver_convert(tmp_path: Path) -> None:
    state = of_uni_perceiver()
    save_file(state, tmp_path / "theirs.safetensors")
    made = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "out", "num_attention_heads=2", "--json")
    assert made.json()["model"] == "UniPerceiverEncoder"
    model = UniPerceiverEncoder.from_pretrained(tmp_path / "out")
    assert isinstance(model.config, UniPerceiverConfig)
    assert (model.config.num_experts, model.config.num_hidden_layers, model.config.intermediate_size) == (3, 2, 12)
    second = state["fused_encoder.layers.0.self_attn.qkv_proj.experts.deepspeed_experts.1.weight"]
    assert torch.equal(model.layers[0].block.attention.k_proj.weight[1], second[8:16])
    heads = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "two").error(2)
    assert "num_attention_heads: no shape of these weights tells it" in heads
    assert not (tmp_path / "two").exists()


def test_weights_of_perceiver_tf_convert(tmp_path: Path) -> None:
    state = of_perceiver_tf()
    save_file(state, tmp_path / "theirs.safetensors")
    told = ["num_attention_heads=2", "num_cross_attention_heads=2", "read=frequencies", "read_residual=false"]
    made = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "out", *told, "--json").json()
    assert made["model"] == "PerceiverTFModel"
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert model.config.read_residual is False
    assert model(torch.randn(1, 5, 16)).last_hidden_state.shape == (1, 5, 3, 8)
    error = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "two", *told[:2]).error(2)
    assert "read: no shape of these weights tells it" in error


def test_weights_of_gcog_s_model_convert(tmp_path: Path) -> None:
    width = 8
    state: dict[str, Tensor] = {}
    for side, size in (("rule", 8), ("stim", 3)):
        inner = f"{side}_transformer"
        state |= linear(f"{inner}.w_embed", width, size) | linear(f"{inner}.selfattention.out_proj", width, width)
        state |= {f"{inner}.pe.pe": torch.randn(1, 12, width)}
        state |= linear(f"{inner}.mlp.0", width, width) | linear(f"{inner}.mlp.2", width, width)
        state |= norm(f"{inner}.layernorm0", width) | norm(f"{inner}.layernorm1", width)
        state |= linear(f"{side}_crossattention.out_proj", width, width) | linear(f"{side}_ffn.0", width, width)
        state |= norm(f"layernorm_{side}crossattn", width)
        for name in (f"{inner}.selfattention", f"{side}_crossattention"):
            state |= {f"{name}.in_proj_weight": torch.randn(3 * width, width)}
            state |= {f"{name}.in_proj_bias": torch.randn(3 * width)}
    state |= {"latent_selfattention.in_proj_weight": torch.randn(24, 8)}
    state |= {"latent_selfattention.in_proj_bias": torch.ones(24)}
    state |= linear("latent_selfattention.out_proj", width, width) | norm("layernorm_latent", width)
    state |= linear("latent_ffn.0", width, width) | linear("w_out.0", 20, width)
    save_file(state, tmp_path / "theirs.safetensors")
    made = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "out", "num_latents=4", "--json").json()
    assert made["model"] == "GCOGForClassification"
    model = GCOGForClassification.from_pretrained(tmp_path / "out").eval()
    assert isinstance(model.config, GCOGConfig)
    assert model(torch.randn(1, 3, 8), torch.randn(1, 12, 3)).logits.shape == (1, 20)
    assert torch.equal(model.gcog.model.stimulus.positions, state["stim_transformer.pe.pe"][0])


def test_benches_run() -> None:
    report = run_cli(
        "bench", "gcog", "--quick", "--splits", "productive", "--only", "GRU,Perceiver-VL", "--json"
    ).json()
    assert [one["model"] for one in report["answered"]] == ["GRU", "Perceiver-VL"]
    assert "splits=none: unknown" in run_cli("bench", "gcog", "--splits", "none").error(2)
    report = run_cli("bench", "uni-perceiver", "--quick", "--no-alone", "--json").json()
    assert [one["way"] for one in report["learned"]] == ["all in turns", "with experts", "balanced"]


def test_sound_is_transcribed_by_what_the_bench_has_kept(tmp_path: Path) -> None:
    model, out = tmp_path / "notes", tmp_path / "found.mid"
    report = run_cli("bench", "perceiver-tf", "--quick", "--ways", "added", "--out", model, "--json").json()
    assert report["saved"] == str(model)
    told = run_cli("transcribe", model / "example.wav", "--model", model, "--out", out, "--json").json()
    assert told["seconds"] == 10.0
    assert sum(told["instruments"].values()) == told["notes"]
    assert len(mido.MidiFile(out).tracks) == 3
    again = "transcribe", model / "example.wav", "--model", model, "--out", out, "--overwrite"
    assert "notes in 10.0 s" in run_cli(*again).out
    other = tmp_path / "other.mid"
    assert "config.json" in run_cli("transcribe", model / "config.json", "--model", model, "--out", other).error(1)
    none = run_cli("transcribe", model / "example.wav", "--model", tmp_path, "--out", other).error(2)
    assert "no model in it" in none
    before = (model / "example.wav").read_bytes()
    for name in ("example.wav", "example-score.mid"):
        assert "error: out=" in run_cli("transcribe", *again[1:4], "--out", model / name).error(2)
    assert (model / "example.wav").read_bytes() == before
    (tmp_path / "cut.wav").write_bytes(before[: len(before) // 2])
    told = run_cli("transcribe", tmp_path / "cut.wav", "--model", model, "--out", other)
    assert "cut.wav: damaged or cut short, the notes are of the 5.0 s that can be heard" in told.err
    nowhere = tmp_path / "none" / "a.mid"
    assert "no folder" in run_cli("transcribe", model / "example.wav", "--model", model, "--out", nowhere).error(2)


def test_another_model_does_not_transcribe(tmp_path: Path) -> None:
    GCOGForClassification(GCOGConfig(hidden_size=8)).save_pretrained(tmp_path / "other")
    small = {"conv_channels": 2, "num_bins": 8, "hidden_size": 8, "num_blocks": 1, "num_latents": 2}
    PerceiverTFForTranscription(PerceiverTFConfig(**small)).save_pretrained(tmp_path / "right")
    error = run_cli("transcribe", tmp_path / "a.wav", "--model", tmp_path / "other", "--out", tmp_path / "a.mid").error(
        2
    )
    assert "a model of kind gcog, name a folder of a Perceiver TF" in error
    error = run_cli("transcribe", tmp_path / "a.wav", "--model", tmp_path / "right", "--out", tmp_path / "a.mid").error(
        1
    )
    assert "a.wav" in error
