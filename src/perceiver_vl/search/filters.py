"""Which clips of an index are searched: what people ask for, as one SQL condition over its columns."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from perceiver_vl.utils.errors import UsageError

Kind = Literal["video", "image"]


@dataclass(frozen=True)
class Filters:
    """All that is given must hold; it is applied before the search, which so finds as many clips as there are.

    folder: within the media folder, with all below it. after, before: a day or a time (ISO 8601, UTC unless it says
    another zone), of recording, as the file says, or else of the file's last change; `after` itself belongs to it.
    longer, shorter: seconds, at least and at most; an image has none, and is kept out. type: `video` or `image`.
    caption: what one of the captions holds, in small letters or capitals.
    where: a condition in SQL over the columns of the index, as in `width >= 1920 AND captions IS NOT NULL`.
    """

    folder: str | None = None
    after: str | None = None
    before: str | None = None
    longer: float | None = None
    shorter: float | None = None
    type: Kind | None = None
    caption: str | None = None
    where: str | None = None

    def sql(self) -> str | None:
        """As one condition; None: every clip. Raises `UsageError` for values that cannot be."""
        conditions = []
        if self.folder is not None and (folder := self.folder.replace("\\", "/").strip("/").removeprefix("./")) != ".":
            conditions.append(f"starts_with(file, {quoted(folder + '/')})")
        for name, sign in (("after", ">="), ("before", "<")):
            if (told := getattr(self, name)) is not None:
                conditions.append(f"created {sign} timestamp {quoted(_utc(name, told))}")
        for name, sign in (("longer", ">="), ("shorter", "<=")):
            if (seconds := getattr(self, name)) is not None:
                if not (math.isfinite(seconds) and seconds >= 0):
                    raise UsageError(f"{name}={seconds}: need seconds, 0 or more")
                conditions.append(f"duration {sign} {float(seconds)!r}")
        if self.type is not None:
            if self.type not in get_args(Kind):
                raise UsageError(f"type={self.type}: choose {' or '.join(get_args(Kind))}")
            conditions.append(f"kind = {quoted(self.type)}")
        if self.caption is not None:
            conditions.append(f"strpos(lower(array_to_string(captions, '\n')), lower({quoted(self.caption)})) > 0")
        if self.where is not None:
            conditions.append(f"({self.where})")
        return " AND ".join(conditions) or None


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _utc(name: str, text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name}={text}: not a day or time, write it as 2024-12-31 or 2024-12-31T18:00") from error
