"""Examples and batches whose every random draw comes from (seed, epoch, example index).

A resumed run therefore sees exactly the batches that the uninterrupted one would have seen, with any number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.sources import VideoDataset, is_damaged
from perceiver_vl.data.transforms import Augmentation, augment
from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.errors import MediaError, PerceiverVLError

DRAW_BITS = 24
"""Of the draws of hard negatives and of patches: as many as a float32 in [0, 1) has."""
_CAPTION_DRAWS, _MASKING_DRAWS, _FRAME_DRAWS, _AUGMENTATION_DRAWS, _NEGATIVE_DRAWS = 0, 1, 2, 3, 5
_PATCH_DRAWS = 7  # tasks and training have 4 to 6


@dataclass(frozen=True, kw_only=True)
class ReadStatistics:
    """What came of reading an example.

    problems: files passed over for it. tried: the clips that were to be read for it, the last of which was.
    damaged: its file, if frames are missing. counts: whether it is a part of the batch, or only stands in where a
    process has no part.
    """

    problems: tuple[SkippedSample, ...] = ()
    tried: tuple[int, ...] = ()
    damaged: str | None = None
    counts: bool = True


Drawn = TypeVar("Drawn", bound=ReadStatistics)


def read_statistics(examples: Sequence[ReadStatistics]) -> dict[str, Any]:
    """Of a batch: `examples`, how many count; as lists `problems`, `damaged` and, of clips by their places, `tried` and
    `failed`.
    """
    return {
        "examples": sum(example.counts for example in examples),
        "problems": [problem for example in examples for problem in example.problems],
        "tried": [place for example in examples for place in example.tried],
        "failed": [place for example in examples for place in example.tried[:-1]],
        "damaged": [example.damaged for example in examples if example.damaged is not None],
    }


@dataclass(frozen=True)
class Example(ReadStatistics):
    """A clip with one of its captions and another (the same if it has one), drawn for `key` = (seed, epoch, index)."""

    frames: Frames
    text: str
    other_text: str
    key: tuple[int, int, int]


def drawn_captions(captions: Sequence[str], key: tuple[int, int, int]) -> tuple[str, str]:
    """One of a clip's captions and another (the same if it has one), for (seed, epoch, index)."""
    rng = np.random.default_rng([*key, _CAPTION_DRAWS])
    chosen = int(rng.integers(len(captions)))
    others = [*captions[:chosen], *captions[chosen + 1 :]] or captions
    return captions[chosen], others[int(rng.integers(len(others)))]


