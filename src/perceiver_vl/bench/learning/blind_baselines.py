"""Blind baselines: chance, the answer that is right most often, and the words of the question alone.

Shapes: B questions, V words, A answers.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.tasks.metrics import per_cent
from perceiver_vl.tasks.question_answering import MOST_ANSWERS, QuestionAnswering
from perceiver_vl.utils.errors import UsageError

Answerer = Callable[[Record], str]
"""What answers a question."""
PENALTIES = (1e-3, 1e-4, 1e-5)
"""Weights of the squared weights in the loss that `bag_of_words` chooses from, the simplest model first."""
_ITERATIONS, _HISTORY = 25, 5
_WORD = re.compile(r"[a-z0-9']+")


def chance_accuracy(training: Iterable[Record], records: Sequence[Record]) -> float:
    """Of an answer drawn at random from the training split's, in per cent."""
    known = set(_answers(training))
    return per_cent([len(known.intersection(record.answers)) / len(known) for record in records])


def majority(training: Iterable[Record]) -> Answerer:
    """Always the answer that is right most often in the training split."""
    answer = _most_frequent(training)
    return lambda record: answer


def majority_by_kind(training: Sequence[Record]) -> Answerer:
    """The answer that is right most often among questions of the same kind; of a kind not met before, among all."""
    of_kind: dict[str, list[Record]] = {}
    for record in training:
        for kind in QuestionAnswering().kinds(record):
            of_kind.setdefault(kind, []).append(record)
    answers = {kind: _most_frequent(records) for kind, records in of_kind.items()}
    otherwise = _most_frequent(training)
    return lambda record: next(
        (answers[kind] for kind in QuestionAnswering().kinds(record) if kind in answers), otherwise
    )


def bag_of_words(training: Sequence[Record], validation: Sequence[Record]) -> Answerer:
    """Multinomial logistic regression on how often each word is in the question; it never sees the picture.

    The penalty of `PENALTIES` is the one whose answers are right most often on `validation`.
    Raises `UsageError` where no training record has an answer.
    """
    labelled = [record for record in training if record.answers]
    answers = [answer for answer, _ in Counter(_answers(labelled)).most_common(MOST_ANSWERS)]
    labels = {answer: label for label, answer in enumerate(answers)}
    labelled = [record for record in labelled if record.answers[0] in labels]
    words = {word: place for place, word in enumerate(sorted({w for record in labelled for w in _words(record)}))}
    places = _places(labelled, words)
    targets = torch.tensor([labels[record.answers[0]] for record in labelled])
    weights = torch.zeros(len(words) + 1, len(answers))
    best, kept = -1.0, weights
    for penalty in PENALTIES:
        weights = _fitted(places, targets, weights, penalty)
        score = accuracy(_answerer(words, answers, weights), validation)
        if score > best:
            best, kept = score, weights
    return _answerer(words, answers, kept)


def accuracy(answerer: Answerer, records: Sequence[Record]) -> float:
    """The share of questions answered as one of their answers is written, in per cent."""
    return per_cent([answerer(record) in record.answers for record in records])


def _answers(records: Iterable[Record]) -> list[str]:
    """The first answer of each labelled record."""
    found = [record.answers[0] for record in records if record.answers]
    if not found:
        raise UsageError("no training record has an answer: what is right most often is not known without")
    return found


def _most_frequent(records: Iterable[Record]) -> str:
    return Counter(_answers(records)).most_common(1)[0][0]


def _words(record: Record) -> list[str]:
    return _WORD.findall((record.question or "").lower())


Places = tuple[Tensor, Tensor]


def _places(records: Sequence[Record], words: dict[str, int]) -> Places:
    """The rows of the weights that each question adds up, the bias and those of its known words: all in a row, and
    where those of each question begin `(B,)`.
    """
    rows = [[len(words), *(words[word] for word in _words(record) if word in words)] for record in records]
    begins = list(accumulate((len(row) for row in rows), initial=0))[:-1]
    return torch.tensor([place for row in rows for place in row]), torch.tensor(begins)


def _logits(places: Places, weights: Tensor) -> Tensor:
    """→ `(B,A)`."""
    return F.embedding_bag(places[0], weights, places[1], mode="sum")


def _fitted(places: Places, targets: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Weights `(V+1,A)` of nearly the least loss, by L-BFGS from `start`."""
    weights = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = _logits(places, weights)
        value = F.cross_entropy(logits, targets) + penalty * weights[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _answerer(words: dict[str, int], answers: Sequence[str], weights: Tensor) -> Answerer:
    return lambda record: answers[int(_logits(_places([record], words), weights).argmax())]
