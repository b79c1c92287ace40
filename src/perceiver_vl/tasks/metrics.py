"""The benchmarks' own metrics, as pure functions: what they say of a set of answers, without a model or a file.

Shapes: B batch, L text tokens, K classes, V vocabulary. Shares are per cent, but for the score of a single answer.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from perceiver_vl.data.answers import normalise_answer
from perceiver_vl.utils.errors import UsageError

MOST_COUNTED, LEAST_COUNTED = 10, 1
"""What TGIF-QA's answers to counting questions lie between."""
QUESTION_WORDS = ("what", "who", "how", "when", "where")
"""The types of question of MSVD-QA and MSRVTT-QA, each the word that it begins with."""


def per_cent(scores: Sequence[float] | Sequence[bool]) -> float:
    """The mean of scores in [0, 1], in per cent. Raises `UsageError` if there is none."""
    if not scores:
        raise UsageError("no scores: a mean needs at least one example with a right answer")
    return 100.0 * sum(scores) / len(scores)


def vqa_accuracy(answer: str, of_annotators: Sequence[str]) -> float:
    """VQA's accuracy of one answer, 0 to 1: min(n / 3, 1), n annotators agreeing, averaged over all sets that leave one
    annotator out. Of ten annotators, one that agrees is worth 0.3, two 0.6, three 0.9, four 1.

    As the official script (github.com/GT-Vision-Lab/VQA, vqaEval.py) both sides are normalised where the annotators do
    not all say the same, and compared as they are where they do.
    Raises `UsageError` for fewer than two annotators: leaving one out would leave none.
    """
    if len(of_annotators) < 2:
        raise UsageError(
            f"{len(of_annotators)} answers to a question: VQA's accuracy needs those of several annotators"
        )
    answer, wanted = _trimmed(answer), [_trimmed(other) for other in of_annotators]
    if len(set(wanted)) > 1:
        answer, wanted = normalise_answer(answer), [normalise_answer(other) for other in wanted]
    agreeing = sum(other == answer for other in wanted)
    scores = [min(1.0, (agreeing - (left_out == answer)) / 3) for left_out in wanted]
    return sum(scores) / len(scores)


def _trimmed(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def question_word(question: str) -> str:
    """The type of a question in MSVD-QA and MSRVTT-QA (Xu et al. 2017): its first word, or "other"."""
    first = question.split(maxsplit=1)[0].lower() if question.strip() else ""
    return first if first in QUESTION_WORDS else "other"


def rounded_count(number: float) -> int:
    """TGIF-QA's reading of a number as a count: rounded (a half to the even side) and clipped to 1..10.

    Source: github.com/YunseokJANG/tgif-qa, count_base.py.
    """
    return int(min(max(round(number), LEAST_COUNTED), MOST_COUNTED))


def counting_error(number: float, count: int) -> float:
    """TGIF-QA's error of counting, whose mean is its metric: the squared difference of the rounded number and the right
    count.
    """
    return float((rounded_count(number) - count) ** 2)


def nlvr2_consistency(identifiers: Sequence[str], is_right: Sequence[bool]) -> float:
    """The share of NLVR2's sentences that are judged right of every pair that they are said of, in per cent.

    An identifier is SPLIT-SET-PAIR-SENTENCE; those that differ in PAIR alone are about one sentence (the official
    script, github.com/lil-lab/nlvr, nlvr2/eval/metrics.py). Raises `UsageError` for another form.
    """
    of_sentence: dict[tuple[str, ...], bool] = {}
    for identifier, right in zip(identifiers, is_right, strict=True):
        parts = identifier.split("-")
        if len(parts) != 4:
            raise UsageError(f"identifier {identifier}: consistency needs NLVR2's form, SPLIT-SET-PAIR-SENTENCE")
        sentence = (*parts[:2], parts[3])
        of_sentence[sentence] = of_sentence.get(sentence, True) and right
    return per_cent(list(of_sentence.values()))


def top_k_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the right one of `labels (B,)` is among the k highest of `logits (B,K)` → bool `(B,)`."""
    return (logits.topk(min(k, logits.shape[-1]), dim=-1).indices == labels[:, None]).any(-1)


def masked_word_accuracy(words: Tensor, mlm_labels: Tensor) -> float:
    """The share of masked words that are found, in per cent: the likeliest words `(…,)` int64, and `(…,)` the right
    ones, -100 where nothing was masked.

    Raises `UsageError` if nothing was masked at all.
    """
    is_masked = mlm_labels != -100
    return per_cent((words == mlm_labels)[is_masked].tolist())


def majority_word_accuracy(mlm_labels: Tensor) -> float:
    """What always saying the most frequent of the masked words would score, in per cent: `(…,)`, -100 where nothing
    was masked. Raises `UsageError` as `masked_word_accuracy` does.
    """
    masked = mlm_labels[mlm_labels != -100]
    most_frequent = masked.mode().values if len(masked) else masked
    return masked_word_accuracy(most_frequent.expand_as(masked), masked)


def matching_accuracy(vtm_logits: Tensor, vtm_labels: Tensor) -> float:
    """The share of pairs told rightly to match (a logit above 0) or not, in per cent: `(B,)`, `(B,)` of 1 and 0."""
    return per_cent(((vtm_logits > 0) == vtm_labels.bool()).tolist())


def by_kind(scored: Iterable[tuple[float, str]]) -> dict[str, tuple[int, float]]:
    """Scores and their kinds → of each kind how many, and their mean, in the order of the kinds' names."""
    of_kind: dict[str, list[float]] = {}
    for score, kind in scored:
        of_kind.setdefault(kind, []).append(score)
    return {kind: (len(some), sum(some) / len(some)) for kind, some in sorted(of_kind.items())}


def probabilities(logits: Tensor, each_by_itself: bool = False) -> Tensor:
    """Logits `(…,K)` as probabilities: of one answer among all, or of each answer by itself (VQA's soft targets)."""
    return torch.sigmoid(logits) if each_by_itself else torch.softmax(logits, -1)