class EpochSampler(Sampler[int]):
    """The examples of each epoch in their own order, as whole numbers epoch · n + index."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        yield from (self.epoch * self.length + order).tolist()


class SharedBatches(Sampler[list[int]]):
    """A process's part of each batch of `batch` examples in a row: neighbours, as many as the other processes have, or
    one more or less in the last batch of an epoch, if it is not left out for being smaller (`drop_last`).

    Where that has too few for all, a process without one gets the first as a stand-in, as its complement `~item`.
    """

    def __init__(self, examples: Sampler[int], batch: int, rank: int, processes: int, drop_last: bool) -> None:
        self.examples, self.batch, self.rank, self.processes = examples, batch, rank, processes
        self.drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.examples.set_epoch(epoch)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        whole, rest = divmod(len(self.examples), self.batch)  # type: ignore[arg-type]
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        items = iter(self.examples)
        for _ in range(len(self)):
            batch = list(islice(items, self.batch))
            part = batch[len(batch) * self.rank // self.processes : len(batch) * (self.rank + 1) // self.processes]
            yield part or [~batch[0]]


class DrawnExamples(Dataset[Drawn], ABC):
    """A source's clips as training examples; item epoch · n + index, n being the clips of the source (`~item`: to
    stand in).

    A clip that cannot be read is replaced by the next one and named in the example's `problems`; with `strict` it
    raises. `pools`: the places of clips that may stand in for each other, ascending; None: all may. Where
    `augmentation` crops, it gives frames of `size` (height, width). `second`: the other pictures of pairs.
    """

    def __init__(
        self,
        source: VideoDataset,
        num_frames: int,
        sampling: Literal["uniform", "random"],
        seed: int,
        strict: bool = False,
        *,
        pools: Sequence[npt.NDArray[np.int64]] | None = None,
        augmentation: Augmentation | None = None,
        size: tuple[int, int] = (0, 0),
        second: VideoDataset | None = None,
    ) -> None:
        self.source, self.num_frames, self.sampling, self.seed, self.strict = source, num_frames, sampling, seed, strict
        self.pools = [np.arange(len(source))] if pools is None else pools
        self.augmentation, self.size, self.second = augmentation, size, second

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int) -> Drawn:
        counts, item = item >= 0, max(item, ~item)
        epoch, index = divmod(item, len(self))
        key = self.seed, epoch, index
        problems: list[SkippedSample] = []
        tried: list[int] = []
        for place in self._from(index):
            tried.append(place)
            try:
                media = self._media(place, key)
            except MediaError as error:
                if self.strict:
                    raise
                problems.append(SkippedSample(self.source.record(place).file_name, error.reason))
                continue
            record = self.source.record(place)
            damaged = record.file_name if is_damaged(self.source, place) else None
            reading = ReadStatistics(problems=tuple(problems), tried=tuple(tried), damaged=damaged, counts=counts)
            return self._example(record, media, key, reading)
        raise PerceiverVLError(f"none of the {len(tried)} clips can be read, the first: {problems[0].reason}")

    def __getitems__(self, items: list[int]) -> list[Drawn] | PerceiverVLError:
        """What a data loader asks for. An error is handed on: raised in a worker process, it ends as a stack trace."""
        try:
            return [self[item] for item in items]
        except PerceiverVLError as error:
            return error

    @abstractmethod
    def _example(
        self, record: Record, media: tuple[Any, ...], key: tuple[int, int, int], reading: ReadStatistics
    ) -> Drawn:
        """The example that is drawn for `key` from a record and its clip (of pairs, both pictures)."""

    def _media(self, place: int, key: tuple[int, int, int]) -> tuple[Frames, ...]:
        """The frames of a clip, or of both pictures of a pair, which are sampled and changed in the same way."""
        found = []
        for source in (self.source, self.second):
            if source is None:
                continue
            rng = np.random.default_rng([*key, _FRAME_DRAWS]) if self.sampling == "random" else None
            frames = source.frames(place, self.num_frames, rng)
            if self.augmentation is not None:
                record = self.source.record(place)
                words = *record.texts, record.question or "", *record.answers, *record.choices
                rng = np.random.default_rng([*key, _AUGMENTATION_DRAWS])
                frames = augment(frames, words, self.augmentation, self.size, rng)
            found.append(frames)
        return tuple(found)

    def _from(self, index: int) -> Iterator[int]:
        """Clip `index`, and those of its pool that come after it, round to the one before it."""
        for pool in self.pools:
            place = int(np.searchsorted(pool, index))
            if place < len(pool) and pool[place] == index:
                yield from (int(pool[other % len(pool)]) for other in range(place, place + len(pool)))


class TrainingExamples(DrawnExamples[Example]):
    """Clips with sampled frames and random captions, for pre-training and retrieval."""

    def _example(
        self, record: Record, media: tuple[Frames, ...], key: tuple[int, int, int], reading: ReadStatistics
    ) -> Example:
        return Example(media[0], *drawn_captions(record.texts, key), key, **vars(reading))


class PreTrainingCollator:
    """Examples → the fields of `training.losses.base.PreTrainingBatch`, and what came of reading them, as a dictionary.

    Only what the objectives need: masked words where `mlm_probability` says how many, other captions, and draws.
    """

    def __init__(
        self,
        processor: PerceiverVLProcessor,
        *,
        mlm_probability: float | None = None,
        other_captions: bool = False,
        negative_draws: bool = False,
        patch_draws: bool = False,
    ) -> None:
        self.processor, self.mlm_probability = processor, mlm_probability
        self.other_captions, self.negative_draws, self.patch_draws = other_captions, negative_draws, patch_draws

    def __call__(self, examples: list[Example] | PerceiverVLError) -> dict[str, Any]:
        """`B` examples → tensors as `PreTrainingBatch` says, and `read_statistics`; an error → `error` alone."""
        if isinstance(examples, PerceiverVLError):
            return {"error": examples}
        batch = dict(
            self.processor(
                text=[example.text for example in examples],
                videos=[example.frames for example in examples],
                num_frames=max(len(example.frames) for example in examples),
                return_tensors="pt",
            )
        )
        if self.mlm_probability is not None:
            masked = [
                mask_words(ids, self.processor.tokenizer, self.mlm_probability, example.key)
                for ids, example in zip(batch["input_ids"], examples, strict=True)
            ]
            batch["masked_input_ids"] = torch.stack([ids for ids, _ in masked])
            batch["mlm_labels"] = torch.stack([labels for _, labels in masked])
        if self.other_captions:
            others = self.processor(text=[example.other_text for example in examples], return_tensors="pt")
            batch["other_input_ids"], batch["other_attention_mask"] = others["input_ids"], others["attention_mask"]
        if self.negative_draws:
            draws = [np.random.default_rng([*e.key, _NEGATIVE_DRAWS]).random(dtype=np.float32) for e in examples]
            batch["negative_draws"] = torch.tensor([int(draw * 2**DRAW_BITS) for draw in draws])
        if self.patch_draws:
            drawn = [np.random.default_rng([*e.key, _PATCH_DRAWS]).integers(2**DRAW_BITS) for e in examples]
            batch["patch_draws"] = torch.tensor(np.array(drawn))
        return {**batch, **read_statistics(examples)}


def mask_words(ids: Tensor, tokenizer: Any, probability: float, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """BERT's masking of `ids (L,)`: of the chosen words 80 % become [MASK], 10 % any word, 10 % stay. → ids, labels,
    which are -100 where nothing was chosen. Drawn for (seed, epoch, index), whatever the padding.
    """
    words = ids.numpy()
    chance, fate, which = np.random.default_rng([*key, _MASKING_DRAWS]).random((len(words), 3)).T
    chosen = (chance < probability) & ~np.isin(words, tokenizer.all_special_ids)
    any_word = (which * len(tokenizer)).astype(words.dtype)
    masked = np.where(chosen & (fate < 0.8), tokenizer.mask_token_id, words)
    masked = np.where(chosen & (fate >= 0.9), any_word, masked)
    return torch.from_numpy(masked), torch.from_numpy(np.where(chosen, words, -100))
