"""Jobs in several processes, none of which outlives this one, and a job that kills its process costs only itself."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_in_processes(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Generator[tuple[Job, Result | None], None, None]:
    """Each job with what `function` makes of it, as they end; None if the process died of it, as of a decoder's crash.

    workers: processes, or 1 for this one. What `function` raises is raised here. Close the generator to end early.
    """
    if workers == 1:
        yield from ((job, function(job)) for job in jobs)
        return
    waiting = deque(jobs)
    while waiting:
        suspects = yield from _run_in_pool(function, waiting, workers)
        for job in suspects:  # a process died of one of them; each by itself shows of which
            if (yield from _run_in_pool(function, deque([job]), 1)):
                yield job, None


def _run_in_pool(
    function: Callable[[Job], Result], waiting: deque[Job], workers: int
) -> Generator[tuple[Job, Result], None, list[Job]]:
    """Take jobs from `waiting` and yield their results; when a process dies, return those that were in work."""
    running: dict[Future[Result], Job] = {}
    with process_pool(workers, preload=function.__module__) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:
                    running[pool.submit(function, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            return list(running.values())
    return []


@contextmanager
def process_pool(workers: int, *, preload: str) -> Iterator[ProcessPoolExecutor]:
    """Processes that begin with nothing of this one's, and end with it, however it ends, and at once when it fails.

    preload: the module of what they run; on Linux it is imported once for all of them, by a process with one thread,
    which they are forks of. Elsewhere a system's own libraries may not outlive a fork.
    """
    others = set(multiprocessing.active_children())
    context: Any = multiprocessing.get_context("spawn")  # a fork of this process would copy the locks of its threads
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is interrupted too, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
