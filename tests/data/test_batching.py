"""Examples and batches: every draw from (seed, epoch, index), broken clips passed over and named."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from perceiver_vl import MediaError, PerceiverVLError, PerceiverVLProcessor
from perceiver_vl.data.batching import EpochSampler, Example, PreTrainingCollator, TrainingExamples
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.sources import CachedDataset, FolderDataset
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.media.sampling import Frames
from tiny import tiny_processor

WORDS = ["red square moves left", "blue circle grows", "two green triangles meet", "yellow star blinks"] * 2


class NumberedClips:
    """Clip i is a frame of the colour i; the clips of `broken` cannot be read."""

    def __init__(self, clips: int, broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.clips, self.broken = clips, broken

    def __len__(self) -> int:
        return self.clips

    def record(self, index: int) -> Record:
        return Record(f"{index}.mp4", Path(f"{index}.mp4"), tuple(f"{words} {index}" for words in WORDS[:4]))

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        if index in self.broken:
            raise MediaError(f"{index}.mp4", "damaged")
        return np.full((num_frames, 16, 16, 3), index, np.uint8)


def same(left: Example, right: Example) -> bool:
    return np.array_equal(left.frames, right.frames) and replace(left, frames=right.frames) == right


# --- Order ----------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 40), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_every_epoch_has_every_example_once(length: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(length, seed)
    sampler.set_epoch(epoch)
    items = list(sampler)
    assert len(sampler) == length
    assert sorted(items) == list(range(epoch * length, (epoch + 1) * length))
    assert list(sampler) == items


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            sampler = EpochSampler(30, seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(item % 30 for item in sampler))
    assert len(orders) == 6


# --- Examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "random"])
def test_an_example_is_the_same_whenever_and_wherever_it_is_made(sampling: Any) -> None:
    world = World(clips=6, num_frames=4, size=16)
    examples = TrainingExamples(world, 4, sampling, seed=3)
    first = [examples[item] for item in range(18)]
    np.random.seed(1)
    torch.manual_seed(1)
    again = TrainingExamples(world, 4, sampling, seed=3)
    assert all(same(again[item], first[item]) for item in reversed(range(18)))
    workers = DataLoader(examples, batch_size=None, sampler=list(range(18)), num_workers=1)
    assert all(same(found, wanted) for found, wanted in zip(workers, first, strict=True))


def test_epochs_and_seeds_bring_other_captions_and_other_frames() -> None:
    world = World(clips=4, num_frames=4, size=16)
    examples, other = (TrainingExamples(world, 4, "random", seed) for seed in (3, 4))
    assert len({examples[1 + 4 * epoch].text for epoch in range(20)}) == 5  # all the captions of clip 1
    assert len({examples[1 + 4 * epoch].frames.tobytes() for epoch in range(5)}) == 5
    assert not np.array_equal(other[1].frames, examples[1].frames)


def test_uniform_sampling_takes_the_same_frames_in_every_epoch() -> None:
    world = World(clips=4, num_frames=4, size=16)
    examples = TrainingExamples(world, 4, "uniform", seed=3)
    assert len(examples) == 4
    for epoch in range(3):
        assert np.array_equal(examples[2 + 4 * epoch].frames, world.frames(2, 4))
        assert examples[2 + 4 * epoch].text in world.captions(2)
        assert examples[2 + 4 * epoch].key == (3, epoch, 2)


def test_a_broken_clip_is_replaced_by_the_next_and_named() -> None:
    examples = TrainingExamples(NumberedClips(5, broken={1, 2, 4}), 2, "uniform", seed=0)
    assert [int(examples[item].frames[0, 0, 0, 0]) for item in range(5)] == [0, 3, 3, 3, 0]
    assert examples[1].problems == (SkippedSample("1.mp4", "damaged"), SkippedSample("2.mp4", "damaged"))
    assert examples[4].problems == (SkippedSample("4.mp4", "damaged"),)
    assert examples[0].problems == ()
    assert all(examples[item].text.endswith(str(examples[item].frames[0, 0, 0, 0])) for item in range(10))


def test_strict_raises_at_a_broken_clip() -> None:
    examples = TrainingExamples(NumberedClips(3, broken={1}), 2, "uniform", seed=0, strict=True)
    assert examples[0].problems == ()
    with pytest.raises(MediaError, match=r"1\.mp4: damaged"):
        examples[1]


def test_when_all_clips_are_broken_that_is_said_at_once() -> None:
    examples = TrainingExamples(NumberedClips(3, broken={0, 1, 2}), 2, "uniform", seed=0)
    with pytest.raises(PerceiverVLError, match=r"^none of the 3 clips can be read[^\n]+damaged$"):
        examples[1]


def test_the_clips_of_a_folder_are_decoded_at_the_size_asked_for(tmp_path: Path) -> None:
    write_world(tmp_path, clips=3, num_frames=6, size=32)
    records = read_folder(tmp_path).records
    plain = FolderDataset(records, (16, 24))
    cached = CachedDataset(plain)
    assert (len(plain), plain.record(0)) == (3, records[0])
    assert plain.frames(0, 4).shape == (4, 16, 24, 3)
    assert np.array_equal(cached.frames(0, 4), plain.frames(0, 4))
    assert cached.frames(0, 4) is cached.frames(0, 4)
    assert cached.frames(0, 2).shape == (2, 16, 24, 3)
    assert (len(cached), cached.record(1)) == (3, plain.record(1))
    drawn = [plain.frames(0, 2, np.random.default_rng(seed)) for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(drawn[0], drawn[1])
    assert len({frames.tobytes() for frames in drawn}) > 1


# --- Batches --------------------------------------------------------------------------------------------------------


def collator_of(processor: PerceiverVLProcessor, probability: float) -> PreTrainingCollator:
    """Of all that an objective can need."""
    return PreTrainingCollator(processor, mlm_probability=probability, other_captions=True, negative_draws=True)


def collate(number: int, probability: float = 0.15, seed: int = 0, text: str | None = None) -> dict[str, Any]:
    processor = tiny_processor(WORDS)
    examples = [
        Example(np.full((1 + i % 3, 16, 16, 3), i, np.uint8), text or WORDS[i % 4], WORDS[(i + 1) % 4], (seed, 0, i))
        for i in range(number)
    ]
    return collator_of(processor, probability)(examples)


def test_a_batch_is_padded_and_masked_as_the_model_wants_it() -> None:
    batch = collate(5)
    assert batch["pixel_values"].shape == (5, 3, 3, 16, 16)
    assert batch["frame_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    shape = batch["input_ids"].shape
    assert batch["attention_mask"].shape == batch["masked_input_ids"].shape == batch["mlm_labels"].shape == shape
    assert batch["problems"] == []


def test_only_what_is_asked_for_is_made_and_drawn_as_ever() -> None:
    processor = tiny_processor(WORDS)
    examples = [Example(np.zeros((1, 16, 16, 3), np.uint8), WORDS[i], WORDS[0], (0, 0, i)) for i in range(4)]
    everything = collator_of(processor, 0.5)(examples)
    pairs = {"input_ids", "attention_mask", "pixel_values", "frame_mask"}
    asked: list[tuple[dict[str, Any], set[str]]] = [
        ({}, set()),
        ({"mlm_probability": 0.5}, {"masked_input_ids", "mlm_labels"}),
        ({"other_captions": True}, {"other_input_ids", "other_attention_mask"}),
        ({"negative_draws": True}, {"negative_draws"}),
    ]
    for what, wanted in asked:
        batch = PreTrainingCollator(processor, **what)(examples)
        tensors = {name for name, value in batch.items() if isinstance(value, Tensor)}
        assert tensors == pairs | wanted
        assert all(torch.equal(batch[name], everything[name]) for name in tensors)


def test_the_other_captions_are_the_same_clips_others() -> None:
    batch, tokenizer = collate(5), tiny_processor(WORDS).tokenizer
    assert batch["other_input_ids"].shape == batch["other_attention_mask"].shape
    assert tokenizer.batch_decode(batch["other_input_ids"], skip_special_tokens=True) == [
        tokenizer.decode(tokenizer(WORDS[(i + 1) % 4])["input_ids"], skip_special_tokens=True) for i in range(5)
    ]
    drawn = TrainingExamples(World("train", 3, captions_per_clip=3, size=16), 1, "uniform", seed=0)
    for item in range(30):
        example = drawn[item]
        captions = drawn.source.record(item % 3).texts
        assert example.text in captions
        assert example.other_text in set(captions) - {example.text}
    alone = TrainingExamples(World("train", 1, captions_per_clip=1, size=16), 1, "uniform", seed=0)[0]
    assert alone.other_text == alone.text


def test_what_is_drawn_for_an_example_is_the_same_in_any_batch() -> None:
    """A batch that several processes share is that of one, however it is split and padded."""
    processor = tiny_processor(WORDS)
    short, long = "red circle", "red circle blue square green star"
    examples = [
        Example(np.zeros((1, 16, 16, 3), np.uint8), text, long, (0, 0, index))
        for index, text in enumerate([short, long] * 100)
    ]
    collate = collator_of(processor, 0.5)
    whole, part = collate(examples), collate(examples[::2])
    length = part["input_ids"].shape[1]
    assert length < whole["input_ids"].shape[1]
    for name in ("masked_input_ids", "mlm_labels"):
        assert torch.equal(whole[name][::2, :length], part[name])
    assert torch.equal(whole["negative_draws"][::2], part["negative_draws"])
    assert len(whole["negative_draws"].unique()) > 190


def test_words_are_masked_as_in_bert() -> None:
    processor = tiny_processor(WORDS)
    text = " ".join(["circle", "square", "star", "red", "blue", "green"])
    batch = PreTrainingCollator(processor, mlm_probability=0.15)(
        [Example(np.zeros((1, 16, 16, 3), np.uint8), text, text, (0, 0, index)) for index in range(4000)]
    )
    ids, masked, labels = batch["input_ids"], batch["masked_input_ids"], batch["mlm_labels"]
    chosen, words = labels != -100, ~torch.isin(ids, torch.tensor(processor.tokenizer.all_special_ids))
    number = int(words.sum())
    assert not chosen[~words].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])

    def near(count: Any, total: int, share: float) -> bool:
        return abs(int(count) - total * share) < 5 * (total * share * (1 - share)) ** 0.5

    total, vocabulary = int(chosen.sum()), len(processor.tokenizer)
    assert near(total, number, 0.15)
    is_mask = masked[chosen] == processor.tokenizer.mask_token_id
    kept = masked[chosen] == ids[chosen]
    assert near(is_mask.sum(), total, 0.8 + 0.1 / vocabulary)
    assert near(kept.sum(), total, 0.1 + 0.1 / vocabulary)
    drawn = Counter(masked[chosen][~is_mask & ~kept].tolist())
    assert len(drawn) > vocabulary // 2


def test_special_tokens_are_never_masked_and_all_words_can_be() -> None:
    batch = collate(4, probability=1.0)
    special = torch.isin(batch["input_ids"], torch.tensor(tiny_processor(WORDS).tokenizer.all_special_ids))
    assert special.any()
    assert not special.all()
    assert torch.equal(batch["mlm_labels"] == -100, special)


def test_masking_depends_on_the_example_alone() -> None:
    examples = [Example(np.zeros((1, 16, 16, 3), np.uint8), WORDS[i % 4], WORDS[0], (7, 1, i)) for i in range(8)]
    collator = PreTrainingCollator(tiny_processor(WORDS), mlm_probability=0.5)
    whole, part = collator(examples), collator(examples[4:])
    length = part["mlm_labels"].shape[1]
    again = collator(examples[4:])
    assert torch.equal(part["mlm_labels"], again["mlm_labels"])
    assert torch.equal(part["masked_input_ids"], again["masked_input_ids"])
    assert torch.equal(whole["mlm_labels"][4:, :length], part["mlm_labels"])
    other = collator([replace(example, key=(7, 2, example.key[2])) for example in examples])
    assert not torch.equal(other["mlm_labels"], whole["mlm_labels"])


def test_the_problems_of_all_examples_are_handed_on() -> None:
    examples = TrainingExamples(NumberedClips(4, broken={1, 3}), 2, "uniform", seed=0)
    batch = PreTrainingCollator(tiny_processor(WORDS))([examples[item] for item in range(4)])
    assert batch["problems"] == [SkippedSample("1.mp4", "damaged"), SkippedSample("3.mp4", "damaged")]
    assert (batch["tried"], batch["failed"], batch["damaged"]) == ([0, 1, 2, 2, 3, 0], [1, 3], [])


def test_an_error_goes_through_a_worker_as_it_is() -> None:
    examples = TrainingExamples(NumberedClips(4, broken={1}), 2, "uniform", seed=0, strict=True)
    collator = PreTrainingCollator(tiny_processor(WORDS))
    (batch,) = DataLoader(examples, batch_size=4, num_workers=1, collate_fn=collator)
    assert isinstance(batch["error"], MediaError)
    assert str(batch["error"]) == "1.mp4: damaged"
