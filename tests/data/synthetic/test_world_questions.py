"""The generated world's questions: their answers are true, their words tell nothing, their splits differ as said."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.actions import ACTIONS, GridObject
from perceiver_vl.data.synthetic.grid import (
    CELLS,
    GENERALISATION,
    HELD_OUT,
    PLACES,
    RELATIONS,
    SEEN,
    TASK_SPLITS,
    GridScene,
)
from perceiver_vl.data.synthetic.questions import QUESTIONS, Question
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SPLITS
from perceiver_vl.data.synthetic.tasks import LongWorld, PairWorld, QuestionWorld, open_world, splits_of
from perceiver_vl.utils.errors import UsageError

# A reader of questions that knows the words and where things stand, but not how questions are drawn.

RELATION = "|".join(RELATIONS)
REFERENCE = rf"the (?:thing (?:{RELATION}) the )*?(?:thing that (?:moves )?(?:goes )?\w+|[a-z ]+?)"
DOES = {action.does: name for name, action in ACTIONS.items()}
DO = {action.do: name for name, action in ACTIONS.items()}
SINGULAR = {f"{word}s": word for word in (*SHAPES, "thing")} | {"crosses": "cross"}
TIMES = {"once": 1, "2 times": 2, "3 times": 3}


def is_named(item: GridObject, noun: str) -> bool:
    """Whether a noun (red circle, circles, red thing, thing that jumps) fits."""
    if noun.startswith("thing that "):
        return DOES[noun.removeprefix("thing that ")] in item.action_names
    words = [SINGULAR.get(word, word) for word in noun.split()]
    return all(word in (item.colour, item.shape, "thing") for word in words)


def find(objects: tuple[GridObject, ...], reference: str) -> GridObject:
    """The one thing that is meant."""
    if match := re.fullmatch(rf"the thing ({RELATION}) (the .+)", reference):
        beside, step = find(objects, match[2]), RELATIONS[match[1]]
        found = [one for one in objects if one.cell == (beside.cell[0] + step[0], beside.cell[1] + step[1])]
    else:
        found = [one for one in objects if is_named(one, reference.removeprefix("the "))]
    assert len(found) == 1, reference
    return found[0]


def read(question: Question) -> tuple[str, list[str]]:
    """The right answer, and of multiple choice all choices that are right in any sense."""
    objects = question.scene.objects
    if match := re.fullmatch(rf"what does ({REFERENCE}) do(?: ({'|'.join(TIMES)}))?\?", question.text):
        one = find(objects, match[1])
        done = [action for action in one.actions if match[2] is None or action.times == TIMES[match[2]]]
        assert len(done) == 1
        return ACTIONS[done[0].action].does, [ACTIONS[action.action].does for action in done]
    if match := re.fullmatch(rf"what does ({REFERENCE}) do (before|after) it ([a-z ]+)\?", question.text):
        actions = find(objects, match[1]).action_names
        place = actions.index(DOES[match[3]]) + {"before": -1, "after": 1}[match[2]]
        return ACTIONS[actions[place]].does, [ACTIONS[actions[place]].does]
    if match := re.fullmatch(rf"(what colour|what shape|how big|where) is ({REFERENCE})\?", question.text):
        one = find(objects, match[2])
        told = {"what colour": one.colour, "what shape": one.shape, "how big": one.size}
        return told.get(match[1], PLACES[3 * one.cell[0] + one.cell[1]]), []
    if match := re.fullmatch(r"how many ([a-z ]+) are there\?", question.text):
        return str(sum(is_named(item, match[1]) for item in objects)), []
    if match := re.fullmatch(rf"how many times does ({REFERENCE}) ({'|'.join(DO)})\?", question.text):
        return str(next(d.times for d in find(objects, match[1]).actions if d.action == DO[match[2]])), []
    if match := re.fullmatch(rf"how many things ({'|'.join(DO)})\?", question.text):
        return str(sum(DO[match[1]] in item.action_names for item in objects)), []
    return {True: "yes", False: "no"}[is_true(question.text, objects)], []


def is_true(text: str, objects: tuple[GridObject, ...]) -> bool:
    if match := re.fullmatch(r"is there an? ([a-z ]+)\?", text):
        return any(is_named(item, match[1]) for item in objects)
    if match := re.fullmatch(rf"does ({REFERENCE}) ({'|'.join(DO)})\?", text):
        return DO[match[2]] in find(objects, match[1]).action_names
    if match := re.fullmatch(rf"is (the .+) ({RELATION}) (the (?:\w+ )?(?:{'|'.join(SHAPES)}|thing))\?", text):
        one, other = find(objects, match[1]), find(objects, match[3])
        step = one.cell[0] - other.cell[0], one.cell[1] - other.cell[1]
        assert 0 in step
        assert step != (0, 0)
        return tuple(np.sign(step).tolist()) == RELATIONS[match[2]]
    match = re.fullmatch(r"is (the .+?) (?:an? )?(\w+)\?", text)
    assert match, text
    return is_named(find(objects, match[1]), match[2])


@given(
    task=st.sampled_from(list(QUESTIONS)),
    split=st.sampled_from(TASK_SPLITS),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 10**6),
)
@settings(max_examples=400, deadline=None)
def test_every_answer_is_true_and_no_other_choice_is(task: str, split: str, seed: int, index: int) -> None:
    question = QuestionWorld(task, split, index + 1, seed).question(index)
    answer, right = read(question)
    assert question.answers[0] == answer
    if task in ("action", "transition"):
        assert len(set(question.choices)) == 5
        assert [choice for choice in question.choices if choice in right] == [answer]
        assert question.label == question.choices.index(answer)
    else:
        assert question.choices == ()
        assert question.label is None
    assert len(question.answers) == (10 if task == "image" else 1)
    assert question.answers.count(answer) >= len(question.answers) - 2
    assert len({item.cell for item in question.scene.objects}) == len(question.scene.objects)


def test_the_reader_finds_what_it_should() -> None:
    left, right = (
        GridObject("small", colour, shape, (1, column), 0.0, 0.0, 0.1)
        for colour, shape, column in (("red", "cross", 0), ("white", "star", 1))
    )
    assert find((left, right), "the thing left of the white star") == left
    assert find((left, right), "the cross") == left
    assert is_true("is the cross left of the star?", (left, right))
    assert not is_true("is the thing left of the star white?", (left, right))
    with pytest.raises(AssertionError):
        find((left, left), "the cross")


def test_the_wrong_choices_are_what_other_things_do() -> None:
    """As many as there are other things."""
    for task in ("action", "transition"):
        for index in range(100):
            question = QuestionWorld(task, clips=100).question(index)
            done = {ACTIONS[action].does for item in question.scene.objects for action in item.action_names}
            assert len(done & set(question.choices)) == min(5, len(question.scene.objects))


def test_what_is_not_so_is_so_of_another_thing() -> None:
    """Who only listens for the words among what is seen says yes to everything."""
    seen = Counter[str]()
    for index in range(400):
        question = QuestionWorld("yesno", clips=400).question(index)
        objects = question.scene.objects
        if question.answers == ("no",) and question.kind in ("does", "is", "exists"):
            *_, last = question.text.removesuffix("?").split(" ")
            if question.kind == "does":
                action = next(name for do, name in DO.items() if question.text.endswith(f" {do}?"))
                assert any(action in item.action_names for item in objects)
            else:
                assert any(last in (item.colour, item.shape) for item in objects)
            if question.kind == "exists":
                assert any(item.colour == question.text.split()[-2] for item in objects)
            seen[question.kind] += 1
    assert min(seen.values()) > 10
    assert len(seen) == 3


@pytest.mark.parametrize("task", ["frame", "action", "transition"])
def test_there_may_be_fewer_things_to_begin_with(task: str) -> None:
    world = QuestionWorld(task, clips=120, fewest_things=1)
    numbers = [len(world.question(index).scene.objects) for index in range(120)]
    most = max(len(QuestionWorld(task, clips=60).question(index).scene.objects) for index in range(60))
    assert set(numbers) == set(range(1, most + 1))
    alone = [world.question(index) for index in range(120) if numbers[index] == 1]
    for question in alone:  # of one thing alone whatever is asked is about it
        (only,) = question.scene.objects
        told = (*only.combination, only.size, PLACES[CELLS.index(only.cell)])
        does = {ACTIONS[name].does for name in only.action_names}
        answer = question.answers[0] if task == "frame" else question.choices[question.label]  # type: ignore[index]
        assert answer in told or answer in does, (question.text, answer, told, does)


@pytest.mark.parametrize("task", ["yesno", "image"])
def test_of_fewer_things_the_answer_is_as_open_and_true(task: str) -> None:
    world = QuestionWorld(task, clips=600, fewest_things=1)
    asked = [question for question in map(world.question, range(600)) if question.answers[0] in ("yes", "no")]
    numbers = Counter(len(question.scene.objects) for question in asked)
    assert set(numbers) == set(range(1, 7))
    assert 0.4 < sum(question.answers[0] == "yes" for question in asked) / len(asked) < 0.6
    kinds = Counter[str]()
    for question in asked:
        if len(question.scene.objects) > 1:
            continue
        (only,) = question.scene.objects
        shown = {only.colour, only.shape, *(ACTIONS[name].do for name in only.action_names)}
        *_, before, last = question.text.rstrip("?").split()
        if question.text.startswith("is there"):
            true, kind = {before, last} <= shown, "exists"
        elif question.text.startswith("does"):
            true, kind = any(question.text.endswith(f" {do}?") for do in shown), "does"
        else:
            true, kind = last in shown, "is"
        kinds[kind] += 1
        assert question.answers[0] == ("yes" if true else "no"), question.text
    assert set(kinds) == ({"exists", "is", "does"} if task == "yesno" else {"exists", "is"})


def test_several_questions_about_one_clip_are_different_and_true() -> None:
    one, world = QuestionWorld("frame", clips=4), QuestionWorld("frame", clips=24, questions_per_clip=6)
    kinds = Counter[str]()
    for start in range(0, 24, 6):
        asked = [world.question(index) for index in range(start, start + 6)]
        assert len({question.text for question in asked}) == 6
        assert {question.scene.key for question in asked} == {asked[0].scene.key}
        assert len({world.record(index).file_name for index in range(start, start + 6)}) == 1
        assert asked[0] == replace(one.question(start // 6))
        for question in asked:
            assert read(question) == (question.answers[0], [])
            kinds[question.kind] += 1
    assert len(kinds) == 4
    assert kinds["where"] > 2
    deep = QuestionWorld("frame", "test-productive", clips=6, questions_per_clip=3)
    assert all(deep.question(index).depth > 1 for index in range(6))
    held_out = QuestionWorld("frame", "test-systematic", clips=6, questions_per_clip=3)
    assert all(read(held_out.question(index))[0] == held_out.question(index).answers[0] for index in range(6))


def test_things_of_a_frame_differ_and_as_many_are_small_as_large() -> None:
    large = []
    for index in range(60):
        objects = QuestionWorld("frame", clips=60).question(index).scene.objects
        assert len({item.colour for item in objects}) == len({item.shape for item in objects}) == len(objects)
        sizes = Counter(item.size for item in objects)
        assert abs(sizes["small"] - sizes["large"]) == len(objects) % 2
        large += [item.radius > 0.1 for item in objects if item.size == "large"]
    assert all(large)


# Guessers that see the words alone


def words_of(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


def bag_of_words(pairs: list[tuple[str, str]]) -> Callable[[str], str]:
    """Naive Bayes."""
    counts = Counter(answer for _, answer in pairs)
    vocabulary = {word: place for place, word in enumerate(sorted({w for text, _ in pairs for w in words_of(text)}))}
    answers = {answer: place for place, answer in enumerate(counts)}
    has = np.full((len(answers), len(vocabulary)), 0.5)
    for text, answer in pairs:
        has[answers[answer], [vocabulary[word] for word in words_of(text)]] += 1
    share = has / (np.array(list(counts.values()))[:, None] + 1)
    start = np.log(1 - share).sum(1) + np.log(list(counts.values()))
    odds = np.log(share / (1 - share))

    def guess(text: str) -> str:
        known = [vocabulary[word] for word in words_of(text) if word in vocabulary]
        return list(answers)[int((start + odds[:, known].sum(1)).argmax())]

    return guess


def guessers(pairs: list[tuple[str, str]]) -> list[Callable[[str], str]]:
    same: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in pairs:
        same[text][answer] += 1
    majority = Counter(answer for _, answer in pairs).most_common(1)[0][0]
    words = bag_of_words(pairs)
    return [
        lambda text: majority,
        words,
        lambda text: same[text].most_common(1)[0][0] if text in same else words(text),
    ]


BOUNDS = {"frame": 23, "count": 35, "yesno": 57, "image": 36, "pairs": 58, "long": 32}
"""Per cent; chance at knowing the form of the question alone: 16, 28, 50, 30, 50, 24."""


@pytest.mark.parametrize("task", BOUNDS)
def test_who_sees_the_words_alone_gets_little(task: str) -> None:
    world = open_world(task, clips=2000)
    records = [world.record(index) for index in range(len(world))]
    pairs = [
        (record.texts[0], str(record.label)) if task == "pairs" else (record.question or "", record.answers[0])
        for record in records
    ]
    known, asked = pairs[:1300], pairs[1300:]
    for guess in guessers(known):
        assert 100 * np.mean([guess(text) == answer for text, answer in asked]) < BOUNDS[task]


@pytest.mark.parametrize("task", ["action", "transition"])
def test_who_sees_question_and_choices_alone_gets_little(task: str) -> None:
    """Of five choices 20 %: by their places, by their words, by both their words and the question's."""
    world = QuestionWorld(task, clips=2000)
    records = [world.record(index) for index in range(len(world))]
    known, asked = records[:1300], records[1300:]
    shown, right = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    places = Counter(record.label for record in known)
    for record in known:
        for place, choice in enumerate(record.choices):
            for word in {"", *words_of(record.question or "")}:
                shown[choice, word] += 1
                right[choice, word] += place == record.label

    def score(record: Record, choice: str, all_words: bool) -> float:
        share = (right[choice, ""] + 1) / (shown[choice, ""] + 5)
        words = words_of(record.question or "") if all_words else ()
        return float(
            np.log(share) + sum(np.log((right[choice, w] + 2 * share) / (shown[choice, w] + 2) / share) for w in words)
        )

    def best(record: Record, all_words: bool) -> int:
        return int(np.argmax([score(record, choice, all_words) for choice in record.choices]))

    assert np.mean([record.label == places.most_common(1)[0][0] for record in asked]) < 0.25
    assert np.mean([record.label == best(record, False) for record in asked]) < 0.25
    assert np.mean([record.label == best(record, True) for record in asked]) < 0.26


