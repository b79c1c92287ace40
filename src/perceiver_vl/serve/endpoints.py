"""The routes of the service, and the OpenAPI document that is made of them."""

import functools
import re
from dataclasses import dataclass, field
from typing import Any

from perceiver_vl._version import __version__
from perceiver_vl.serve import messages as m
from perceiver_vl.serve.schema import json_schema


@dataclass(frozen=True)
class Endpoint:
    """A route: the method of `Api` that answers it, what is asked and answered (None: no JSON). `parameters`: of the
    query, each with its type and what it is. `returns`: the media type, where it is not JSON.
    """

    method: str
    path: str
    handler: str
    about: str
    request: type | None = None
    answer: type | None = None
    status: int = 200
    returns: str = "application/json"
    parameters: dict[str, tuple[str, str]] = field(default_factory=dict)
    needs_index: bool = True
    shown: bool = True
    body: str | None = None


_SPAN = {"start": ("number", "from this second on"), "end": ("number", "up to this second")}

ENDPOINTS = (
    Endpoint("POST", "/v1/search", "search", "Find clips and pictures.", m.SearchRequest, m.SearchAnswer),
    Endpoint("POST", "/v1/search/batch", "search_batch", "Several searches at once.", m.SearchBatch, m.SearchAnswers),
    Endpoint("POST", "/v1/moments", "moments", "Find moments of videos.", m.MomentsRequest, m.MomentsAnswer),
    Endpoint("POST", "/v1/ask", "ask", "Ask about a clip.", m.AskRequest, m.AskAnswer),
    Endpoint("POST", "/v1/embed", "embed", "Texts, clips and uploads as vectors.", m.EmbedRequest, m.EmbedAnswer),
    Endpoint(
        "POST",
        "/v1/embeddings",
        "embeddings",
        "Texts as vectors, in OpenAI's shape.",
        m.EmbeddingsRequest,
        m.EmbeddingsAnswer,
    ),
    Endpoint(
        "POST",
        "/v1/uploads",
        "upload",
        "An example to search by or ask about: the bytes of a picture or video.",
        None,
        m.UploadAnswer,
        201,
        body="application/octet-stream",
    ),
    Endpoint("GET", "/v1/clips/{id}", "clip", "What is known of a clip.", None, m.ClipAnswer),
    Endpoint(
        "GET",
        "/v1/clips/{id}/strip",
        "strip",
        "Frames of a clip beside each other, each 320 x 180.",
        returns="image/jpeg",
        parameters={"frames": ("integer", "how many, 1 to 16"), **_SPAN},
    ),
    Endpoint(
        "GET",
        "/v1/clips/{id}/look",
        "look",
        "Where the model looked in a clip, for some words.",
        None,
        m.Looked,
        parameters={"query": ("string", "the words"), **_SPAN},
    ),
    Endpoint(
        "GET", "/v1/media/{id}", "media", "The file itself; ranges are answered.", returns="application/octet-stream"
    ),
    Endpoint(
        "GET",
        "/v1/media/{id}/stream",
        "stream",
        "A video as browsers play it, converted while it is watched; X-Start: the second at which it begins.",
        returns="video/mp4",
        parameters={"start": _SPAN["start"]},
    ),
    Endpoint("HEAD", "/v1/media/{id}/stream", "stream", "Where a stream would begin.", shown=False),
    Endpoint("GET", "/v1/index", "index", "What the indexes hold, and what the model can do.", None, m.ServiceState),
    Endpoint("GET", "/v1/index/jobs", "jobs", "The last updates.", None, m.Jobs),
    Endpoint("POST", "/v1/index/jobs", "start_job", "Bring an index up to date.", m.JobRequest, m.Job, 202),
    Endpoint("GET", "/v1/index/jobs/{id}", "job", "How an update goes.", None, m.Job),
    Endpoint("DELETE", "/v1/index/jobs/{id}", "cancel_job", "End an update; what is encoded is kept.", None, m.Job),
    Endpoint(
        "GET",
        "/v1/index/jobs/{id}/events",
        "job_events",
        "An update as it goes on, as server-sent events, each a Job.",
        returns="text/event-stream",
    ),
    Endpoint("GET", "/health/live", "live", "Whether it runs.", None, m.Health, needs_index=False),
    Endpoint("GET", "/health/ready", "ready", "Whether a search gives numbers.", None, m.Health, needs_index=False),
    Endpoint("GET", "/metrics", "metrics", "For Prometheus.", returns="text/plain", needs_index=False),
    Endpoint("GET", "/openapi.json", "openapi", "This document.", needs_index=False),
    Endpoint("GET", "/", "page", "The page.", returns="text/html", needs_index=False, shown=False),
    Endpoint(
        "GET", "/api", "api_page", "This document, for people.", returns="text/html", needs_index=False, shown=False
    ),
    Endpoint("GET", "/static/{name}", "static", "", needs_index=False, shown=False),
    Endpoint("POST", "/token", "token", "", needs_index=False, shown=False),
)


@functools.cache
def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes that are shown."""
    components: dict[str, Any] = {}
    problem = json_schema(m.Problem, components)
    paths: dict[str, Any] = {}
    for one in ENDPOINTS:
        if one.shown:
            paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, components, problem)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Perceiver-VL",
            "version": __version__,
            "description": "Find clips and moments by words and examples, and ask about them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(one: Endpoint, components: dict[str, Any], problem: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", one.path)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": kind}, "description": about}
        for name, (kind, about) in one.parameters.items()
    ]
    found = {"schema": json_schema(one.answer, components)} if one.answer else {}
    answer = {"description": "As asked.", "content": {one.returns: found}}
    wrong = {"description": "What went wrong.", "content": {"application/problem+json": {"schema": problem}}}
    operation: dict[str, Any] = {
        "operationId": one.handler,
        "summary": one.about,
        "parameters": parameters,
        "responses": {str(one.status): answer, "default": wrong},
    }
    if one.request is not None:
        content = {"application/json": {"schema": json_schema(one.request, components)}}
        operation["requestBody"] = {"required": True, "content": content}
    elif one.body is not None:
        operation["requestBody"] = {"required": True, "content": {one.body: {}}}
    return operation
