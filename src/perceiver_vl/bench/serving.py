"""A service under load, measured from outside: how soon it answers, and what answering callers together gains."""

import http.client
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

_WORDS = (
    *("red", "blue", "green", "yellow", "grey", "white", "black", "purple", "small", "large"),
    *("circle", "star", "heart", "square", "triangle", "ring", "cross", "diamond"),
    *("moves", "grows", "blinks", "turns", "falls", "above", "near", "under"),
)
_PATIENCE = 120.0
CALLERS = 16
ROWS = 50_000
_MODEL = {
    "hidden_size": 192,
    "num_attention_heads": 4,
    "num_blocks": 3,
    "self_attentions_per_block": 2,
    "num_latents": 32,
    "num_text_latents": 16,
    "image_size": 64,
    "patch_size": 8,
    "max_frames": 8,
}
_SEEN = """(query) => new Promise((done) => {
  const hits = document.querySelector("#hits"), box = document.querySelector("#q");
  hits.replaceChildren();
  box.value = query;
  const started = performance.now();
  new MutationObserver((_, watching) => {
    if (!hits.querySelector(".hit")) return;
    watching.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
  }).observe(hits, { childList: true });
  document.querySelector("#search").requestSubmit();
})"""


@dataclass(frozen=True)
class ServingReport(BenchReport):
    """A service of `rows` clips or segments, asked under `path`. first_s: from the command to the first answer.
    early_ms: the slowest of the ten after it, while the rest of the model is being loaded. p50_ms, p95_ms: of one
    caller, whose requests follow each other, once it is. together, apart: answers a second to `callers` at once,
    gathered into batches and one by one, each the best of `runs`, and the least processor time of the service that an
    answer took; all queries differ, so that no cache helps. seen_ms, seen_p95_ms: in a browser, from Enter to the first
    hit on the screen.
    """

    path: str
    rows: int
    callers: int
    requests: int
    first_s: float
    early_ms: float
    p50_ms: float
    p95_ms: float
    together: float
    apart: float
    together_cpu_ms: float
    apart_cpu_ms: float
    seen_ms: float | None = None
    seen_p95_ms: float | None = None

    def sections(self) -> list[Section]:
        """As one table."""
        rows = [
            ("command to first answer, s", f"{self.first_s:.1f}"),
            ("slowest of the next ten, ms", f"{self.early_ms:.0f}"),
            ("one caller, p50, ms", f"{self.p50_ms:.1f}"),
            ("one caller, p95, ms", f"{self.p95_ms:.1f}"),
            (f"{self.callers} callers together, answers a second", f"{self.together:.1f}"),
            (f"{self.callers} callers one by one, answers a second", f"{self.apart:.1f}"),
            ("gain of answering together", f"{self.together / self.apart:.2f}"),
            ("processor time of an answer together, ms", f"{self.together_cpu_ms:.1f}"),
            ("processor time of an answer one by one, ms", f"{self.apart_cpu_ms:.1f}"),
            ("browser, Enter to first hit, p50, ms", or_dash(self.seen_ms, ".0f")),
            ("browser, Enter to first hit, p95, ms", or_dash(self.seen_p95_ms, ".0f")),
        ]
        return [Section(f"POST {self.path}, {self.rows:,} rows", ("", ""), rows)]


