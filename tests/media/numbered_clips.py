"""Clips whose frames say their own number, in black and white blocks that survive any codec."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Frames = npt.NDArray[np.uint8]
COLUMNS, ROWS = 4, 2  # eight bits
BLOCK = 16


def numbered_frame(number: int, height: int = ROWS * BLOCK, width: int = COLUMNS * BLOCK) -> Frames:
    """(height, width, 3): the bits of `number`, the lowest first, in rows of blocks."""
    bits = np.array([number >> bit & 1 for bit in range(COLUMNS * ROWS)], np.uint8).reshape(ROWS, COLUMNS)
    pixels = (255 * bits).repeat(height // ROWS, 0).repeat(width // COLUMNS, 1)
    return np.repeat(pixels[..., None], 3, 2)


def numbers_of(frames: Frames) -> list[int]:
    """What (T, H, W, 3) frames of any size say; fails where a block is neither black nor white."""
    count, height, width, _ = frames.shape
    blocks = frames.astype(float).mean(-1).reshape(count, ROWS, height // ROWS, COLUMNS, width // COLUMNS)
    inner = blocks[:, :, height // ROWS // 4 : -(height // ROWS // 4) or None]
    levels = inner[..., width // COLUMNS // 4 : -(width // COLUMNS // 4) or None].mean((2, 4)).reshape(count, -1)
    assert ((levels < 80) | (levels > 175)).all(), "a block is gray: two frames are mixed, or it is not decoded"
    return [int(sum((level > 128) << bit for bit, level in enumerate(row))) for row in levels]


def write_numbered(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    rate: int = 10,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = (ROWS * BLOCK, COLUMNS * BLOCK),
    **options: Any,
) -> Path:
    """Frames 0 to `count` - 1, shown at `times` (in units of 1/rate s; one a unit if not given)."""
    with av.open(str(path), "w", container_options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        (stream.height, stream.width), stream.pix_fmt = size, pixel_format
        for number in range(count):
            frame: Any = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_numbered_animation(path: Path, count: int, milliseconds: int | list[int] = 100) -> Path:
    """The same as GIF, WebP or PNG, by its ending."""
    pictures = [Image.fromarray(numbered_frame(number)) for number in range(count)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, **options)
    return path
