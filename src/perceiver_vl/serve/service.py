"""What the routes ask: the open indexes, the models, the worker, what is kept."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from perceiver_vl._version import __version__
from perceiver_vl.search.rows import Vectors
from perceiver_vl.serve.jobs import IndexJobs
from perceiver_vl.serve.library import Library, open_library, refreshed
from perceiver_vl.serve.logs import log, log_error
from perceiver_vl.serve.messages import Health, SearchRequest, ServiceState
from perceiver_vl.serve.metrics import Metrics
from perceiver_vl.serve.problems import ProblemError
from perceiver_vl.serve.searching import ReadQuery, TextCache, read_query, search_all
from perceiver_vl.serve.settings import ServeSettings
from perceiver_vl.serve.understanding import (
    AskJob,
    LookJob,
    Understanding,
    answers_of,
    budgets_of,
    frame_size_of,
)
from perceiver_vl.serve.uploads import PREFIX, Uploads
from perceiver_vl.serve.worker import Worker
from perceiver_vl.utils.errors import PerceiverVLError
from perceiver_vl.utils.text import whole_characters

_MOST_ANSWERS = 200  # of a model, that are told


class Service:
    """One service. `library` is replaced as a whole when an index has a newer version; a batch works with one."""

    def __init__(self, settings: ServeSettings, folder: Path) -> None:
        self.settings, self._folder = settings, folder
        self.metrics = Metrics()
        self.failed: PerceiverVLError | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self._library: Library | None = None
        self._texts = TextCache()
        self._models = Understanding(settings.ask_model, settings.vision_cache_bytes, settings.threads)
        self._worker = Worker(
            {"search": self._search, "text": self._text, "embed": self._embed, "ask": self._ask, "look": self._look},
            settings.queue,
            self._observe,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to load, and to look for newer versions; answers before that is done are 503."""
        self.uploads = Uploads(self.settings.uploads)
        self.jobs = IndexJobs(self._refresh)
        self._refreshing = asyncio.Lock()
        self._tasks = [asyncio.create_task(self._load_and_follow())]

    async def close(self) -> None:
        """Finish what is waiting."""
        for task in self._tasks:
            task.cancel()
        await self.jobs.close()
        await to_thread.run_sync(self._worker.close)

    async def _load_and_follow(self) -> None:
        started = time.perf_counter()
        try:
            library = await to_thread.run_sync(open_library, self.settings.indexes, self._folder, self.settings.threads)
        except Exception as error:
            log_error("loading failed", error)
            self.failed = error if isinstance(error, PerceiverVLError) else PerceiverVLError(f"loading: {error}")
            self.on_failure()
            return
        self._use(library)
        log("loaded", seconds=round(time.perf_counter() - started, 3), clips=sum(len(i.clips) for i in library.indexes))
        self._tasks.append(asyncio.create_task(self._load_model(library)))  # answers go on meanwhile
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        """Go on with newer versions of the indexes, if there are some."""
        async with self._refreshing:
            try:
                newer = await to_thread.run_sync(refreshed, self.library, self.settings.threads)
            except Exception as error:  # it is being written, or damaged: what is open serves on
                self.metrics.refresh_failures.inc()
                log("newer version not opened", error=str(error))
                return
            if newer is not self.library:
                self._use(newer)
                log("newer version", versions={one.name: one.clips.table.version for one in newer.indexes})

    async def _load_model(self, library: Library) -> None:
        try:
            await to_thread.run_sync(self._models.retriever, library, abandon_on_cancel=True)
            await to_thread.run_sync(self._models.answerer, library, abandon_on_cancel=True)
        except Exception as error:
            log_error("model not loaded", error)

    def _use(self, library: Library) -> None:
        if self._library is not None and self._library.queries is not library.queries:
            self._texts = TextCache()  # of another model
        self._library = library
        self.frame_size = frame_size_of(library.model)
        fingerprint = library.indexes[0].settings.fingerprint
        self.metrics.model.info({"folder": library.model.name, "fingerprint": fingerprint[:16], "version": __version__})
        for index in library.indexes:
            self.metrics.clips.labels(index.name, "clips").set(len(index.clips))
            if index.segments is not None:
                self.metrics.clips.labels(index.name, "segments").set(len(index.segments))
            self.metrics.version.labels(index.name).set(index.clips.table.version)

    def check_loaded(self) -> None:
        """Raises `ProblemError` (503) until the indexes are open."""
        if self.failed is not None:
            raise ProblemError(503, str(self.failed))
        if self._library is None:
            raise ProblemError(503, "the index is being opened, try again in a moment", {"Retry-After": "1"})

    @property
    def library(self) -> Library:
        """The indexes as they are open now."""
        self.check_loaded()
        assert self._library is not None
        return self._library

    async def do(self, kind: str, payload: Any) -> Any:
        """Work done in its turn, with what it waited in its `seconds`, where it tells any."""
        if kind in ("embed", "look"):  # whoever only searches does not wait until that is loaded
            await to_thread.run_sync(self._models.retriever, self.library, abandon_on_cancel=True)
        elif kind == "ask":
            await to_thread.run_sync(self._models.answerer, self.library, abandon_on_cancel=True)
        result, waited = await self._worker.do(kind, payload)
        if hasattr(result, "seconds") and isinstance(result.seconds, dict):
            result = replace(result, seconds={"queue": waited, **result.seconds})
            for stage, seconds in result.seconds.items():
                self.metrics.stage_seconds.labels(stage).observe(seconds)
        return result

    async def health(self) -> Health:
        """Whether a search gives numbers."""
        try:
            answer = await self.do("search", read_query(SearchRequest("ready", top=1)))
        except Exception as error:
            loading = self._library is None and self.failed is None
            return Health("loading" if loading else "failing", str(error))
        if not all(math.isfinite(hit.score) for hit in answer.hits):
            return Health("failing", f"{self.library.model}: its scores are not numbers")
        return Health("ready", "")

    def vector_of(self, name: str) -> Vectors:
        """Of a clip or an upload, by id; raises `ProblemError` (404) for one that is not."""
        if name.startswith(PREFIX):
            return self.uploads.get(name).vector
        found = self.library.clip(name)
        if found is None:
            raise ProblemError(404, f"{name[:64]}: no clip of the index has this id")
        vector: Vectors = found[1]["vector"]
        return vector

    def state(self) -> ServiceState:
        """The indexes and the model, for people."""
        library = self.library
        folder = self.settings.ask_model or library.model
        answers = answers_of(folder)
        return ServiceState(
            version=__version__,
            model=library.model.name,
            indexes=[one.state() for one in library.indexes],
            answers=None if answers is None else answers[:_MOST_ANSWERS],
            budgets=budgets_of(folder),
            notes=list(library.notes),
            can_index=self.settings.can_index,
        )

    def count(self) -> None:
        """Bring up to date what is only counted when somebody asks."""
        self.metrics.queue.set(self._worker.waiting)
        for name, one in (("texts", self._texts), ("clips", self._models)):
            for result, count in (("hit", one.hits), ("miss", one.misses)):
                counter = self.metrics.cache.labels(name, result)
                counter.inc(count - counter._value.get())
        self.metrics.uploads.set(len(self.uploads))

    # In the worker's thread

    def _observe(self, kind: str, size: int, waited: float, took: float) -> None:
        self.metrics.batch_size.labels(kind).observe(size)
        self.metrics.queue_seconds.labels(kind).observe(waited)

    def _search(self, asked: Sequence[ReadQuery]) -> Sequence[Any]:
        library = self.library
        return search_all(library, asked, self.vector_of, self._texts, self._models.batches(library))

    def _text(self, asked: Sequence[list[str]]) -> Sequence[Any]:
        library = self.library
        whole = [[whole_characters(text) for text in texts] for texts in asked]
        every = [text for texts in whole for text in texts]
        found = self._texts.encode(library, every, self._models.batches(library))
        return [[found[text][0] for text in texts] for texts in whole]

    def _embed(self, clips: Sequence[Any]) -> Sequence[Any]:
        library = self.library
        return self._models.embed(library, clips)

    def _ask(self, jobs: Sequence[AskJob]) -> Sequence[Any]:
        library = self.library
        return [_or_error(self._models.ask, library, job) for job in jobs]

    def _look(self, jobs: Sequence[LookJob]) -> Sequence[Any]:
        library = self.library
        return [_or_error(self._models.look, library, job) for job in jobs]


def _or_error(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return error