# The splits


@pytest.mark.parametrize("task", [*QUESTIONS, "pairs", "long"])
def test_no_stage_is_in_two_of_training_validation_and_test(task: str) -> None:
    keys: dict[str, set[str]] = defaultdict(set)
    for seed in (0, 1):
        for split in splits_of(task):
            for index in range(100 if split == "train" else 25):
                keys[split.partition("-")[0]].update(scene.key for scene in stages(task, split, index, seed))
    assert len(keys) == len(SPLITS)
    assert all(not keys[one] & keys[other] for one in keys for other in keys if one != other)


def stages(task: str, split: str, index: int, seed: int = 0) -> list[GridScene]:
    world = open_world(task, split, clips=1000, seed=seed)
    if isinstance(world, PairWorld):
        return [world.pair(index).left, world.pair(index).right]
    assert isinstance(world, QuestionWorld | LongWorld)
    return [world.clip(index).scene if isinstance(world, LongWorld) else world.question(index).scene]


@pytest.mark.parametrize("task", [*QUESTIONS, "pairs", "long"])
def test_combinations_held_out_are_shown_and_asked_in_the_systematic_split_alone(task: str) -> None:
    named = [" ".join(combination) for combination in HELD_OUT]
    for split in splits_of(task):
        world = open_world(task, split, clips=100 if split == "train" else 30)
        for index in range(len(world)):
            record = world.record(index)
            text = " ".join((record.question or "", *record.texts))
            shown = {(item.colour, item.shape) for scene in stages(task, split, index) for item in scene.objects}
            asks = any(re.search(rf"\b{name}(s|es)?\b", text) for name in named)
            if split == "test-systematic":
                assert asks or not shown <= set(SEEN)
            else:
                assert not asks
                assert shown <= set(SEEN)


