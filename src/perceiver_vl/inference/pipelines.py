"""From files to results in one call: media found by words, questions about a clip answered, choices made, captions.

Shapes: Q queries, C clips and images, K of them on a shortlist, N latents, D width, H heads, E retrieval vector.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.prefetch import decode_ahead, or_media_error
from perceiver_vl.data.records import Record
from perceiver_vl.inference.captioning import CaptioningPipeline
from perceiver_vl.inference.clips import ClipOptions, Medium, cached_clip, frames_of, load_medium
from perceiver_vl.inference.moments import MomentsPipeline
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, EarlyExitBudget
from perceiver_vl.models.loading import load_folder, load_retriever
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLForCaptioning,
    PerceiverVLForMultipleChoice,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
)
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.retrieval import combined_scores
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.search.encode import encode_clips
from perceiver_vl.tasks.metrics import probabilities, rounded_count
from perceiver_vl.tasks.multiple_choice import choice_words
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError

_CLIPS_AT_ONCE = 16
_QUESTIONS_AT_ONCE = 64


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
@overload
def pipeline(
    task: Literal["moments"],
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> MomentsPipeline: ...
@overload
def pipeline(
    task: Literal["captioning"],
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> CaptioningPipeline: ...
def pipeline(
    task: str,
    model: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: str | None = None,
    compiled: bool = False,
) -> "RetrievalPipeline | QuestionAnsweringPipeline | MultipleChoicePipeline | MomentsPipeline | CaptioningPipeline":
    """The model of a folder, ready to be called with files; see the five classes.

    `device`: None for a GPU if there is one. `dtype`: float32, bfloat16 or int8; None: as it was saved. `compiled`: its
    encoder is. Raises `UsageError` for another task or dtype, or a folder without such a model.
    """
    how = device, dtype, compiled
    if task == "retrieval":
        return RetrievalPipeline(*load_retriever(model, *how))
    if task == "moments":
        return MomentsPipeline(*load_retriever(model, *how))
    if task == "question-answering":
        return QuestionAnsweringPipeline(
            *load_folder(PerceiverVLForQuestionAnswering, "question answering", model, *how)
        )
    if task == "multiple-choice":
        return MultipleChoicePipeline(*load_folder(PerceiverVLForMultipleChoice, "matching", model, *how))
    if task == "captioning":
        return CaptioningPipeline(*load_folder(PerceiverVLForCaptioning, "captioning", model, *how))
    raise UsageError(
        f"task={task!r}: choose 'retrieval', 'moments', 'question-answering', 'multiple-choice' or 'captioning'"
    )


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
        metadata: str | Path | None = None,
    ) -> list[Any]:
        """The `top_k` media for a query, best first; for several queries a list of such lists.

        `media`: a folder, whose broken files are left out with a warning, or a list of paths, images, arrays and
        tensors as `PerceiverVLProcessor` takes them. `metadata`: of a folder, as `read_folder` takes it. A result has
        its `file` (None if it came without one), its `index` among the media, its `score`, the cosine `multi_score` and
        the matching logit `mixed_score`: the `shortlist` media with the largest cosine are scored again by the mixed
        stream and ordered by `combined_scores`; without `rerank` the cosine is the score, and `mixed_score` None.
        Raises `UsageError` for numbers below 1 or nothing to search, `MediaError` for a broken file of a list.
        """
        if top_k < 1 or shortlist < 1:
            raise UsageError(f"top_k={top_k}, shortlist={shortlist}: need at least 1 of each")
        self.model.config.check_budget(budget)
        words = self.processor(text=[queries] if isinstance(queries, str) else list(queries)).to(self.model.device)
        text, features = self.model.encode_and_pool_text(words["input_ids"], words["attention_mask"], budget)
        listed = _listed(media, metadata)
        indices, vectors, partial_attentions = self._encode(listed, budget, skip_broken=isinstance(media, str | Path))
        cosines = features.float() @ vectors.T  # (Q,C)
        found = []
        for query, multi in zip(self.model.partial_match(text), cosines, strict=True):
            near = multi.topk(min(max(top_k, shortlist), len(multi))).indices  # (K,)
            mixed, scores = None, multi[near]
            if rerank:
                mixed = self.model.merge_matches(partial_attentions[near], query).float()
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

    def _encode(
        self, media: Sequence[Medium], budget: ComputeBudget, skip_broken: bool
    ) -> tuple[list[int], Tensor, Tensor]:
        """The indices of the media that can be read, their unit vectors `(C,E)` and partial attentions `(C,D+H)`."""
        num_frames = frames_of(self.processor, budget)
        load = partial(load_medium, model=self.model, processor=self.processor, num_frames=num_frames)
        decode = or_media_error(load) if skip_broken else load
        indices: list[int] = []
        encoded, clips, broken = [], [], []
        with closing(decode_ahead(media, decode, _CLIPS_AT_ONCE)) as decoding:
            for index, (_, clip) in enumerate(decoding):
                if isinstance(clip, MediaError):
                    broken.append(clip)
                else:
                    indices.append(index)
                    clips.append(clip)
                if clips and (len(clips) == _CLIPS_AT_ONCE or index == len(media) - 1):
                    encoded.append(encode_clips(self.model, self.processor, clips, num_frames, budget))
                    clips = []
        if not encoded:
            raise PerceiverVLError(f"media: none of the {len(broken)} files can be read, the first: {broken[0]}")
        if broken:
            left_out = f"{len(broken)} of {len(media)} files cannot be read and are left out, the first: {broken[0]}"
            warnings.warn(left_out, stacklevel=4)
        vectors, partial_attentions = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        return indices, vectors, partial_attentions


class QuestionAnsweringPipeline:
    """Answers questions about a clip or an image, from the answers that the model knows (`config.id2label`)."""

    def __init__(self, model: PerceiverVLForQuestionAnswering, processor: PerceiverVLProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(
        self,
        clip: Medium | VisionCache,
        questions: str | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        top_k: int = 5,
        **how: Unpack[ClipOptions],
    ) -> list[Any]:
        """The `top_k` likeliest answers to a question, each an `answer` and its probability `score`; for several
        questions a list of such lists. A model that counts gives one answer, with the number before it was rounded.

        `clip`: a path, an image, an array or a tensor, as `PerceiverVLProcessor` takes them; it is decoded and read
        once for all questions (`cache_vision`), as `how` says (`ClipOptions`: `start`, `end`, `fps`, `spill`, `budget`,
        `progress`); or what was read of one earlier (`inference.clips.cached_clip`). `choices`: only these of its
        answers, or any texts where its answers are texts (`answers_as_text`).
        Raises `UsageError` for values of a wrong type or choices that it does not know, `MediaError` for a file that
        cannot be read.
        """
        if top_k < 1:
            raise UsageError(f"top_k={top_k}: need at least 1")
        if choices is not None and self.model.config.answers_as_text:
            with self._answering_among(choices):
                return self(clip, questions, top_k=top_k, **how)
        labels = self._labels(choices)
        texts = [questions] if isinstance(questions, str) else list(questions)
        words = self.processor(text=texts).to(self.model.device)
        answers = []
        with cached_clip(self.model, self.processor, clip, **how) as cache:
            # One at a time where each may leave early: what was read of the clip serves all, and cannot shrink
            at_once = 1 if isinstance(cache.budget, EarlyExitBudget) else _QUESTIONS_AT_ONCE
            for first in range(0, len(texts), at_once):
                some = slice(first, first + at_once)
                asked = words["input_ids"][some], words["attention_mask"][some]
                logits = self.model(*asked, vision_cache=cache, budget=cache.budget).logits
                answers += [self._likeliest(of_question, labels, top_k) for of_question in logits.float().cpu()]
        return answers[0] if isinstance(questions, str) else answers

    @contextmanager
    def _answering_among(self, choices: Sequence[str]) -> Iterator[None]:
        """With these texts as the model's answers, afterwards with its own."""
        config = self.model.config
        own = config.id2label, config.label2id, config.label_token_ids
        try:
            self.model.answer_among(choices, self.processor.tokenizer)
            yield
        finally:
            config.id2label, config.label2id, config.label_token_ids = own

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
        clip: Medium | VisionCache,
        choices: Sequence[str],
        question: str | None = None,
        **how: Unpack[ClipOptions],
    ) -> list[dict[str, Any]]:
        """The choices, likeliest first: each an `answer` and its probability `score` among them.

        `question`: what they answer; None: they are captions. `clip`, `how`: as for questions.
        Raises `UsageError` for fewer than two choices, `MediaError` for a file that cannot be read.
        """
        if isinstance(choices, str) or len(choices) < 2:
            raise UsageError(f"choices={choices!r}: need a list of at least two")
        asked = Record("", Path(), question=question, choices=tuple(choices))
        words = {name: value.to(self.model.device) for name, value in choice_words([asked], self.processor).items()}
        rows = torch.zeros(1, dtype=torch.long, device=self.model.device)
        with cached_clip(self.model, self.processor, clip, **how) as cache:
            given = words["input_ids"], words["attention_mask"], words["choice_mask"]
            logits = self.model.choose(InputArray(vision_cache=cache), rows, *given, budget=cache.budget)[0]
        scores, places = logits.float().softmax(-1).sort(descending=True, stable=True)
        pairs = zip(places.tolist(), scores.tolist(), strict=True)
        return [{"answer": choices[place], "score": score} for place, score in pairs]


def _listed(media: Any, metadata: str | Path | None) -> Sequence[Medium]:
    """The files of a folder, or the media of a list, at least one."""
    if isinstance(media, str | Path):
        return list(dict.fromkeys(record.path for record in read_folder(media, need=None, metadata=metadata).records))
    if not isinstance(media, Sequence | np.ndarray | Tensor):
        raise UsageError(f"media of type {type(media).__name__}: need a folder, or a list of paths, images or arrays")
    if len(media) == 0:
        raise UsageError("media=[]: need at least one clip or image")
    return media  # type: ignore[return-value]


def _file_name(medium: Medium) -> str | None:
    return os.fspath(medium) if isinstance(medium, str | os.PathLike) else None
