"""The service's log: a line of JSON an event on standard error. Queries, names and tokens are not in it."""

import json
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

_lock = threading.Lock()


def log(event: str, stream: TextIO | None = None, **values: Any) -> None:
    """Write one event."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
    with _lock:
        print(json.dumps(line, default=str), file=stream or sys.stderr, flush=True)


def log_error(event: str, error: BaseException, **values: Any) -> None:
    """An error that nobody meant, with where it came from."""
    where = traceback.format_exception(error, limit=-8)
    log(event, error=f"{type(error).__name__}: {error}", where="".join(where), **values)
