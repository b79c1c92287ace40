"""The generated world as a collection in memory, and as a folder of videos with its metadata."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.progress import track

from perceiver_vl.console import err
from perceiver_vl.data.records import Record
from perceiver_vl.data.world.captions import MOST_CAPTIONS, captions
from perceiver_vl.data.world.render import Pixels, frame_times, render
from perceiver_vl.data.world.scene import SPLITS, Description, Scene, draw_scene, generator
from perceiver_vl.errors import UsageError
from perceiver_vl.files import write_json, write_text, write_with

FRAMES_PER_SECOND = 8
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


def write_world(
    out: Path,
    clips: int = 2000,
    seed: int = 0,
    num_frames: int = 8,
    size: int = 64,
    held_out: int | None = None,
    captions_per_clip: int = 5,
    singles: float = 0.25,
    progress: bool = False,
) -> dict[str, int]:
    """Write a world of `clips` clips in all as H.264 files and return the number of clips of each split.

    Validation and test get `held_out` clips each (an eighth of all, at most 256, unless given), training the rest.
    `out` then holds `clips/<split>-000000.mp4` at 8 frames a second; `metadata.jsonl` with a line for each clip
    (`file_name`, `text`: its captions, `split`, `scene`: the truth); and `world.json`, the arguments.
    The same arguments give the same bytes. Called again after an interruption it writes what is missing;
    `metadata.jsonl` comes last, so a folder that has one is complete.

    Raises:
        UsageError: a value that cannot work, or a folder that holds something else.
    """
    if clips < len(SPLITS):
        raise UsageError(f"clips={clips}: need at least {len(SPLITS)}, one for each split")
    _require("size", size, 16)
    if size % 2:
        raise UsageError(f"size={size}: video needs an even number of pixels, take {size + 1}")
    held_out = max(1, min(256, clips // 8)) if held_out is None else held_out
    if not 1 <= held_out <= (clips - 1) // 2:
        raise UsageError(f"held_out={held_out}: choose 1 to {(clips - 1) // 2}, so that {clips} clips fill every split")
    counts = dict(zip(SPLITS, (clips - 2 * held_out, held_out, held_out), strict=True))
    worlds = [World(split, n, seed, num_frames, size, captions_per_clip, singles) for split, n in counts.items()]
    for world in worlds:
        world.scene(len(world) - 1)  # too few descriptions shall show before anything is written
    _claim(
        out,
        {
            "generator_version": GENERATOR_VERSION,
            "seed": seed,
            "splits": counts,
            "num_frames": num_frames,
            "size": size,
            "captions_per_clip": captions_per_clip,
            "singles": singles,
        },
    )
    entries: Iterable[tuple[World, int]] = [(world, index) for world in worlds for index in range(len(world))]
    if progress:
        entries = track(entries, description="Writing clips", total=clips, console=err)
    lines = [_write_clip(out, world, index) for world, index in entries]
    write_text(out / "metadata.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    return counts


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name}={value}: need at least {least}")


def _claim(out: Path, arguments: dict[str, Any]) -> None:
    """Make `out` a folder for the world of these arguments, or make sure that it is one."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; name a folder to write the world into")
    manifest = out / "world.json"
    if not out.exists() or not any(out.iterdir()):
        write_json(manifest, arguments)
    elif not manifest.exists():
        raise UsageError(f"{out}: holds files that are not a generated world; name a new or empty folder")
    elif manifest.read_text(encoding="utf-8") != json.dumps(arguments, indent=2, ensure_ascii=False) + "\n":
        raise UsageError(f"{out}: holds a world made with other arguments (see world.json); name another folder")


def _write_clip(out: Path, world: World, index: int) -> dict[str, Any]:
    """Write the video of one clip unless it is there, and return its line of metadata."""
    name = world.record(index).file_name
    if not (out / name).exists():
        write_with(out / name, lambda path: _encode(path, world.frames(index)))
    return {
        "file_name": name,
        "text": world.captions(index),
        "split": world.split,
        "scene": asdict(world.scene(index)),
    }


def _encode(path: Path, frames: Pixels) -> None:
    """Write frames (T, H, W, 3) as H.264 with full colour resolution.

    One thread and no vector instructions, so that the bytes are repeatable: x264's lookahead otherwise decides by
    memory that nobody has written, and differently on each kind of processor.
    """
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "14", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
