"""What an index learns of its model's scores from queries whose answers are known: how much a window gains with its
length, and how much the best stands out where there is nothing to find (each is asked with its video left out).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from perceiver_vl.data.datasets.moment_queries import read_moment_queries
from perceiver_vl.search.filters import Filters, quoted
from perceiver_vl.search.length import fit_length_weight, known_windows
from perceiver_vl.search.moments import MomentOptions, stretches_of
from perceiver_vl.search.searcher import Searcher
from perceiver_vl.search.windows import Query
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

FALSE_ALARMS = 0.05
FEWEST = 20
_NEED = 'need lines as {"query": "a dog", "file": "dog.mp4"}'
Known = tuple[str, str, tuple[tuple[float, float], ...]]
"""A query, the file that shows it, and when, in seconds, if that is known."""


@dataclass(frozen=True)
class Calibration:
    """The `threshold` of the surprise, which the share `false_alarms` of `queries` exceeds whose video is left out, and
    the share `found` of them with it; `length_weight`: what a window gains with the logarithm of its length, learned
    from the `timed` queries, or None.
    """

    queries: int
    threshold: float
    false_alarms: float
    found: float
    timed: int
    length_weight: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def read_queries(path: str | Path) -> list[Known]:
    """Queries and the files that show them, of lines of JSON: `{"query": …, "file": …}`, with `start` and `end` in
    seconds where these are known. Raises `UsageError` for what is none.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file, {_NEED}") from error
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or type(error).__name__).lower()}, {_NEED}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read as text, {_NEED}") from error
    try:
        lines = [line for line in content.splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
        known: list[Known] = [
            (str(row["query"]), str(row["file"]), ((float(row["start"]), float(row["end"])),) if "start" in row else ())
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: {_other_kind(path)}, {_NEED}") from error
    for words, _, times in known:
        if not words.strip():
            raise UsageError(f"{path}: query {words!r}, {_NEED}")
        for start, end in times:
            if not 0 <= start < end < math.inf:
                raise UsageError(f"{path}: {words!r} from {start:g} to {end:g} s, need seconds, the first smaller")
    return known


def _other_kind(path: str | Path) -> str:
    """What a file is that holds no queries."""
    try:
        known = read_moment_queries(path)
    except UsageError:
        return "not queries"
    return f"annotations of {known.format}, which a model is evaluated with, but not queries"


def calibrate(
    searcher: Searcher,
    queries: Sequence[Known],
    options: MomentOptions | None = None,
    false_alarms: float = FALSE_ALARMS,
    progress: bool = False,
) -> Calibration:
    """Learn the weight of the length from those whose times are known, then ask each query with and without its file;
    what is learned is kept in the index.

    Raises `UsageError` for fewer queries than 20, and files that are not in the index.
    """
    if len(queries) < FEWEST:
        raise UsageError(f"{len(queries)} queries: need at least {FEWEST} to calibrate with")
    table = searcher.segments()
    for _, file, _ in queries:
        if not table.count(f"file = {quoted(file)}"):
            raise UsageError(f"{file}: no video of the index has this name, which is within its folder")
    options = replace(options or MomentOptions(), top_k=1, always=True)
    present, absent = [], []
    timed = [one for one in queries if one[2]]
    weight = table.settings.length_weight
    with ProgressBars(progress) as bar:
        if timed:
            weight = learn_length_weight(searcher, timed, options, bar)
            table.describe(replace(table.settings, length_weight=weight))
        advance = bar.stage("Calibrating", len(queries))
        for words, file, _ in queries:
            present.append(searcher.moments(words, options).surprise)
            others = Filters(where=f"file <> {quoted(file)}")
            absent.append(searcher.moments(words, options, others).surprise)
            advance()
    threshold = sorted(absent)[math.ceil((1 - false_alarms) * len(absent)) - 1]
    table.describe(replace(table.settings, surprise=threshold))
    alarms, found = (sum(one > threshold for one in some) / len(queries) for some in (absent, present))
    return Calibration(len(queries), threshold, alarms, found, len(timed), weight)


def learn_length_weight(searcher: Searcher, timed: Sequence[Known], options: MomentOptions, bar: ProgressBars) -> float:
    """What `fit_length_weight` finds for queries whose times are known; nothing is kept."""
    table = searcher.segments()
    advance = bar.stage("Learning lengths", len(timed))
    known = []
    for words, file, truth in timed:
        vector, text = searcher.queries.encode(words)
        heads, match = table.settings.num_attention_heads, partial(searcher.match, text=text)
        query = Query(vector, searcher.queries.logit_scale, match, heads, options.rerank)
        for stretch in stretches_of(table.rows(f"file = {quoted(file)}")):
            known.append(known_windows(stretch, query, truth, options.max_length))
        advance()
    return fit_length_weight(known)
