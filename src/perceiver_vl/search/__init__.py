"""Find clips by words: `build_index` once, then `Searcher(...).search(...)`, and `write_page` to see what was found."""

from perceiver_vl.search.index import IndexReport, build_index
from perceiver_vl.search.page import write_page
from perceiver_vl.search.search import Hit, Searcher, SearchResult

__all__ = ["Hit", "IndexReport", "SearchResult", "Searcher", "build_index", "write_page"]
