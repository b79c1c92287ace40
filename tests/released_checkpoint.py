"""Random weights under the names of the authors' checkpoint, at any size, and files of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer


def released_state(
    hidden_size: int = 16,
    depth: int = 6,
    reads: int = 3,
    num_latents: int = 5,
    patch_size: int = 8,
    grid: int = 2,
    words: int = 40,
    text_length: int = 8,
    frames: int = 4,
    answers: int = 0,
    classes: int = 0,
) -> dict[str, Tensor]:
    """A whole checkpoint with decoder, video table and the heads of pre-training, and of answers and classes."""
    draw = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    d = hidden_size

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int = d) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name: str, fused: bool) -> None:
        norm(f"{name}.norm1")
        norm(f"{name}.norm2")
        if fused:
            linear(f"{name}.attn.qkv", 3 * d, d)
        else:
            for projection in "qkv":
                linear(f"{name}.attn.{projection}", d, d)
        linear(f"{name}.attn.proj", d, d)
        linear(f"{name}.mlp.fc1", 4 * d, d)
        linear(f"{name}.mlp.fc2", d, 4 * d)

    shapes["transformer.latents"] = (num_latents, d)
    shapes["transformer.cls_token"] = (1, 1, d)
    shapes["transformer.pos_embed"] = (1, 1 + grid**2, d)
    shapes["transformer.temporal_embed"] = (1, frames, d)
    shapes["transformer.cls_token_decoder"] = (1, 64, d)
    shapes["transformer.patch_embed.proj.weight"] = (d, 3, patch_size, patch_size)
    shapes["transformer.patch_embed.proj.bias"] = (d,)
    shapes["transformer.mlm_pos.weight"] = (text_length, d)
    shapes["transformer.mlm_type.weight"] = (2, d)
    shapes["token_type_embeddings.weight"] = (3, d)
    shapes["text_embeddings.word_embeddings.weight"] = (words, d)
    shapes["text_embeddings.position_embeddings.weight"] = (text_length, d)
    shapes["text_embeddings.token_type_embeddings.weight"] = (2, d)
    norm("text_embeddings.LayerNorm")
    for name in ("co_norm", "norm", "decoder_norm"):
        norm(f"transformer.{name}")
    for number in range(depth):
        block(f"transformer.blocks.{number}", fused=True)
    for number in range(reads):
        block(f"transformer.crossatt_blocks_visual.{number}", fused=False)
    block("transformer.decoder_block_text.0", fused=False)
    linear("matching_score.pooler.dense", d, d)
    linear("matching_score.fc", 2, d)
    linear("mlm_score.transform.dense", d, d)
    norm("mlm_score.transform.LayerNorm")
    shapes["mlm_score.decoder.weight"], shapes["mlm_score.bias"] = (words, d), (words,)
    for name, labels in (("vqa_classifier", answers), ("img_classifier", classes)):
        if labels:
            linear(f"{name}.0.dense", d, d)
            linear(f"{name}.1", 2 * d, d)
            norm(f"{name}.2", 2 * d)
            linear(f"{name}.4", labels, 2 * d)
    state = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return state | {"text_embeddings.position_ids": torch.arange(text_length)[None]}


def save(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """Write a checkpoint as Lightning does."""
    torch.save({"epoch": 1, "global_step": 2, "hyper_parameters": {"a": [1]}, "state_dict": state} | more, path)
    return path


def forty_words(folder: Path) -> Path:
    """Write a tokenizer that has as many tokens as `released_state` has words."""
    tokenizer = train_tokenizer([" ".join(f"w{a}{b}" for a in "abcdef" for b in "ghijklmn")] * 3, vocab_size=40)
    assert len(tokenizer) == 40
    tokenizer.save_pretrained(folder)
    return folder
