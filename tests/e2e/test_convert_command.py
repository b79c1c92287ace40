"""`perceiver-vl convert`, as typed."""

from pathlib import Path

import pytest
import torch
from command_line import run_cli, run_program
from safetensors.torch import save_file

from perceiver_vl import PerceiverVLConfig
from released_checkpoint import forty_words, released_state, save
from sibling_checkpoints import s2t_perceiver_state


def test_convert(tmp_path: Path) -> None:
    path, words = save(tmp_path / "a.ckpt", released_state(answers=7)), forty_words(tmp_path / "words")
    options = ("--tokenizer", words, "--num-attention-heads", 4)
    told = run_program("convert", path, tmp_path / "out", *options, "--num-frames", 2)
    assert told.code == 0, told.err
    assert "encoder.blocks.self_attentions" in told.out
    assert "a head that this model does not have" in told.out
    assert PerceiverVLConfig.from_pretrained(tmp_path / "out").cross_attention_residual == "normed_queries"

    answer = run_cli("convert", path, tmp_path / "vqa", *options, "--task", "question-answering", "--json").json()
    assert answer["task"] == "question-answering"
    assert answer["loaded"]["answer_head.classifier.weight"] == "vqa_classifier.4.weight"
    assert "contrastive" not in str(answer["fresh"])


@pytest.mark.parametrize("source", ["hf://murgelab/PerceiverVL/a.ckpt", "missing.ckpt"])
def test_what_is_not_there(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = run_cli("convert", source, tmp_path / "out")
    assert source in said.error(1 if source.startswith("hf://") else 2)
    assert not (tmp_path / "out").exists()


def test_a_page_is_no_checkpoint(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Weights")
    assert f"{page}: not a checkpoint" in run_cli("convert", page, tmp_path / "out").error(2)
    assert not (tmp_path / "out").exists()


def test_weights_of_no_known_model_and_options_of_another_are_refused(tmp_path: Path) -> None:
    save_file({"a.b": torch.zeros(2)}, tmp_path / "a.safetensors")
    said = run_cli("convert", tmp_path / "a.safetensors", tmp_path / "out").error(2)
    assert "no tensor transformer.latents: of neither Perceiver-VL nor a sibling that is known here" in said
    save_file(s2t_perceiver_state()[1], tmp_path / "s2t.safetensors")
    said = run_cli("convert", tmp_path / "s2t.safetensors", tmp_path / "out", "--task", "retrieval").error(2)
    assert "task=retrieval: of Perceiver-VL alone, leave it out" in said
    heads = ("--num-attention-heads", s2t_perceiver_state()[0].config.num_attention_heads)
    assert run_cli("convert", tmp_path / "s2t.safetensors", tmp_path / "out", *heads).code == 0
