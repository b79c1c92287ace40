"""Pre-training itself: which words are missing from a caption, and does a caption belong to a clip (paper 4.1)?

Shapes: B batch, L text tokens.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from perceiver_vl.data.batching import mask_words
from perceiver_vl.data.prefetch import read_ahead
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import VideoDataset, is_damaged
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.question_answering import beside
from perceiver_vl.tasks.evaluation import checked_frames, evaluating, vision_batch_of
from perceiver_vl.tasks.metrics import majority_word_accuracy, masked_word_accuracy, matching_accuracy
from perceiver_vl.tasks.task import Task
from perceiver_vl.utils.console import ProgressBars, out
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

MLM_PROBABILITY = 0.15
_PAIR_DRAWS = 4  # beside those of data.batching
_MOST_DRAWS = 100


@dataclass
class PreTrainingResult:
    """How a model does what it was pre-trained to do.

    metrics: by name, in per cent; without `masked_word_accuracy` where the captions are so short that no word was
    masked. trivial: what an answer that looks at nothing scores by each metric. captions: each asked about once masked,
    once with its clip, once with another. left_out: clips that were not asked about.
    """

    clips: int
    captions: int
    masked_words: int
    left_out: int
    seed: int
    budget: str
    num_frames: int
    seconds_per_clip: float
    metrics: dict[str, float] = field(default_factory=dict)
    trivial: dict[str, float] = field(default_factory=dict)
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"task": "pre-training", **asdict(self)}

    def print(self) -> None:
        """Both metrics beside what an answer that looks at nothing scores."""
        counts = f"{self.captions} captions, {self.clips} clips, {self.masked_words} masked words, seed {self.seed}"
        out.print(f"pre-training: {counts}, {self.num_frames} frames, budget {self.budget}")
        table = Table("metric", pad_edge=False)
        for column in ("score", "looking at nothing"):
            table.add_column(column, justify="right")
        for name, score in self.metrics.items():
            table.add_row(name, f"{score:.2f}", f"{self.trivial[name]:.2f}")
        out.print(table, soft_wrap=False)
        left_out = f", {self.left_out} left out" if self.left_out else ""
        out.print(f"{1e3 * self.seconds_per_clip:.1f} ms a clip with decoding{left_out}")


@dataclass(frozen=True)
class _Caption:
    """A caption to ask about: the place of its clip in the source and in the batch, its words, another clip's."""

    key: tuple[int, int, int]
    row: int
    text: str
    other: str


class PreTraining(Task[PreTrainingResult]):
    """Masked words and matching.

    Examples: a clip and one of its captions, words of it masked as in training; and for matching the caption as it is,
    once with its clip, and once a caption of another clip with this one. Queries: MLM's, one at each place of the text,
    and VTM's learned vector. Heads: a logit for each word of the vocabulary, and one logit. Losses: those of
    `training.losses`. Metrics: `masked_word_accuracy`, beside that of always saying the most frequent of the masked
    words; and `matching_accuracy`, beside 50, for half the pairs match. No submission file.
    Masks and pairs come from (seed, caption, clip): the same for every model with this tokenizer, in batches of any
    size.
    """

    name = "pre-training"
    model_class = PerceiverVLForPreTraining
    need = "text"
    in_one_process = True

    @torch.inference_mode()
    def evaluate(
        self,
        model: PerceiverVLForPreTraining,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        batch_size: int = 32,
        strict: bool = False,
        max_failed_fraction: float = MAX_FAILED_FRACTION,
        progress: bool = False,
        captions_per_clip: int | None = None,
        seed: int = 0,
    ) -> PreTrainingResult:
        """Ask `model` for the masked words of every caption of `source`, and which captions belong to which clips.

        `captions_per_clip` keeps the first captions only (None: all). Clips that cannot be read are left out, and
        listed in `skipped`; `strict` raises at the first. Raises `UsageError` for values that cannot work and for a
        split whose clips all have the same caption; `PerceiverVLError` if no clip or more than the share
        `max_failed_fraction` cannot be read, or the model's answers are not numbers.
        """
        frames = checked_frames(model, processor, num_frames, budget, batch_size)
        if captions_per_clip is not None and captions_per_clip < 1:
            raise UsageError(f"captions_per_clip={captions_per_clip}: need at least 1")
        if seed < 0:
            raise UsageError(f"seed={seed}: need 0 or more")
        indices = [index for index in range(len(source)) if source.record(index).texts]
        if not indices:
            raise UsageError(f"task=pre-training: none of the {len(source)} records has a caption")
        start = time.perf_counter()
        problems: list[SkippedSample] = []
        read: list[int] = []
        words: list[tuple[Tensor, Tensor]] = []
        matches: list[tuple[Tensor, Tensor]] = []
        with evaluating(model), ProgressBars(progress) as bar:
            advance = bar.stage("Asking", len(indices))
            for batch in read_ahead([source], indices, frames, batch_size, problems, strict, max_failed_fraction):
                clips = vision_batch_of(batch, processor, frames, model.device)
                vision = model.perceiver_vl.embed_inputs(None, None, clips.pixel_values, clips.frame_mask, budget)
                captions = list(_captions_of(source, batch.indices, batch.rows, captions_per_clip, seed))
                for some in (captions[first : first + batch_size] for first in range(0, len(captions), batch_size)):
                    words.append(_masked_words(model, processor, vision, some, budget))
                    matches.append(_matches(model, processor, vision, some, budget))
                read += batch.indices
                advance(len(batch.indices))
        if not read:
            first = f"{problems[0].file_name}: {problems[0].reason}"
            raise PerceiverVLError(f"no clip of {len(indices)} could be read, the first: {first}")
        predicted, masked = (torch.cat(parts) for parts in zip(*words, strict=True))
        logits, labels = (torch.cat(parts) for parts in zip(*matches, strict=True))
        metrics = {"matching_accuracy": matching_accuracy(logits, labels)}
        trivial = {"matching_accuracy": 50.0}
        if len(masked):
            metrics = {"masked_word_accuracy": masked_word_accuracy(predicted, masked)} | metrics
            trivial = {"masked_word_accuracy": majority_word_accuracy(masked)} | trivial
        return PreTrainingResult(
            clips=len(read),
            captions=len(labels) // 2,
            masked_words=len(masked),
            left_out=len(source) - len(read),
            seed=seed,
            budget=str(budget),
            num_frames=frames,
            seconds_per_clip=(time.perf_counter() - start) / len(read),
            metrics=metrics,
            trivial=trivial,
            skipped=problems,
            damaged=[source.record(index).file_name for index in sorted(read) if is_damaged(source, index)],
        )


