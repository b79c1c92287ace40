"""Text as other programs and people leave it."""

from collections.abc import Iterable
from difflib import get_close_matches


def whole_characters(text: str) -> str:
    """The text with `�` for halves of characters (lone surrogates): of emoji that were cut, of what was typed and
    is not UTF-8. Nothing can be written, compared or tokenized with them.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The nearest of the `known` names as a question; where none is near what to do `otherwise`, or all of them."""
    names = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), names, 1)
    if close:
        return f"did you mean {names[close[0]]}?"
    return f"choose from {', '.join(sorted(names.values()))}" if otherwise is None else otherwise
