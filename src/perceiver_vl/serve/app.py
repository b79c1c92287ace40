"""The service as an ASGI application: its routes, and what each does."""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs

import anyio
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from perceiver_vl._version import __version__
from perceiver_vl.media.streaming import how_it_plays, stream_mp4, stream_start
from perceiver_vl.search.rows import Vectors
from perceiver_vl.serve.endpoints import ENDPOINTS, Endpoint, openapi
from perceiver_vl.serve.guard import Guard, is_token, let_in
from perceiver_vl.serve.media_files import MOST_FRAMES, find_file, media_type, picture_of
from perceiver_vl.serve.messages import (
    MOST_QUERIES,
    AskRequest,
    ClipAnswer,
    EmbedAnswer,
    Embedding,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EmbedRequest,
    Health,
    JobRequest,
    Jobs,
    MomentsRequest,
    SearchAnswers,
    SearchBatch,
    SearchRequest,
    UploadAnswer,
)
from perceiver_vl.serve.metrics import CONTENT_TYPE
from perceiver_vl.serve.problems import ProblemError
from perceiver_vl.serve.schema import parse
from perceiver_vl.serve.searching import read_query, said_time
from perceiver_vl.serve.service import Service
from perceiver_vl.serve.settings import ServeSettings
from perceiver_vl.serve.understanding import AskJob, LookJob
from perceiver_vl.serve.uploads import PREFIX
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.html import render

STATIC = Path(__file__).with_name("static")
MOST_JSON = 1 << 20
BODY_SECONDS = 30.0
"""A body of JSON must have come by then."""
_CLIP_ID = re.compile(r"[0-9a-f]{32}")
_UPLOAD_ID = re.compile(PREFIX + r"[0-9a-f]{24}")
_READY_SECONDS = 5.0
_STREAMS, _STRIPS = 4, 2  # at once
_FOR_A_DAY = {"Cache-Control": "private, max-age=86400"}

Result = TypeVar("Result")
Handler = Callable[["Api", Request], Awaitable[Response]]


