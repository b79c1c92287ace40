"""How much a query's best window stands out where there is nothing to find: each of some queries whose video is known
is asked with that video left out.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perceiver_vl.search.filters import Filters, quoted
from perceiver_vl.search.moments import MomentOptions
from perceiver_vl.search.searcher import Searcher
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

FALSE_ALARMS = 0.05
FEWEST = 20


@dataclass(frozen=True)
class Calibration:
    """The `threshold` of the surprise, which the share `false_alarms` of `queries` exceeds whose video is left out, and
    the share `found` of them with it.
    """

    queries: int
    threshold: float
    false_alarms: float
    found: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def read_queries(path: str | Path) -> list[tuple[str, str]]:
    """Queries and the files that show what they say, of lines of JSON: `{"query": …, "file": …}`.

    Raises `UsageError` for what is none.
    """
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
        return [(str(row["query"]), str(row["file"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{path}: not queries, need lines as {{"query": "a dog", "file": "dog.mp4"}}') from error


def calibrate(
    searcher: Searcher,
    queries: Sequence[tuple[str, str]],
    options: MomentOptions | None = None,
    false_alarms: float = FALSE_ALARMS,
    progress: bool = False,
) -> Calibration:
    """Ask each query with and without its file, and keep the threshold in the index.

    Raises `UsageError` for fewer queries than 20, and files that are not in the index.
    """
    if len(queries) < FEWEST:
        raise UsageError(f"{len(queries)} queries: need at least {FEWEST} to calibrate with")
    table = searcher.segments()
    for _, file in queries:
        if not table.count(f"file = {quoted(file)}"):
            raise UsageError(f"{file}: no video of the index has this name, which is within its folder")
    options = replace(options or MomentOptions(), top_k=1, always=True)
    present, absent = [], []
    with ProgressBars(progress) as bar:
        advance = bar.stage("Calibrating", len(queries))
        for words, file in queries:
            present.append(searcher.moments(words, options).surprise)
            others = Filters(where=f"file <> {quoted(file)}")
            absent.append(searcher.moments(words, options, others).surprise)
            advance()
    threshold = sorted(absent)[math.ceil((1 - false_alarms) * len(absent)) - 1]
    table.describe(replace(table.settings, surprise=threshold))
    alarms, found = (sum(one > threshold for one in some) / len(queries) for some in (absent, present))
    return Calibration(len(queries), threshold, alarms, found)
