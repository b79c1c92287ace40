"""Updates of indexes, one at a time, each in a process of its own, and who follows them."""

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from perceiver_vl.serve.library import OpenIndex
from perceiver_vl.serve.messages import Job, Skipped
from perceiver_vl.serve.problems import ProblemError

RUNNING = "running"
_KEPT = 20


class IndexJobs:
    """The last jobs. Call from the event loop alone."""

    def __init__(self, when_done: Callable[[], Awaitable[None]]) -> None:
        """when_done: called after an index has changed, before anybody is told that the job is."""
        self._jobs: dict[str, Job] = {}
        self._when_done = when_done
        self._changed = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def listed(self) -> list[Job]:
        """Newest first."""
        return list(self._jobs.values())[::-1]

    def get(self, name: str) -> Job:
        """Raises `ProblemError` (404) for one that is not known."""
        if name not in self._jobs:
            raise ProblemError(404, f"{name}: no such job")
        return self._jobs[name]

    async def start(self, index: OpenIndex) -> Job:
        """Begin an update; raises `ProblemError` (409) while another goes on."""
        for job in self._jobs.values():
            if job.state == RUNNING:
                raise ProblemError(409, f"{job.index}: is being updated (job {job.id}), wait for its end")
        job = Job(secrets.token_hex(6), index.name, RUNNING, "Starting", 0, 0, "", [], None)
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT:
            del self._jobs[next(iter(self._jobs))]
        self._task = asyncio.create_task(self._run(job.id, index.place))
        return job

    async def cancel(self, name: str) -> Job:
        """End a job; what it has encoded is kept."""
        if self.get(name).state == RUNNING:
            await self._set(name, state="cancelled")
            self._stop()
        return self.get(name)

    async def follow(self, name: str) -> AsyncIterator[Job]:
        """The job now and after every change, until it has ended; again after 15 s without one."""
        job = self.get(name)
        while True:
            yield job
            if job.state != RUNNING:
                return
            async with self._changed:
                if self._jobs.get(name) is job:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 15)
            job = self._jobs.get(name, job)

    async def close(self) -> None:
        """End what is going on."""
        self._stop()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _run(self, name: str, place: str) -> None:
        words = [sys.executable, "-m", "perceiver_vl.serve.index_job", place]
        pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        how = {"stdin": nowhere, "stdout": pipe, "stderr": nowhere, "limit": 1 << 24}
        self._process = process = await asyncio.create_subprocess_exec(*words, **how)  # type: ignore[arg-type]
        assert process.stdout is not None
        if self.get(name).state != RUNNING:  # cancelled before there was a process to end
            self._stop()
        try:
            async for line in process.stdout:
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if "skipped" in said:
                        said["skipped"] = [Skipped(one["file_name"], one["reason"]) for one in said["skipped"]]
                    await self._set(name, **said)
            await process.wait()
        finally:
            self._process = None
        await self._when_done()
        job = self.get(name)
        if job.state == RUNNING:
            failed = process.returncode != 0 or job.error is not None
            error = job.error or (f"the process ended with {process.returncode}" if failed else None)
            await self._set(name, state="failed" if failed else "done", error=error)

    async def _set(self, name: str, **changes: object) -> None:
        async with self._changed:
            self._jobs[name] = replace(self._jobs[name], **changes)  # type: ignore[arg-type]
            self._changed.notify_all()
