"""Files of JSON lines: what is appended is read again, half a line is not, and a resume drops what it does again."""

import json
from pathlib import Path

from perceiver_vl.utils.jsonl import append_line, keep_until, parsed


def test_lines_are_read_as_they_were_written_but_for_what_is_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    entries: list[dict[str, object]] = [
        {"step": 1, "files": ["one\u2028two.mp4", "drei\x85.mp4"]},
        {"step": 2, "loss": 0.5},
    ]
    for entry in entries:
        append_line(file, entry | {"bad": float("nan"), "worse": float("inf")})
    assert parsed(file.read_text(encoding="utf-8")) == entries


def test_what_is_no_whole_line_is_passed_over() -> None:
    text = '{"step": 1}\n{"loss": 1}\n[2]\nno\n{"step": "3"}\n\n{"step": 4}\n{"step": 5'
    assert [entry["step"] for entry in parsed(text)] == [1, 4]


def test_later_steps_are_dropped_and_half_a_line_with_them(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert keep_until(file, 3) == []
    assert not file.exists()
    for step in (1, 2, 3, 3, 4):
        append_line(file, {"step": step})
    with file.open("a") as half:
        half.write('{"step": 2, "lo')
    assert [entry["step"] for entry in keep_until(file, 3)] == [1, 2, 3, 3]
    append_line(file, {"step": 3, "last": 1})
    assert keep_until(file, 3, without="last") == [{"step": step} for step in (1, 2, 3, 3)]
    append_line(file, {"step": 4})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 3, 4]
