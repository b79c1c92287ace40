"""A service asked from Python, with the standard library alone."""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from perceiver_vl.utils.errors import PerceiverVLError


class ServiceError(PerceiverVLError):
    """What the service refused or could not do: its line, and the HTTP `status` (0: it does not answer)."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        super().__init__(detail)


class Client:
    """A running `perceiver-vl serve`.

        client = Client("http://127.0.0.1:8000")
        for hit in client.search("a red circle moves left", top=5)["hits"]:
            print(hit["file"], hit["score"])

    What is answered is described in the service's `/openapi.json`, and comes as plain values. Every method raises
    `ServiceError`.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 60.0) -> None:
        self.address, self._token, self._timeout = address.rstrip("/"), token, timeout

    def search(self, query: str = "", **options: Any) -> dict[str, Any]:
        """Clips for words, filters and examples; `options` are the other keys of a request: `top`, `like`, …"""
        return self._json("POST", "/v1/search", {"query": query, **options})

    def search_batch(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Several searches at once, each as the options of `search` with its `query`."""
        found: list[dict[str, Any]] = self._json("POST", "/v1/search/batch", {"requests": list(requests)})["results"]
        return found

    def moments(self, query: str = "", **options: Any) -> dict[str, Any]:
        """The same, of moments of videos; of an index with segments."""
        return self._json("POST", "/v1/moments", {"query": query, **options})

    def ask(self, clip: str, question: str, choices: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
        """A question about a clip or an upload, by its id."""
        given = {"id": clip, "question": question, **options}
        return self._json("POST", "/v1/ask", given if choices is None else {**given, "choices": list(choices)})

    def embed(self, texts: Sequence[str] = (), ids: Sequence[str] = ()) -> dict[str, list[tuple[float, ...]]]:
        """Unit vectors of texts, clips and uploads: `texts` and `ids`, in their orders."""
        asked = {"texts": list(texts), "ids": list(ids), "encoding": "base64"}
        found = self._json("POST", "/v1/embed", asked)
        return {name: [_vector(one) for one in found[name]] for name in ("texts", "ids")}

    def upload(self, file: str | Path | bytes) -> dict[str, Any]:
        """Hand in an example; its `id` can be searched by and asked about for some time."""
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        found: dict[str, Any] = json.loads(self._send("POST", "/v1/uploads", data, "application/octet-stream"))
        return found

    def clip(self, clip: str) -> dict[str, Any]:
        """What is known of a clip."""
        return self._json("GET", f"/v1/clips/{quote(clip, '')}")

    def media(self, clip: str) -> bytes:
        """The file itself."""
        return self._send("GET", f"/v1/media/{quote(clip, '')}")

    def strip(self, clip: str, frames: int = 6) -> bytes:
        """Frames of a clip beside each other, as a JPEG."""
        return self._send("GET", f"/v1/clips/{quote(clip, '')}/strip?{urlencode({'frames': frames})}")

    def index(self) -> dict[str, Any]:
        """What the indexes hold, and what the model can do."""
        return self._json("GET", "/v1/index")

    def update(self, index: str | None = None) -> Iterator[dict[str, Any]]:
        """Bring an index up to date: how it goes, until it has ended."""
        job = self._json("POST", "/v1/index/jobs", {} if index is None else {"index": index})
        with self._open("GET", f"/v1/index/jobs/{job['id']}/events") as events:
            for line in events:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def _json(self, method: str, path: str, data: Any = None) -> dict[str, Any]:
        body = None if data is None else json.dumps(data).encode()
        found: dict[str, Any] = json.loads(self._send(method, path, body))
        return found

    def _send(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        with self._open(method, path, body, kind) as answer:
            found: bytes = answer.read()
            return found

    def _open(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        headers = {} if body is None else {"Content-Type": kind}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(self.address + path, body, headers, method=method)
        try:
            return urlopen(request, timeout=self._timeout)
        except HTTPError as error:
            with error:
                raise ServiceError(error.code, _detail(error)) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(0, f"{self.address}: does not answer ({reason}), is it running?") from error


def _detail(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"


def _vector(written: str) -> tuple[float, ...]:
    data = base64.b64decode(written)
    return struct.unpack(f"<{len(data) // 4}f", data)
