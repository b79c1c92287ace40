"""Find clips by words: `build_index` once, then `Searcher(...).search(...)`, and `write_page` to see what was found."""

import os
from typing import TYPE_CHECKING

from perceiver_vl.utils.lazy import lazy_names

os.environ.setdefault("LANCE_LOG", "error")  # the engine writes its own comings and goings

if TYPE_CHECKING:
    from perceiver_vl.search.build import IndexReport, build_index
    from perceiver_vl.search.filters import Filters
    from perceiver_vl.search.html import write_page
    from perceiver_vl.search.moments import MomentOptions, MomentResult
    from perceiver_vl.search.parquet import export_parquet
    from perceiver_vl.search.searcher import Hit, Searcher, SearchResult

__all__ = [
    "Filters",
    "Hit",
    "IndexReport",
    "MomentOptions",
    "MomentResult",
    "SearchResult",
    "Searcher",
    "build_index",
    "export_parquet",
    "write_page",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Filters": "perceiver_vl.search.filters",
        "Hit": "perceiver_vl.search.searcher",
        "IndexReport": "perceiver_vl.search.build",
        "MomentOptions": "perceiver_vl.search.moments",
        "MomentResult": "perceiver_vl.search.moments",
        "SearchResult": "perceiver_vl.search.searcher",
        "Searcher": "perceiver_vl.search.searcher",
        "build_index": "perceiver_vl.search.build",
        "export_parquet": "perceiver_vl.search.parquet",
        "write_page": "perceiver_vl.search.html",
    },
)
