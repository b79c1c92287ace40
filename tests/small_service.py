"""Small services that are asked without a network."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import uvicorn
from starlette.testclient import TestClient

from perceiver_vl.serve.app import make_app
from perceiver_vl.serve.library import check_indexes
from perceiver_vl.serve.settings import ServeSettings

MARKUP = "<img src=x onerror=alert(1)>"


def service_of(index: Path, *more: Path, **settings: Any) -> TestClient:
    """A client of a service that is started by `with`, and then open."""
    places = tuple(map(str, (index, *more)))
    chosen = ServeSettings(places, **{"rate": 0.0, "refresh_seconds": 0.05, **settings})
    app, _ = make_app(chosen, check_indexes(chosen.indexes, None))
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@contextmanager
def running(index: Path, **settings: Any) -> Iterator[str]:
    """The address of a service that listens on a port, in a thread of its own, once its index is open."""
    listening = socket.create_server(("127.0.0.1", 0))
    chosen = ServeSettings((str(index),), **{"rate": 0.0, "refresh_seconds": 0.05, **settings})
    app, _ = make_app(chosen, check_indexes(chosen.indexes, None))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        wait_until(lambda: _is_ready(address))
        yield address
    finally:
        server.should_exit = True
        thread.join()


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/health/ready", timeout=180) as answer:
            return bool(answer.status == 200)
    except HTTPError as error:
        error.close()
        return False


def wait_until(holds: Any, seconds: float = 180.0) -> None:
    """Return once it holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.02)


@contextmanager
def processes_are_killed() -> Iterator[None]:
    """Whatever the service starts, a decoder or an update, is killed at once."""
    really = asyncio.create_subprocess_exec

    async def killed(*words: Any, **how: Any) -> Any:
        process = await really(*words, **how)
        process.kill()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", killed)
        yield


def opened(client: TestClient) -> TestClient:
    """Once its index is."""
    wait_until(lambda: client.get("/health/ready").status_code == 200)
    return client


def id_of(api: TestClient, file: str) -> str:
    """The id of a clip."""
    hits = api.post("/v1/search", json={"query": "a", "top": 100, "group": False}).json()["hits"]
    return next(str(hit["id"]) for hit in hits if hit["file"] == file)


def post(api: TestClient, path: str, **asked: Any) -> Any:
    """The answer to a request that is none to refuse."""
    answer = api.post(path, json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(answer: Any, status: int) -> str:
    """The line of a problem document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["instance"] == f"urn:request:{answer.headers['x-request-id']}"
    assert "\n" not in document["detail"]
    return str(document["detail"])
