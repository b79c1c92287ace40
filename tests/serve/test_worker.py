"""Work of many callers: together, bounded, late, cancelled, drained."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from perceiver_vl.serve.worker import QueueFullError, QueueSettings, TooLateError, Worker


class Held:
    """A handler that waits until it is let go, and remembers the batches that it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go, self.begun = threading.Event(), threading.Event()

    def __call__(self, payloads: Sequence[Any]) -> list[Any]:
        self.batches.append(list(payloads))
        self.begun.set()
        assert self.go.wait(10)
        return [ValueError("no") if one == "bad" else f"{one}!" for one in payloads]


def run(test: Callable[[Worker, Held], Awaitable[None]], **settings: Any) -> Held:
    held = Held()
    worker = Worker({"one": held, "other": held}, QueueSettings(**settings))

    async def go() -> None:
        await test(worker, held)

    try:
        asyncio.run(go())
    finally:
        held.go.set()
        worker.close()
    return held


async def begin(worker: Worker, held: Held, *payloads: Any, kind: str = "one") -> list["asyncio.Task[Any]"]:
    """Hand in the first, and once it is being done the others."""
    tasks = [asyncio.create_task(worker.do(kind, payloads[0]))]
    await asyncio.to_thread(held.begun.wait, 10)
    tasks += [asyncio.create_task(worker.do(kind, one)) for one in payloads[1:]]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_is_done_together_and_an_error_is_its_own() -> None:
    async def test(worker: Worker, held: Held) -> None:
        tasks = await begin(worker, held, "a", "b", "bad", "c")
        other = asyncio.create_task(worker.do("other", "d"))
        await asyncio.sleep(0)
        held.go.set()
        results = await asyncio.gather(*tasks, other, return_exceptions=True)
        assert [one[0] for one in results if isinstance(one, tuple)] == ["a!", "b!", "c!", "d!"]
        assert isinstance(results[2], ValueError)

    assert run(test).batches == [["a"], ["b", "bad", "c"], ["d"]]


def test_those_that_come_within_the_wait_share_a_batch() -> None:
    async def test(worker: Worker, held: Held) -> None:
        held.go.set()
        await asyncio.gather(*(worker.do("one", number) for number in range(5)))

    assert run(test, gather=1.0, most_at_once=5).batches == [[0, 1, 2, 3, 4]]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async def test(worker: Worker, held: Held) -> None:
        tasks = await begin(worker, held, "a", "b", "c")
        with pytest.raises(QueueFullError) as refused:
            await worker.do("one", "d")
        assert refused.value.retry_after >= 1
        held.go.set()
        assert [one[0] for one in await asyncio.gather(*tasks)] == ["a!", "b!", "c!"]

    run(test, most_waiting=2)


def test_what_waits_too_long_is_never_begun() -> None:
    async def test(worker: Worker, held: Held) -> None:
        tasks = await begin(worker, held, "a", "b")
        await asyncio.sleep(0.1)
        held.go.set()
        assert (await tasks[0])[0] == "a!"
        with pytest.raises(TooLateError):
            await tasks[1]

    assert run(test, patience=0.05).batches == [["a"]]


def test_who_goes_away_is_taken_out_of_the_queue() -> None:
    async def test(worker: Worker, held: Held) -> None:
        tasks = await begin(worker, held, "a", "b", "c")
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert worker.waiting == 1
        held.go.set()
        await asyncio.gather(tasks[0], tasks[2])

    assert run(test).batches == [["a"], ["c"]]


def test_a_handler_that_breaks_is_told_to_its_batch_and_the_next_is_done() -> None:
    async def test(worker: Worker, held: Held) -> None:
        held.go.set()
        with pytest.raises(KeyError):
            await worker.do("unknown", "a")
        assert (await worker.do("one", "b"))[0] == "b!"

    run(test)


def test_a_handler_that_answers_too_few_keeps_nobody_waiting() -> None:
    async def go() -> None:
        for _ in range(2):  # the thread lives on
            with pytest.raises(RuntimeError, match="0 results of 1 jobs"):
                await asyncio.wait_for(worker.do("one", "a"), 10)

    worker = Worker({"one": lambda _: []}, QueueSettings())
    asyncio.run(go())
    worker.close()


def test_closing_finishes_what_waits_and_lets_nobody_in() -> None:
    async def test(worker: Worker, held: Held) -> None:
        tasks = await begin(worker, held, "a", "b")
        closing = asyncio.create_task(asyncio.to_thread(worker.close))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError):
            await worker.do("one", "c")
        held.go.set()
        assert [one[0] for one in await asyncio.gather(*tasks)] == ["a!", "b!"]
        await closing

    run(test)
