"""The generated world's other tasks as collections in memory: questions, pairs of pictures, long clips.

Like `World` they draw a clip when it is asked for, and each depends on (seed, split, index) alone: a smaller collection
is the beginning of a larger one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.collection import World, check_index, check_world
from perceiver_vl.data.synthetic.grid import TASK_SPLITS, is_of_split, settled
from perceiver_vl.data.synthetic.long import SHORTEST_SECONDS, LongClip, draw_long_clip
from perceiver_vl.data.synthetic.questions import MOST_QUESTIONS, QUESTIONS, Question, draw_questions
from perceiver_vl.data.synthetic.references import difficulty_of
from perceiver_vl.data.synthetic.render import frame_times
from perceiver_vl.data.synthetic.scene import SPLITS, media_folder
from perceiver_vl.data.synthetic.statements import PAIRS_PER_STATEMENT, Pair, draw_pair, draw_statements
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.errors import UsageError

LONG_SPLITS = (*SPLITS, "test-distractor", "test-systematic")
"""Of long clips the questions are all of one depth."""
LONG_FRAMES_PER_SECOND = 2
_STREAMS = {"action": 1, "transition": 2, "frame": 3, "count": 4, "yesno": 5, "image": 6, "pairs": 7, "long": 8}
_FIRST_STREAM = 1000  # the captions' own streams have the number of the split in its place
_MOMENT = np.array([0.5])
TASKS = ("captions", *QUESTIONS, "pairs", "long")
"""What the generated world can be drawn and written for."""


def splits_of(task: str) -> tuple[str, ...]:
    """The splits that a task has."""
    if task == "captions":
        return SPLITS
    return LONG_SPLITS if task == "long" else TASK_SPLITS


@dataclass(frozen=True)
class QuestionWorld:
    """`clips` questions of one task (action, transition, frame, count, yesno; image: about pictures), each about a clip
    of its own.

    questions_per_clip: of `frame` so many in a row are about the same clip, all different (1 to 20). fewest_things:
    clips have as few things as that, too, where the question can be asked of so few (None: as few as the split has).
    split: train, validation or test, or one of `GENERALISATION`. A stage that occurs in one of training, validation and
    test occurs in no other, whatever the seed.
    Raises `UsageError` for a value that cannot work.
    """

    task: str
    split: str = "train"
    clips: int = 2000
    seed: int = 0
    num_frames: int = 16
    size: int = 64
    questions_per_clip: int = 1
    fewest_things: int | None = None

    def __post_init__(self) -> None:
        if self.task not in QUESTIONS:
            raise UsageError(f"task={self.task!r}: choose one of {', '.join(QUESTIONS)}")
        most = MOST_QUESTIONS if self.task == "frame" else 1
        if not 1 <= self.questions_per_clip <= most:
            raise UsageError(f"questions_per_clip={self.questions_per_clip}: of {self.task} need 1 to {most}")
        check_fewest_things(self.task, self.fewest_things)
        check_world(self, TASK_SPLITS)

    def __len__(self) -> int:
        return self.clips

    def question(self, index: int) -> Question:
        """All that is known of example `index` (0..len-1)."""
        clip, place = divmod(check_index(self, index), self.questions_per_clip)
        return _questions(self.task, self.seed, self.split, clip, self.questions_per_clip, self.fewest_things)[place]

    def record(self, index: int) -> Record:
        """As `write_world` writes it."""
        question, clip = self.question(index), index // self.questions_per_clip
        name = _picture_name(self.split, clip) if self.task == "image" else _clip_name(self.split, clip)
        return Record(
            name,
            Path(name),
            split=self.split,
            question=question.text,
            answers=question.answers,
            choices=question.choices,
            label=question.label,
            example_id=f"{self.task}-{self.split}-{index}",
            kind=question.kind,
        )

    def frames(self, index: int, num_frames: int | None = None, rng: np.random.Generator | None = None) -> Frames:
        """RGB bytes (T, size, size, 3) from T equal parts of the clip, as `World.frames`; of a picture T is 1."""
        scene = self.question(index).scene
        if self.task == "image":
            return scene.render(_MOMENT, self.size)
        return scene.render(frame_times(self.num_frames if num_frames is None else num_frames, rng), self.size)


@dataclass(frozen=True)
class PairWorld:
    """`clips` statements about pairs of pictures; four in a row are the same words, true of two of the pairs.

    Otherwise as `QuestionWorld`. Its pictures are those on the left, or (`right`) on the right.
    """

    split: str = "train"
    clips: int = 2000
    seed: int = 0
    size: int = 64
    right: bool = False

    def __post_init__(self) -> None:
        check_world(self, TASK_SPLITS)

    def __len__(self) -> int:
        return self.clips

    def pair(self, index: int) -> Pair:
        """All that is known of example `index` (0..len-1)."""
        group, place = divmod(check_index(self, index), PAIRS_PER_STATEMENT)
        return _pairs(self.seed, self.split, group)[place]

    def record(self, index: int) -> Record:
        """The statement is its text, the label 1 if it is true; the id has NLVR2's form, SPLIT-SET-PAIR-SENTENCE."""
        pair = self.pair(index)
        group, place = divmod(index, PAIRS_PER_STATEMENT)
        name = f"{self.split.replace('-', '_')}-{group}-{place}"
        left, right = (f"{media_folder('pictures', self.split)}/{name}-img{number}.png" for number in (0, 1))
        shown = right if self.right else left
        return Record(
            shown,
            Path(shown),
            (pair.text,),
            self.split,
            label=int(pair.truth),
            second_file_name=right,
            second_path=Path(right),
            example_id=f"{name}-0",
            kind=pair.kind,
        )

    def frames(self, index: int, num_frames: int = 1, rng: np.random.Generator | None = None) -> Frames:
        """RGB bytes (1, size, size, 3) of the left picture, or of the right one."""
        pair = self.pair(index)
        return (pair.right if self.right else pair.left).render(_MOMENT, self.size)

    @property
    def second(self) -> "PairWorld":
        """The right pictures as a source of their own, by the same places."""
        return replace(self, right=True)


