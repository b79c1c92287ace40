"""What is typed into the search box → words, words to leave out, and filters. The page shows the parts as chips.

    "red car" -night^0.3 folder:trip type:video after:2024-05 longer:1:30 caption:"first snow"

Words that stand by themselves are one text; so is what is in quotation marks. `-` before a text leaves out what it
says, `^2` after it is its weight. A name that is none of the filters' is words as well (`Mission: Impossible`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from perceiver_vl.utils.errors import UsageError

FILTERS = ("folder", "type", "before", "after", "longer", "shorter", "caption")
LEAVE_OUT = 0.5
"""The weight of a text to leave out, where none is typed: what is asked for counts more."""

_TOKEN = re.compile(
    rf"""
    (?P<filter>{"|".join(FILTERS)}):(?:"(?P<quoted_value>[^"]*)"|(?P<value>\S*))
    | (?P<minus>-)?"(?P<quoted>[^"]*)"(?:\^(?P<quoted_weight>[\d.]+))?
    | (?P<word>\S+)
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"(?P<minus>-(?=[^\W\d_]))?(?P<text>[^\s^]+)(?:\^(?P<weight>[\d.]+))?")
_MONTH = re.compile(r"\d{4}(-\d\d)?")


@dataclass(frozen=True)
class TypedQuery:
    """`texts`: each with its weight, negative for what is to be left out; the one of all plain words is the first.
    `filters`: by the names of `FILTERS`, values as `search.Filters` takes them.
    """

    texts: tuple[tuple[str, float], ...] = ()
    filters: dict[str, Any] = field(default_factory=dict)


def parse_query(text: str) -> TypedQuery:
    """Raises `UsageError` for a filter without a value, one given twice, seconds and weights that are none."""
    plain: list[str] = []
    texts: list[tuple[str, float]] = []
    filters: dict[str, Any] = {}
    for token in _TOKEN.finditer(text):
        if (name := token["filter"]) is not None:
            value = token["value"] if token["quoted_value"] is None else token["quoted_value"]
            if not value.strip():
                raise UsageError(f"{name}: needs a value, as in {name}:{_EXAMPLES[name]}")
            if name in filters:
                raise UsageError(f"{name}:{value}: {name} is given twice, leave one out")
            filters[name] = _value(name, value)
        elif token["quoted"] is not None:
            if token["quoted"].strip():
                texts.append((token["quoted"].strip(), _weight(token["quoted_weight"], token["minus"])))
        else:
            word = _WORD.fullmatch(token["word"])
            if word is None or not (word["minus"] or word["weight"]):
                plain.append(token["word"])
            else:
                texts.append((word["text"], _weight(word["weight"], word["minus"])))
    return TypedQuery((*([(" ".join(plain), 1.0)] if plain else []), *texts), filters)


_EXAMPLES = {
    "folder": "trip",
    "type": "video",
    "before": "2024-12-31",
    "after": "2024-01-01",
    "longer": "1:30",
    "shorter": "10",
    "caption": '"first snow"',
}


def _value(name: str, value: str) -> Any:
    if name in ("longer", "shorter"):
        try:
            return sum(60**place * float(part) for place, part in enumerate(reversed(value.split(":"))))
        except (ValueError, OverflowError):
            raise UsageError(f"{name}:{value}: need seconds or mm:ss") from None
    if name in ("before", "after") and _MONTH.fullmatch(value):
        return value + {4: "-01-01", 7: "-01"}[len(value)]
    return value


def _weight(typed: str | None, minus: str | None) -> float:
    try:
        weight = (LEAVE_OUT if minus else 1.0) if typed is None else float(typed)
    except ValueError:
        raise UsageError(f"^{typed}: need a number as the weight, as in ^0.5") from None
    return -weight if minus else weight
