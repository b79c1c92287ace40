"""Tasks as Uni-Perceiver has them: an input and candidates, what bits say of either, and who may see whom."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perceiver_vl.utils.errors import UsageError

_NAMES = (1, 0, 0, 1, 0, 1, 1, 0)
_WORDS = (1, 1, 0, 1, 0, 1, 1, 0)
_SEEN = (1, 0, 0, 1, 1, 0, 0, 0)
_SEEN_WITH_TEXT = (1, 1, 0, 1, 1, 0, 0, 0)
_TEXT = (0, 1, 0, 1, 0, 1, 0, 0)

Bits = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """inputs: attribute bits of what is asked about, a row for all of it or one for vision and one for text.
    candidates: of what might be the answer. temperature: whose is used. answers_at: begin (the first token), masked
    (those with a label), or caption (the second half of a text that is there twice).

    The bits: vision is in play, text is; (two that are the same everywhere;) a visual token, a text token, a candidate,
    causal. They are those of the released code, but for questions, which are ours.
    """

    inputs: tuple[Bits, ...]
    candidates: Bits
    temperature: str
    answers_at: Literal["begin", "masked", "caption"] = "begin"

    def attributes(self, which: Literal["inputs", "candidates"]) -> Tensor:
        """`(R,8)` float32."""
        rows = self.inputs if which == "inputs" else (self.candidates,)
        return torch.tensor(rows, dtype=torch.float32)


TASKS: dict[str, Task] = {
    "image_classification": Task((_SEEN,), _NAMES, "img_cls"),
    "video_classification": Task((_SEEN,), _NAMES, "video_cls"),
    "masked_words": Task((_TEXT,), _WORDS, "text_mlm", "masked"),
    "text_classification": Task((_TEXT,), _NAMES, "downstream"),
    "retrieval": Task((_SEEN,), _NAMES, "retrieve"),
    "captioning": Task((_SEEN_WITH_TEXT, (1, 1, 0, 1, 0, 1, 0, 1)), _WORDS, "caption", "caption"),
    "question_answering": Task((_SEEN_WITH_TEXT, (1, 1, 0, 1, 0, 1, 0, 0)), _WORDS, "downstream"),
}


def task_of(name: str) -> Task:
    """Raises `UsageError` for one that there is not."""
    if name not in TASKS:
        raise UsageError(f"task={name}: unknown, choose from {', '.join(TASKS)}")
    return TASKS[name]


def caption_mask(prefix: int, text: int) -> Tensor:
    """Who sees whom where a text stands twice after a prefix of so many tokens → `(M,M)` bool, True where seen, M =
    prefix + text, of which the halves of `text` are the words and the places that are to name them.

    The prefix sees itself alone. Words see it and those before them. A place sees the prefix, the words before its own,
    and itself.
    """
    half = text // 2
    seen = torch.zeros(prefix + text, prefix + text, dtype=torch.bool)
    seen[:, :prefix] = True
    words, places = slice(prefix, prefix + half), slice(prefix + half, prefix + text)
    seen[words, words] = torch.ones(half, half, dtype=torch.bool).tril()
    seen[places, words] = torch.ones(half, half, dtype=torch.bool).tril(-1)
    seen[places, places] = torch.eye(half, dtype=torch.bool)
    return seen