def others(question: Question) -> int:
    """How many things there are that the answer does not count."""
    counted = question.text.startswith("how many") and "how many times" not in question.text
    return len(question.scene.objects) - (int(question.answers[0]) if counted else 1)


@pytest.mark.parametrize("task", QUESTIONS)
def test_the_distractor_split_has_more_things_about_than_training(task: str) -> None:
    counts = {
        split: [(q.text.startswith("how many") and "times" not in q.text, others(q)) for q in questions(task, split)]
        for split in ("train", "test", "test-distractor")
    }
    for counted in {form for form, _ in counts["train"]}:
        usual = max(n for split in ("train", "test") for form, n in counts[split] if form == counted)
        assert min(n for form, n in counts["test-distractor"] if form == counted) > usual


def questions(task: str, split: str) -> list[Question]:
    world = QuestionWorld(task, split, clips=100 if split == "train" else 40)
    return [world.question(index) for index in range(len(world))]


@pytest.mark.parametrize("task", QUESTIONS)
def test_the_productive_split_asks_deeper_than_training(task: str) -> None:
    steps = re.compile(rf"the thing (?:{RELATION}) (?=the)")
    depths = {split: {(len(steps.findall(q.text)), q.depth) for q in questions(task, split)} for split in TASK_SPLITS}
    assert depths["test-productive"] == {(2, 2), (3, 3)}
    assert all(depths[split] == {(0, 0), (1, 1)} for split in TASK_SPLITS if split != "test-productive")
    things = {split: {len(q.scene.objects) for q in questions(task, split)} for split in ("train", "test-productive")}
    assert max(things["test-productive"]) <= max(things["train"])


