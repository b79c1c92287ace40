"""What users and files say is text: never markup, never an order to the terminal."""

import io
import json

import pytest
from rich.table import Table

from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import PlainConsole, ProgressBars, shown


@pytest.mark.parametrize("text", ["My cat [dQw4w9WgXcQ].mp4", "x[/b].mp4", "[bold]b[/]", ":smile: cut.mp4", "a\\[b]"])
def test_brackets_and_colons_are_shown_as_they_are(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    table = Table(text)
    table.add_row(text)
    console.print(text)
    console.print(table, width=100)
    assert console.file.getvalue().count(text) == 3


def test_orders_to_the_terminal_are_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "a\x1b]0;title\x07\x9b31m\u202efdp.exe"
    escaped = "a\\u001b]0;title\\u0007\\u009b31m\\u202efdp.exe"
    assert shown(bad) == escaped
    console = PlainConsole()
    console.file = io.StringIO()
    console.print(bad)
    table = Table("name")
    table.add_row(bad)
    console.print(table, width=100)
    assert console.file.getvalue().count(escaped) == 2
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(console.file.getvalue())
    print_json({"name": bad, "other": "日本\n"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": bad, "other": "日本\n"}
    assert not {"\x1b", "\x9b", "\u202e"} & set(printed)


def test_progress_is_lines_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 30.0, 70.0, 70.0, 100.0, 200.0, 200.0])
    monkeypatch.setattr("perceiver_vl.utils.console.time.monotonic", lambda: next(now))
    for shown_ in (False, True):
        with ProgressBars(shown_) as bar:
            if shown_:
                advance = bar.stage("Encoding clips", total=4000, done=1000)
                for _ in range(4):
                    advance(500)
    assert capsys.readouterr().err == "Encoding clips: 2,000 of 4,000\nEncoding clips: 3,000 of 4,000\n"