@dataclass(frozen=True)
class LongWorld:
    """`clips` long clips of `seconds` each with one short event, a question about it and captions that tell it.

    split: one of `LONG_SPLITS`; otherwise as `QuestionWorld`.
    """

    split: str = "train"
    clips: int = 2000
    seed: int = 0
    num_frames: int = 64
    size: int = 64
    seconds: float = 60.0

    def __post_init__(self) -> None:
        check_world(self, LONG_SPLITS)
        if not SHORTEST_SECONDS <= self.seconds <= 86_400:
            raise UsageError(f"seconds={self.seconds}: a long clip lasts {SHORTEST_SECONDS:g} seconds to a day")

    def __len__(self) -> int:
        return self.clips

    def clip(self, index: int) -> LongClip:
        """All that is known of clip `index` (0..len-1)."""
        return _long_clip(self.seconds, self.seed, self.split, check_index(self, index))

    def record(self, index: int) -> Record:
        """The question and its answer, and the captions as texts."""
        clip = self.clip(index)
        name = _clip_name(self.split, index)
        return Record(
            name,
            Path(name),
            clip.captions,
            self.split,
            question=clip.question,
            answers=(clip.answer,),
            example_id=f"long-{self.split}-{index}",
            kind=clip.kind,
        )

    def frames(self, index: int, num_frames: int | None = None, rng: np.random.Generator | None = None) -> Frames:
        """RGB bytes (T, size, size, 3) from T equal parts of the clip; only these are drawn."""
        times = frame_times(self.num_frames if num_frames is None else num_frames, rng)
        return self.clip(index).scene.render(times, self.size)

    def stream(self, index: int, frames_per_second: float) -> Iterator[Frames]:
        """The frames (size, size, 3) of the whole clip, one after the other, at the middles of their times."""
        scene, count = self.clip(index).scene, max(1, round(self.seconds * frames_per_second))
        for number in range(count):
            yield scene.render(np.array([(number + 0.5) / count]), self.size)[0]


