"""The generated world's captioned clips as a collection in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.captions import MOST_CAPTIONS, captions
from perceiver_vl.data.synthetic.render import frame_times, render
from perceiver_vl.data.synthetic.scene import SPLITS, Description, Scene, draw_scene, generator, media_folder
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import UsageError

GENERATOR_VERSION = 2
"""To be raised with every change that alters scenes, captions, pixels or names: a folder is never a mixture of two."""
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
        check_world(self, SPLITS)
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
        name = f"{media_folder('clips', self.split)}/{index:06d}.mp4"
        return Record(name, Path(name), self.captions(index), self.split)

    def scene(self, index: int) -> Scene:
        """What is in clip `index` (0..len-1)."""
        return draw_scene(self.seed, self.split, self._draws[check_index(self, index)], self.singles)

    def frames(self, index: int, num_frames: int | None = None, rng: np.random.Generator | None = None) -> Frames:
        """RGB bytes (T, size, size, 3): one from each of T equal parts of the clip, its middle or (`rng`) anywhere."""
        times = frame_times(self.num_frames if num_frames is None else num_frames, rng)
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


def check_world(world: Any, splits: Sequence[str]) -> None:
    """Raise `UsageError` for a split, or a number, that a world cannot have."""
    if world.split not in splits:
        raise UsageError(f"split={world.split!r}: choose one of {', '.join(splits)}")
    for name, least in {"clips": 1, "seed": 0, "num_frames": 1, "size": 16}.items():
        if (value := getattr(world, name, least)) < least:
            raise UsageError(f"{name}={value}: need at least {least}")


def check_index(world: Any, index: int) -> int:
    """`index`, if a world has such a clip; raises `IndexError`, as whoever goes through it expects."""
    if not 0 <= index < world.clips:
        raise IndexError(f"clip {index} of a world of {world.clips}")
    return index
