"""Text as other programs leave it."""


def whole_characters(text: str) -> str:
    """The text with `�` for halves of characters (lone surrogates): of emoji that were cut, of what was typed and
    is not UTF-8. Nothing can be written, compared or tokenized with them.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