def test_forms_are_as_frequent_in_every_split() -> None:
    for split in ("validation", *GENERALISATION[:2]):
        kinds = Counter(question.kind for question in questions("yesno", split))
        assert set(kinds) == {"does", "exists", "is", "where"}
        assert 7 <= kinds["does"] <= 26


# What is shown


def trajectory(item: GridObject, question: Question, moments: int = 160) -> dict[str, npt.NDArray[np.float64]]:
    """Area and place of the thing alone, as the pixels show it."""
    times = (np.arange(moments) + 0.5) / moments
    frames = replace(question.scene, objects=(item,)).render(times, 64).astype(int)
    mask = np.abs(frames - COLOURS[item.colour]).max(-1) < 40
    area = mask.sum((1, 2)).astype(float)
    rows, columns = np.arange(64)[:, None], np.arange(64)
    places = ((mask * at).sum((1, 2)) / np.maximum(area, 1) for at in (rows, columns))
    y, x = places
    return {"area": area, "x": x, "y": y}


def times_up(values: npt.NDArray[np.float64], rest: float, reached: float) -> int:
    """How often they rise from near `rest` to near `reached`."""
    up, count = False, 0
    for share in (values - rest) / (reached - rest):
        count += share > 0.7 and not up
        up = share > 0.7 or (up and share > 0.3)
    return count


