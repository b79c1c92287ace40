"""Long clips: for minutes the same things do the same, and once, for two to four seconds, something else happens.

What is asked, that moment alone decides: who misses it can only guess. Nothing is held but the description; a frame is
drawn when it is asked for, so that a clip may last as long as one likes.
"""

from dataclasses import dataclass, replace

import numpy as np

from perceiver_vl.data.synthetic.actions import EVENTS, GridObject, TimedAction
from perceiver_vl.data.synthetic.grid import (
    Combination,
    GridScene,
    draw_cells,
    draw_grid_scene,
    draw_objects,
    pick,
)
from perceiver_vl.data.synthetic.references import Difficulty, draw_apart, with_article
from perceiver_vl.data.synthetic.scene import COLOURS

WHEN = ("early", "middle", "late")
"""The third of the clip in which the event lies wholly."""
SHORTEST_SECONDS = 20.0
_EVENT_SECONDS = (2.0, 4.0)
_PERIOD_SECONDS = (3.0, 6.0)
_HABITS = ("jumps", "dips", "shakes", "circles")
_CAPTIONS = {
    "early": ("early on, {thing} {does} for a moment", "{thing} {does} for a moment near the beginning"),
    "middle": ("halfway through, {thing} {does} for a moment", "{thing} {does} for a moment near the middle"),
    "late": ("late in the clip, {thing} {does} for a moment", "{thing} {does} for a moment near the end"),
}


@dataclass(frozen=True)
class LongClip:
    """A clip of `seconds`, its one event (of `EVENTS`, to the `target`, from `start` to `end` seconds), a question.

    kind: what, when or whom. captions: what happens, told in several wordings.
    """

    scene: GridScene
    seconds: float
    event: str
    target: Combination
    when: str
    start: float
    end: float
    question: str
    answer: str
    kind: str
    captions: tuple[str, ...]


def draw_long_clip(rng: np.random.Generator, difficulty: Difficulty, seconds: float) -> LongClip:
    """Things with habits, and an event; the question's words tell nothing of its answer."""
    least, most = difficulty.acting
    residents = min(int(rng.integers(least, most + 1)), len(COLOURS) - 1)
    combinations = draw_apart(rng, difficulty, residents + 1)
    # The first thing is the one that it happens to: a visitor who was not there before, or one of the residents.
    event = pick(rng, tuple(EVENTS))
    combinations = combinations if event == "appears" else combinations[:residents]
    when = int(rng.integers(len(WHEN)))
    length = rng.uniform(*_EVENT_SECONDS)
    start = (when + 0.03) * seconds / 3 + rng.uniform(0, 0.94 * seconds / 3 - length)
    moment = TimedAction(event, start / seconds, (start + length) / seconds, event=True)

    objects = draw_objects(rng, draw_cells(rng, len(combinations)), combinations, acting=True)
    objects = [_with_habit(rng, one, seconds) for one in objects]
    objects[0] = replace(objects[0], actions=(*objects[0].actions, moment))
    scene = draw_grid_scene(rng, [objects[place] for place in rng.permutation(len(objects))])
    does, do = EVENTS[event].does, EVENTS[event].do
    colour, shape = combinations[0]
    kind, question, answer = pick(
        rng,
        (
            ("what", "what happens for a moment?", f"something {does}"),
            ("when", f"when does something {do}?", WHEN[when]),
            ("whom", f"what colour is the thing that {does} for a moment?", colour),
            ("whom", f"what shape is the thing that {does} for a moment?", shape),
        ),
    )
    thing = with_article(f"{colour} {shape}")
    captions = tuple(pattern.format(thing=thing, does=does) for pattern in _CAPTIONS[WHEN[when]])
    times = start, start + length
    return LongClip(scene, seconds, event, combinations[0], WHEN[when], *times, question, answer, kind, captions)


def _with_habit(rng: np.random.Generator, one: GridObject, seconds: float) -> GridObject:
    """Something that it does again and again, from the first frame to the last."""
    times = max(1, round(seconds / rng.uniform(*_PERIOD_SECONDS)))
    return replace(one, actions=(TimedAction(pick(rng, _HABITS), 0.0, 1.0, times),))
