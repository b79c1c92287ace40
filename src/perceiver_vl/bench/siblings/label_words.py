"""What Uni-Perceiver is for (Zhu et al. 2022; Li et al. 2023): one model for every task, whose labels are texts, so
that a label needs no training to be an answer; and whether tasks disturb each other, with experts and without.

Pictures are of one to four things of the generated world in the quarters of a picture, answers are their words. The
combinations of colour and shape that the world keeps for its systematic test are never shown, nor told, in training.
"""

import time
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.data.synthetic.grid import HELD_OUT, SEEN
from perceiver_vl.data.synthetic.render import paint
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES, SceneObject, draw_background
from perceiver_vl.models.uni_perceiver import UniPerceiverConfig, UniPerceiverModel
from perceiver_vl.training.task_balance import TaskBalancedAdamW
from perceiver_vl.utils.console import ProgressBars

BATCH, SIZE, PATCH = 32, 32, 8
EXPERTS = 8
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("one", "two", "three", "four")
TASKS = {
    "names": "image_classification",
    "retrieval": "retrieval",
    "questions": "question_answering",
    "counting": "question_answering",
    "pairs": "question_answering",
    "captions": "captioning",
}
"""What is learned, and which of Uni-Perceiver's tasks it is. Pairs are statements about two pictures."""
_PAD, _BEGIN = 0, 1
_TRAIN, _TEST, _UNSEEN = range(3)  # streams of chance
_MOST = {"names": 1, "retrieval": 2, "questions": 3, "counting": 4, "pairs": 2, "captions": 1}  # things in a picture
Combination = tuple[str, str]


class Thing(NamedTuple):
    """A colour and a shape in a quarter of the picture."""

    colour: str
    shape: str
    quarter: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def _words() -> list[str]:
    asked = ["what", "colour", "shape", "is", "how", "many", "things", "are", "there", "?"]
    said = ["a", "at", "the", "and", *asked, "in", "both", "pictures", "yes", "no"]
    places = sorted({word for quarter in QUARTERS for word in quarter.split()})
    return list(dict.fromkeys([*said, *places, *COLOURS, *SHAPES, *NUMBERS]))


