"""What is typed into the search box, taken apart."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import UsageError
from perceiver_vl.search import Filters
from perceiver_vl.serve.typed_query import LEAVE_OUT, parse_query

Case = tuple[str, list[tuple[str, float]], dict[str, Any]]
CASES: list[Case] = [
    ("a red car", [("a red car", 1.0)], {}),
    ("  a   red car ", [("a red car", 1.0)], {}),
    ("beach -night", [("beach", 1.0), ("night", -LEAVE_OUT)], {}),
    ('beach -"at night"^2 sunset^0.3', [("beach", 1.0), ("at night", -2.0), ("sunset", 0.3)], {}),
    ('"two words" more', [("more", 1.0), ("two words", 1.0)], {}),
    ("dog folder:trip/day type:video", [("dog", 1.0)], {"folder": "trip/day", "type": "video"}),
    ('folder:"my trip" dog', [("dog", 1.0)], {"folder": "my trip"}),
    ("longer:1:30 shorter:90.5", [], {"longer": 90.0, "shorter": 90.5}),
    ("after:2024 before:2024-05-03", [], {"after": "2024-01-01", "before": "2024-05-03"}),
    ("after:2024-02", [], {"after": "2024-02-01"}),
    ('caption:"first snow"', [], {"caption": "first snow"}),
    ("Mission: Impossible", [("Mission: Impossible", 1.0)], {}),
    ("t-shirt 3-2 - -5 well-known", [("t-shirt 3-2 - -5 well-known", 1.0)], {}),
    ("Größe -Übung 象", [("Größe 象", 1.0), ("Übung", -LEAVE_OUT)], {}),
    ("", [], {}),
    ('"" ""', [], {}),
]


@pytest.mark.parametrize(("typed", "texts", "filters"), CASES, ids=[case[0] or "nothing" for case in CASES])
def test_words_weights_and_filters(typed: str, texts: list[tuple[str, float]], filters: dict[str, Any]) -> None:
    found = parse_query(typed)
    assert list(found.texts) == texts
    assert found.filters == filters
    Filters(**found.filters).sql()


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("folder:", "folder: needs a value, as in folder:trip"),
        ("type:video type:image", "type is given twice"),
        ("longer:soon", "longer:soon: need seconds or mm:ss"),
        ("beach^1.2.3", "need a number as the weight"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_query(typed)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(typed: str) -> None:
    with contextlib.suppress(UsageError):
        assert all(text.strip() for text, _ in parse_query(typed).texts)
