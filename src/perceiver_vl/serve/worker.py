"""Work of many callers done by one thread, together where it is of one kind: a bounded queue with deadlines.

The event loop hands jobs in and waits; the thread takes the first, waits a few milliseconds for others of its kind, and
does them at once. What is cancelled or too late before its turn is never begun.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from perceiver_vl.utils.errors import PerceiverVLError

Handler = Callable[[Sequence[Any]], Sequence[Any]]
"""Payloads of one kind → for each its result, or the exception that is its own."""


class QueueFullError(PerceiverVLError):
    """More is waiting than can be done in time; `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class TooLateError(PerceiverVLError):
    """A job's turn did not come before its deadline."""


@dataclass
class Job:
    """What one caller waits for."""

    kind: str
    payload: Any
    deadline: float
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    asked: float = field(default_factory=time.monotonic)
    begun: float = 0.0


@dataclass
class QueueSettings:
    """`most_waiting` jobs are let in; each may wait `patience` seconds for its turn. A batch is at most `most_at_once`
    jobs, gathered for at most `gather` seconds.
    """

    most_waiting: int = 256
    patience: float = 10.0
    most_at_once: int = 32
    gather: float = 0.003


class Worker:
    """The thread, and the queue in front of it."""

    def __init__(
        self,
        handlers: dict[str, Handler],
        settings: QueueSettings,
        observe: Callable[[str, int, float, float], None] = lambda *_: None,
    ) -> None:
        """handlers: by kind. observe: told of each batch its kind, size, the longest wait and the seconds it took."""
        self._handlers, self.settings, self._observe = handlers, settings, observe
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ends = False
        self._recent = 0.05  # seconds that a job took lately
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs are waiting."""
        return len(self._waiting)

    async def do(self, kind: str, payload: Any) -> tuple[Any, float]:
        """The result, and the seconds that the job waited. Raises what its handler did; `QueueFullError` where too many
        are waiting, `TooLateError` past its deadline. Cancelling it takes it out of the queue.
        """
        if self._ends or not self._thread.is_alive():
            raise QueueFullError("the service is shutting down, try another or later", 5.0)
        if len(self._waiting) >= self.settings.most_waiting:
            left = max(1.0, self._recent * len(self._waiting))
            raise QueueFullError(f"{len(self._waiting)} requests are waiting already, try again in {left:.0f} s", left)
        loop = asyncio.get_running_loop()
        job = Job(kind, payload, time.monotonic() + self.settings.patience, loop.create_future(), loop)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            result = await job.future
        except asyncio.CancelledError:
            with self._changed, contextlib.suppress(ValueError):
                self._waiting.remove(job)
            raise
        return result, job.begun - job.asked

    def close(self, patience: float = 10.0) -> None:
        """Finish what is waiting, for so many seconds at most, and end."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._do(batch)

    def _do(self, batch: Sequence[Job]) -> None:
        """Whatever goes wrong is told to whoever waits for this batch; the next is another matter."""
        started = time.monotonic()
        for job in batch:
            job.begun = started
        kind, longest = batch[0].kind, max(started - job.asked for job in batch)
        try:
            results = list(self._handlers[kind]([job.payload for job in batch]))
            took = time.monotonic() - started
            self._recent += 0.2 * (took / len(batch) - self._recent)
            self._observe(kind, len(batch), longest, took)
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results of {len(batch)} jobs ({kind})")
        except BaseException as error:
            results = [error] * len(batch)
        for job, result in zip(batch, results, strict=True):
            _tell(job, result)

    def _next_batch(self) -> list[Job] | None:
        """Jobs of one kind whose turn it is; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._ends:
                    return None
                self._changed.wait()
            kind = self._waiting[0].kind
            until = self._waiting[0].asked + self.settings.gather
            while (left := until - time.monotonic()) > 0 and not self._ends:
                if len(self._waiting) >= self.settings.most_at_once:
                    break
                self._changed.wait(left)
            batch, others, now = list[Job](), list[Job](), time.monotonic()
            while self._waiting:
                job = self._waiting.popleft()
                if job.future.cancelled():
                    continue
                if now > job.deadline:
                    late = TooLateError(f"its turn did not come within {self.settings.patience:g} s, try again later")
                    _tell(job, late)
                elif job.kind == kind and len(batch) < self.settings.most_at_once:
                    batch.append(job)
                else:
                    others.append(job)
            self._waiting.extend(others)
            return batch


def _tell(job: Job, result: Any) -> None:
    """From the thread to whoever waits, if anybody still does."""

    def tell() -> None:
        if job.future.done():
            return
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        job.loop.call_soon_threadsafe(tell)
