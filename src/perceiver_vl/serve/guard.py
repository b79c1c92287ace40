"""What every request passes first: whom it says it calls, where it comes from, its token, how many a client sends. And
what every answer gets: headers that keep a page to itself, an id, a line in the log, a place in the metrics.
"""

import contextlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perceiver_vl.serve.logs import log, log_error
from perceiver_vl.serve.metrics import Metrics
from perceiver_vl.serve.problems import ProblemError, problem_of, problem_response
from perceiver_vl.serve.settings import ServeSettings
from perceiver_vl.utils.console import shown

COOKIE = "perceiver_vl_token"
OPEN = frozenset({"/health/live", "/health/ready", "/token", "/static/style.css"})
"""What answers without a token: whether it lives, for whoever starts it anew, and where to type the token."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_MOST_CLIENTS = 10_000


class Guard:
    """The outermost layer of the service."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._buckets = Buckets(settings.rate, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, headers = time.perf_counter(), Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_more(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                of_answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    of_answer.setdefault(name, value)
                of_answer.setdefault("Cache-Control", "no-store")
                of_answer["X-Request-Id"] = request_id
            await send(message)

        try:
            answer = self._checked(scope, headers)
            await (answer or self._app)(scope, receive, send_more)
        except Exception as error:
            code, detail, more = problem_of(error)
            if code == 500:
                log_error("error", error, request_id=request_id)
            if status == 0:
                with contextlib.suppress(OSError):
                    await problem_response(code, detail, request_id, more)(scope, receive, send_more)
        finally:
            self._tell(scope, request_id, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = scope["state"].get("route", "other")
        method = scope["method"] if route != "other" else "any"
        self._metrics.requests.labels(method, route, str(status or 499)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        said = {"method": method, "route": route, "status": status or 499, "ms": round(1e3 * seconds, 1)}
        log("request", request_id=request_id, client=_client(scope), **said, **scope["state"].get("log", {}))

    # Checks

    def _checked(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """Nothing, or an answer in the place of what was asked for. Raises `ProblemError` for what is refused."""
        if not self._buckets.take(_client(scope)):
            self._refuse("rate", 429, "too many requests, try again in a second", {"Retry-After": "1"})
        host = headers.get("host", "")
        if not self._is_ours(host):
            self._refuse(
                "host", 421, f"host {host}: not a name of this service, start it with --host-name {_name(host)}"
            )
        origin = headers.get("origin")
        scheme = "https" if self._settings.secure else "http"
        if origin is not None and origin != f"{scheme}://{host}":
            self._refuse("origin", 403, f"origin {origin}: pages of others may not use this service")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            self._refuse("origin", 403, "a page of others may not use this service")
        return None if scope["path"] in OPEN else self._token(scope, headers)

    def _token(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        token = self._settings.token
        if token is None:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), token):
            return None
        if _same(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""), token):
            return None
        typed = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and scope["method"] == "GET" and _same(typed.pop("token", [""])[0], token):
            return let_in(self._settings, f"/?{urlencode(typed, doseq=True)}".rstrip("?"))
        self._metrics.refused.labels("token").inc()
        if scope["path"] == "/" and "text/html" in headers.get("accept", ""):
            scope["state"]["ask_token"] = True
            return None
        raise ProblemError(
            401, "needs the token: send it as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        )

    def _is_ours(self, host: str) -> bool:
        """A name is ours if it is known: one that somebody lets lead here (DNS rebinding) is not. A bare address is
        ours in any case, as no page elsewhere has it as its own name.
        """
        name = _name(host)
        if name in {"localhost", self._settings.host, *self._settings.names}:
            return True
        with contextlib.suppress(ValueError):
            address = ip_address(name)
            return not (self._settings.token is None and not address.is_loopback)
        return False

    def _refuse(self, reason: str, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        self._metrics.refused.labels(reason).inc()
        raise ProblemError(status, shown(detail), headers)


def let_in(settings: ServeSettings, where: str) -> RedirectResponse:
    """Leave the token with a browser, so that it is in no address, and send it on."""
    answer = RedirectResponse(where, 303)
    assert settings.token is not None
    how: dict[str, Any] = {"httponly": True, "samesite": "strict", "secure": settings.secure}
    answer.set_cookie(COOKIE, settings.token, max_age=30 * 86400, **how)
    return answer


def is_token(settings: ServeSettings, typed: str) -> bool:
    """Whether somebody has typed the token."""
    return settings.token is not None and _same(typed, settings.token)


class Buckets:
    """How many requests each client may send: `rate` a second, `burst` at once; rate 0: any number."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Whether the client may send one now."""
        if not self._rate:
            return True
        now = time.monotonic()
        left, since = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + self._rate * (now - since))
        allowed = left >= 1
        self._left[client] = (left - 1 if allowed else left, now)
        while len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return allowed


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _name(host: str) -> str:
    """A host without its port, in small letters."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]*)(:\d+)?", host.strip().lower())
    return found[1].strip("[]") if found else host


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
