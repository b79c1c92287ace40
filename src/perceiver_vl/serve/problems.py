"""What goes wrong as problem documents (RFC 9457), with the line that the command line would print."""

import json
from dataclasses import asdict
from http import HTTPStatus

from starlette.responses import Response

from perceiver_vl.serve.messages import Problem
from perceiver_vl.serve.worker import QueueFullError, TooLateError
from perceiver_vl.utils.console import shown
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, Setting, UsageError


class ProblemError(PerceiverVLError):
    """A request that is refused with a `status`, for the reason `detail`."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        super().__init__(detail)


def problem_of(error: BaseException) -> tuple[int, str, dict[str, str]]:
    """The status, the line and the headers of an error; of one that nobody meant, nothing is told."""
    if isinstance(error, ProblemError):
        return error.status, str(error), error.headers
    if isinstance(error, QueueFullError):
        return 429, str(error), {"Retry-After": str(max(1, round(error.retry_after)))}
    if isinstance(error, TooLateError):
        return 503, str(error), {"Retry-After": "5"}
    if isinstance(error, UsageError):
        return 400, error.spelled(_as_sent), {}
    if isinstance(error, MediaError):
        return 422, str(error), {}
    if isinstance(error, PerceiverVLError):
        return 500, error.spelled(_as_sent), {}
    return 500, "something went wrong, which the log of the service tells", {}


def _as_sent(setting: Setting) -> str:
    return f"{setting.name}={setting.value}"


def problem_response(status: int, detail: str, instance: str, headers: dict[str, str] | None = None) -> Response:
    """The document; `instance`: the id of the request, which the log has too."""
    said = " ".join(shown(detail).split())
    document = Problem("about:blank", HTTPStatus(status).phrase, status, said, f"urn:request:{instance}")
    body = json.dumps(asdict(document), ensure_ascii=False)
    return Response(body, status, headers, "application/problem+json")
