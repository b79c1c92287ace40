"""`perceiver-vl serve` as a person starts it: an address, answers, and an end on SIGTERM that loses nothing."""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from command_line import ENVIRONMENT, PROGRAM, run_cli

pytest.importorskip("starlette", reason="needs pip install 'perceiver-vl[serve]'")

from perceiver_vl.serve import Client, ServiceError
from small_service import wait_until


@contextmanager
def started(*words: object, environment: dict[str, str] | None = None) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address that it says, and the process."""
    process = subprocess.Popen(
        [PROGRAM, "serve", *map(str, words)],
        env={**ENVIRONMENT, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def is_ready(client: Client) -> bool:
    with contextlib.suppress(ServiceError):  # while it loads
        return bool(client.search("ready", top=1)["hits"])
    return False


def test_it_starts_answers_and_drains(index: Path, world: Path) -> None:
    with started("--index", index, "--port", 0, "--gather", 300) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        client = Client(address)
        wait_until(lambda: is_ready(client))
        hits = client.search("a red circle", top=2)["hits"]
        assert len(hits) == 2
        assert client.media(hits[0]["id"]) == (world / hits[0]["file"]).read_bytes()
        assert client.strip(hits[0]["id"], frames=2)[:2] == b"\xff\xd8"
        assert client.clip(hits[0]["id"])["file"] == hits[0]["file"]
        assert len(client.search_batch([{"query": "a"}, {"query": "b", "top": 1}])[1]["hits"]) == 1
        vectors = client.embed(["a red circle"], [hits[0]["id"]])
        assert sum(a * b for a, b in zip(vectors["texts"][0], vectors["ids"][0], strict=True)) == pytest.approx(
            hits[0]["multi_score"], abs=1e-5
        )
        example = client.upload(world / hits[1]["file"])
        assert client.search(like=[{"id": example["id"]}])["hits"][0]["id"] == hits[1]["id"]
        assert client.ask(hits[0]["id"], "what is it?", ["a circle", "a star"])["answers"]
        assert client.index()["indexes"][0]["clips"] == 6
        with pytest.raises(ServiceError, match="has no segments"):
            client.moments("a red circle")
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(client.search("a blue star")))
        asking.start()
        wait_until(lambda: "perceiver_vl_queue_length 1.0" in client._send("GET", "/metrics").decode() or answers)
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0]["hits"]  # it was in the queue
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    with pytest.raises(ServiceError, match="does not answer"):
        client.index()


def test_with_a_token_of_the_environment(index: Path) -> None:
    token = "a-token-of-some-length"
    with started("--index", index, "--port", 0, environment={"PERCEIVER_VL_TOKEN": token}) as (address, _):
        assert token not in address  # nobody needs to be told
        wait_until(lambda: is_ready(Client(address, token)))
        with pytest.raises(ServiceError, match="needs the token") as refused:
            Client(address).index()
        assert refused.value.status == 401


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_over_tls_from_any_address_with_the_token_that_it_prints(index: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=videos.example -addext subjectAltName=DNS:localhost"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True, text=True
    )
    given = ("--tls-certificate", certificate, "--tls-key", key, "--host-name", "localhost")
    with started("--index", index, "--host", "0.0.0.0", "--port", 0, *given) as (address, _):
        found = urlsplit(address)
        assert found.scheme == "https"
        token = parse_qs(found.fragment or found.query)["token"][0]
        trusted = ssl.create_default_context(cafile=certificate)

        def ask(authorization: str) -> tuple[int, bytes]:
            connection = http.client.HTTPSConnection("localhost", found.port, context=trusted)
            words = {"query": "a red circle", "top": 1}
            connection.request("POST", "/v1/search", json.dumps(words), {"Authorization": authorization})
            answer = connection.getresponse()
            return answer.status, answer.read()

        wait_until(lambda: ask(f"Bearer {token}")[0] == 200)
        assert json.loads(ask(f"Bearer {token}")[1])["hits"]
        assert ask("Bearer another-token-of-some-length")[0] == 401
        with pytest.raises(ServiceError, match="does not answer"):
            Client(f"http://localhost:{found.port}", token).index()


def test_what_cannot_be_served_is_one_line(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERCEIVER_VL_TOKEN", raising=False)
    assert "not an index, make one with" in run_cli("serve", "--index", tmp_path / "nothing").error(2)
    assert "--tls-certificate" in run_cli("serve", "--index", index, "--host", "0.0.0.0").error(2)
    assert "named twice" in run_cli("serve", "--index", index, "--index", index).error(2)
    assert "no such folder" in run_cli("serve", "--index", index, "--ask-model", tmp_path / "nothing").error(2)
    damaged = Path(shutil.copytree(index, tmp_path / "damaged"))
    newest = min((damaged / "clips.lance" / "_versions").glob("*.manifest"))  # their names count down
    newest.write_bytes(b"damaged")
    assert "damaged" in run_cli("serve", "--index", damaged).error(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port + 1}" in run_cli("serve", "--index", index, "--port", port).error(2)
