"""From files to results in one call: media found by words, questions about a clip answered, choices made.

Shapes: Q queries, C clips and images, K of them on a shortlist, N latents, D width.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Record
from perceiver_vl.media.decode import load_frames, sampled_count, stream_clip
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.loading import load_folder, load_retriever
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLForMultipleChoice,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
)
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.processing import ClipLike, ImageLike, PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.retrieval import combined_scores
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.search.encode import DECODING_THREADS
from perceiver_vl.tasks.metrics import probabilities, rounded_count
from perceiver_vl.tasks.multiple_choice import choice_words
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError

Medium = ImageLike | ClipLike
_CLIPS_AT_ONCE = 16
_QUESTIONS_AT_ONCE = 64
_CHUNK_FRAMES = 32  # of a clip that is read at a rate: what is held of it at once


@overload
def pipeline(
    task: Literal["retrieval"],
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> "RetrievalPipeline": ...
@overload
def pipeline(
    task: Literal["question-answering"],
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> "QuestionAnsweringPipeline": ...
@overload
def pipeline(
    task: Literal["multiple-choice"],
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> "MultipleChoicePipeline": ...
def pipeline(
    task: str,
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> "RetrievalPipeline | QuestionAnsweringPipeline | MultipleChoicePipeline":
    """The model of a folder, ready to be called with files; see the three classes.

    `device`: None for a GPU if there is one. `dtype`: float32, bfloat16 or int8; None: as it was saved. `compiled`: its
    encoder is. Raises `UsageError` for another task or dtype, or a folder without such a model.
    """
    how = device, dtype, compiled
    if task == "retrieval":
        return RetrievalPipeline(*load_retriever(model, *how))
    if task == "question-answering":
        return QuestionAnsweringPipeline(
            *load_folder(PerceiverVLForQuestionAnswering, "question answering", model, *how)
        )
    if task == "multiple-choice":
        return MultipleChoicePipeline(*load_folder(PerceiverVLForMultipleChoice, "matching", model, *how))
    raise UsageError(f"task={task!r}: choose 'retrieval', 'question-answering' or 'multiple-choice'")


class RetrievalPipeline:
    """Finds clips and images by words; what is searched more than once is better indexed (`perceiver_vl.search`)."""

    def __init__(self, model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(
        self,
        queries: str | Sequence[str],
        media: str | Path | Sequence[Medium],
        *,
        top_k: int = 5,
        rerank: bool = True,
        shortlist: int = 100,
        budget: ComputeBudget = FULL_BUDGET,
    ) -> list[Any]:
        """The `top_k` media for a query, best first; for several queries a list of such lists.

        `media`: a folder, whose broken files are left out with a warning, or a list of paths, images, arrays and
        tensors as `PerceiverVLProcessor` takes them. A result has its `file` (None if it came without one), its `index`
        among the media, its `score`, the cosine `multi_score` and the matching logit `mixed_score`: the `shortlist`
        media with the largest cosine are scored again by the mixed stream and ordered by `combined_scores`; without
        `rerank` the cosine is the score, and `mixed_score` None.
        Raises `UsageError` for numbers below 1 or nothing to search, `MediaError` for a broken file of a list.
        """
        if top_k < 1 or shortlist < 1:
            raise UsageError(f"top_k={top_k}, shortlist={shortlist}: need at least 1 of each")
        self.model.config.check_budget(budget)
        words = self.processor(text=[queries] if isinstance(queries, str) else list(queries)).to(self.model.device)
        text = self.model.encode_text(words["input_ids"], words["attention_mask"], budget)  # (Q,N,D)
        listed = _listed(media)
        indices, vision = self._encode(listed, budget, skip_broken=isinstance(media, str | Path))  # (C,N,D)
        cosines = self.model.pool_text(text).float() @ self.model.pool_vision(vision).float().T  # (Q,C)
        found = []
        for query, multi in zip(text, cosines, strict=True):
            near = multi.topk(min(max(top_k, shortlist), len(multi))).indices  # (K,)
            mixed, scores = None, multi[near]
            if rerank:
                mixed = self.model.match(vision[near], query.expand(len(near), -1, -1)).float()
                scores = combined_scores(self.model.logit_scale.float() * multi[near], mixed)
            best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
            found.append(
                [
                    {
                        "file": _file_name(listed[indices[near[place]]]),
                        "index": indices[near[place]],
                        "score": scores[place].item(),
                        "multi_score": multi[near[place]].item(),
                        "mixed_score": None if mixed is None else mixed[place].item(),
                    }
                    for place in best
                ]
            )
        return found[0] if isinstance(queries, str) else found

    def _encode(self, media: Sequence[Medium], budget: ComputeBudget, skip_broken: bool) -> tuple[list[int], Tensor]:
        """The indices of the media that can be read, and their latents `(C,N,D)`."""
        num_frames = _frames_of(self.processor, budget)
        indices: list[int] = []
        latents, broken = [], []

        def decode(medium: Medium) -> Any:
            try:
                return _as_clip(medium, self.processor, num_frames)
            except MediaError as error:
                if not skip_broken:
                    raise
                return error

        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            for start in range(0, len(media), _CLIPS_AT_ONCE):
                decoded = dict(enumerate(pool.map(decode, media[start : start + _CLIPS_AT_ONCE]), start))
                broken += [clip for clip in decoded.values() if isinstance(clip, MediaError)]
                clips = {index: clip for index, clip in decoded.items() if not isinstance(clip, MediaError)}
                if clips:
                    inputs = self.processor(videos=list(clips.values()), num_frames=num_frames).to(self.model.device)
                    latents.append(self.model.encode_vision(inputs["pixel_values"], inputs["frame_mask"], budget))
                    indices += clips
        if not latents:
            raise PerceiverVLError(f"media: none of the {len(broken)} files can be read, the first: {broken[0]}")
        if broken:
            left_out = f"{len(broken)} of {len(media)} files cannot be read and are left out, the first: {broken[0]}"
            warnings.warn(left_out, stacklevel=4)
        return indices, torch.cat(latents)


class QuestionAnsweringPipeline:
    """Answers questions about a clip or an image, from the answers that the model knows (`config.id2label`)."""

    def __init__(self, model: PerceiverVLForQuestionAnswering, processor: PerceiverVLProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(
        self,
        clip: Medium,
        questions: str | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        top_k: int = 5,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        spill: str | Path | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        progress: bool = False,
    ) -> list[Any]:
        """The `top_k` likeliest answers to a question, each an `answer` and its probability `score`; for several
        questions a list of such lists. A model that counts gives one answer, with the number before it was rounded.

        `clip`: a path, an image, an array or a tensor, as `PerceiverVLProcessor` takes them; it is decoded and read
        once for all questions (`cache_vision`); `start`, `end`: only these seconds of a file. `fps`: every frame of a
        file at that rate, however long it is, in the memory of some frames (`long_vision`); `spill`: a folder for what
        later cross-attentions need of it, which else decode it again. `choices`: only these of its answers.
        Raises `UsageError` for values of a wrong type or choices that it does not know, `MediaError` for a file that
        cannot be read.
        """
        if top_k < 1:
            raise UsageError(f"top_k={top_k}: need at least 1")
        self.model.config.check_budget(budget)
        labels = self._labels(choices)
        texts = [questions] if isinstance(questions, str) else list(questions)
        words = self.processor(text=texts).to(self.model.device)
        answers = []
        with _read_once(self, clip, budget, start, end, fps, spill, progress) as cache:
            for first in range(0, len(texts), _QUESTIONS_AT_ONCE):
                some = slice(first, first + _QUESTIONS_AT_ONCE)
                asked = words["input_ids"][some], words["attention_mask"][some]
                logits = self.model(*asked, vision_cache=cache, budget=budget).logits
                answers += [self._likeliest(of_question, labels, top_k) for of_question in logits.float().cpu()]
        return answers[0] if isinstance(questions, str) else answers

    def _labels(self, choices: Sequence[str] | None) -> list[int]:
        """The numbers of the answers that may be given."""
        config = self.model.config
        if choices is None or config.problem_type == "regression":
            return list(range(config.num_labels))
        for choice in choices:
            if choice not in config.label2id:
                raise UsageError(f"choice {choice!r}: not one of the {config.num_labels} answers of this model")
        return [config.label2id[choice] for choice in choices]

    def _likeliest(self, logits: Tensor, labels: list[int], top_k: int) -> list[dict[str, Any]]:
        config = self.model.config
        if config.problem_type == "regression":
            return [{"answer": str(rounded_count(logits.item())), "score": logits.item()}]
        each_by_itself = config.problem_type == "multi_label_classification"
        scores, places = probabilities(logits[labels], each_by_itself).topk(min(top_k, len(labels)))
        pairs = zip(places.tolist(), scores.tolist(), strict=True)
        return [{"answer": config.id2label[labels[place]], "score": score} for place, score in pairs]


class MultipleChoicePipeline:
    """Says which of several texts is true of a clip or an image; any model that matches text and vision can."""

    def __init__(self, model: PerceiverVLForMultipleChoice, processor: PerceiverVLProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(
        self,
        clip: Medium,
        choices: Sequence[str],
        question: str | None = None,
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        spill: str | Path | None = None,
        budget: ComputeBudget = FULL_BUDGET,
        progress: bool = False,
    ) -> list[dict[str, Any]]:
        """The choices, likeliest first: each an `answer` and its probability `score` among them.

        `question`: what they answer; None: they are captions. `clip`, `start`, `end`, `fps`, `spill`: as for
        questions.
        Raises `UsageError` for fewer than two choices, `MediaError` for a file that cannot be read.
        """
        if isinstance(choices, str) or len(choices) < 2:
            raise UsageError(f"choices={choices!r}: need a list of at least two")
        self.model.config.check_budget(budget)
        asked = Record("", Path(), question=question, choices=tuple(choices))
        words = {name: value.to(self.model.device) for name, value in choice_words([asked], self.processor).items()}
        rows = torch.zeros(1, dtype=torch.long, device=self.model.device)
        with _read_once(self, clip, budget, start, end, fps, spill, progress) as cache:
            logits = self.model.choose(InputArray(vision_cache=cache), rows, **words, budget=budget)[0]
        scores, places = logits.float().softmax(-1).sort(descending=True, stable=True)
        pairs = zip(places.tolist(), scores.tolist(), strict=True)
        return [{"answer": choices[place], "score": score} for place, score in pairs]


@contextmanager
def _read_once(
    asker: QuestionAnsweringPipeline | MultipleChoicePipeline,
    clip: Medium,
    budget: ComputeBudget,
    start: float | None,
    end: float | None,
    fps: float | None,
    spill: str | Path | None,
    progress: bool,
) -> Iterator[VisionCache]:
    """What a clip contributes to every text it is asked with: sampled frames, or at `fps` all there are."""
    if fps is None:
        if spill is not None:
            raise UsageError(f"spill={spill}: only a clip that is read at a rate needs one, give fps")
        yield asker.model.cache_vision(**_seen(asker, clip, budget, start, end), budget=budget)
        return
    if not isinstance(clip, str | os.PathLike):
        raise UsageError(f"fps={fps}: of a file, but a {type(clip).__name__} was given")
    if budget.frames is not None:
        raise UsageError(f"fps={fps}: says which frames are read, leave frames={budget.frames} out of the budget")
    count = sampled_count(clip, fps, start=start, end=end)
    with ProgressBars(progress) as stages:

        def chunks() -> Iterator[tuple[Tensor, Tensor]]:
            advance = stages.stage("Reading frames", count)
            for pixel_values, frame_mask in _streamed(asker, clip, fps, start, end, count):
                yield pixel_values, frame_mask
                advance(pixel_values.shape[1])

        with asker.model.long_vision(chunks, num_frames=count, budget=budget, spill=spill) as cache:
            yield cache


def _streamed(
    asker: QuestionAnsweringPipeline | MultipleChoicePipeline,
    clip: str | os.PathLike[str],
    fps: float,
    start: float | None,
    end: float | None,
    count: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` frames in chunks `(1,T,3,H,W)` with masks `(1,T)`; those that a damaged file lacks are masked."""
    size = asker.processor.image_processor.size
    decoded = stream_clip(clip, fps=fps, start=start, end=end, size=(size.height, size.width), chunk=_CHUNK_FRAMES)
    missing = count
    for part in decoded:
        inputs = asker.processor(videos=[part.frames], num_frames=len(part.frames)).to(asker.model.device)
        yield inputs["pixel_values"], inputs["frame_mask"]
        missing -= len(part.frames)
        last = inputs
    while missing:
        lacking = min(missing, last["pixel_values"].shape[1])
        yield last["pixel_values"][:, :lacking], torch.zeros_like(last["frame_mask"][:, :lacking])
        missing -= lacking


