"""What a person sees: progress on standard error, results on standard output. Imports nothing heavy."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal acts upon instead of showing it, but for line ends and tabs, and orders to change direction."""


SECONDS_A_LINE = 60.0  # of progress, where it is written into a file


class PlainConsole(Console):
    """Prints what users and files say as it is: neither markup nor emoji codes, nor sequences that a terminal obeys."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """As text, without what is unsafe."""
        return super().render_str(shown(text), **how)


def shown(text: str) -> str:
    """The text with what a terminal would act upon in its escaped form, that of JSON."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


out = PlainConsole()
err = PlainConsole(stderr=True)


def print_whole(table: Table) -> None:
    """Print a table as wide as the terminal; into a file or program as wide as it is, so that names are whole."""
    console = out
    if not out.is_terminal:
        console = PlainConsole()
        console.width = max(table.__rich_measure__(out, out.options.update(max_width=100_000)).maximum, out.width)
    console.print(table, soft_wrap=False)


Listener = Callable[[str, int, int], None]
"""Told of a long job its stage, how much of it is done, and of how much."""


class ProgressBars(Progress):
    """A progress bar with a line for each stage of a long job; where nobody watches, a line of text each minute; silent
    where `shown` is false; or told to a listener instead.
    """

    def __init__(self, shown: bool | Listener) -> None:
        self._listener = shown if callable(shown) else None
        shown = shown is True
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        extra = TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
        self._in_lines = shown and not err.is_terminal
        super().__init__(*columns, *extra, console=err, transient=True, disable=not (shown and err.is_terminal))

    def stage(self, description: str, total: int, done: int = 0) -> Callable[..., None]:
        """Add a line; calling the result moves it on by so many, with a note to show beside it."""
        task = self.add_task(description, total=total, completed=done, note="")

        count, said = done, time.monotonic()
        if self._listener is not None:
            self._listener(description, count, total)

        def move_on(by: int = 1, note: str | None = None) -> None:
            nonlocal count, said
            count += by
            if self._listener is not None:
                self._listener(description, count, total)
            if self._in_lines and time.monotonic() - said > SECONDS_A_LINE:
                said = time.monotonic()
                err.print(f"{description}: {count:,} of {total:,}" + (f", {note}" if note else ""))
            self.update(task, advance=by)
            if note is not None:
                self.update(task, note=note)

        return move_on


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports, and the hub's retries; errors are raised all the same."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    of_the_hub = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(of_the_hub)
        if bars:
            logging.enable_progress_bar()