class Api:
    """The handlers of all routes, over one service."""

    def __init__(self, service: Service) -> None:
        self.service, self.settings = service, service.settings
        self._streams, self._strips = asyncio.Semaphore(_STREAMS), asyncio.Semaphore(_STRIPS)
        self._ready = 0.0, Health("loading", "")
        self._plays: dict[str, str] = {}

    # Searches

    async def search(self, request: Request) -> Response:
        asked = read_query(await _body(request, SearchRequest))
        return _json(await self._do(request, "search", asked))

    async def search_batch(self, request: Request) -> Response:
        batch = await _body(request, SearchBatch)
        asked = [read_query(one) for one in batch.requests]
        tasks = [asyncio.ensure_future(self.service.do("search", one)) for one in asked]
        try:
            found = await _unless_gone(request, asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
        return _json(SearchAnswers(found))

    async def moments(self, request: Request) -> Response:
        asked = read_query(await _body(request, MomentsRequest))
        return _json(await self._do(request, "search", asked))

    async def _do(self, request: Request, kind: str, payload: Any) -> Any:
        return await _unless_gone(request, asyncio.ensure_future(self.service.do(kind, payload)))

    # Questions, vectors, attention

    async def ask(self, request: Request) -> Response:
        asked = await _body(request, AskRequest)
        if asked.id.startswith(PREFIX):
            clip: Any = self.service.uploads.get(_checked_id(asked.id)).frames
        else:
            clip, _ = await self._file(asked.id)
        return _json(await self._do(request, "ask", AskJob(asked, clip)))

    async def embed(self, request: Request) -> Response:
        asked = await _body(request, EmbedRequest)
        if not asked.texts and not asked.ids:
            raise UsageError("texts, ids: nothing to turn into vectors")
        texts = await self._text_vectors(request, asked.texts)
        names = [_checked_id(one) for one in asked.ids]
        clips = await to_thread.run_sync(lambda: [self.service.vector_of(name) for name in names])
        size = len((texts + clips)[0])
        as_asked = [[_written(vector, asked.encoding == "base64") for vector in some] for some in (texts, clips)]
        return _json(EmbedAnswer(size, *as_asked))

    async def embeddings(self, request: Request) -> Response:
        asked = await _body(request, EmbeddingsRequest)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not 1 <= len(texts) <= MOST_QUERIES:
            raise UsageError(f"input: {len(texts)} texts, need 1 to {MOST_QUERIES}")
        vectors = await self._text_vectors(request, texts)
        if asked.dimensions not in (None, len(vectors[0])):
            raise UsageError(f"dimensions={asked.dimensions}: this model has {len(vectors[0])}")
        data = [
            Embedding("embedding", place, _written(vector, asked.encoding_format == "base64"))
            for place, vector in enumerate(vectors)
        ]
        tokens = sum(len(text.split()) for text in texts)
        return _json(EmbeddingsAnswer("list", data, asked.model, {"prompt_tokens": tokens, "total_tokens": tokens}))

    async def _text_vectors(self, request: Request, texts: list[str]) -> list[Vectors]:
        for text in texts:
            if not text.strip():
                raise UsageError(f"text {text!r}: need at least one word")
        found: list[Vectors] = await self._do(request, "text", texts) if texts else []
        return found

    async def look(self, request: Request) -> Response:
        words, start, end = request.query_params.get("query", ""), _seconds(request, "start"), _seconds(request, "end")
        path, _ = await self._file(request.path_params["id"])
        texts = [text for text, weight in read_query(SearchRequest(words)).typed.texts if weight > 0]
        return _json(await self._do(request, "look", LookJob(" ".join(texts), path, start, end)))

    # Clips and files

    async def clip(self, request: Request) -> Response:
        index, row = await self._row(request.path_params["id"])
        plays = None
        if row["kind"] == "video":
            with contextlib.suppress(ProblemError):
                plays = await self._how_it_plays(row["id"], find_file(index, row["files"], self.settings.roots))
        names = ("id", "file", "kind", "size", "duration", "width", "height", "files")
        about = {name: row[name] for name in names}
        captions = list(row["captions"] or ())
        created = said_time(row["created"])
        return _json(ClipAnswer(**about, index=index.name, created=created, captions=captions, plays=plays))

    async def _how_it_plays(self, content: str, path: Path) -> str:
        if content not in self._plays:
            if len(self._plays) > 10_000:
                self._plays.clear()
            self._plays[content] = await to_thread.run_sync(how_it_plays, path)
        return self._plays[content]

    async def media(self, request: Request) -> Response:
        path, row = await self._file(request.path_params["id"])
        headers = {"Accept-Ranges": "bytes", **_FOR_A_DAY}
        how = "inline" if media_type(path) != "application/octet-stream" else "attachment"
        name = row["file"].rpartition("/")[2]
        return FileResponse(
            path, headers=headers, media_type=media_type(path), filename=name, content_disposition_type=how
        )

    async def stream(self, request: Request) -> Response:
        path, row = await self._file(request.path_params["id"])
        start = _seconds(request, "start") or 0.0
        if row["kind"] != "video" or await self._how_it_plays(row["id"], path) == "frames":
            raise ProblemError(415, f"{row['file']}: cannot be converted for a browser, its filmstrip can be seen")
        begins = await to_thread.run_sync(stream_start, path, start)
        headers = {"X-Start": f"{begins:.6f}"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="video/mp4")
        if self._streams.locked():
            raise ProblemError(429, f"{_STREAMS} streams are being made already, close one", {"Retry-After": "5"})
        return StreamingResponse(self._stream(path, start), headers=headers, media_type="video/mp4")

    async def _stream(self, path: Path, start: float) -> AsyncIterator[bytes]:
        async with self._streams:
            made = stream_mp4(path, start)
            try:
                while (part := await to_thread.run_sync(next, made, None)) is not None:
                    yield part
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(made.close)

    async def strip(self, request: Request) -> Response:
        path, row = await self._file(request.path_params["id"])
        frames = _count(request, "frames", 1, MOST_FRAMES, 6)
        span = _seconds(request, "start"), _seconds(request, "end")
        tag = f'"{row["id"]}-{frames}-{span[0]}-{span[1]}"'
        headers = {"ETag": tag, **_FOR_A_DAY}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)

        async def make() -> bytes:
            async with self._strips:
                return await to_thread.run_sync(picture_of, path, frames, *span)

        return Response(await _unless_gone(request, asyncio.ensure_future(make())), 200, headers, "image/jpeg")

    async def _row(self, content: str) -> tuple[Any, dict[str, Any]]:
        library = self.service.library
        found = await to_thread.run_sync(library.clip, content) if _CLIP_ID.fullmatch(content) else None
        if found is None:
            raise ProblemError(404, f"{_shortened(content)}: no clip of the index has this id")
        return found

    async def _file(self, content: str) -> tuple[Path, dict[str, Any]]:
        index, row = await self._row(content)
        return await to_thread.run_sync(find_file, index, row["files"], self.settings.roots), row

    # Uploads

    async def upload(self, request: Request) -> Response:
        declared = request.headers.get("content-length", "")
        uploads, size = self.service.uploads, self.service.frame_size
        frames = self.service.library.indexes[0].settings.frames
        length = int(declared) if declared.isdecimal() else None
        decoded, duration = await uploads.decode(_parts(request), length, frames, size)
        vector = await self._do(request, "embed", decoded)
        kept = uploads.keep(decoded, vector, duration)
        return _json(UploadAnswer(kept.id, kept.kind, duration, len(decoded), kept.expires), 201)

    # The index

    async def index(self, request: Request) -> Response:
        return _json(await to_thread.run_sync(self.service.state))

    async def jobs(self, request: Request) -> Response:
        return _json(Jobs(self.service.jobs.listed()))

    async def start_job(self, request: Request) -> Response:
        if not self.settings.can_index:
            raise ProblemError(403, "updates are not allowed here, this service only reads")
        asked = await _body(request, JobRequest)
        indexes = self.service.library.named(asked.index)
        if len(indexes) > 1:
            raise UsageError(f"index is missing: say which of {', '.join(one.name for one in indexes)}")
        return _json(await self.service.jobs.start(indexes[0]), 202)

    async def job(self, request: Request) -> Response:
        return _json(self.service.jobs.get(request.path_params["id"]))

    async def cancel_job(self, request: Request) -> Response:
        return _json(await self.service.jobs.cancel(request.path_params["id"]))

    async def job_events(self, request: Request) -> Response:
        following = self.service.jobs.follow(request.path_params["id"])
        self.service.jobs.get(request.path_params["id"])

        async def events() -> AsyncIterator[str]:
            async for job in following:
                yield f"data: {json.dumps(asdict(job))}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    # Health

    async def live(self, request: Request) -> Response:
        return _json(Health("live", ""))

    async def ready(self, request: Request) -> Response:
        """Whether a search for a word gives a number; asked anew when the last answer is some seconds old."""
        now = anyio.current_time()
        if now - self._ready[0] > _READY_SECONDS or self._ready[1].status != "ready":
            self._ready = now, await self.service.health()
        health = self._ready[1]
        return _json(health, 200 if health.status == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        self.service.count()
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE)

    # Pages

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())

    async def page(self, request: Request) -> Response:
        if request.scope["state"].get("ask_token"):
            return _page("serve/token.html.jinja", 401)
        return _page("serve/page.html.jinja", version=__version__)

    async def api_page(self, request: Request) -> Response:
        return _page("serve/api.html.jinja", endpoints=ENDPOINTS, document=openapi())

    async def token(self, request: Request) -> Response:
        typed = parse_qs((await _read(request, 4096)).decode("latin-1")).get("token", [""])[0]
        if is_token(self.settings, typed.strip()):
            return let_in(self.settings, "/")
        self.service.metrics.refused.labels("token").inc()
        await asyncio.sleep(0.5)
        return _page("serve/token.html.jinja", 401)

    async def static(self, request: Request) -> Response:
        path = STATIC / request.path_params["name"]
        if path.name not in {"page.js", "style.css"}:
            raise ProblemError(404, f"{_shortened(path.name)}: nothing here")
        kind = "text/javascript" if path.suffix == ".js" else "text/css"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})


