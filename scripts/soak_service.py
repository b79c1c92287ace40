"""Many mixed requests, hostile ones among them, to a service on this machine: what it answers, what memory it takes.

    python scripts/soak_service.py my-index --requests 10000

It ends with 1 where an answer was of the service's fault (5xx), another than the request deserves, or none at all.
Requests may wait for two minutes, as the machine may have other work.
"""

import argparse
import collections
import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from perceiver_vl.bench.serving import metric, served

WORDS = ("red", "blue", "green", "circle", "star", "heart", "moves", "grows", "near", "above")
MORE = ("-black", "type:video", "longer:1", "before:2999", '"two words"^2')
PARTS = 5  # after each of which the memory is looked at
PATIENCE = 120.0
MEMORY = "process_resident_memory_bytes"
GOOD = frozenset({200, 206})


@dataclass(frozen=True)
class Asked:
    """A request, and which answers are right; `cut`: the connection is closed in the midst of it."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    right: frozenset[int] = GOOD
    cut: bool = False


def friendly(draw: random.Random, ids: list[str], moments: bool) -> Asked:
    """What people and programs ask."""
    query = " ".join(draw.choices(WORDS, k=3) + draw.sample(MORE, k=2))
    of_clip = f"/v1/clips/{draw.choice(ids)}"
    kinds = [
        Asked("POST", "/v1/search", json.dumps({"query": query, "top": draw.randint(1, 50)}).encode()),
        Asked("POST", "/v1/search", json.dumps({"like": [{"id": draw.choice(ids)}], "sort": "date"}).encode()),
        Asked("POST", "/v1/search/batch", json.dumps({"requests": [{"query": one} for one in WORDS[:6]]}).encode()),
        Asked("POST", "/v1/embed", json.dumps({"texts": [query], "ids": [draw.choice(ids)]}).encode()),
        Asked("POST", "/v1/embeddings", json.dumps({"input": query}).encode()),
        Asked("GET", of_clip),
        Asked("GET", f"{of_clip}/strip?frames={draw.randint(1, 6)}"),
        Asked("GET", f"/v1/media/{draw.choice(ids)}", headers={"Range": "bytes=0-999"}),
        Asked("GET", draw.choice(["/", "/v1/index", "/metrics", "/openapi.json", "/health/ready", "/static/page.js"])),
    ]
    if moments:
        kinds += 2 * [Asked("POST", "/v1/moments", json.dumps({"query": query, "per_video": 2}).encode())]
    return draw.choice(kinds)


def hostile(draw: random.Random, ids: list[str]) -> Asked:
    """What nobody should ask."""
    refused, not_there, clip = frozenset({400}), frozenset({400, 404}), draw.choice(ids)
    return draw.choice(
        [
            Asked("POST", "/v1/search", b"{", right=refused),
            Asked("POST", "/v1/search", b"[" * 100_000, right=refused),
            Asked("POST", "/v1/search", b"\xff\xfe\x00", right=refused),
            Asked("POST", "/v1/search", b'{"query": "a", "top": 1000000000000}', right=refused),
            Asked("POST", "/v1/search", b'{"query": "a", "top": 1e999}', right=refused),
            Asked("POST", "/v1/search", json.dumps({"query": "x" * 5000}).encode(), right=refused),
            Asked("POST", "/v1/search", json.dumps({"query": "a", "where": "1 = 1"}).encode(), right=refused),
            Asked("POST", "/v1/search", json.dumps({"query": "'; DROP TABLE clips; -- folder:' OR '1'='1"}).encode()),
            Asked("POST", "/v1/search", json.dumps({"query": "\ud800 \0 <script>alert(1)</script>"}).encode()),
            Asked("POST", "/v1/search", b"x" * (2 << 20), right=frozenset({413})),
            Asked("POST", "/v1/uploads", draw.randbytes(1000), right=frozenset({422})),
            Asked("GET", "/v1/media/..%2f..%2fetc%2fpasswd", right=not_there),
            Asked("GET", f"/v1/clips/{'0' * 32}", right=not_there),
            Asked("GET", f"/v1/clips/{clip}/strip?frames=99999", right=refused),
            Asked("GET", f"/v1/media/{clip}", headers={"Range": "bytes=99999999999-"}, right=frozenset({416})),
            Asked("GET", "/", headers={"Host": "evil.example"}, right=frozenset({421})),
            Asked("POST", "/v1/search", b"{}", {"Origin": "http://evil.example"}, frozenset({403})),
            Asked("PUT", "/v1/search", b"{}", right=frozenset({405})),
            Asked("POST", "/v1/moments", b'{"query": "a red circle"}', cut=True),
            Asked("GET", f"/v1/media/{clip}", cut=True),
        ]
    )


def ask(address: str, asked: Asked) -> int:
    """The status of the answer; 0: there was none, as was wanted."""
    where = urlsplit(address)
    if asked.cut:
        assert where.hostname is not None
        with socket.create_connection((where.hostname, where.port)) as connection:
            head = f"{asked.method} {asked.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: 25\r\n\r\n"
            connection.sendall(head.encode() + (asked.body or b""))
        return 0
    connection = http.client.HTTPConnection(where.netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has refused before it has read all
            connection.request(asked.method, asked.path, asked.body, asked.headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def ids_of(address: str) -> tuple[list[str], bool]:
    """Of some clips, once the index is open; and whether it has segments."""
    until = time.monotonic() + PATIENCE
    while True:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/search", b'{"query": "a", "top": 50}')
            answer = connection.getresponse()
            body = json.loads(answer.read())
        if answer.status == 200:
            break
        assert time.monotonic() < until, body
        time.sleep(0.1)
    moments = ask(address, Asked("POST", "/v1/moments", b'{"query": "a"}')) == 200
    return [hit["id"] for hit in body["hits"]], moments


def soak(address: str, requests: int, callers: int, seed: int) -> Iterator[str]:
    """What came of it, in lines; those that begin with a ! are faults."""
    ids, moments = ids_of(address)
    statuses: collections.Counter[int] = collections.Counter()
    wrong: list[str] = []
    memory: list[float] = []

    def call(number: int, count: int) -> None:
        draw = random.Random(seed * 1000 + number)
        for _ in range(count):
            asked = hostile(draw, ids) if draw.random() < 0.2 else friendly(draw, ids, moments)
            try:
                status = ask(address, asked)
            except (OSError, http.client.HTTPException) as error:
                wrong.append(f"{asked.method} {asked.path}: {error!r}")
                continue
            statuses[status] += 1
            if status and status not in asked.right:
                wrong.append(f"{asked.method} {asked.path} {asked.body and asked.body[:60]!r}: {status}")

    started = time.monotonic()
    for part in range(PARTS):
        numbers = range(part * callers, (part + 1) * callers)
        threads = [threading.Thread(target=call, args=(one, requests // callers // PARTS)) for one in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        memory.append(metric(address, MEMORY) / 2**20)
    yield f"{sum(statuses.values())} requests of {callers} callers in {time.monotonic() - started:.0f} s, seed {seed}"
    yield "answers by status (0: cut by the caller): " + ", ".join(
        f"{n} × {one}" for one, n in sorted(statuses.items())
    )
    grown = memory[-1] / memory[0] - 1
    yield f"MiB after each fifth: {', '.join(f'{one:.0f}' for one in memory)}, {grown:+.1%} from the first to the last"
    yield from (f"! {one}" for one in wrong)


def main() -> int:
    """Start the service, ask, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with served(given.index) as (address, _):
        lines = list(soak(address, given.requests, given.callers, given.seed))
    print(*lines, sep="\n")
    return int(any(line.startswith("!") for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
