"""Tokenizers: trained on captions, or loaded from a folder or the hub."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import AutoTokenizer, BertTokenizer

from perceiver_vl.models.hub import hub_hint, hub_options
from perceiver_vl.utils.errors import UsageError, first_line

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000  # characters that a trained vocabulary knows; words with others become [UNK]


def train_tokenizer(captions: Iterable[str], vocab_size: int = 8000, max_length: int = 40) -> BertTokenizer:
    """Train a lower-casing WordPiece tokenizer on captions, with the special tokens and the form of BERT's.

    vocab_size: at most so many entries; fewer if the captions do not hold more. max_length: tokens a text is cut to.
    The same captions give the same vocabulary. Raises UsageError if there are no words or the vocabulary is too small.
    """
    captions = list(captions)
    template = BertTokenizer()
    normalizer, pre_tokenizer = template._tokenizer.normalizer, template._tokenizer.pre_tokenizer
    counts = Counter("".join(normalizer.normalize_str(caption) for caption in captions).replace(" ", ""))
    if not counts:
        raise UsageError("captions: no words in them to train a tokenizer on")
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:MAX_ALPHABET])
    # With all characters given, in order, the trainer has no choice left that depends on its hash tables
    given = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet)]
    if vocab_size < len(given):
        raise UsageError(f"vocab_size={vocab_size}: these captions need at least {len(given)}")
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=given, limit_alphabet=MAX_ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    return BertTokenizer(
        vocab=vocabulary, model_max_length=max_length, model_input_names=["input_ids", "attention_mask"]
    )


def load_tokenizer(name: str | Path) -> Any:
    """A tokenizer from a folder or the hub; one without a mask token, as CLIP's, is given one behind all others.

    Raises `UsageError` if it cannot be loaded, or has no pad token.
    """
    tokenizer = read_tokenizer(name)
    if tokenizer.pad_token_id is None:
        raise UsageError(f"tokenizer {name}: has no pad token, name one in the manner of BERT's or CLIP's")
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


def read_tokenizer(name: str | Path) -> Any:
    """A tokenizer from a folder or the hub, as it is; raises `UsageError` if it cannot be loaded or knows no words."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_options(name))
    except ImportError as error:  # of a package that some tokenizers are read by
        raise UsageError(
            f"tokenizer {name}: {' '.join(str(error).split())[:120]}: pip install sentencepiece"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"tokenizer {name}: cannot be loaded ({first_line(error)}), {hub_hint(name)}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes of a folder without its files
        raise UsageError(f"tokenizer {name}: knows no words, save its tokenizer.json there, too")
    return tokenizer
