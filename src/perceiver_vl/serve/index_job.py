"""A process of its own that brings an index up to date; `jobs` runs it, as `python -m perceiver_vl.serve.index_job`.

Standard output: a line of JSON for each step of progress, at most ten a second, and one at the end.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from perceiver_vl.utils.errors import PerceiverVLError


def main(index: str) -> int:
    """Update it; what goes wrong is told in a line, too."""
    said = 0.0

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal said
        if done in (0, total) or time.monotonic() - said > 0.1:
            said = time.monotonic()
            _say(stage=stage, done=done, total=total)

    try:
        from perceiver_vl.search.build import build_index
        from perceiver_vl.search.query_export import write_query_graph

        report = build_index(None, None, index, progress=tell)
        write_query_graph(index, progress=tell)
    except PerceiverVLError as error:
        _say(error=str(error))
        return 1
    except OSError as error:
        _say(error=f"{error.filename or 'system'}: {error.strerror or error}")
        return 1
    _say(summary=report.summary(), skipped=[asdict(one) for one in report.skipped])
    return 0


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    os.nice(5)  # searches go first
    sys.exit(main(sys.argv[1]))
