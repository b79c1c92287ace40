"""A service under load, measured from outside: how soon it answers, and what answering callers together gains."""

import http.client
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.utils.errors import PerceiverVLError

_WORDS = (
    *(
        "red",
        "blue",
        "green",
        "yellow",
        "grey",
        "white",
        "black",
        "purple",
        "small",
        "large",
        "circle",
        "star",
        "heart",
    ),
    *(
        "heart",
        "square",
        "triangle",
        "ring",
        "cross",
        "diamond",
        "moves",
        "grows",
        "blinks",
        "turns",
        "falls",
        "above",
        "near",
    ),
)
_PATIENCE = 120.0
CALLERS = 16


@dataclass(frozen=True)
class ServingReport(BenchReport):
    """A service of `rows` clips or segments, asked under `path`. first_s: from the command to the first answer. p50_ms,
    p95_ms: of one caller, whose requests follow each other. together, apart: answers a second to `callers` at once,
    gathered into batches and one by one, each the best of `runs`; all queries differ, so that no cache helps.
    """

    path: str
    rows: int
    callers: int
    requests: int
    first_s: float
    p50_ms: float
    p95_ms: float
    together: float
    apart: float

    def sections(self) -> list[Section]:
        """As one table."""
        rows = [
            ("command to first answer, s", f"{self.first_s:.1f}"),
            ("one caller, p50, ms", f"{self.p50_ms:.1f}"),
            ("one caller, p95, ms", f"{self.p95_ms:.1f}"),
            (f"{self.callers} callers together, answers a second", f"{self.together:.1f}"),
            (f"{self.callers} callers one by one, answers a second", f"{self.apart:.1f}"),
            ("gain of answering together", f"{self.together / self.apart:.2f}"),
        ]
        return [Section(f"POST {self.path}, {self.rows:,} rows", ("", ""), rows)]


def measure_serving(
    index: str, *, moments: bool = False, callers: int = CALLERS, requests: int = 320, runs: int = 3, seed: int = 0
) -> ServingReport:
    """Start the service on an index of this machine twice, as it is and without batches, and ask each."""
    path = "/v1/moments" if moments else "/v1/search"
    queries = itertools.count(seed * 1_000_000)
    with _served(index) as (address, begun):
        rows = int(_ask(address, path, next(queries))["searched"])
        first = time.perf_counter() - begun
        alone = [_timed(address, path, next(queries)) for _ in range(max(20, requests // 4))]
        together = max(_throughput(address, path, queries, callers, requests) for _ in range(runs))
    with _served(index, "--most-at-once", "1", "--gather", "0") as (address, _):
        _ask(address, path, next(queries))
        apart = max(_throughput(address, path, queries, callers, requests) for _ in range(runs))
    cuts = statistics.quantiles(alone, n=20)
    return ServingReport(
        runs=runs,
        seed=seed,
        path=path,
        rows=rows,
        callers=callers,
        requests=requests,
        first_s=first,
        p50_ms=1e3 * statistics.median(alone),
        p95_ms=1e3 * cuts[-1],
        together=together,
        apart=apart,
    )


@contextmanager
def _served(index: str, *words: str) -> Iterator[tuple[str, float]]:
    """The address of a service in a process of its own, once it answers, and when it was started."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "perceiver_vl", "serve", "--index", index, "--port", "0", "--rate", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise PerceiverVLError(f"{index}: the service did not start, see what {' '.join(command[2:])} says")
        yield address, begun
    finally:
        process.terminate()
        process.wait()


def _request(number: int) -> bytes:
    """A query that no other is like."""
    digits = [(number // len(_WORDS) ** place) % len(_WORDS) for place in range(6)]
    query = " ".join(_WORDS[digit] for digit in digits)
    return json.dumps({"query": query, "top": 10}).encode()


def _ask(address: str, path: str, number: int) -> dict[str, float]:
    """The first answer, once there is one."""
    until = time.perf_counter() + _PATIENCE
    while time.perf_counter() < until:
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("POST", path, _request(number))
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        if answer.status == 200:
            found: dict[str, float] = body
            return found
        if answer.status != 503:
            raise PerceiverVLError(f"{address}: {body['detail']}")
        time.sleep(0.05)
    raise PerceiverVLError(f"{address}: did not answer in {_PATIENCE:.0f} s")


def _timed(address: str, path: str, number: int) -> float:
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    started = time.perf_counter()
    connection.request("POST", path, _request(number))
    connection.getresponse().read()
    took = time.perf_counter() - started
    connection.close()
    return took


def _throughput(address: str, path: str, queries: Iterator[int], callers: int, requests: int) -> float:
    """Answers a second to so many callers, each of whom asks again as soon as it is answered."""
    numbers = [[next(queries) for _ in range(requests // callers)] for _ in range(callers)]

    def call(own: list[int]) -> None:
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        for number in own:
            connection.request("POST", path, _request(number))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failed.append(answer.status)
        connection.close()

    failed: list[int] = []
    threads = [threading.Thread(target=call, args=(own,)) for own in numbers]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise PerceiverVLError(f"{address}: {len(failed)} requests of {requests} failed, with {failed[0]}")
    return requests / (time.perf_counter() - started)
