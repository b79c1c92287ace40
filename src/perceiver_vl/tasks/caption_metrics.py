"""How near captions come to those that people wrote: BLEU-4, ROUGE-L and CIDEr-D as the public COCO caption scripts
compute them (github.com/tylin/coco-caption, which pycocoevalcap packs).

Ours, because those packages need Java for the tokenizer, and nothing else of them is needed. `caption_tokens` does what
that tokenizer (PTB, lower case, the script's list of punctuation dropped) does to captions. All results in per cent.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from perceiver_vl.utils.errors import UsageError

Tokens = tuple[str, ...]
_ORDERS = 4  # n-grams of one to four words
_LENGTH_SPREAD = 6.0  # σ of CIDEr-D's penalty of another length
_RECALL_WEIGHT = 1.2  # β of ROUGE-L
_NOT = re.compile(r"(?<=\w)n['’]t\b")
_TOKEN = re.compile(r"n't\b|['’](?:s|m|d|re|ve|ll)\b|o['’]clock\b|\d+(?:[.,:/]\d+)+|\w+(?:[-/]\w+)*|[$%&#@+=*]")


def caption_tokens(caption: str) -> Tokens:
    """Lower-case words without punctuation: contractions and possessives are apart (`does n't`, `dog 's`), hyphenated
    words are one. Not as there: brackets are dropped (the script's list means to, but misses them in lower case), and
    abbreviations lose their dots.
    """
    text = _NOT.sub(" n't", caption.lower()).replace("cannot", "can not")
    return tuple(token.replace("’", "'") for token in _TOKEN.findall(text))


def caption_metrics(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """What was said of each clip against what people said of it: `cider_d`, `bleu_4`, `rouge_l`, and `exact_match`, the
    share that is one of the references, word for word.

    CIDEr-D weighs words by how few clips they are said of, so it is a figure of this set of clips, and of one clip
    alone it is 0. Raises `UsageError` where there is no clip, or one without a reference.
    """
    if not said or not all(references):
        raise UsageError("captions: need at least one clip, and a reference for each")
    hypotheses = [caption_tokens(one) for one in said]
    wanted = [[caption_tokens(one) for one in some] for some in references]
    pairs = list(zip(hypotheses, wanted, strict=True))
    return {
        "cider_d": 100.0 * cider_d(hypotheses, wanted),
        "bleu_4": 100.0 * bleu(hypotheses, wanted),
        "rouge_l": 100.0 * sum(rouge_l(one, some) for one, some in pairs) / len(pairs),
        "exact_match": 100.0 * sum(one in some for one, some in pairs) / len(pairs),
    }


def bleu(said: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """BLEU-4 of all together, 0 to 1, the nearest reference giving the length (bleu_scorer.py, `closest`)."""
    right, guessed = [0] * _ORDERS, [0] * _ORDERS
    length = wanted_length = 0
    for one, some in zip(said, references, strict=True):
        length += len(one)
        wanted_length += min((abs(len(other) - len(one)), len(other)) for other in some)[1]
        for order in range(1, _ORDERS + 1):
            most: Counter[Tokens] = Counter()
            for other in some:
                most |= Counter(_ngrams(other, order))
            found = Counter(_ngrams(one, order))
            guessed[order - 1] += sum(found.values())
            right[order - 1] += sum((found & most).values())
    shares = [(hits + 1e-15) / (guesses + 1e-9) for hits, guesses in zip(right, guessed, strict=True)]
    ratio = (length + 1e-15) / (wanted_length + 1e-9)
    return math.prod(shares) ** (1 / _ORDERS) * math.exp(min(0.0, 1 - 1 / ratio))


def rouge_l(said: Tokens, references: Sequence[Tokens]) -> float:
    """0 to 1: the longest common subsequence's share of what was said, and of a reference, the best of each
    (rouge.py).
    """
    common = [_common_length(said, other) for other in references]
    precision = max((length / len(said) for length in common if said), default=0.0)
    recall = max((length / len(other) for length, other in zip(common, references, strict=True) if other), default=0.0)
    if not precision or not recall:
        return 0.0
    weight = _RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def cider_d(said: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """0 to 10: similarity of n-grams, those of few clips counting most (Vedantam et al. 2015; cider_scorer.py)."""
    frequency: Counter[Tokens] = Counter()
    for some in references:
        frequency.update({ngram for other in some for ngram in _all_ngrams(other)})
    clips = math.log(len(references))
    rare = {ngram: clips - math.log(count) for ngram, count in frequency.items()}
    total = 0.0
    for one, some in zip(said, references, strict=True):
        mine = _weighted(one, rare, clips)
        total += sum(_similarity(mine, _weighted(other, rare, clips)) for other in some) / len(some)
    return 10.0 * total / len(said)


_Weighted = tuple[list[dict[Tokens, float]], int]


def _weighted(tokens: Tokens, rare: Mapping[Tokens, float], clips: float) -> _Weighted:
    """The n-grams of each order with their weights, and how many pairs of words there are: the scripts' length."""
    orders: list[dict[Tokens, float]] = [{} for _ in range(_ORDERS)]
    for ngram, count in Counter(_all_ngrams(tokens)).items():
        orders[len(ngram) - 1][ngram] = count * rare.get(ngram, clips)
    return orders, max(0, len(tokens) - 1)


def _similarity(mine: _Weighted, theirs: _Weighted) -> float:
    """Of one caption with a reference, 0 to 1: the mean over the orders."""
    total = 0.0
    for left, right in zip(mine[0], theirs[0], strict=True):
        norm = math.sqrt(_square(left) * _square(right))
        product = sum(min(weight, right[ngram]) * right[ngram] for ngram, weight in left.items() if ngram in right)
        total += product / norm if norm else 0.0
    return total / _ORDERS * math.exp(-((mine[1] - theirs[1]) ** 2) / (2 * _LENGTH_SPREAD**2))


def _square(weights: Mapping[Tokens, float]) -> float:
    return sum(weight**2 for weight in weights.values())


def _ngrams(tokens: Tokens, order: int) -> Iterator[Tokens]:
    return (tokens[start : start + order] for start in range(len(tokens) - order + 1))


def _all_ngrams(tokens: Tokens) -> Iterator[Tokens]:
    return (ngram for order in range(1, _ORDERS + 1) for ngram in _ngrams(tokens, order))


def _common_length(left: Tokens, right: Tokens) -> int:
    """Of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for place, other in enumerate(right, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
