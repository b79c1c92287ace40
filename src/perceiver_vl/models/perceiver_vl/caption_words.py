"""Texts as a captioning model reads and says them: a beginning, a question if there is one, what is said, an end.

Shapes: B texts, L text tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.layers.causal import Inputs
from perceiver_vl.models.perceiver_vl.captioning import CaptioningModel
from perceiver_vl.utils.errors import UsageError

_INNER, _CLOSING = re.compile(r"(?<=\w) ([-'’]) (?=\w)"), re.compile(r" ([,.;:!?])(?= |$)")


@dataclass(frozen=True)
class Said:
    """A caption or an answer. score: the probability of a word of it, the geometric mean over all and the end."""

    text: str
    score: float


def ends_of(tokenizer: Any) -> dict[str, int]:
    """What a text begins and ends with, as fields of the configuration: [CLS] and [SEP], or a tokenizer's own marks.

    Raises `UsageError` for a tokenizer without any.
    """
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    begin = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    if end is None:
        raise UsageError("tokenizer: has no token that ends a text (sep_token or eos_token), name another tokenizer")
    return {"bos_token_id": end if begin is None else begin, "eos_token_id": end}


def caption_inputs(tokenizer: Any, questions: Sequence[str], said: Sequence[str]) -> dict[str, Tensor]:
    """What is said, after a question or after nothing ("") → `input_ids (B,L)`, `attention_mask (B,L)`, `labels (B,L)`,
    -100 where nothing is to be said. What is too long is cut: then it does not end.
    """
    rows, labels = [], []
    for beginning, words in zip(_beginnings(tokenizer, questions), _numbers(tokenizer, said), strict=True):
        spoken = [*words, ends_of(tokenizer)["eos_token_id"]][: tokenizer.model_max_length - len(beginning)]
        rows.append(beginning + spoken)
        labels.append([-100] * len(beginning) + spoken)
    ids, mask = _padded(rows, tokenizer.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": mask, "labels": _padded(labels, -100)[0]}


@torch.no_grad()
def say(
    model: CaptioningModel,
    tokenizer: Any,
    prefix: Inputs,
    questions: Sequence[str],
    *,
    beams: int = 1,
    max_new_tokens: int | None = None,
) -> list[Said]:
    """What the model says of B clips (`prefix` of `encode_prefix`), or after a question about each, where that is not
    "". By so many beams; None: up to the end of the position table, half of which answers have.

    Raises `UsageError` for numbers that cannot be.
    """
    if beams < 1:
        raise UsageError(f"beams={beams}: need at least 1")
    places: dict[bool, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(bool(question.strip()), []).append(place)
    found: dict[int, Said] = {}
    most = model.config.max_text_length
    for asked, some in places.items():  # apart, lest how long a caption may be hangs on what else is in the batch
        room = most - (most // 2 if asked else 1)
        number = room if max_new_tokens is None else max_new_tokens
        if not 1 <= number <= room:
            after = "after a question" if asked else "after its beginning"
            raise UsageError(
                f"max_new_tokens={number}: {after} this model has room for {room} (of {most}), set 1 to {room}"
            )
        rows = prefix.rows(torch.tensor(some, device=prefix.mask.device))
        said = _say(model, tokenizer, rows, [questions[place] for place in some], beams, number)
        found |= dict(zip(some, said, strict=True))
    return [found[place] for place in range(len(questions))]


def _say(
    model: CaptioningModel, tokenizer: Any, prefix: Inputs, questions: Sequence[str], beams: int, number: int
) -> list[Said]:
    ids, mask = _padded(_beginnings(tokenizer, questions), tokenizer.pad_token_id or 0, left=True)
    ids, mask, length = ids.to(model.device), mask.to(model.device), ids.shape[1]
    end, filler = ends_of(tokenizer)["eos_token_id"], tokenizer.pad_token_id or 0
    unsayable = [mark for mark in tokenizer.all_special_ids if mark not in (end, tokenizer.unk_token_id)]
    found = model.generate(
        ids,
        mask,
        prefix=prefix,
        num_beams=beams,
        do_sample=False,
        max_new_tokens=number,
        eos_token_id=end,
        pad_token_id=filler,
        suppress_tokens=unsayable or None,
    )
    new = found[:, length:]
    ended = (new == end).long()
    real = ended.cumsum(1) - ended == 0  # up to the first end, and that
    logits = model(found[:, :-1], torch.cat([mask, real.long()], 1)[:, :-1], prefix=prefix).logits[:, length - 1 :]
    chosen = logits.float().log_softmax(-1).gather(2, new[..., None])[..., 0]
    scores = ((chosen * real).sum(1) / real.sum(1)).exp().tolist()
    texts = tokenizer.batch_decode(new.masked_fill(~real, filler), skip_special_tokens=True)
    return [Said(tidied(text), score) for text, score in zip(texts, scores, strict=True)]


def tidied(text: str) -> str:
    """A text put together of tokens, its punctuation where people put it."""
    return _CLOSING.sub(r"\1", _INNER.sub(r"\1", text.strip()))


def _beginnings(tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
    """Of a question so much that half of the position table is left for the answer."""
    ends, most = ends_of(tokenizer), tokenizer.model_max_length // 2
    begin, end = ends["bos_token_id"], ends["eos_token_id"]
    rows = _numbers(tokenizer, questions)
    return [[begin, *words[: max(0, most - 2)], end] if words else [begin] for words in rows]


def _numbers(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [list(one) for one in tokenizer(list(texts), add_special_tokens=False, truncation=True)["input_ids"]]


def _padded(rows: Sequence[Sequence[int]], filler: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of different lengths → one array `(B,L)` and its mask."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), filler), torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[number, where], mask[number, where] = torch.tensor(row), 1
    return ids, mask