def measure_serving(
    index: str | None = None,
    *,
    rows: int = ROWS,
    moments: bool = False,
    browser: bool = False,
    callers: int = CALLERS,
    requests: int = 320,
    runs: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> ServingReport:
    """Start the service on an index of this machine twice, as it is and without batches, and ask each.

    index: None: one of `rows` made-up clips, or with `moments` of hours of made-up video, of a model of width 192 and
    random weights. browser: ask in one, too. Raises `UsageError` where there is none.
    """
    path = "/v1/moments" if moments else "/v1/search"
    queries = itertools.count(seed * 1_000_000)
    with _made(index, rows, moments, seed, progress) as place:
        with served(place) as (address, begun):
            found = int(_first_answer(address, path, next(queries))["searched"])
            first = time.perf_counter() - begun
            early = [_timed(address, path, next(queries)) for _ in range(10)]
            _load(address)
            alone = [_timed(address, path, next(queries)) for _ in range(max(20, requests // 4))]
            together = [_throughput(address, path, queries, callers, requests) for _ in range(runs)]
            seen = seen_in_browser(address, (query(next(queries)) for _ in range(40))) if browser else []
        with served(place, "--most-at-once", "1", "--gather", "0") as (address, _):
            _first_answer(address, path, next(queries))
            _load(address)
            apart = [_throughput(address, path, queries, callers, requests) for _ in range(runs)]
    return ServingReport(
        runs=runs,
        seed=seed,
        path=path,
        rows=found,
        callers=callers,
        requests=requests,
        first_s=first,
        early_ms=1e3 * max(early),
        p50_ms=1e3 * statistics.median(alone),
        p95_ms=1e3 * _p95(alone),
        together=max(rate for rate, _ in together),
        apart=max(rate for rate, _ in apart),
        together_cpu_ms=1e3 * min(cpu for _, cpu in together),
        apart_cpu_ms=1e3 * min(cpu for _, cpu in apart),
        seen_ms=statistics.median(seen) if seen else None,
        seen_p95_ms=_p95(seen) if seen else None,
    )


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


@contextmanager
def _made(index: str | None, rows: int, moments: bool, seed: int, progress: bool) -> Iterator[str]:
    """The index, or one that is made up for as long as it is asked."""
    if index is not None:
        yield index
        return
    from perceiver_vl.bench.moments_library import SEGMENTS_AN_HOUR, make_clips, make_library, save_model
    from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
    from perceiver_vl.search.query_export import write_query_graph

    with tempfile.TemporaryDirectory(prefix="perceiver-vl-serving-") as scratch, ProgressBars(progress) as bar:
        folder, model = Path(scratch, "index"), Path(scratch, "model")
        config = save_model(model, PerceiverVLConfig.from_dict(_MODEL), seed)
        hours = math.ceil(rows / SEGMENTS_AN_HOUR)
        advance = bar.stage("Making an index", hours if moments else rows)
        if moments:
            make_library(folder, model, config, hours, seed, advance)
        else:
            make_clips(folder, model, config, rows, seed, advance)
        write_query_graph(folder)
        yield str(folder)


@contextmanager
def served(index: str, *words: str) -> Iterator[tuple[str, float]]:
    """The address of a service in a process of its own, once it answers, and when it was started."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "perceiver_vl", "serve", "--index", index, "--port", "0", "--rate", "0"]
    command += ["--patience", f"{_PATIENCE:g}", *words]
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


def query(number: int) -> str:
    """One that no other is like."""
    digits = [(number // len(_WORDS) ** place) % len(_WORDS) for place in range(6)]
    return " ".join(_WORDS[digit] for digit in digits)


def _request(number: int) -> bytes:
    return json.dumps({"query": query(number), "top": 10}).encode()


def _first_answer(address: str, path: str, number: int) -> dict[str, float]:
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


def _load(address: str) -> None:
    """Wait until the service has the whole model, and not only what quick searches need."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("POST", "/v1/embed", json.dumps({"texts": ["a"]}).encode())
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise PerceiverVLError(f"{address}: {body['detail']}")


def _timed(address: str, path: str, number: int) -> float:
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    started = time.perf_counter()
    connection.request("POST", path, _request(number))
    connection.getresponse().read()
    took = time.perf_counter() - started
    connection.close()
    return took


def _throughput(address: str, path: str, queries: Iterator[int], callers: int, requests: int) -> tuple[float, float]:
    """Answers a second to so many callers, each of whom asks again as soon as it is answered; and the seconds of the
    service's processor time that one takes.
    """
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
    worked, started = metric(address, "process_cpu_seconds_total"), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise PerceiverVLError(f"{address}: {len(failed)} requests of {requests} failed, with {failed[0]}")
    took = time.perf_counter() - started
    answered = sum(map(len, numbers))
    return answered / took, (metric(address, "process_cpu_seconds_total") - worked) / answered


def metric(address: str, name: str) -> float:
    """A number of the service's `/metrics`."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else math.nan


def seen_in_browser(address: str, queries: Iterator[str]) -> list[float]:
    """Milliseconds from Enter until the first hit is on the screen, in a browser without one (Chromium, by playwright).

    Raises `UsageError` where it cannot be had.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        raise UsageError("browser: needs Chromium and pip install playwright, or leave it out")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = started.new_page()
        page.goto(address)
        page.wait_for_selector("#open-index")
        while "to search" not in page.inner_text("#status"):
            time.sleep(0.05)
        seen = [float(page.evaluate(_SEEN, query)) for query in queries]
        started.close()
    return seen