def test_a_thing_does_as_many_times_what_the_answer_says() -> None:
    signal = {"blink": ("area", -1), "swell": ("area", 1), "jump": ("y", -1), "dip": ("y", 1), "shake": ("x", 1)}
    seen = set()
    world = QuestionWorld("count", clips=100)
    for index in range(len(world)):
        question = world.question(index)
        match = re.fullmatch(rf"how many times does ({REFERENCE}) ({'|'.join(signal)})\?", question.text)
        if match is None:
            continue
        item = find(question.scene.objects, match[1])
        name, sign = signal[match[2]]
        if item.colour in ("white", "purple") or item.shape == "ring":  # hard to tell from what is behind
            continue
        values = sign * trajectory(item, question)[name]
        rest, reached = values[0], values.max()
        assert times_up(values, rest, reached) == int(question.answers[0])
        seen.add(match[2])
    assert seen == set(signal)


def test_things_stay_in_the_picture_and_in_their_cells() -> None:
    for index in range(30):
        for task in ("action", "transition", "count", "image"):
            for item in QuestionWorld(task, "test-distractor", 30).question(index).scene.objects:
                pose = item.pose(np.linspace(0, 1, 101))
                for centre, place in ((pose.x, item.cell[1]), (pose.y, item.cell[0])):
                    assert np.all(np.abs(centre - (0.5 + 0.32 * (place - 1))) < 0.16)
                    assert centre.min() > 0.05
                    assert centre.max() < 0.95


