"""What goes wrong, said in one line: the thing, its value, and what to do."""

import os
from pathlib import Path
from typing import Any


class PerceiverVLError(Exception):
    """Base of the errors that perceiver-vl raises on purpose; the command line prints the message and exits with 1."""


class UsageError(PerceiverVLError, ValueError):
    """A value that somebody typed (an option, a recipe key, a configuration) cannot work; the command line exits
    with 2.
    """


class MediaError(PerceiverVLError):
    """A media file that cannot be read; the message is `FILE: REASON`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        self.path = Path(path)
        self.reason = " ".join(reason.split())
        super().__init__(f"{path}: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)  # so that the error survives the trip from a data-loader worker


class PreemptedError(PerceiverVLError):
    """A run that was asked to stop, has saved and can go on; the command line exits with `PREEMPTED`."""


PREEMPTED = 75
"""The exit code of a run that was asked to stop: EX_TEMPFAIL of sysexits.h, try again."""


def first_line(error: Exception) -> str:
    """What another library says of its error, as far as one line goes; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :.")
