"""BLEU-4, ROUGE-L and CIDEr-D on cases worked by hand, and on one that the public scripts were run on."""

import math

import pytest

from perceiver_vl import UsageError
from perceiver_vl.tasks.caption_metrics import bleu, caption_metrics, caption_tokens, cider_d, rouge_l


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's ball, isn't it?", "a dog 's ball is n't it"),
        ("Two men (in t-shirts) cannot jump!", "two men in t-shirts can not jump"),
        ('It’s 3.5 feet; "wow" -- they\'re done...', "it 's 3.5 feet wow they 're done"),
        ("at five o'clock : 50 % off & the dogs' beds", "at five o'clock 50 % off & the dogs beds"),
        ("a doctor/nurse", "a doctor/nurse"),
        (" . ", ""),
    ],
)
def test_tokens_are_lower_case_words_without_punctuation(caption: str, tokens: str) -> None:
    assert caption_tokens(caption) == words(tokens)


def test_bleu_by_hand() -> None:
    """Of 5 words 4 are in a reference, of 4 pairs 3, of 3 threes 2, of 2 fours 1; the nearest reference has 6 words."""
    said, references = [words("a man rides a bike")], [[words("a man rides a horse today"), words("some man")]]
    assert bleu(said, references) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 5))
    assert bleu([words("the the the the")], [[words("the cat the")]]) == pytest.approx(
        (2 / 4 * 1e-15 / 3 * 1e-15 / 2 * 1e-15) ** 0.25, rel=1e-6
    )  # a word counts as often as a reference has it; what is longer pays nothing
    assert bleu([words("a b c d e")] * 2, [[words("a b c d e")], [words("a b c d e f g"), words("a b c")]]) < 1
    assert bleu([words("a b c d e")], [[words("a b c d e")]]) == pytest.approx(1.0)


def test_rouge_by_hand() -> None:
    """The longest common subsequence is "police the gunman"; β = 1.2."""
    said = words("police kill the gunman")
    assert rouge_l(said, [words("police killed the gunman")]) == pytest.approx(0.75)
    found = rouge_l(said, [words("the gunman"), words("police did kill the gunman there today")])
    precision, recall = 4 / 4, 2 / 2  # the best of each, of either reference
    assert found == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert rouge_l(said, [words("a cat")]) == rouge_l((), [words("a cat")]) == 0.0
    precision, recall = 2 / 4, 2 / 3
    assert rouge_l(said, [words("the gunman sleeps")]) == pytest.approx(
        2.44 * precision * recall / (recall + 1.44 * precision)
    )


def test_cider_by_hand() -> None:
    """Of two clips, words of one have the weight log 2, words of both none."""
    references = [[words("a red dog")], [words("a blue cat")]]
    assert cider_d([words("a red dog"), words("a blue cat")], references) == pytest.approx(10 * 3 / 4)
    # "a red cat" of the first clip: of the words (red, cat) and (red, dog), 1 of √2·√2; of the pairs 1 of 2
    assert cider_d([words("a red cat"), words("a blue cat")], references) == pytest.approx(
        10 * ((1 / 2 + 1 / 2) / 4 + 3 / 4) / 2
    )
    # a word said twice counts once, but is heavier in the norm: (2, 1) · (1, 1); and one more pair of words: σ = 6
    said = cider_d([words("red red dog a"), words("x")], references)
    pairs = 1 / math.sqrt(3 * 2)  # of (red red), (red dog), (dog a), the second alone is in the reference
    assert said == pytest.approx(10 * (2 / math.sqrt(5 * 2) + pairs) / 4 * math.exp(-1 / 72) / 2)
    assert cider_d([words("a red dog")], [[words("a red dog")]]) == 0.0  # of one clip alone every word is of all


def test_what_the_public_scripts_say() -> None:
    """github.com/tylin/coco-caption as pycocoevalcap 1.2 packs it, run on these captions."""
    references = [
        ["a man rides a brown horse", "someone is riding a horse on the beach", "a man on a horse"],
        ["two dogs play in the snow", "dogs are running through snow"],
        ["a red car is parked", "the car is red"],
    ]
    said = ["a man rides a horse on the beach", "two dogs run in snow", "a blue car"]
    assert caption_metrics(said, references) == pytest.approx(
        {"cider_d": 230.14531258030911, "bleu_4": 54.75119108798587, "rouge_l": 64.23823238220772, "exact_match": 0.0}
    )
    assert caption_metrics(["Two dogs play in the snow.", *said[1:]], references[1:2] + references[1:])[
        "exact_match"
    ] == pytest.approx(100 / 3)


def test_nothing_to_compare_with_is_refused() -> None:
    for said, references in (([], []), (["a"], [[]])):
        with pytest.raises(UsageError, match=r"^captions: need at least one clip, and a reference for each$"):
            caption_metrics(said, references)
