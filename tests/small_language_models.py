"""Small causal language models with random weights, saved as people name them, with tokenizers of their own."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["a large red circle is moving right and a small blue star stays still", "what colour is the square?"]
END = "<|endoftext|>"


def save_bytes_tokenizer(folder: Path, texts: list[str] = TEXTS) -> int:
    """Like GPT-2's: bytes, one mark for beginning and end, none for padding; → how many words it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)
    fast.save_pretrained(folder)
    return len(fast)


def language_config(kind: str, words: int, positions: int = 96) -> Any:
    """Three layers of width 24."""
    same = {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "vocab_size": words,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_size": 24,
    }
    kinds: dict[str, Any] = {
        "gpt2": lambda: transformers.GPT2Config(**same, max_position_embeddings=positions),
        "llama": lambda: transformers.LlamaConfig(
            **same, intermediate_size=32, num_key_value_heads=2, max_position_embeddings=positions
        ),
        "opt": lambda: transformers.OPTConfig(
            **same, ffn_dim=32, max_position_embeddings=positions, word_embed_proj_dim=16
        ),
        "mamba": lambda: transformers.MambaConfig(
            vocab_size=words, num_hidden_layers=3, hidden_size=24, state_size=4, bos_token_id=0, eos_token_id=0
        ),
        "bert": lambda: transformers.BertConfig(**same, intermediate_size=32, max_position_embeddings=positions),
    }
    return kinds[kind]()


def save_language_model(folder: Path, kind: str = "gpt2", positions: int = 96) -> Any:
    """One of a kind, with a tokenizer."""
    torch.manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    config = language_config(kind, save_bytes_tokenizer(folder), positions)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model