def make_app(settings: ServeSettings, folder: Path) -> tuple[ASGIApp, Service]:
    """The application, which loads its indexes as it starts, and the service behind it; `folder`: the model's, as
    `check_indexes` gives it.
    """
    service = Service(settings, folder)
    api: list[Api] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        api.append(Api(service))
        await service.start()
        yield
        await service.close()

    def route(endpoint: Endpoint) -> Route:
        async def handle(request: Request) -> Response:
            request.scope["state"]["route"] = endpoint.path
            if endpoint.needs_index:
                service.check_loaded()
            return await getattr(api[0], endpoint.handler)(request)

        return Route(endpoint.path, handle, methods=[endpoint.method])

    router = Router([route(one) for one in ENDPOINTS], redirect_slashes=False, lifespan=lifespan)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that what is not found is raised, and told as a problem
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            said = {404: "nothing here", 405: f"{scope['method']} is not for this address"}
            detail = said.get(error.status_code, error.detail)
            raise ProblemError(error.status_code, detail, dict(error.headers or {})) from None
        except ClientDisconnect:
            pass

    return Guard(app, settings, service.metrics), service


# Requests and answers


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise ProblemError(413, f"a request of more than {most} bytes")
    except TimeoutError:
        raise ProblemError(408, f"the request did not come within {BODY_SECONDS:g} s") from None
    return bytes(body)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """A body as it comes; a client that sends nothing for some time is let go."""
    stream = request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(stream), BODY_SECONDS)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ProblemError(408, f"nothing of the upload came for {BODY_SECONDS:g} s") from None
        yield part


