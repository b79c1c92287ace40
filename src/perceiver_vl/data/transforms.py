"""Training clips changed at random: cropped, mirrored, RandAugment; every frame of a clip in the same way.

Pure functions of frames (T, H, W, 3) uint8 and a generator. RandAugment is that of Cubuk et al. 2020 (arXiv
1909.13719) as the code of ViLT and Perceiver-VL uses it: 2 operations of magnitude 9 on a scale of 30, without
inversion and cut-out.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from perceiver_vl.media.resizing import resize_frame
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import UsageError

SIDES = frozenset(
    {"left", "lefthand", "leftmost", "leftward", "leftwards", "right", "righthand", "rightmost", "rightward"}
    | {"rightwards", "clockwise", "anticlockwise", "counterclockwise"}
)
"""Words that are no longer true of a mirrored clip."""
_GREATEST_MAGNITUDE = 30
_MOST_ENLARGED = 2.0
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Augmentation:
    """How training clips are changed; as it stands, not at all: frames are squashed to the model's square.

    crop: the least share of a frame's area that a random crop keeps, as 0.5; 1 crops nothing. The share is drawn from
    there to 1, its shape from 3/4 to 4/3 of the frame's own.
    flip: mirror every second clip, unless its words name a side (`SIDES`).
    randaugment: how many operations, and their magnitude of 0 to 30; the paper's code knows (2, 9).
    """

    crop: float = 1.0
    flip: bool = False
    randaugment: tuple[int, int] = (0, 9)

    def __post_init__(self) -> None:
        operations, magnitude = self.randaugment
        if not 0 < self.crop <= 1:
            raise UsageError(f"data.augmentation.crop={self.crop:g}: a share of the area, above 0 and at most 1")
        if operations < 0 or not 0 <= magnitude <= _GREATEST_MAGNITUDE:
            raise UsageError(
                f"data.augmentation.randaugment={[operations, magnitude]}: need 0 operations or more, "
                f"and a magnitude of 0 to {_GREATEST_MAGNITUDE}"
            )

    def decoding_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """What to decode at for frames of `size` (height, width): so that the smallest crop still has as many pixels.

        At most twice the size: crops of less than a quarter of the area are enlarged, rather than all clips decoded
        at a size that only they need.
        """
        scale = min(_MOST_ENLARGED, self.crop**-0.5)
        return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def augment(
    frames: Frames, texts: Iterable[str], how: Augmentation, size: tuple[int, int], rng: np.random.Generator
) -> Frames:
    """(T, H, W, 3) → the same, or `(T, *size, 3)` where it was cropped. `texts`: all that is said of the clip."""
    if how.crop < 1:
        frames = np.stack([resize_frame(frame, size) for frame in random_crop(frames, rng, how.crop)])
    mirrored = rng.random() < 0.5  # drawn in any case, so that the words of a clip do not change its other draws
    if how.flip and mirrored and can_flip(texts):
        frames = flip(frames)
    return rand_augment(frames, rng, *how.randaugment)


def can_flip(texts: Iterable[str]) -> bool:
    """Whether no text names a side."""
    return not any(SIDES.intersection(re.findall(r"[a-z]+", text.casefold())) for text in texts)


def flip(frames: Frames) -> Frames:
    """Left for right."""
    return np.ascontiguousarray(frames[:, :, ::-1])


def random_crop(frames: Frames, rng: np.random.Generator, least: float) -> Frames:
    """One rectangle of `least` to all of the area, in every frame (T, h, w, 3); its shape 3/4 to 4/3 of the frame's."""
    height, width = frames.shape[1:3]
    for _ in range(10):  # most draws fit; the whole frame if none does
        area, shape = rng.uniform(least, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = max(1, round(height * math.sqrt(area / shape))), max(1, round(width * math.sqrt(area * shape)))
        if h <= height and w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return np.ascontiguousarray(frames[:, top : top + h, left : left + w])
    return frames


def rand_augment(frames: Frames, rng: np.random.Generator, operations: int = 2, magnitude: int = 9) -> Frames:
    """`operations` drawn from `OPERATIONS`, one after the other, each at `magnitude` of 30."""
    for name in rng.choice(list(OPERATIONS), size=operations):
        strength = magnitude / _GREATEST_MAGNITUDE * rng.choice((-1.0, 1.0))
        frames = OPERATIONS[str(name)](frames, float(strength))
    return frames


Operation = Callable[[Frames, float], Frames]  # strength: -1 to 1


def _of_colours(change: Callable[[Image.Image, float], Image.Image]) -> Operation:
    """An operation on the clip as one tall picture: what it measures, as a histogram, is that of all frames."""

    def operation(frames: Frames, strength: float) -> Frames:
        tall = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
        return np.asarray(change(tall, strength)).reshape(frames.shape)

    return operation


def _of_places(change: Callable[[Image.Image, float], Image.Image]) -> Operation:
    """An operation on each frame."""

    def operation(frames: Frames, strength: float) -> Frames:
        return np.stack([np.asarray(change(Image.fromarray(frame), strength)) for frame in frames])

    return operation


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Pixel (x, y) from (a x + b y + c, d x + e y + f); grey where nothing comes from."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _of_colours(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": _of_colours(lambda image, _: ImageOps.equalize(image)),
    "posterize": _of_colours(lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s)))),
    "solarize": _of_colours(lambda image, s: ImageOps.solarize(image, 256 - round(256 * abs(s)))),
    "colour": _of_colours(lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s)),
    "contrast": _of_colours(lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s)),
    "brightness": _of_colours(lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s)),
    "sharpness": _of_places(lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s)),
    "rotate": _of_places(lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=_GREY)),
    "shear_x": _of_places(lambda image, s: _moved(image, (1, 0.3 * s, 0, 0, 1, 0))),
    "shear_y": _of_places(lambda image, s: _moved(image, (1, 0, 0, 0.3 * s, 1, 0))),
    "shift_x": _of_places(lambda image, s: _moved(image, (1, 0, 0.3 * s * image.width, 0, 1, 0))),
    "shift_y": _of_places(lambda image, s: _moved(image, (1, 0, 0, 0, 1, 0.3 * s * image.height))),
}
"""By name. Where the published tables let a stronger magnitude do less (posterize, solarize), here it does more."""
