"""The generated world's captioned clips as a collection in memory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.captions import MOST_CAPTIONS, captions
from perceiver_vl.data.synthetic.render import Pixels, frame_times, render
from perceiver_vl.data.synthetic.scene import SPLITS, Description, Scene, draw_scene, generator
from perceiver_vl.utils.errors import UsageError

GENERATOR_VERSION = 1
"""To be raised with every change that alters scenes, captions or pixels: a folder is never a mixture of two."""
MOST_HELD_OUT = 20_000
"""About a third of the descriptions that a held-out split has."""
_CAPTION_STREAM = 1


@dataclass(frozen=True)
class World:
    """`clips` clips of one split, drawn when they are asked for; every one depends on (seed, split, index) alone.

    In the validation and test splits no two clips have the same description, so that each caption has one right
    clip; and a smaller world is the beginning of a larger one. `singles` is the share of clips with one thing.

    Raises:
        UsageError: a value that cannot work, or more held-out clips than there are different descriptions.
    """

    split: str = "train"
    clips: int = 2000
    seed: int = 0
    num_frames: int = 8
    size: int = 64
    captions_per_clip: int = 5
    singles: float = 0.25

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"split={self.split!r}: choose one of {', '.join(SPLITS)}")
        _require("clips", self.clips, 1)
        _require("seed", self.seed, 0)
        _require("num_frames", self.num_frames, 1)
        _require("size", self.size, 16)
        if not 1 <= self.captions_per_clip <= MOST_CAPTIONS:
            raise UsageError(f"captions_per_clip={self.captions_per_clip}: choose 1 to {MOST_CAPTIONS}")
        if not 0 <= self.singles <= 1:
            raise UsageError(f"singles={self.singles}: the share of clips with one thing is between 0 and 1")
        if self.split != "train" and self.clips > MOST_HELD_OUT:
            raise UsageError(
                f"clips={self.clips}: at most {MOST_HELD_OUT} in {self.split}, where every description occurs once"
            )

    def __len__(self) -> int:
        return self.clips

    def record(self, index: int) -> Record:
        """Clip `index` as a record; the file is the one that `write_world` would write."""
        name = f"clips/{self.split}-{index:06d}.mp4"
        return Record(name, Path(name), self.captions(index), self.split)

    def scene(self, index: int) -> Scene:
        """What is in clip `index` (0..len-1)."""
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of a world of {self.clips}")
        return draw_scene(self.seed, self.split, self._draws[index], self.singles)

    def frames(self, index: int, num_frames: int | None = None, rng: np.random.Generator | None = None) -> Pixels:
        """RGB bytes (T, size, size, 3): one from each of T equal parts of the clip, its middle or (`rng`) anywhere."""
        num_frames = self.num_frames if num_frames is None else num_frames
        _require("num_frames", num_frames, 1)
        times = frame_times(num_frames, rng)
        return render(self.scene(index), size=self.size, times=times)

    def captions(self, index: int) -> tuple[str, ...]:
        """The `captions_per_clip` different wordings of clip `index`."""
        rng = generator(self.seed, self.split, self._draws[index], _CAPTION_STREAM)
        return captions(self.scene(index), self.captions_per_clip, rng)

    @cached_property
    def _draws(self) -> range | tuple[int, ...]:
        """Which draw of the split each clip is: all of them, or those that bring a new description."""
        return range(self.clips) if self.split == "train" else self._distinct_draws()

    def _distinct_draws(self) -> tuple[int, ...]:
        patience = 1000
        draws: list[int] = []
        seen: set[frozenset[Description]] = set()
        draw = 0
        while len(draws) < self.clips:
            key = draw_scene(self.seed, self.split, draw, self.singles).key
            if key not in seen:
                seen.add(key)
                draws.append(draw)
            elif draw - draws[-1] > patience:
                raise UsageError(
                    f"clips={self.clips}: found only {len(seen)} different descriptions in {self.split} "
                    f"with singles={self.singles}; ask for fewer clips or lower singles"
                )
            draw += 1
        return tuple(draws)


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name}={value}: need at least {least}")
