"""A decoded frame of video → upright RGB pixels, square or of the size asked for.

A frame's pixels depend on that frame alone, never on which others were asked for.
"""

import functools
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter

from perceiver_vl.media.colour import needs_conversion, to_sdr
from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.media.sampling import Frames
from perceiver_vl.media.source import MAX_VIDEO_PIXELS, Source, check_pixels


class Renderer:
    """A decoded frame → (H, W, 3) uint8, with the first frame's size where `size` does not say.

    Of an interlaced frame one field is shown, transparency is laid on white, HDR is shown as on a standard screen, what
    was filmed on its side or in a mirror is turned, and pixels that are not square are stretched.
    """

    def __init__(self, source: Source, pixel_aspect: float, size: tuple[int, int] | None):
        self._source, self._pixel_aspect, self._size = source, pixel_aspect, size
        self._reformatter = VideoReformatter()  # one for all frames: making its tables costs more than using them
        self._take_field = FieldTaker()
        self.shape: tuple[int, int] | None = None  # (H, W) of the first frame, upright, with square pixels

    def __call__(self, frame: Any) -> Frames:
        check_pixels(self._source.name, frame.width, frame.height, MAX_VIDEO_PIXELS)
        orientation = _orientation(frame)
        self.shape = self.shape or self._square_size(frame, orientation.transposed)
        if self._size is None:
            check_pixels(self._source.name, *self.shape[::-1])
            self._size = self.shape
        wide = needs_conversion(frame.color_trc, frame.color_primaries)
        transfer = frame.color_trc
        if frame.interlaced_frame:
            frame = self._take_field(frame)
        if _has_alpha(frame.format.name):
            frame = _on_white(frame)
        pixels: Any
        if wide:
            pixels = to_sdr(self._scaled(frame, self._size[::-1] if orientation.transposed else self._size), transfer)
        else:
            pixels = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return resize_frame(np.ascontiguousarray(orientation.applied(pixels)), self._size)

    def _scaled(self, frame: Any, size: tuple[int, int]) -> npt.NDArray[np.uint16]:
        """At the size wanted, as tone mapping takes long; by FFmpeg, which has a bicubic for 16 bits."""
        scaled = self._reformatter.reformat(
            frame, width=size[1], height=size[0], format="rgb48le", interpolation=Interpolation.BICUBIC, threads=1
        )
        pixels: Any = scaled.to_ndarray()
        return pixels

    def _square_size(self, frame: Any, transposed: bool) -> tuple[int, int]:
        """The upright size with square pixels: the stretched side grows, so that nothing is lost."""
        height, width, aspect = frame.height, frame.width, self._pixel_aspect
        size = (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
        return size[::-1] if transposed else size


class _Orientation(NamedTuple):
    """How stored pixels are to be shown: rows and columns swapped, then either turned about."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def applied(self, pixels: Any) -> Any:
        """(H, W, 3) as stored → upright."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]


def _orientation(frame: Any) -> _Orientation:
    """As the display matrix says, which turns what was filmed on its side, and mirrors what a front camera saw.

    Its first two rows take a stored place (x, y) to the place (ax + cy, bx + dy) on the screen.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return _Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5].astype(float)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Orientation(True, b < 0, c < 0)
    return _Orientation(False, d < 0, a < 0)


class FieldTaker:
    """Interlaced frame → its upper field, of half the height: the even lines, all of one moment (FFmpeg's field).

    Filters that draw the missing lines from the frames before and after would make a frame's pixels depend on which
    others were decoded; one that draws them along edges (estdif) takes 0.1 s for a frame of 1080 lines. Where the size
    wanted has no more than half the lines, as for a model it mostly has, nothing is lost.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._shape: tuple[int, int, str] | None = None

    def __call__(self, frame: Any) -> Any:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self._shape:
            self._graph, self._shape = self._make(frame), shape
        self._graph.push(frame)
        return self._graph.pull()

    @staticmethod
    def _make(frame: Any) -> Any:
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
            graph.add("field", "top"),
            graph.add("buffersink"),
        ).configure()
        return graph


@functools.cache
def _has_alpha(pixel_format: str) -> bool:
    described = av.VideoFormat(pixel_format)
    return described.has_palette or any(component.is_alpha for component in described.components)


def _on_white(frame: Any) -> Any:
    """Before any resizing, so that the hidden colour of transparent pixels does not bleed."""
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    blended = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return av.VideoFrame.from_ndarray(blended.astype(np.uint8), format="rgb24")
