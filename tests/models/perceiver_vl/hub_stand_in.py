"""A stand-in for the Hugging Face hub on the loopback: enough of its HTTP interface to push to and to load from."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_nobody"
_COMMIT = "0" * 40


@dataclass
class Hub:
    """What was pushed: repository → file name → bytes; and the requests that led there, as `POST /path`."""

    endpoint: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of Git LFS, by SHA-256
    requests: list[str] = field(default_factory=list)


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Serve an empty hub until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        body = self._body()
        path = self._path()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"error": "who are you?"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            self._answer(200, {"url": f"{self.hub.endpoint}/{name}"})
        elif path == "/api/validate-yaml":
            starts_well = json.loads(body)["content"].startswith("---\n")
            self._answer(200 if starts_well else 400, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            modes = [self._mode(file["path"]) for file in json.loads(body)["files"]]
            self._answer(200, {"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._answer(
                200, {"transfer": "basic", "objects": [self._upload(one) for one in json.loads(body)["objects"]]}
            )
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                self._commit(name, json.loads(line))
            self._answer(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{_COMMIT}", "commitOid": _COMMIT})
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        body, oid = self._body(), self._path().removeprefix("/objects/")
        intact = hashlib.sha256(body).hexdigest() == oid
        if intact:
            self.hub.objects[oid] = body
        self._answer(200 if intact else 400, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            self._describe(f"{owner}/{name}", listed=rest[:1] == ["tree"])
        else:
            self._file(path)

    def _describe(self, name: str, listed: bool) -> None:
        """A repository's commit, or the list of its files."""
        files = self.hub.repositories.get(name)
        if files is None:
            self._answer(404, {"error": name}, {"X-Error-Code": "RepoNotFound"})
        elif listed:
            self._answer(200, [{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in files])
        else:
            self._answer(200, {"id": name, "sha": _COMMIT, "siblings": [{"rfilename": path} for path in files]})

    def _file(self, path: str) -> None:
        """`/NAME/resolve/REVISION/FILE`."""
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        file = self.hub.repositories.get(name, {}).get(rest.partition("/")[2])
        if file is None:
            self._answer(404, {"error": path}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT})
        else:
            etag = f'"{hashlib.sha256(file).hexdigest()}"'
            self._send(200, file, {"ETag": etag, "X-Repo-Commit": _COMMIT})

    def _mode(self, file_name: str) -> dict[str, Any]:
        mode = "lfs" if file_name.endswith(".safetensors") else "regular"
        return {"path": file_name, "uploadMode": mode, "shouldIgnore": False}

    def _upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.hub.endpoint}/objects/{asked['oid']}"}}}

    def _commit(self, name: str, operation: dict[str, Any]) -> None:
        value = operation["value"]
        if operation["key"] == "file":
            self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            self.hub.repositories[name][value["path"]] = self.hub.objects[value["oid"]]

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