WORDS = {word: number + 2 for number, word in enumerate(_words())}


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Texts → `input_ids (B,L)`, `attention_mask (B,L)`."""
    rows = [[WORDS[word] for word in text.split()] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [_PAD] * (length - len(row)) for row in rows])
    return ids, (ids != _PAD).long()


@dataclass(frozen=True)
class Examples:
    """`pixels (B,3,32,32)`, of pairs `(B,2,3,32,32)`, texts that go in (questions) or are to be found, and which of the
    candidates is right.
    """

    pixels: Tensor
    texts: list[str]
    right: Tensor


NAMES = tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES))
_WORDS_ALONE = (*COLOURS, *SHAPES, *NUMBERS, "yes", "no")
ANSWERS = (*_WORDS_ALONE, *NAMES)
_SEEN_NAMES = [f"{colour} {shape}" for colour, shape in SEEN]
_SEEN_ANSWERS = [*_WORDS_ALONE, *_SEEN_NAMES]


def draw_examples(task: str, count: int, seed: int, stream: int = _TRAIN) -> Examples:
    """Of a task, the same for the same arguments; of stream 2 things are of the combinations that are never trained,
    and questions ask for these.
    """
    known: tuple[Combination, ...] = HELD_OUT if stream == _UNSEEN else SEEN
    pixels, texts, right = [], [], []
    for number in range(count):
        rng = np.random.default_rng([seed, stream, list(TASKS).index(task), number])
        things = _draw_things(rng, int(rng.integers(1, _MOST[task] + 1)), known)
        if task == "pairs":
            picture, text, answer = _pair(rng, things, known)
            texts.append(text)
            right.append(ANSWERS.index(answer))
        else:
            picture = _picture(rng, things)
            if TASKS[task] == "question_answering":
                text, answer = _question(rng, task, things, only_names=stream == _UNSEEN)
                texts.append(text)
                right.append(ANSWERS.index(answer))
            else:
                texts.append(things[0].name if task == "names" else _caption(things))
                right.append(NAMES.index(things[0].name) if task == "names" else number)
        pixels.append(picture)
    return Examples(torch.stack(pixels), texts, torch.tensor(right))


def _draw_things(rng: np.random.Generator, number: int, known: tuple[Combination, ...]) -> list[Thing]:
    """Of different colours and shapes, in different quarters."""
    places = rng.permutation(len(QUARTERS))[:number]
    chosen: list[Combination] = []
    while len(chosen) < number:
        one = known[int(rng.integers(len(known)))]
        if all(one[0] != other[0] and one[1] != other[1] for other in chosen):
            chosen.append(one)
    return [Thing(*one, QUARTERS[place]) for one, place in zip(chosen, places, strict=True)]


def _picture(rng: np.random.Generator, things: list[Thing]) -> Tensor:
    drawn = []
    for thing in things:
        x = 0.73 if "right" in thing.quarter else 0.27
        y = 0.73 if "bottom" in thing.quarter else 0.27
        x, y = (float(value + rng.uniform(-0.03, 0.03)) for value in (x, y))
        radius = float(rng.uniform(0.17, 0.21))
        drawn.append(SceneObject("large", thing.colour, thing.shape, "still", x, y, radius, 0.0, 0.0, 1))
    noise = int(rng.integers(2**31))
    frame = paint(draw_background(rng), drawn, [noise], np.zeros(1), SIZE)[0]
    return torch.from_numpy(frame).movedim(-1, 0) / 127.5 - 1


def _caption(things: list[Thing]) -> str:
    return " and ".join(f"a {thing.name} at the {thing.quarter}" for thing in things)


def _question(rng: np.random.Generator, task: str, things: list[Thing], only_names: bool) -> tuple[str, str]:
    if task == "counting":
        return "how many things are there ?", NUMBERS[len(things) - 1]
    one = things[int(rng.integers(len(things)))]
    asked = {
        f"what is at the {one.quarter} ?": one.name,
        f"what colour is the {one.shape} ?": one.colour,
        f"what shape is at the {one.quarter} ?": one.shape,
    }
    return list(asked.items())[0 if only_names else int(rng.integers(len(asked)))]


def _pair(rng: np.random.Generator, things: list[Thing], known: tuple[Combination, ...]) -> tuple[Tensor, str, str]:
    """Two pictures, a statement, and whether it is true: one thing of the first is in the second, too, or is not."""
    one, true = things[int(rng.integers(len(things)))], bool(rng.integers(2))
    others = _draw_things(rng, int(rng.integers(1, _MOST["pairs"] + 1)), known)
    while any(other.name == one.name for other in others):
        others = _draw_things(rng, len(others), known)
    if true:
        others[0] = others[0]._replace(colour=one.colour, shape=one.shape)
    pictures = [_picture(rng, things), _picture(rng, others)]
    if rng.integers(2):
        pictures.reverse()
    return torch.stack(pictures), f"there is a {one.name} in both pictures", "yes" if true else "no"


def build(num_experts: int, width: int) -> UniPerceiverModel:
    """A small one, with experts in every other layer or without."""
    return UniPerceiverModel(
        UniPerceiverConfig(
            vocab_size=len(WORDS) + 2,
            max_position_embeddings=24,
            begin_token_id=_BEGIN,
            image_size=SIZE,
            patch_size=PATCH,
            max_frames=2,
            hidden_size=width,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=2 * width,
            layer_scale=1.0,  # 1e-3 is for twelve layers and days
            drop_path=0.0,
            num_experts=num_experts,
            temperatures=["img_cls", "retrieve", "caption", "downstream"],
        )
    )


def candidates(model: UniPerceiverModel, task: str, texts: list[str]) -> Tensor:
    """Directions of texts as answers `(K,D)`: made once, they serve every input."""
    ids, mask = encode(texts)
    return model(ids, mask, task=TASKS[task], as_candidates=True).pooler_output


def loss_of(model: UniPerceiverModel, task: str, batch: Examples) -> Tensor:
    """Cross-entropy over the candidates, of retrieval in both directions, of captions word by word."""
    if task == "captions":
        logits, ids = _caption_logits(model, batch)
        return F.cross_entropy(logits.flatten(0, 1), (ids - 2).flatten(), ignore_index=_PAD - 2)
    if task == "retrieval":
        logits = _logits(model, task, batch, candidates(model, task, batch.texts))
        right = torch.arange(len(logits))
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    known = _SEEN_NAMES if task == "names" else _SEEN_ANSWERS
    every = NAMES if task == "names" else ANSWERS
    right = torch.tensor([known.index(every[place]) for place in batch.right.tolist()])
    return F.cross_entropy(_logits(model, task, batch, candidates(model, task, known)), right)


def _logits(model: UniPerceiverModel, task: str, batch: Examples, known: Tensor) -> Tensor:
    what = TASKS[task]
    text = encode(batch.texts) if what == "question_answering" else (None, None)
    return model.logits(model(*text, pixel_values=batch.pixels, task=what).pooler_output, known, what)


def _caption_logits(model: UniPerceiverModel, batch: Examples) -> tuple[Tensor, Tensor]:
    """Of each place the words before which it sees: of all words `(B,L,V)`; and which is there."""
    ids, mask = encode(batch.texts)
    places = model(ids, mask, batch.pixels, task="captioning").pooler_output
    return model.logits(places, candidates(model, "captions", list(WORDS)), "captioning"), ids


@torch.inference_mode()
def accuracy_of(model: UniPerceiverModel, task: str, test: Examples) -> float:
    """Right answers among all there are, those never trained too; of retrieval the first of 32 in both directions; of
    captions all words of one right, each told by those before it.
    """
    parts = [
        Examples(
            test.pixels[start : start + BATCH], test.texts[start : start + BATCH], test.right[start : start + BATCH]
        )
        for start in range(0, len(test.texts), BATCH)
    ]
    right: list[Tensor] = []
    known = None
    if task not in ("retrieval", "captions"):
        known = candidates(model, task, list(NAMES if task == "names" else ANSWERS))
    for part in parts:
        if known is not None:
            right.append(_logits(model, task, part, known).argmax(-1) == part.right)
        elif task == "captions":
            logits, ids = _caption_logits(model, part)
            right.append(((logits.argmax(-1) + 2 == ids) | (ids == _PAD)).all(-1))
        else:
            logits = _logits(model, task, part, candidates(model, task, part.texts))
            same = torch.tensor([[one == other for other in part.texts] for one in part.texts])
            for found in (logits.argmax(1), logits.argmax(0)):
                right.append(same[torch.arange(len(same)), found])
    return torch.cat(right).float().mean().item()


@dataclass(frozen=True)
class Learned:
    """How tasks came out of one way to train: accuracies by task, on what was shown and on combinations that never were
    (`None`: not asked).
    """

    way: str
    seen: dict[str, float]
    unseen: dict[str, float]
    minutes: float
    parameters: int


@dataclass(frozen=True)
class LabelWordsReport(BenchReport):
    """What each way of training came to; guessers: the share that the most frequent answer gets."""

    learned: list[Learned]
    guessers: dict[str, float]
    steps: int
    tested: int

    def sections(self) -> list[Section]:
        """A row a way, the tasks as they were shown, then the combinations that never were."""
        rows = [
            (
                one.way,
                *(f"{100 * one.seen[task]:.1f}" for task in TASKS),
                *(f"{100 * one.unseen[task]:.1f}" for task in ("names", "questions")),
                f"{one.minutes:.1f}",
            )
            for one in self.learned
        ]
        known = [self.guessers[task] for task in TASKS]
        chance = (1 / len(NAMES), 1 / len(ANSWERS))
        rows.append(("a guesser", *(f"{100 * value:.1f}" for value in (*known, *chance)), "–"))
        title = f"% right of {self.tested}"
        columns = ("trained", *TASKS, "new names", "new answers", "minutes")
        notes = (
            f"{self.steps} steps of {BATCH} a task, in turns or alone.",
            f"New names and answers: {len(HELD_OUT)} of {len(NAMES)} combinations, never shown nor told, among all.",
        )
        return [Section(title, columns, rows, notes)]


def measure_label_words(
    *,
    steps: int = 400,
    tested: int = 512,
    width: int = 64,
    alone: bool = True,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
) -> LabelWordsReport:
    """Train one model for all tasks in turns: dense, with experts, and dense with gradients balanced; and (`alone`) one
    for each. All see the same examples of a task.
    """
    with ProgressBars(progress) as stages:
        advance = stages.stage("drawing", len(TASKS))
        training, tests, unseen = {}, {}, {}
        for task in TASKS:
            training[task] = draw_examples(task, min(steps * BATCH, 6400), seed)
            tests[task] = draw_examples(task, tested, seed, _TEST)
            unseen[task] = draw_examples(task, tested, seed, _UNSEEN)
            advance()

        def run(way: str, tasks: tuple[str, ...], num_experts: int, balanced: bool) -> Learned:
            torch.manual_seed(seed)
            model = build(num_experts, width)
            total = steps * len(tasks)
            tell = stages.stage(way, total)
            optimizer = None
            if balanced:
                shares = {task: 1 / len(tasks) for task in tasks}
                optimizer = TaskBalancedAdamW(model.parameters(), shares, lr=learning_rate)

            def loss_at(step: int) -> Tensor:
                task = tasks[step % len(tasks)]
                if optimizer is not None:
                    optimizer.task = task
                return loss_of(model, task, _batch(training[task], step // len(tasks), seed))

            start = time.monotonic()
            train(model, loss_at, total, learning_rate=learning_rate, optimizer=optimizer, advance=tell)
            minutes = (time.monotonic() - start) / 60
            seen, new = ({task: accuracy_of(model, task, some[task]) for task in tasks} for some in (tests, unseen))
            return Learned(way, seen, new, minutes, model.num_parameters())

        learned = []
        if alone:
            singles = [run(f"{task}, alone", (task,), 0, False) for task in TASKS]
            learned.append(_together("each alone", singles))
        together = tuple(TASKS)
        learned.append(run("all in turns", together, 0, False))
        learned.append(run("with experts", together, EXPERTS, False))
        learned.append(run("balanced", together, 0, True))
    most = {task: _share_of_most(tests[task].right) for task in ("names", "questions", "counting", "pairs")}
    guessers = most | {"retrieval": 1 / BATCH, "captions": 1 / (len(SEEN) * len(QUARTERS))}
    return LabelWordsReport(learned, guessers, steps, tested, runs=1, seed=seed)


def _together(way: str, singles: list[Learned]) -> Learned:
    seen = {task: value for one in singles for task, value in one.seen.items()}
    unseen = {task: value for one in singles for task, value in one.unseen.items()}
    return Learned(way, seen, unseen, sum(one.minutes for one in singles), singles[0].parameters * len(singles))


def _batch(examples: Examples, step: int, seed: int) -> Examples:
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    some = torch.randint(len(examples.texts), (BATCH,), generator=draw)
    return Examples(examples.pixels[some], [examples.texts[number] for number in some.tolist()], examples.right[some])


def _share_of_most(right: Tensor) -> float:
    return right.bincount().max().item() / len(right)
