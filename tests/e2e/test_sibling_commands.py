"""The other models of the family on the command line: their weights convert, their benches run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_cli
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PerceiverConfig,
    PerceiverForMaskedLM,
)

import perceiver_vl.models.perceiver_io  # noqa: F401  # registers the classes

SIZES: dict[str, Any] = {
    "num_latents": 4,
    "d_latents": 16,
    "d_model": 8,
    "num_self_attends_per_block": 1,
    "max_position_embeddings": 12,
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as those of DeepMind's models on the hub."""
    torch.manual_seed(0)
    folder = tmp_path / "language-perceiver"
    PerceiverForMaskedLM(PerceiverConfig(**SIZES)).save_pretrained(folder)
    return folder


def test_a_folder_of_transformers_layout_converts(published: Path, tmp_path: Path) -> None:
    made = run_cli("convert", published, tmp_path / "out", "--json").json()
    theirs = PerceiverForMaskedLM.from_pretrained(published).eval()
    assert made["model"] == "PerceiverIOForMaskedLM"
    assert made["parameters"] == theirs.num_parameters()
    ours = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("a bird", padding="max_length", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert "PerceiverIOForMaskedLM of" in run_cli("convert", published, tmp_path / "again").out


def test_a_pickle_of_tensors_converts_too(published: Path, tmp_path: Path) -> None:
    """As published: `pytorch_model.bin`, which is read as tensors and nothing else."""
    theirs = PerceiverForMaskedLM.from_pretrained(published)
    (published / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), published / "pytorch_model.bin")
    assert run_cli("convert", published, tmp_path / "out", "--json").json()["model"] == "PerceiverIOForMaskedLM"


def test_what_cannot_be_converted_is_said_in_a_line(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "num_blocs=2: unknown, did you mean num_blocks?" in run_cli("convert", published, out, "num_blocs=2").error(
        2
    )
    assert "num_blocks=0: need at least 1" in run_cli("convert", published, out, "num_blocks=0").error(2)
    assert "num_blocks" in run_cli("convert", published, out, "num_blocks=many").error(2)
    assert "'num_blocks': need key=value" in run_cli("convert", published, out, "num_blocks").error(2)
    assert "num_attention_heads=3: must divide" in run_cli("convert", published, out, "num_attention_heads=3").error(2)
    (published / "config.json").write_text("[]")
    assert "not a configuration" in run_cli("convert", published, out).error(2)
    (published / "config.json").write_text("{}")
    save_file({"something": torch.zeros(1)}, published / "model.safetensors")
    assert "weights of no Perceiver" in run_cli("convert", published, out, "num_blocks=1").error(2)
    (published / "model.safetensors").write_bytes(b"no weights")
    assert "damaged or cut short" in run_cli("convert", published, out).error(1)
    (published / "model.safetensors").unlink()
    assert "neither model.safetensors nor pytorch_model.bin in it" in run_cli("convert", published, out).error(2)
    assert not out.exists()


def test_a_name_of_the_hub_needs_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = run_cli("convert", "hf://deepmind/language-perceiver", tmp_path / "out").error(1)
    assert "hf://deepmind/language-perceiver" in said
    assert "cannot be downloaded" in said


def test_bench_perceiver_trains_every_model() -> None:
    report = run_cli("bench", "perceiver", "--quick", "--json").json()
    models = ["Perceiver", "Perceiver, new positions", "Perceiver IO, new positions"]
    models += ["convolutions, with positions", "convolutions"]
    found = [(one["model"], one["permuted"]) for one in report["learned"]]
    assert found == [(model, permuted) for model in models for permuted in (False, True)]
    assert all(0 <= one["accuracy"] <= 1 for one in report["learned"])


def test_bench_perceiver_io_compares_what_is_equal() -> None:
    report = run_cli("bench", "perceiver-io", "--quick", "--tasks", "image-conv,flow", "--json").json()
    assert [(one["task"], one["call"]) for one in report["comparisons"]] == [
        (task, call) for task in ("image-conv", "flow") for call in ("forward", "training", "checkpointed")
    ]
    for one in report["comparisons"]:
        assert one["call"] == "checkpointed" or one["difference"] < 1e-4, json.dumps(one)
        assert one["ours"]["mib"] > 0 < one["theirs"]["mib"]
    assert "tasks=speech: unknown, choose from" in run_cli("bench", "perceiver-io", "--tasks", "speech").error(2)


def test_bench_perceiver_ar_copies_and_reads(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("All that is read here, again and again. " * 60)
    report = run_cli("bench", "perceiver-ar", "--quick", "--text", tmp_path, "--json").json()
    assert report["copied"]["context"] == 256
    assert [(one["context"], one["embedded"]) for one in report["read"]] == [(256, 1), (256, 4)]
    assert report["read"][0]["bits"] > 0
    assert "text=none: no such folder" in run_cli("bench", "perceiver-ar", "--text", "none").error(2)


def test_weights_of_a_perceiver_ar_convert(tmp_path: Path) -> None:
    """As lucidrains' code saves them, and what no shape tells as key=value."""
    width, heads, rows = 16, 2, 24
    state = {"token_emb.weight": torch.randn(11, width), "pos_emb.weight": torch.randn(rows, width)}
    state |= {"to_logits.weight": torch.randn(11, width), "rotary_pos_emb.inv_freq": torch.rand(16)}
    for name, context in (("perceive_layers.0", True), ("layers.0", False)):
        for norm in ("0.norm", "1.0", *(["0.context_norm"] if context else [])):
            state |= {f"{name}.{norm}.weight": torch.randn(width), f"{name}.{norm}.bias": torch.randn(width)}
        inner = heads * 64
        own = {"to_q": inner, "to_kv": 2 * inner} if context else {"to_qkv": 3 * inner}
        state |= {f"{name}.0.{part}.weight": torch.randn(size, width) for part, size in own.items()}
        state |= {f"{name}.0.to_out.weight": torch.randn(width, inner)}
        state |= {f"{name}.0.to_out.bias": torch.randn(width)} if context else {}
        state |= {f"{name}.1.1.weight": torch.randn(64, width), f"{name}.1.4.weight": torch.randn(width, 64)}
    save_file(state, tmp_path / "theirs.safetensors")
    made = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "out", "num_latents=8", "--json").json()
    assert made["model"] == "PerceiverARForCausalLM"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (model.config.num_latents, model.config.num_attention_heads) == (8, heads)
    assert model(torch.arange(10)[None]).logits.shape == (1, 8, 11)
    again = "num_latents=30: latents are the last of max_position_embeddings=24"
    assert again in run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "two", "num_latents=30").error(2)
    del state["layers.0.0.norm.bias"]
    save_file(state, tmp_path / "theirs.safetensors")
    error = run_cli("convert", tmp_path / "theirs.safetensors", tmp_path / "two").error(1)
    assert "model.latents.layers.0.norm1.bias: not as a Perceiver AR of lucidrains has it" in error
