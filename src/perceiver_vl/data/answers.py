"""Answers to open questions: how the official VQA script writes them, the label sets made of them, and their scores."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# The tables and the order of steps are those of the official script: GT-Vision-Lab/VQA,
# PythonEvaluationTools/vqaEvaluation/vqaEval.py (Antol et al. 2015).
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the script passes a flag where the count goes
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905
_CONTRACTIONS = (
    {"somebody'd": "somebodyd"}
    | {  # the one entry of the script that goes the other way
        word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTED for mark in re.finditer("'", word)
    }
)


def _without_marks(answer: str) -> str:
    """The script's first step: marks removed where a space is beside them, or made a space; full stops removed."""
    in_number = _COMMA_IN_NUMBER.search(answer) is not None
    result = answer
    for mark in _PUNCTUATION:
        alone = f"{mark} " in answer or f" {mark}" in answer
        result = result.replace(mark, "" if alone or in_number else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def normalise_answer(answer: str) -> str:
    """As the official script compares answers: lower case, numbers as digits, no articles, apostrophes put back."""
    words = _without_marks(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def majority_answer(answers: Sequence[str]) -> str:
    """What most of the annotators said; of answers said equally often the first."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def vqa_vocabulary(majority_answers: Iterable[str], at_least: int = 9) -> tuple[str, ...]:
    """The label set of VQAv2: normalised majority answers (one a question) that occur `at_least` times.

    In the order of their first appearance, so that labels are those of ViLT and of the authors' checkpoints. From
    `data.datasets.vqav2.majority_answers`, training before validation, it has 3,129 answers.
    Source: `filter_answers` of hengyuan-hu/bottom-up-attention-vqa (tools/compute_softscore.py), as ViLT does it
    (dandelin/ViLT, vilt/utils/write_vqa.py): both count training and validation questions together.
    """
    counts = Counter(normalise_answer(answer) for answer in majority_answers)
    return tuple(answer for answer, count in counts.items() if count >= at_least)


def frequent_answers(answers: Iterable[str], most: int) -> tuple[str, ...]:
    """The label set of open-ended video questions: the `most` frequent training answers, the most frequent first.

    Of answers as frequent the one that came first. MSRVTT-QA is usually answered with 1,500 (ClipBERT), MSVD-QA with
    1,000. The answers are taken as they stand: the sets are in lower case and without marks already.
    """
    return tuple(answer for answer, _ in Counter(answers).most_common(most))


def soft_scores(answers: Sequence[str], labels: Mapping[str, int]) -> dict[int, float]:
    """Label → target of training: 0.3, 0.6, 0.9, 1 for an answer that 1, 2, 3, 4 or more of ten people gave.

    This is the mapping of ViLT (`get_score` in write_vqa.py): the published min(n/3, 1), averaged over the ten choices
    of nine people, as the metric does it. Answers that no label is for are left out.
    Answers are normalised before they are counted, as those of the vocabulary were (ViLT counts them as they stand).
    """
    counts = Counter(normalise_answer(answer) for answer in answers)
    return {labels[answer]: min(1.0, 3 * count / 10) for answer, count in counts.items() if answer in labels}
