"""The generated world: short clips of coloured shapes whose truth is known, to train and test on in minutes.

Captions: `scene` says what is in a clip and where, `captions` says it in words, `render` draws it, `collection` serves
it from memory. Questions: `acts` are what a thing can do, `stage` is where things stand, `references` say which thing
is meant; `questions`, `statements` and `long` draw what to ask together with what it is about; `tasks` serves these.
`writing` puts either on disk, `official` in the layouts of the benchmarks.
"""

from perceiver_vl.data.synthetic.acts import ACTS, EVENTS, Actor, Doing
from perceiver_vl.data.synthetic.captions import caption, captions
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.long import WHEN, LongClip
from perceiver_vl.data.synthetic.questions import QUESTIONS, Question
from perceiver_vl.data.synthetic.render import frame_times, render
from perceiver_vl.data.synthetic.scene import (
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
from perceiver_vl.data.synthetic.statements import Pair
from perceiver_vl.data.synthetic.storyboard import (
    GENERALISATION,
    HELD_OUT,
    PLACES,
    RELATIONS,
    TASK_SPLITS,
    USUAL,
    Storyboard,
)
from perceiver_vl.data.synthetic.tasks import (
    LONG_SPLITS,
    TASKS,
    LongWorld,
    PairWorld,
    QuestionWorld,
    open_world,
    splits_of,
)
from perceiver_vl.data.synthetic.writing import write_world

__all__ = [
    "ACTS",
    "COLOURS",
    "EVENTS",
    "GENERALISATION",
    "HELD_OUT",
    "LONG_SPLITS",
    "MOTIONS",
    "PLACES",
    "QUESTIONS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TASKS",
    "TASK_SPLITS",
    "USUAL",
    "WHEN",
    "Actor",
    "Background",
    "Description",
    "Doing",
    "LongClip",
    "LongWorld",
    "Pair",
    "PairWorld",
    "Pose",
    "Question",
    "QuestionWorld",
    "Scene",
    "Storyboard",
    "Thing",
    "World",
    "caption",
    "captions",
    "draw_scene",
    "frame_times",
    "open_world",
    "render",
    "split_of",
    "splits_of",
    "write_world",
]
