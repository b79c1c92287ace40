"""What gCOG tells of a model (Ito et al. 2024): whether it answers with more distractors about than it has seen, of
combinations it has not seen, and longer instructions than it has seen.

The families of the paper, and Perceiver-VL in the same place, are trained on the same instances, drawn once.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.data.synthetic.gcog import GCOG, SPLITS, Batch, collate
from perceiver_vl.data.synthetic.gcog.tokens import CLASSES, INSTRUCTION_SIZE, STIMULUS_LENGTH, STIMULUS_SIZE
from perceiver_vl.data.synthetic.gcog.trees import SHAPES, by_level
from perceiver_vl.layers.positions import LearnedPositions
from perceiver_vl.models.gcog import GCOGConfig, GCOGForClassification
from perceiver_vl.models.gcog.token_encoder import ValueEmbedding
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery, query_decoder
from perceiver_vl.models.perceiver_vl.encoder import InputArray, PerceiverVLEncoder
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

BATCH = 32
CURVE = 8  # parts of a training, after each of which it is tested on the way
LONGEST = 16  # tokens of an instruction, the end included
VALUES = len(SHAPES) + 1  # that a number of a token may be
SEEN = "as trained"  # the test of new stimuli for instructions of the training's kind


class GCOGPerceiverVL(nn.Module):
    """Perceiver-VL's encoder and decoder: vision is the cells of the grid, text the tokens of the instruction."""

    def __init__(self, width: int, values: int, aggregation: str = "separate_plus") -> None:
        super().__init__()
        config = PerceiverVLConfig(
            hidden_size=width,
            num_attention_heads=4,
            num_blocks=2,
            self_attentions_per_block=2,
            intermediate_ratio=2,
            num_latents=16,
            layer_drop=0.0,
            modality_aggregation=aggregation,
        )
        self.config = config

        def embedding(size: int) -> nn.Module:
            return ValueEmbedding(size, values, width) if values else nn.Linear(size, width)

        self.rules, self.stimuli = embedding(INSTRUCTION_SIZE), embedding(STIMULUS_SIZE)
        self.places, self.cells = LearnedPositions(LONGEST, width), LearnedPositions(STIMULUS_LENGTH, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.encoder, self.decoder, self.query = PerceiverVLEncoder(config), query_decoder(config), ClassQuery(config)
        self.classifier = nn.Linear(width, CLASSES)
        for table in (self.encoder.latents, self.encoder.latent_positions, self.query.query):
            if isinstance(table, nn.Parameter):
                nn.init.normal_(table, std=0.02)

    def forward(self, rules: Tensor, stimuli: Tensor) -> Tensor:
        """`(B,R,8)`, `(B,101,3)` → log-probabilities `(B,138)`."""
        text = self.norms[0](self.rules(rules) + self.places(rules.shape[1]))
        vision = self.norms[1](self.stimuli(stimuli) + self.cells(stimuli.shape[1]))
        real = torch.ones(vision.shape[:2], dtype=torch.bool, device=vision.device)
        array = InputArray(vision, real, text, rules.any(-1))
        given = array.by_block(self.encoder.modalities, len(self.encoder.blocks))
        first = self.encoder.first_latents(self.config.num_latents).expand(len(text), -1, -1)
        latents = self.encoder(given, latents=first)
        answer = self.decoder(latents, self.query(len(text)))[:, 0]
        return F.log_softmax(self.classifier(answer), dim=-1)


def _family(width: int, values: int, **fields: Any) -> Callable[[], nn.Module]:
    config = {"hidden_size": width, "max_instruction_length": LONGEST, "token_values": values, "position_dropout": 0.0}
    return lambda: GCOGForClassification(GCOGConfig(**(config | fields)))


def models(width: int, values: int) -> dict[str, Callable[[], nn.Module]]:
    """Each by its name in the report."""
    heads = {"num_attention_heads": 4}
    return {
        "RNN": _family(2 * width, 0, architecture="rnn"),
        "GRU": _family(2 * width, 0, architecture="gru"),
        "encoder": _family(width, values, architecture="single_stream", **heads),
        "deep encoder": _family(width, values, architecture="single_stream", num_hidden_layers=3, **heads),
        "two encoders": _family(width, values, architecture="double_stream", **heads),
        "cross-attention": _family(width, values, architecture="cross_attention", **heads),
        "Perceiver-like": _family(width, values, architecture="perceiver", **heads),
        "Perceiver-like learned": _family(width, values, architecture="perceiver", learned_latents=True, **heads),
        "Perceiver-VL": lambda: GCOGPerceiverVL(width, values),
    }


@dataclass(frozen=True)
class Answered:
    """A model on one split: the share of right answers in each test, by its name; the loss of the training's end.
    curve: the share in the test of the training's kind, on the way, by steps.
    """

    model: str
    split: str
    accuracies: dict[str, float]
    curve: dict[int, float]
    loss: float
    minutes: float
    parameters: int


@dataclass(frozen=True)
class GCOGReport(BenchReport):
    """What each learned of each split. guesser: who knows the operators of an instruction, and nothing of the stimulus.
    drawing_minutes: of the instances, which all models share.
    """

    answered: list[Answered]
    guesser: dict[str, dict[str, float]]
    drawing_minutes: float
    steps: int
    per_operator: int
    tested: int
    width: int

    def sections(self) -> list[Section]:
        """A table a split."""
        found = []
        for split, guessed in self.guesser.items():
            tests = list(guessed)
            rows = [
                (
                    one.model,
                    *(f"{100 * one.accuracies[test]:.1f}" for test in tests),
                    f"{one.parameters / 1e3:.0f}",
                    f"{one.minutes:.1f}",
                )
                for one in self.answered
                if one.split == split
            ]
            rows.append(("who sees no stimulus", *(f"{100 * guessed[test]:.1f}" for test in tests), "–", "–"))
            notes = (f"{self.steps} steps of {BATCH}, width {self.width}, 8 × {self.per_operator} instructions.",)
            title = f"{split}: answers, % right of {self.tested}"
            found.append(Section(title, ("model", *tests, "1,000 weights", "minutes"), rows, notes))
            curves = [one for one in self.answered if one.split == split and one.curve]
            if curves:
                rows = [(one.model, *(f"{100 * share:.1f}" for share in one.curve.values())) for one in curves]
                title = f"{split}: answers as trained, % right on the way, after so many steps"
                found.append(Section(title, ("model", *map(str, curves[0].curve)), rows, ()))
        return found


def measure_gcog(
    splits: Sequence[str] = tuple(SPLITS),
    only: Sequence[str] = (),
    *,
    steps: int = 1200,
    per_operator: int = 5000,
    tested: int = 1024,
    width: int = 48,
    numbers: bool = False,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = False,
) -> GCOGReport:
    """Train every model, or those whose names are in `only`, on each of `splits`. `numbers`: tokens are numbers, as in
    the reference, which takes far longer to learn from than vectors of their own.

    Raises `UsageError` for a split or a model that there is not.
    """
    values = 0 if numbers else VALUES
    builders = models(width, values)
    for name in only:
        if name not in builders:
            raise UsageError(f"only={name}: unknown, choose from {', '.join(builders)}")
    for split in splits:
        if split not in SPLITS:
            raise UsageError(f"splits={split}: unknown, choose from {', '.join(SPLITS)}")
    answered, guesser, drawing = [], {}, 0.0
    with ProgressBars(progress) as stages:
        for split in splits:
            start = time.monotonic()
            advance = stages.stage(f"{split}, drawing", steps)
            batches, tests, operators = _draw(split, steps, per_operator, tested, seed, advance)
            guesser[split] = _guess(operators)
            drawing += (time.monotonic() - start) / 60
            for name in only or builders:
                torch.manual_seed(seed)
                model = builders[name]()
                advance = stages.stage(f"{split}, {name}", steps)
                answered.append(_learn(name, split, model, batches, tests, steps, learning_rate, advance))
    return GCOGReport(answered, guesser, drawing, steps, per_operator, tested, width, runs=1, seed=seed)


_Operators = dict[str, list[tuple[tuple[str, ...], int]]]


def _draw(
    split: str, steps: int, per_operator: int, tested: int, seed: int, advance: Callable[..., object]
) -> tuple[list[Batch], dict[str, Batch], _Operators]:
    """The batches of a training, and those of its tests; and of all of them, by name, operators and answers."""
    data = GCOG(split, "train", per_operator=per_operator, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    batches: list[Batch] = []
    operators: _Operators = {"train": []}
    for step in range(steps):
        some = [data.draw(number, step) for number in torch.randint(len(data), (BATCH,), generator=draw).tolist()]
        batches.append(collate(some))
        operators["train"] += [(_operators(one.tree), one.answer) for one in some]
        advance()
    tests: dict[str, Batch] = {}
    for part in SPLITS[split]:
        name = SEEN if part == "train" else part
        fresh = GCOG(split, part, per_operator=max(1, min(per_operator, tested // 4)), seed=seed + 1_000_003)
        chosen = torch.randperm(len(fresh), generator=draw)[:tested].tolist()
        some = [fresh.draw(number, 0) for number in itertools.islice(itertools.cycle(chosen), tested)]
        tests[name] = collate(some)
        operators[name] = [(_operators(one.tree), one.answer) for one in some]
    return batches, tests, operators


def _operators(tree: Any) -> tuple[str, ...]:
    return tuple("switch" if node is None else node.operator for node in by_level(tree))


def _guess(operators: _Operators) -> dict[str, float]:
    """The most frequent answer of the training to these operators, else to any, in each test."""
    counts: dict[tuple[str, ...], Counter[int]] = {}
    for some, answer in operators["train"]:
        counts.setdefault(some, Counter())[answer] += 1
    usual = Counter(answer for _, answer in operators["train"]).most_common(1)[0][0]
    best = {some: count.most_common(1)[0][0] for some, count in counts.items()}
    return {
        name: sum(best.get(some, usual) == answer for some, answer in rows) / len(rows)
        for name, rows in operators.items()
        if name != "train"
    }


def _learn(
    name: str,
    split: str,
    model: nn.Module,
    batches: list[Batch],
    tests: dict[str, Batch],
    steps: int,
    learning_rate: float,
    advance: Callable[..., object],
) -> Answered:
    curve: dict[int, float] = {}

    def loss_of(step: int) -> Tensor:
        if step and step % max(1, steps // CURVE) == 0:
            curve[step] = _accuracy(model.eval(), tests[SEEN])
            model.train()
        batch = batches[step]
        return F.nll_loss(_log_probabilities(model, batch.rules, batch.stimuli), batch.answers)

    trained = train(model, loss_of, steps, learning_rate=learning_rate, advance=advance)
    accuracies = {test: _accuracy(model, batch) for test, batch in tests.items()}
    parameters = sum(weight.numel() for weight in model.parameters())
    return Answered(name, split, accuracies, curve, trained.loss, trained.minutes, parameters)


@torch.no_grad()
def _accuracy(model: nn.Module, test: Batch) -> float:
    parts = zip(test.rules.split(BATCH), test.stimuli.split(BATCH), strict=True)
    found = torch.cat([_log_probabilities(model, *part).argmax(-1) for part in parts])
    return (found == test.answers).float().mean().item()


def _log_probabilities(model: nn.Module, rules: Tensor, stimuli: Tensor) -> Tensor:
    found = model(rules, stimuli)
    return found if isinstance(found, Tensor) else found.logits