AnyWorld: TypeAlias = World | QuestionWorld | PairWorld | LongWorld


def open_world(
    task: str,
    split: str = "train",
    clips: int = 2000,
    seed: int = 0,
    num_frames: int | None = None,
    size: int = 64,
    seconds: float | None = None,
    captions_per_clip: int = 5,
    singles: float = 0.25,
    questions_per_clip: int = 1,
    fewest_things: int | None = None,
) -> AnyWorld:
    """The clips of one of `TASKS`; `seconds`: of a long clip (60); `captions_per_clip`, `singles`: of captions;
    `questions_per_clip`: of questions about frames; `fewest_things`: of all questions about a clip or a picture.

    Raises `UsageError` for a value that cannot work.
    """
    check_fewest_things(task, fewest_things)
    frames = {} if num_frames is None else {"num_frames": num_frames}
    if task == "captions":
        return World(split, clips, seed, size=size, captions_per_clip=captions_per_clip, singles=singles, **frames)
    if task == "pairs":
        return PairWorld(split, clips, seed, size)
    if task == "long":
        return LongWorld(split, clips, seed, size=size, seconds=60.0 if seconds is None else seconds, **frames)
    if task not in QUESTIONS:
        raise UsageError(f"task={task}: choose from {', '.join(TASKS)}")
    return QuestionWorld(
        task,
        split,
        clips,
        seed,
        size=size,
        questions_per_clip=questions_per_clip,
        fewest_things=fewest_things,
        **frames,
    )


def check_fewest_things(task: str, fewest: int | None) -> None:
    """Raise `UsageError` for a number that no clip of the task can begin with."""
    if fewest is None:
        return
    if task not in QUESTIONS:
        raise UsageError(f"fewest_things={fewest}: is of {', '.join(QUESTIONS)}; leave it out of task={task}")
    least = min(difficulty_of("train").still[0], difficulty_of("train").acting[0])
    if not 1 <= fewest < least:
        raise UsageError(f"fewest_things={fewest}: need 1 to {least - 1}, or leave it out for as many as there are")


def _clip_name(split: str, index: int) -> str:
    return f"{media_folder('clips', split)}/{index:06d}.mp4"


def _picture_name(split: str, index: int) -> str:
    return f"{media_folder('pictures', split)}/{index:06d}.png"


def _generator(task: str, seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _FIRST_STREAM + _STREAMS[task], TASK_SPLITS.index(split), index])


@lru_cache(maxsize=1024)
def _questions(task: str, seed: int, split: str, clip: int, number: int, fewest: int | None) -> tuple[Question, ...]:
    """All that are about one clip."""
    rng, difficulty = _generator(task, seed, split, clip), difficulty_of(split).from_fewer(fewest)
    while True:
        questions = draw_questions(rng, task, difficulty, number)
        if is_of_split(questions[0].scene, split):
            scene = settled(questions[0].scene)
            return tuple(replace(question, scene=scene) for question in questions)


@lru_cache(maxsize=256)
def _pairs(seed: int, split: str, group: int) -> tuple[Pair, ...]:
    """The four pairs of a statement."""
    rng = _generator("pairs", seed, split, group)
    statements = draw_statements(rng, split)
    truths = rng.permutation([True, False] * (PAIRS_PER_STATEMENT // 2)).tolist()
    return tuple(draw_pair(rng, split, statements, truth) for truth in truths)


@lru_cache(maxsize=1024)
def _long_clip(seconds: float, seed: int, split: str, index: int) -> LongClip:
    rng, difficulty = _generator("long", seed, split, index), difficulty_of(split)
    while True:
        clip = draw_long_clip(rng, difficulty, seconds)
        if is_of_split(clip.scene, split):
            return replace(clip, scene=settled(clip.scene))
