"""Clients that send or read slowly, over real sockets: they are let go, and nobody waits for them."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from perceiver_vl.serve import Client, app
from small_service import running

SECONDS = 0.5


@pytest.fixture(scope="module")
def address(served: tuple[Path, Path]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "BODY_SECONDS", SECONDS)
        with running(served[0]) as address:
            yield address


def connected(address: str, head: bytes) -> socket.socket:
    """After the first lines of a request, and the one that each must have."""
    where = urlsplit(address)
    assert where.hostname is not None
    connection = socket.create_connection((where.hostname, where.port), timeout=60)
    connection.sendall(head + b"\r\nHost: " + where.netloc.encode() + b"\r\n\r\n")
    return connection


@pytest.mark.parametrize("path", ["/v1/search", "/v1/uploads"])
def test_a_body_that_does_not_come_is_not_waited_for(address: str, path: str) -> None:
    with connected(address, f"POST {path} HTTP/1.1\r\nContent-Length: 100".encode()) as connection:
        connection.sendall(b"{")
        assert Client(address).search("a")["hits"]  # meanwhile
        said = b"".join(iter(lambda: connection.recv(65536), b""))  # head and body may come apart
    assert said.startswith(b"HTTP/1.1 408 ")
    assert f"{SECONDS:g} s".encode() in said


def test_a_body_that_comes_in_drops_is_bounded_as_a_whole(address: str) -> None:
    """A byte now and then keeps nothing open."""
    with connected(address, b"POST /v1/search HTTP/1.1\r\nContent-Length: 1000000") as connection:
        connection.settimeout(0.05)
        said = b""
        until = time.monotonic() + 60
        while not said:
            assert time.monotonic() < until
            connection.sendall(b" ")
            try:
                said = connection.recv(65536)
            except TimeoutError:
                continue
    assert said.startswith(b"HTTP/1.1 408 ")


def test_who_does_not_read_the_answer_keeps_nobody_waiting(address: str) -> None:
    client = Client(address)
    clip = client.search("a", top=1)["hits"][0]["id"]
    slow = [connected(address, f"GET /v1/media/{clip} HTTP/1.1".encode()) for _ in range(20)]
    body = json.dumps({"query": "a red square"}).encode()
    for _ in range(3):
        assert client.search("a red square")["hits"]
        assert json.loads(client._send("POST", "/v1/moments", body))["hits"]
    for connection in slow:
        connection.close()
    assert client.media(clip)
