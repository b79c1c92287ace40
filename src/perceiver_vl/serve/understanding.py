"""The model's side of pictures, and questions: torch, loaded when first needed. All of it runs in the worker's thread.

Shapes: T frames, E retrieval vector, V clips.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceiver_vl.media.sampling import Frames
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.search.rows import Vectors
from perceiver_vl.serve.library import Library
from perceiver_vl.serve.messages import Answer, AskAnswer, AskRequest, Budgets, Looked, OperatingPoint
from perceiver_vl.serve.searching import BatchEncoder
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

if TYPE_CHECKING:
    from perceiver_vl.search.query_model import QueryModel


@dataclass(frozen=True)
class AskJob:
    """A question, and what it is about: a file, or the frames `(T,H,W,3)` of an upload."""

    request: AskRequest
    clip: Path | Frames


@dataclass(frozen=True)
class LookJob:
    """Words, a file, and which seconds of it."""

    words: str
    clip: Path
    start: float | None
    end: float | None


class Understanding:
    """The models, and the clips that were read for questions."""

    def __init__(self, ask_model: Path | None, cache_bytes: int, threads: int | None) -> None:
        self._ask_model, self._cache_bytes, self._threads = ask_model, cache_bytes, threads
        self._retriever: tuple[str, QueryModel] | None = None
        self._loading = threading.Lock()  # libraries that are imported by two threads at once are half there
        self._answerer: tuple[Path, Any, bool] | None = None
        self._caches: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()
        self.hits = self.misses = 0

    # Examples

    def retriever(self, library: Library) -> "QueryModel":
        """The model of the indexes, with its side of pictures."""
        settings = library.indexes[0].settings
        with self._loading:
            from perceiver_vl.search.query_model import QueryModel

            if isinstance(library.queries, QueryModel):
                return library.queries
            if self._retriever is None or self._retriever[0] != settings.fingerprint:
                if self._threads is not None:
                    from perceiver_vl.utils.threads import use_threads

                    use_threads(self._threads)
                self._retriever = settings.fingerprint, QueryModel(library.model, settings, "cpu")
            return self._retriever[1]

    def batches(self, library: Library) -> BatchEncoder | None:
        """What encodes several texts in one pass, if it is loaded already; the graphs of quick searches do one."""
        if (own := getattr(library.queries, "encode_all", None)) is not None:
            encoder: BatchEncoder = own
            return encoder
        if self._retriever is None or self._retriever[0] != library.indexes[0].settings.fingerprint:
            return None
        model = self._retriever[1]
        return lambda texts: [(vector, partial.numpy()) for vector, partial in model.encode_all(texts)]

    def embed(self, library: Library, clips: Sequence[Frames]) -> list[Vectors]:
        """Unit vectors `(E,)` of clips, frames of which were decoded."""
        model = self.retriever(library)
        from perceiver_vl.search.encode import encode_clips

        frames = library.indexes[0].settings.frames
        vectors, _ = encode_clips(model.model, model.processor, list(clips), frames, model.budget)
        return list(vectors.cpu().numpy())

    def look(self, library: Library, job: LookJob) -> Looked:
        """Where the model looked in a clip. Raises `MediaError` for a file that cannot be read."""
        model, settings = self.retriever(library), library.indexes[0].settings
        from perceiver_vl.inference.attention_map import attention_map
        from perceiver_vl.media.decode import load_clip

        clip = load_clip(job.clip, settings.frames, start=job.start, end=job.end, size=frame_size(model.processor))
        found = attention_map(
            model.model, model.processor, clip.frames, job.words, settings.frames, model.budget
        ).numpy()
        seconds = clip.timestamps.tolist()[: len(found)]
        _, rows, columns = found.shape
        return Looked(seconds, rows, columns, found.reshape(len(found), -1).astype(float).round(6).tolist())

    # Questions

    def ask(self, library: Library, job: AskJob) -> AskAnswer:
        """Answer one question. Raises `UsageError` for choices that the model wants or does not know, `MediaError`."""
        from perceiver_vl.models.budget import ComputeBudget

        request = job.request
        folder, pipeline, has_answers = self.answerer(library)
        if request.choices is not None and len(set(request.choices)) < 2:
            raise UsageError("choices: need at least two different answers")
        if not has_answers and request.choices is None:
            raise UsageError(f"{folder.name}: has no answers of its own, give choices")
        budget = ComputeBudget.parse(request.budget or "")
        started = time.perf_counter()
        cache, cached = self._read(pipeline, job, budget)
        read = time.perf_counter()
        if has_answers:
            found = pipeline(cache, request.question, choices=request.choices, top_k=request.top)
        else:
            found = pipeline(cache, request.choices, request.question)[: request.top]
        seconds = {"read": 0.0 if cached else read - started, "answer": time.perf_counter() - read}
        return AskAnswer(request.question, [Answer(**one) for one in found], cached, str(budget), seconds)

    def _read(self, pipeline: Any, job: AskJob, budget: Any) -> tuple[Any, bool]:
        """What the clip contributes to every question, kept for the next."""
        from perceiver_vl.inference.clips import cached_clip

        request = job.request
        key = (request.id, request.start, request.end, str(budget))
        if (kept := self._caches.pop(key, None)) is not None:
            self._caches[key] = kept
            self.hits += 1
            return kept[0], True
        self.misses += 1
        span = {"start": request.start, "end": request.end} if isinstance(job.clip, Path) else {}
        clip: Any = str(job.clip) if isinstance(job.clip, Path) else job.clip
        with cached_clip(pipeline.model, pipeline.processor, clip, budget=budget, **span) as cache:  # type: ignore[arg-type]
            self._caches[key] = cache, _bytes_of(cache)
        while len(self._caches) > 1 and sum(size for _, size in self._caches.values()) > self._cache_bytes:
            self._caches.popitem(last=False)
        return cache, False

    def answerer(self, library: Library) -> tuple[Path, Any, bool]:
        """The folder of the model that answers, its pipeline, and whether it has answers of its own."""
        folder = self._ask_model or library.model
        with self._loading:
            if self._answerer is None or self._answerer[0] != folder:
                from perceiver_vl.inference.pipelines import pipeline

                has_answers = answers_of(folder) is not None
                task: Any = "question-answering" if has_answers else "multiple-choice"
                self._answerer = folder, pipeline(task, folder, "cpu"), has_answers
                self._caches.clear()
            return self._answerer


def frame_size(processor: Any) -> tuple[int, int]:
    """(H, W) as a model takes frames."""
    size = processor.image_processor.size
    return size.height, size.width


def frame_size_of(folder: Path) -> tuple[int, int]:
    """The same, from the files of a model, without loading it."""
    import json

    try:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        size = settings.get("image_processor", settings)["size"]
        return int(size["height"]), int(size["width"])
    except (OSError, ValueError, KeyError, TypeError):
        from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor

        return frame_size(PerceiverVLProcessor.from_pretrained(folder))


def answers_of(folder: Path) -> list[str] | None:
    """The answers that a model knows, most likely a long list; None for a model that can only choose."""
    import json

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "PerceiverVLForQuestionAnswering" not in (config.get("architectures") or []):
        return None
    return [str(label) for label in (config.get("id2label") or {}).values()]


def budgets_of(folder: Path) -> Budgets | None:
    """The settings worth choosing, where `bench frontier` has measured the model."""
    if not (folder / "frontier.json").is_file():
        return None
    from perceiver_vl.inference.budget_selection import read_frontier

    try:
        front = read_frontier(folder)
    except PerceiverVLError:
        return None
    points = [OperatingPoint(one.budget, one.score, one.gflops, one.milliseconds) for one in front.settings]
    return Budgets(front.metric, front.lower_is_better, front.data, front.unit, points)


def check_ask_model(folder: Path | None) -> None:
    """Raise `UsageError` for a folder without a model."""
    if folder is not None:
        model_fingerprint(folder)


def _bytes_of(cache: Any) -> int:
    """Of the tensors of a vision cache."""
    import torch

    seen, waiting, total = set(), [cache], 0
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            total += one.nbytes
        elif id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, tuple | list):
                waiting += one
            elif hasattr(one, "__dataclass_fields__"):
                waiting += [getattr(one, name) for name in one.__dataclass_fields__]
    return total
