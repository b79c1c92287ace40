"""A small grammar that says what happens in a scene in many wordings, every one complete.

The words about one thing stay together, so a caption can be read back without guessing.
"""

import re

import numpy as np

from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, Description, Scene, SceneObject
from perceiver_vl.utils.errors import UsageError

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
# Each pair: after "is" or after the noun, and as the verb of a sentence.
_MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("moving left", "moves left"), ("going to the left", "goes to the left")),
    "right": (("moving right", "moves right"), ("going to the right", "goes to the right")),
    "up": (("moving up", "moves up"), ("rising", "rises")),
    "down": (("moving down", "moves down"), ("sinking", "sinks")),
    "circles": (("moving in a circle", "moves in a circle"), ("going round and round", "goes round and round")),
    "swings": (("swinging from side to side", "swings from side to side"), ("swinging", "swings")),
    "grows": (("growing", "grows"), ("getting bigger", "gets bigger")),
    "shrinks": (("shrinking", "shrinks"), ("getting smaller", "gets smaller")),
    "blinks": (("blinking", "blinks"), ("flashing on and off", "flashes on and off")),
    "still": (("staying still", "stays still"), ("not moving", "does not move")),
}
_PHRASES = (
    "{size} {colour} {shape} {doing}",
    "{size} {colour} {shape} that {does}",
    "{size} {shape} in {colour} that {does}",
    "{colour} {shape}, {size}, that {does}",
)
_SENTENCES = ("{size} {colour} {shape} {does}", "{size} {colour} {shape} is {doing}")
# Of one thing and of two: those that take noun phrases and those that take whole sentences.
_AROUND_PHRASES = {
    1: ("{0}", "there is {0}", "a video of {0}", "one shape: {0}"),
    2: (
        "{0} and {1}",
        "there is {0}, and {1}",
        "a video of {0} and {1}",
        "two shapes: {0} and {1}",
        "{0}, together with {1}",
    ),
}
_AROUND_SENTENCES = {
    1: ("{0}", "in this clip {0}", "we see that {0}"),
    2: ("{0} and {1}", "{0} while {1}", "{0}; {1}", "in this clip {0}, and {1}"),
}
MOST_CAPTIONS = 20
"""How many different wordings may be asked of one scene; every scene has more."""


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One wording, of at most 32 words and punctuation marks, that tells every attribute of every thing."""
    objects = scene.objects if rng.random() < 0.5 else scene.objects[::-1]
    whole_sentences = rng.random() < 0.5
    inner = _SENTENCES if whole_sentences else _PHRASES
    outer = (_AROUND_SENTENCES if whole_sentences else _AROUND_PHRASES)[len(objects)]
    return _pick(rng, outer).format(*(_describe(one, _pick(rng, inner), rng) for one in objects))


def captions(scene: Scene, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """`count` different wordings (1..20), in random order."""
    if not 1 <= count <= MOST_CAPTIONS:
        raise UsageError(f"captions_per_clip={count}: choose 1 to {MOST_CAPTIONS}")
    wordings: dict[str, None] = {}
    while len(wordings) < count:
        wordings[caption(scene, rng)] = None
    return tuple(wordings)


def read_caption(text: str) -> tuple[Description, ...] | None:
    """What a caption in the words of this grammar says about each thing, in its order; None of another text.

    What is not said of a thing, or twice, stays empty.
    """
    found = []
    for part in re.split(r"\ban? (?!video\b)", text.lower().replace("in a circle", "round"))[1:]:
        said = {
            name: [word for word, pattern in words.items() if pattern.search(part)] for name, words in _READ.items()
        }
        if said["shape"]:
            found.append(Description(*(said[name][0] if len(said[name]) == 1 else "" for name in Description._fields)))
    return tuple(found) or None


def _any_of(words: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(rf"\b{re.escape(word)}\b" for word in words))


_READ = {
    "size": {size: _any_of([*words]) for size, words in _SIZE_WORDS.items()},
    "colour": {colour: _any_of([colour]) for colour in COLOURS},
    "shape": {shape: _any_of([shape]) for shape in SHAPES},
    "motion": {
        motion: _any_of([way.replace("in a circle", "round") for ways in wordings for way in ways])
        for motion, wordings in _MOTION_WORDS.items()
    },
}


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _describe(thing: SceneObject, pattern: str, rng: np.random.Generator) -> str:
    """The words about one thing, with their article."""
    size = _pick(rng, _SIZE_WORDS[thing.size])
    motions = _MOTION_WORDS[thing.motion]
    doing, does = motions[rng.integers(len(motions))]
    words = pattern.format(size=size, colour=thing.colour, shape=thing.shape, doing=doing, does=does)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