def test_a_frame_is_the_same_whichever_others_are_asked_for() -> None:
    scene = QuestionWorld("action", clips=1).question(0).scene
    times = np.array([0.1, 0.5, 0.9])
    together = scene.render(times, 48)
    for place in range(3):
        assert np.array_equal(together[place], scene.render(times[place : place + 1], 48)[0])
    assert np.any(together[0] != together[1])


# The collection


@pytest.mark.parametrize("task", QUESTIONS)
def test_an_example_is_decided_by_seed_split_and_index(task: str) -> None:
    world, larger, other = QuestionWorld(task, clips=5), QuestionWorld(task, clips=50), QuestionWorld(task, seed=1)
    for index in range(5):
        assert world.record(index) == larger.record(index)
        assert np.array_equal(world.frames(index), larger.frames(index))
        assert world.question(index) != other.question(index)
    record = world.record(0)
    assert record.question
    assert record.example_id == f"{task}-train-0"
    frames = world.frames(0, 4)
    assert frames.shape == ((1 if task == "image" else 4), 64, 64, 3)
    if task != "image":
        assert np.any(world.frames(0, 4, np.random.default_rng(0)) != frames)
    with pytest.raises(IndexError):
        world.record(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuestionWorld("poem"), "task='poem': choose one of action, transition"),
        (
            lambda: QuestionWorld("frame", "test-hard"),
            "split='test-hard': choose one of train, validation, test, test-d",
        ),
        (lambda: QuestionWorld("frame", clips=0), "clips=0: need at least 1"),
        (lambda: QuestionWorld("frame", seed=-1), "seed=-1: need at least 0"),
        (lambda: QuestionWorld("frame", size=8), "size=8: need at least 16"),
        (lambda: QuestionWorld("frame", num_frames=0), "num_frames=0: need at least 1"),
        (lambda: QuestionWorld("frame").frames(0, 0), "num_frames=0: need at least 1"),
        (lambda: QuestionWorld("frame", questions_per_clip=21), "questions_per_clip=21: of frame need 1 to 20"),
        (lambda: QuestionWorld("count", questions_per_clip=2), "questions_per_clip=2: of count need 1 to 1"),
        (lambda: QuestionWorld("frame", fewest_things=4), "fewest_things=4: need 1 to 3"),
        (
            lambda: open_world("captions", fewest_things=1),
            "fewest_things=1: is of action, transition, frame, count, yesno, image; leave it out of",
        ),
        (
            lambda: LongWorld("test-productive"),
            "split='test-productive': choose one of train, validation, test, test-d",
        ),
        (lambda: LongWorld(seconds=5), "seconds=5: a long clip lasts 20 seconds to a day"),
        (lambda: PairWorld("dev"), "split='dev': choose one of"),
        (lambda: open_world("poem"), "task=poem: choose from captions, action"),
    ],
)
def test_a_world_that_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(message)):
        make()