def _captions_of(
    source: VideoDataset, indices: list[int], rows: list[int], captions_per_clip: int | None, seed: int
) -> Iterator[_Caption]:
    for index, row in zip(indices, rows, strict=True):
        for place, text in enumerate(source.record(index).texts[:captions_per_clip]):
            key = seed, place, index
            yield _Caption(key, row, text, _caption_of_another(source, key))


def _caption_of_another(source: VideoDataset, key: tuple[int, int, int]) -> str:
    """A caption that is none of clip `index`, drawn for `key` = (seed, caption, index).

    Raises `UsageError` where no draw finds one.
    """
    own = source.record(key[2])
    rng = np.random.default_rng([*key, _PAIR_DRAWS])
    for _ in range(_MOST_DRAWS):
        other = source.record(int(rng.integers(len(source))))
        if other.texts and other.path != own.path:
            text = other.texts[int(rng.integers(len(other.texts)))]
            if text not in own.texts:
                return text
    raise UsageError(
        f"{own.file_name}: no other clip has another caption, matching needs clips of which different things are said"
    )


def _masked_words(
    model: PerceiverVLForPreTraining,
    processor: PerceiverVLProcessor,
    vision: InputArray,
    captions: list[_Caption],
    budget: ComputeBudget,
) -> tuple[Tensor, Tensor]:
    """The likeliest words at the masked places of B captions, and the right ones, int64 `(masked words,)` each."""
    tokens = processor(text=[one.text for one in captions])
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    rows = zip(ids, captions, strict=True)
    masked = [mask_words(row, processor.tokenizer, MLM_PROBABILITY, one.key) for row, one in rows]
    ids, labels = (torch.stack(parts) for parts in zip(*masked, strict=True))
    is_masked = (labels != -100).to(model.device)
    latents = model.perceiver_vl.encode(_inputs(model, vision, captions, ids, mask), budget)
    answers = model.decode_masked_words(latents, is_masked)[is_masked]
    return _finite(model.mlm_head(answers)).argmax(-1), labels[labels != -100]


def _matches(
    model: PerceiverVLForPreTraining,
    processor: PerceiverVLProcessor,
    vision: InputArray,
    captions: list[_Caption],
    budget: ComputeBudget,
) -> tuple[Tensor, Tensor]:
    """Matching logits `(2B,)` of B clips with their captions, then with those of others, and what is right."""
    logits = []
    for texts in ([one.text for one in captions], [one.other for one in captions]):
        tokens = processor(text=texts)
        inputs = _inputs(model, vision, captions, tokens["input_ids"], tokens["attention_mask"])
        logits.append(_finite(model.match_inputs(inputs, budget)))
    return torch.cat(logits), torch.tensor([1] * len(captions) + [0] * len(captions))


def _inputs(
    model: PerceiverVLForPreTraining, vision: InputArray, captions: list[_Caption], ids: Tensor, mask: Tensor
) -> InputArray:
    rows = torch.tensor([one.row for one in captions], device=model.device)
    return beside(vision, rows, model.perceiver_vl.embed_inputs(ids.to(model.device), mask.to(model.device)))


def _finite(logits: Tensor) -> Tensor:
    """On the CPU."""
    if not logits.isfinite().all():
        raise PerceiverVLError("the model's answers are not finite numbers: train it again")
    return logits.float().cpu()
