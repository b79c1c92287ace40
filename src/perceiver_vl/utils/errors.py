"""What goes wrong, said in one line: the thing, its value, and what to do."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A setting to be typed, in the message of an error. Who raises knows its name; where it was typed (an argument, an
    option, a key of a recipe) knows its spelling.

    in_recipe: a key of a recipe, as what has sections is in any case.
    """

    name: str
    value: Any
    in_recipe: bool = False

    def __str__(self) -> str:
        return f"{self.name}={self.value!r}"


class PerceiverVLError(Exception):
    """Base of the errors that perceiver-vl raises on purpose; the command line prints the message and exits with 1.

    The message is given in parts: texts, and each `Setting` that it says to type.
    """

    def __str__(self) -> str:
        return self.spelled(str)

    def spelled(self, spell: Callable[[Setting], str]) -> str:
        """The message, with its settings as `spell` writes them."""
        return "".join(spell(part) if isinstance(part, Setting) else str(part) for part in self.args)


@contextmanager
def within(section: str, *names: str) -> Iterator[None]:
    """The settings that errors from in here ask for, all or those of `names`, are keys of a section of a recipe ("": of
    none).
    """

    def placed(part: Any) -> Any:
        inside = isinstance(part, Setting) and "." not in part.name and (not names or part.name in names)
        return replace(part, name=f"{section}.{part.name}".lstrip("."), in_recipe=True) if inside else part

    try:
        yield
    except PerceiverVLError as error:
        error.args = tuple(placed(part) for part in error.args)
        raise


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
