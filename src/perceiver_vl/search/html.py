"""Search results as one HTML page of filmstrips that needs nothing else: no script, no font, no file beside it."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageOps

from perceiver_vl.media.decode import Frames, load_clip
from perceiver_vl.search.searcher import SearchResult
from perceiver_vl.utils.errors import MediaError
from perceiver_vl.utils.files import write_text

STRIP_FRAMES = 8
STRIP_HEIGHT = 96
STRIP_WIDTH = 256  # at most, of one frame
JPEG_QUALITY = 80
DECODING_THREADS = 2


@dataclass(frozen=True)
class Picture:
    """A frame of a filmstrip: where in the clip, in seconds (None: unknown), and a JPEG as a `data:` address."""

    seconds: float | None
    width: int
    source: str


@dataclass(frozen=True)
class Filmstrip:
    """The frames of a clip, or why there are none."""

    pictures: list[Picture]
    problem: str | None = None


def write_page(
    path: str | Path, results: Sequence[SearchResult], *, title: str = "Perceiver-VL search", frames: int = STRIP_FRAMES
) -> None:
    """Write the results of one query or more to an HTML file, each hit with a strip of at most `frames` frames.

    A clip that cannot be shown any more gets a note in place of its strip.
    """
    paths = list(dict.fromkeys(hit.path for result in results for hit in result.hits))
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        strips = dict(zip(paths, pool.map(lambda media: filmstrip(media, frames), paths), strict=True))
    environment = Environment(
        loader=PackageLoader("perceiver_vl", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("search/page.html.jinja")
    write_text(Path(path), template.render(title=title, results=results, strips=strips, height=STRIP_HEIGHT))


def filmstrip(path: Path, frames: int = STRIP_FRAMES) -> Filmstrip:
    """At most `frames` small frames of a clip at equal distances; one of an image."""
    try:
        clip = load_clip(path, frames)
    except MediaError as error:
        return Filmstrip([], error.reason)
    return Filmstrip(
        [_picture(float(seconds), frame) for seconds, frame in zip(clip.timestamps, clip.frames, strict=True)]
    )


def filmstrip_of(frames: Frames) -> Filmstrip:
    """Frames `(T,H,W,3)` that are decoded already, whenever they were."""
    return Filmstrip([_picture(None, frame) for frame in frames])


def _picture(seconds: float | None, frame: Frames) -> Picture:
    image = ImageOps.contain(Image.fromarray(frame), (STRIP_WIDTH, STRIP_HEIGHT))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return Picture(seconds, image.width, f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