def _seen(
    asker: QuestionAnsweringPipeline | MultipleChoicePipeline,
    clip: Medium,
    budget: ComputeBudget,
    start: float | None,
    end: float | None,
) -> dict[str, Tensor]:
    """`pixel_values (1,T,3,H,W)` and `frame_mask (1,T)` of one clip."""
    num_frames = _frames_of(asker.processor, budget)
    frames = _as_clip(clip, asker.processor, num_frames, start, end)
    return dict(asker.processor(videos=[frames], num_frames=num_frames).to(asker.model.device))


def _listed(media: Any) -> Sequence[Medium]:
    """The files of a folder, or the media of a list, at least one."""
    if isinstance(media, str | Path):
        return list(dict.fromkeys(record.path for record in read_folder(media, need=None).records))
    if not isinstance(media, Sequence | np.ndarray | Tensor):
        raise UsageError(f"media of type {type(media).__name__}: need a folder, or a list of paths, images or arrays")
    if len(media) == 0:
        raise UsageError("media=[]: need at least one clip or image")
    return media  # type: ignore[return-value]


def _as_clip(
    medium: Any,
    processor: PerceiverVLProcessor,
    num_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> Any:
    """A medium as the processor takes clips: a file decoded, an image as its one frame."""
    if isinstance(medium, str | os.PathLike):
        size = processor.image_processor.size
        return load_frames(medium, num_frames, size=(size.height, size.width), start=start, end=end)
    if start is not None or end is not None:
        raise UsageError(f"start={start}, end={end}: seconds of a file, but a {type(medium).__name__} was given")
    if isinstance(medium, Image.Image):
        return [medium]
    if isinstance(medium, np.ndarray | Tensor) and medium.ndim == 3:
        return medium[None]
    return medium


def _frames_of(processor: PerceiverVLProcessor, budget: ComputeBudget) -> int:
    return budget.frames or int(processor.image_processor.num_frames)


def _file_name(medium: Medium) -> str | None:
    return os.fspath(medium) if isinstance(medium, str | os.PathLike) else None
