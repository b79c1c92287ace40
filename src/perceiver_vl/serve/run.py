"""The service as a process: it listens, says its address, serves, and on SIGTERM finishes what it has begun."""

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from perceiver_vl.serve.app import make_app
from perceiver_vl.serve.library import check_indexes
from perceiver_vl.serve.settings import ServeSettings
from perceiver_vl.serve.understanding import check_ask_model
from perceiver_vl.utils.errors import Setting, UsageError

_DRAIN_SECONDS = 15
_MOST_CONNECTIONS = 1024
_COLLECT_AFTER = 2000  # objects; decoders that are part of a cycle hold megabytes until then


def serve(settings: ServeSettings, say: Callable[[str], None] = print) -> None:
    """Serve until a signal ends it, and this process with it; `say` is told the address.

    Raises `UsageError` for settings, indexes and models that do not go together, and a port that is taken;
    `PerceiverVLError` for a damaged index.
    """
    settings.check()
    check_ask_model(settings.ask_model)
    folder = check_indexes(settings.indexes, settings.model)
    listening = listen(settings)
    app, service = make_app(settings, folder)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.behind_proxy,
        forwarded_allow_ips="*" if settings.behind_proxy else "",
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        timeout_keep_alive=15,
        limit_concurrency=_MOST_CONNECTIONS,
        ssl_certfile=None if settings.certificate is None else str(settings.certificate),
        ssl_keyfile=None if settings.key is None else str(settings.key),
    )
    server = uvicorn.Server(config)
    service.on_failure = lambda: setattr(server, "should_exit", True)
    for ends in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ends, lambda *_: None)  # the server hears it first, and raises it again at its end
    gc.set_threshold(_COLLECT_AFTER, 10, 10)  # the command line looks rarely, but this does not end soon
    say(address_of(settings, listening.getsockname()[1]))
    server.run(sockets=[listening])
    if service.failed is not None:
        raise service.failed
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # a library that is still being imported would be waited for


def address_of(settings: ServeSettings, port: int) -> str:
    """What a browser opens."""
    host = settings.names[0] if settings.names else settings.host
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    secure = settings.certificate is not None
    return f"{'https' if secure else 'http'}://{shown}:{port}/"


def listen(settings: ServeSettings) -> socket.socket:
    """Bound before anything is loaded, so that a port that is taken is told at once; port 0: any free one."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # By its protocol's name, or asyncio does not see that it is TCP, and small answers wait 40 ms for more (Nagle)
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host.strip("[]"), settings.port))
        listening.listen(_MOST_CONNECTIONS)  # whoever comes before the server does waits for it
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        another = Setting("port", settings.port + 1 if settings.port < 65535 else 8000)
        raise UsageError(f"{settings.host}:{settings.port}: cannot be listened on ({reason}), try ", another) from error
    return listening
