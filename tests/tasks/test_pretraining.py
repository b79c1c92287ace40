"""Pre-training as a task: masks and pairs depend on the split and the seed alone, the scores on what the model says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import LETTERS, PROCESSOR, Pictures

from perceiver_vl import ComputeBudget, MediaError, PerceiverVLError, PerceiverVLForPreTraining, UsageError
from perceiver_vl.data.batching import mask_words
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.tasks.pretraining import PreTraining, PreTrainingResult
from tiny import tiny_model

BUDGET = ComputeBudget(frames=2, latents=5, cross_attentions=2)


def clips(count: int = 12, captions: int = 2) -> list[Record]:
    """Clips with captions of two to six letters, no two alike."""
    found = []
    for index in range(count):
        rng = np.random.default_rng(index)
        texts = tuple(" ".join(rng.choice(list(LETTERS), size=2 + (index + k) % 5)) for k in range(captions))
        found.append(Record(f"{10 * index}.mp4", Path(f"{10 * index}.mp4"), texts))
    return found


def model(seed: int = 0) -> PerceiverVLForPreTraining:
    return tiny_model(PerceiverVLForPreTraining, seed, vocab_size=len(PROCESSOR.tokenizer)).float()


def evaluate(records: list[Record], broken: Any = frozenset(), seed_of_model: int = 0, **how: Any) -> PreTrainingResult:
    return PreTraining().evaluate(model(seed_of_model), PROCESSOR, Pictures(records, broken), **how)


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_what_is_scored_is_what_the_model_says_of_each_caption_alone(batch_size: int) -> None:
    """Which other caption is drawn cannot be told from outside, so matching is checked on two clips of one caption."""
    records, asked = clips(), model()
    found = evaluate(records, budget=BUDGET, batch_size=batch_size, seed=7)
    assert (found.clips, found.captions, found.left_out, found.num_frames) == (12, 24, 0, 2)
    hits, right = [], []
    for index, record in enumerate(records):
        vision = PROCESSOR(videos=[Pictures(records).frames(index, 2)], num_frames=2)
        for place, text in enumerate(record.texts):
            words = PROCESSOR(text=text)
            ids, labels = mask_words(words["input_ids"][0], PROCESSOR.tokenizer, 0.15, (7, place, index))
            with torch.no_grad():
                said = asked(
                    ids[None], words["attention_mask"], **vision, mlm_labels=labels[None], budget=BUDGET
                ).mlm_logits
            is_masked = labels != -100
            hits += (said[0].argmax(-1) == labels)[is_masked].tolist()
            right += labels[is_masked].tolist()
    assert found.masked_words == len(hits) > 10
    assert found.metrics["masked_word_accuracy"] == pytest.approx(100 * sum(hits) / len(hits))
    most = max(right.count(word) for word in right)
    assert found.trivial == pytest.approx({"masked_word_accuracy": 100 * most / len(right), "matching_accuracy": 50.0})

    pair = [replace(record, texts=record.texts[:1]) for record in records[:2]]
    logits = torch.zeros(2, 2)
    for clip in range(2):
        vision = PROCESSOR(videos=[Pictures(pair).frames(clip, 2)], num_frames=2)
        for text in range(2):
            with torch.no_grad():
                logits[clip, text] = asked.match_jointly(**PROCESSOR(text=pair[text].texts[0]), **vision, budget=BUDGET)
    told = ((logits > 0) == torch.eye(2).bool()).double().mean().item()
    found = evaluate(pair, budget=BUDGET, batch_size=batch_size)
    assert found.metrics["matching_accuracy"] == pytest.approx(100 * told)


def test_the_seed_alone_decides_what_is_asked() -> None:
    first, again, other = (evaluate(clips(), seed=seed, batch_size=size) for seed, size in ((0, 32), (0, 3), (1, 32)))
    kept = ("metrics", "trivial", "masked_words")
    assert [getattr(first, name) for name in kept] == [getattr(again, name) for name in kept]
    assert [getattr(first, name) for name in kept] != [getattr(other, name) for name in kept]


def test_a_model_that_always_says_yes_is_right_of_half_the_pairs() -> None:
    asked = model()
    with torch.no_grad():
        list(asked.vtm_head.parameters())[-1].fill_(1e4)
    found = PreTraining().evaluate(asked, PROCESSOR, Pictures(clips()))
    assert found.metrics["matching_accuracy"] == 50.0


def test_captions_that_are_too_short_to_be_masked_are_matched_all_the_same() -> None:
    two = [replace(record, texts=(letter,)) for record, letter in zip(clips(2), "ab", strict=True)]
    found = next(
        result for seed in range(20) if not (result := evaluate(two, seed=seed)).masked_words
    )  # 0.72 of all seeds
    assert set(found.metrics) == set(found.trivial) == {"matching_accuracy"}


def test_the_first_captions_of_a_clip_can_be_asked_about_alone() -> None:
    found = evaluate(clips(captions=3), captions_per_clip=1)
    assert (found.clips, found.captions) == (12, 12)


def test_broken_clips_are_left_out_and_listed_and_their_captions_still_belong_to_another() -> None:
    records = [*clips(4), replace(clips(5)[4], texts=())]
    found = evaluate(records, {"10.mp4"})
    assert (found.clips, found.captions, found.left_out) == (3, 6, 2)
    assert found.skipped == [SkippedSample("10.mp4", "damaged")]
    assert found.to_dict()["task"] == "pre-training"
    with pytest.raises(MediaError, match=r"^10\.mp4: damaged$"):
        evaluate(records, {"10.mp4"}, strict=True)
    with pytest.raises(PerceiverVLError, match=r"^no clip of 2 could be read, the first: 0\.mp4: damaged$"):
        evaluate(clips(2), {"0.mp4", "10.mp4"})


def alike(records: list[Record]) -> list[Record]:
    return [replace(record, texts=("a b c",)) for record in records]


def of_one_file(records: list[Record]) -> list[Record]:
    return [replace(record, path=records[0].path, file_name=records[0].file_name) for record in records]


@pytest.mark.parametrize("spoil", [alike, of_one_file, lambda records: records[:1]])
def test_matching_needs_clips_that_differ(spoil: Callable[[list[Record]], list[Record]]) -> None:
    with pytest.raises(UsageError, match=r"^0\.mp4: no other clip has another caption, [^\n]+$"):
        evaluate(spoil(clips(4)))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"num_frames": 9}, "num_frames=9"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"captions_per_clip": 0}, "captions_per_clip=0"),
        ({"seed": -1}, "seed=-1"),
        ({"budget": ComputeBudget(latents=99)}, "budget latents=99"),
    ],
)
def test_arguments_that_cannot_work_are_refused(how: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+: [^\n]+$") as refused:
        evaluate(clips(), **how)
    assert named in str(refused.value)


def test_nothing_to_ask_about() -> None:
    with pytest.raises(UsageError, match=r"^task=pre-training: none of the 2 records has a caption$"):
        evaluate([replace(record, texts=()) for record in clips(2)])


def test_a_model_gone_wrong_says_nothing() -> None:
    asked = model()
    with torch.no_grad():
        asked.perceiver_vl.encoder.latents.fill_(float("nan"))
    with pytest.raises(PerceiverVLError, match=r"^[^\n]+not finite[^\n]+$"):
        PreTraining().evaluate(asked, PROCESSOR, Pictures(clips()))
