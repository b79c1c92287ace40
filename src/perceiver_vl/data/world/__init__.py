"""The generated world: short clips of coloured shapes whose truth is known, to train and test on in minutes.

`scene` says what is in a clip and where, `captions` says it in words, `render` draws it,
`collection` serves it from memory and writes it to disk as a folder of videos.
"""

from perceiver_vl.data.world.captions import caption, captions
from perceiver_vl.data.world.collection import World, write_world
from perceiver_vl.data.world.render import frame_times, render
from perceiver_vl.data.world.scene import (
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Background,
    Description,
    Pose,
    Scene,
    Thing,
    draw_scene,
    split_of,
)

__all__ = [
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Background",
    "Description",
    "Pose",
    "Scene",
    "Thing",
    "World",
    "caption",
    "captions",
    "draw_scene",
    "frame_times",
    "render",
    "split_of",
    "write_world",
]
