"""Guessers that see all of a clip of the generated world, but not which thing its question means, beside those that see
the words alone: what a task is worth, a model has above the better of the two.

A shortcut that pays more than the words would pass for sight: what colour most things have, any thing's place, what
somebody does.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

from perceiver_vl.bench.learning.blind_baselines import bag_of_words, majority_by_kind
from perceiver_vl.bench.learning.runs import digest
from perceiver_vl.bench.tables import Section
from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.actions import ACTIONS, GridObject
from perceiver_vl.data.synthetic.grid import CELLS, PLACES
from perceiver_vl.data.synthetic.long import LongClip
from perceiver_vl.data.synthetic.questions import Question
from perceiver_vl.data.synthetic.statements import Pair
from perceiver_vl.data.synthetic.tasks import LongWorld, PairWorld, QuestionWorld, open_world
from perceiver_vl.data.synthetic.writing import version_of
from perceiver_vl.tasks.metrics import per_cent
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.files import write_json

TASKS = ("frame", "yesno", "image", "count", "action", "transition", "pairs", "long")
Asked: TypeAlias = Question | Pair | LongClip
Shares: TypeAlias = dict[str, float]
"""How probable an answer is to a guesser; what is missing is not."""
_DO = {action.do: name for name, action in ACTIONS.items()}
_DOES = {action.does: name for name, action in ACTIONS.items()}


@dataclass(frozen=True)
class Guessed:
    """What guessers reach on one kind of questions, in per cent; `blind`: by the words, `seeing`: by the clip."""

    task: str
    kind: str
    questions: int
    blind: Shares
    seeing: Shares

    @property
    def best_blind(self) -> float:
        """Of those that see the words alone."""
        return max(self.blind.values())

    @property
    def best_seeing(self) -> tuple[str, float]:
        """Of those that see the clip, and its name."""
        return max(self.seeing.items(), key=lambda item: item[1])


def what_things_say(asked: Asked) -> list[str]:
    """What would be the answer of each thing, if the question meant it; nothing where it is not about one thing."""
    if isinstance(asked, Pair):
        return []
    things = asked.scene.objects
    if isinstance(asked, LongClip):
        attribute = "colour" if "colour" in asked.question else "shape"
        return [getattr(one, attribute) for one in things] if asked.kind == "whom" else []
    words = asked.text.removesuffix("?")
    if words.startswith("what does"):
        return [
            ACTIONS[one].does for thing in things for one in _acts(thing, words) if ACTIONS[one].does in asked.choices
        ]
    if words.startswith("how many times"):
        act = next(name for do, name in _DO.items() if words.endswith(f" {do}"))
        return [str(one.times) for thing in things for one in thing.actions if one.action == act]
    if words.startswith("how many things") and not words.endswith("are there"):
        return [str(number) for number in Counter(one for thing in things for one in thing.action_names).values()]
    if words.startswith("how many"):
        groups = ([one.colour for one in things], [one.shape for one in things], [one.combination for one in things])
        return [str(number) for group in groups for number in Counter(group).values()]
    if words.startswith("what colour"):
        return [one.colour for one in things]
    if words.startswith("what shape"):
        return [one.shape for one in things]
    if words.startswith("how big"):
        return [one.size for one in things]
    return [PLACES[CELLS.index(one.cell)] for one in things] if words.startswith("where") else []


def _acts(thing: GridObject, words: str) -> list[str]:
    """What a thing does that the rest of the question fits: so often, or before or after another act."""
    *_, last = words.split(" do ")
    names = thing.action_names
    if last in (timed := {"once": 1, "2 times": 2, "3 times": 3}):
        return [one.action for one in thing.actions if one.times == timed[last]]
    for when, step in (("before it ", -1), ("after it ", 1)):
        if last.startswith(when):
            places = [place + step for place, name in enumerate(names) if name == _DOES[last.removeprefix(when)]]
            return [names[place] for place in places if 0 <= place < len(names)]
    return list(names)


def numbers_seen(asked: Asked) -> tuple[object, ...]:
    """What can be counted without knowing which thing is meant: how many things there are, how many of one kind at most
    and, where the answer is yes or no, of how many things the question's last words are so.
    """
    if isinstance(asked, Pair):
        counts = [Counter(one.shape for one in scene.objects) for scene in (asked.left, asked.right)]
        more = len(asked.left.objects) - len(asked.right.objects)
        words = tuple(word for word in asked.text.split() if word in ("left", "right", "1", "2", "and"))
        return asked.kind, words, (more > 0) - (more < 0), len(set(counts[0]) & set(counts[1]))
    things = asked.scene.objects
    if isinstance(asked, LongClip):  # what appears for a moment is not there in other frames
        return asked.kind, len(things) - (asked.event == "appears")
    found: list[object] = [asked.kind, len(things)]
    last_words = asked.text.removesuffix("?").split()[-2:]
    if asked.answers[0] in ("yes", "no"):
        act = next((name for do, name in _DO.items() if asked.text.endswith(f" {do}?")), None)
        for word in last_words:
            found.append(sum(word in (one.colour, one.shape) for one in things))
        return (*found, None if act is None else sum(act in one.action_names for one in things))
    if asked.text.startswith("how many"):
        for attribute in ("colour", "shape", "combination", "action_names"):
            found.append(max(Counter(getattr(one, attribute) for one in things).values()))
    return tuple(found)


def _most(said: Sequence[str]) -> Shares:
    return _even(_extreme(said, max))


def _fewest(said: Sequence[str]) -> Shares:
    return _even(_extreme(said, min))


def _any(said: Sequence[str]) -> Shares:
    return {answer: number / len(said) for answer, number in Counter(said).items()}


def _extreme(said: Sequence[str], which: Callable[[Iterable[int]], int]) -> list[str]:
    counts = Counter(said)
    wanted = which(counts.values())
    return [answer for answer, number in counts.items() if number == wanted]


def _even(answers: Sequence[str]) -> Shares:
    return dict.fromkeys(answers, 1 / len(answers))


SEEING = {"what most things say": _most, "what fewest say": _fewest, "what any thing says": _any}
BY_NUMBERS = "by numbers seen"


def guess(task: str, learn_from: int = 4000, ask: int = 2000, seed: int = 0) -> list[Guessed]:
    """What guessers that learned from `learn_from` questions of training reach on the `ask` that follow, by kind."""
    world = open_world(task, "train", learn_from + ask, seed)
    records = _records(world)
    known = records[:learn_from]
    by_kind, words = majority_by_kind(known), bag_of_words(known[: -len(known) // 5], known[-len(known) // 5 :])
    by_numbers: dict[tuple[object, ...], Counter[str]] = defaultdict(Counter)
    right = Counter(record.answers[0] for record in known)
    for index, record in enumerate(known):
        by_numbers[numbers_seen(_asked(world, index))][record.answers[0]] += 1
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for index, record in enumerate(records[learn_from:], learn_from):
        asked, answer = _asked(world, index), record.answers[0]
        of_kind = scores[asked.kind]
        of_kind["blind: chance"].append(1 / len(record.choices) if record.choices else 0.0)
        of_kind["blind: most frequent"].append(
            max(record.choices, key=right.__getitem__) == answer if record.choices else by_kind(record) == answer
        )
        of_kind["blind: bag of words"].append(words(record) == answer)
        counted = by_numbers.get(numbers_seen(asked))
        of_kind[BY_NUMBERS].append(counted is not None and counted.most_common(1)[0][0] == answer)
        if said := what_things_say(asked):
            for name, share in SEEING.items():
                of_kind[name].append(share(said).get(answer, 0.0))
    found = []
    for kind, of_kind in sorted(scores.items()):
        shares = {name: per_cent(values) for name, values in of_kind.items()}
        blind = {name: share for name, share in shares.items() if name.startswith("blind")}
        seeing = {name: share for name, share in shares.items() if name not in blind}
        found.append(Guessed(task, kind, len(of_kind[BY_NUMBERS]), blind, seeing))
    return found


def _records(world: object) -> list[Record]:
    """With an answer in words, and their kind."""
    assert isinstance(world, QuestionWorld | PairWorld | LongWorld)
    records = [world.record(index) for index in range(len(world))]
    if not isinstance(world, PairWorld):
        return records
    return [replace(one, question=one.texts[0], answers=(str(bool(one.label)),)) for one in records]


def _asked(world: object, index: int) -> Asked:
    if isinstance(world, PairWorld):
        return world.pair(index)
    assert isinstance(world, QuestionWorld | LongWorld)
    return world.question(index) if isinstance(world, QuestionWorld) else world.clip(index)


def kept_guesses(task: str, learn_from: int, ask: int, output: Path) -> list[Guessed]:
    """As `guess`, which takes most of a minute a task, and is made once for a folder."""
    path = output / "guessers" / f"{digest([task, version_of(task), learn_from, ask])}.json"
    if path.is_file():
        return [Guessed(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    found = guess(task, learn_from, ask)
    write_json(path, [asdict(one) for one in found])
    return found


def guessers_section(
    output: Path, learn_from: int = 4000, ask: int = 2000, tasks: Sequence[str] = TASKS, progress: bool = False
) -> Section:
    """A table of them all, kept in `output`."""
    rows = []
    with ProgressBars(progress) as bar:
        advance = bar.stage("Guessing", len(tasks))
        for task in tasks:
            for one in kept_guesses(task, learn_from, ask, output):
                name, share = one.best_seeing
                figures = (f"{one.best_blind:.1f}", f"{share:.1f}", name, f"{share - one.best_blind:+.1f}")
                rows.append((f"{task}, {one.kind}", str(one.questions), *figures))
            advance(note=task)
    return Section(
        "guessers that see the words, or the clip without knowing which thing is meant: accuracy",
        ("asked, kind", "questions", "best of words", "best of clip", "which", "difference"),
        rows,
        (
            f"Learned from {learn_from} questions, asked {ask} others. Words: the most frequent answer of the kind (of "
            "the choices), a bag of words, chance. Clip: the answer that most things would have, or fewest, or any; or "
            "the most frequent at these numbers of things.",
        ),
    )