async def _body(request: Request, kind: type[Result]) -> Result:
    try:
        data = json.loads(await _read(request, MOST_JSON) or b"{}")
    except (ValueError, RecursionError) as error:
        raise UsageError("request: not JSON, send an object") from error
    return parse(kind, data)


async def _unless_gone(request: Request, work: "asyncio.Future[Result]") -> Result:
    """What is worked on, unless whoever asked goes away: then it is cancelled."""
    gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(message: Any, status: int = 200) -> Response:
    body = json.dumps(message, default=vars, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(body, status, media_type="application/json")


def _page(template: str, status: int = 200, **values: Any) -> Response:
    return Response(render(template, **values), status, media_type="text/html")


def _written(vector: Vectors, as_bytes: bool) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_bytes else vector.astype(float).tolist()


def _checked_id(name: str) -> str:
    if not (_CLIP_ID.fullmatch(name) or _UPLOAD_ID.fullmatch(name)):
        raise ProblemError(404, f"{_shortened(name)}: no clip of the index and no upload has this id")
    return name


def _shortened(name: str) -> str:
    return name if len(name) <= 64 else name[:63] + "…"


def _seconds(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UsageError(f"{name}={_shortened(text)}: need seconds, 0 or more")
    return seconds


def _count(request: Request, name: str, least: int, most: int, otherwise: int) -> int:
    text = request.query_params.get(name, str(otherwise))
    if not (text.isdecimal() and len(text) < 4 and least <= int(text) <= most):
        raise UsageError(f"{name}={_shortened(text)}: need {least} to {most}")
    return int(text)
