"""Search results as one HTML page of filmstrips that needs nothing else: no script, no font, no file beside it."""

from collections.abc import Sequence
from pathlib import Path

from perceiver_vl.data.prefetch import DECODING_THREADS, decode_ahead
from perceiver_vl.media.filmstrip import STRIP_FRAMES, STRIP_HEIGHT, filmstrip
from perceiver_vl.search.searcher import SearchResult
from perceiver_vl.utils.files import write_text
from perceiver_vl.utils.html import render


def write_page(
    path: str | Path, results: Sequence[SearchResult], *, title: str = "Perceiver-VL search", frames: int = STRIP_FRAMES
) -> None:
    """Write the results of one query or more to an HTML file, each hit with a strip of at most `frames` frames.

    A clip that cannot be shown any more gets a note in place of its strip.
    """
    paths = dict.fromkeys(hit.path for result in results for hit in result.hits)
    strips = dict(decode_ahead(paths, lambda media: filmstrip(media, frames), DECODING_THREADS))
    page = render("search/page.html.jinja", title=title, results=results, strips=strips, height=STRIP_HEIGHT)
    write_text(Path(path), page)
