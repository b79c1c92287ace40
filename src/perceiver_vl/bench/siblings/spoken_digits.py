"""What Dynamic Latent Access is for (Tsiamas et al. 2023): one speech model that serves with all of its latents, or
with a quarter of them, if it was trained so.

What is heard are made digits: vowels that glide into each other, said by voices of any pitch and size in noise. A
model writes the digits of an utterance in their order. Beside S2T Perceivers there is the paper's baseline, a
transformer of the same width over frames that convolutions have made fewer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.log_mel import mel_power
from perceiver_vl.layers.token_selection import drawn_latents
from perceiver_vl.models.block_flops import block_flops
from perceiver_vl.models.s2t_perceiver import S2TPerceiverConfig, S2TPerceiverForConditionalGeneration
from perceiver_vl.models.s2t_perceiver.flops import encoder_flops
from perceiver_vl.models.s2t_perceiver.inputs import InputArray
from perceiver_vl.utils.console import ProgressBars

BATCH = 32
RATE, SECONDS, HOP, WINDOW, MELS = 8000, 1.8, 160, 256, 40
DIGITS = ("ia", "ai", "ue", "eu", "oi", "ao", "au", "ei", "ou", "ea")
_VOWELS = {"i": (270, 2290), "a": (730, 1090), "u": (300, 870), "e": (530, 1840), "o": (570, 840)}  # Peterson, Barney
_FIRST = 3  # words before the digits: begin, padding, end
LATENTS, FEW = 64, 16
_TRAIN, _TEST = range(2)  # streams of chance


@dataclass(frozen=True)
class Utterances:
    """`features (U,T,F)`: logarithms of filter banks, of mean 0 and variance 1; `labels (U,L)` int64: digits and the
    end, -100 behind it.
    """

    features: Tensor
    labels: Tensor


def say(digits: list[int], rng: np.random.Generator) -> np.ndarray:
    """`SECONDS` of sound: harmonics of a pitch, loud near two formants that glide, and noise."""
    time = np.arange(round(RATE * SECONDS)) / RATE
    pitch, size, formants = rng.uniform(90, 250), rng.uniform(0.85, 1.2), np.full((2, len(time)), 1000.0)
    loudness, start = np.zeros(len(time)), rng.uniform(0.0, 0.08)
    for digit in digits:
        length = rng.uniform(0.14, 0.22)
        inside = (time >= start) & (time < start + length)
        share = (time[inside] - start) / length
        first, second = (np.array(_VOWELS[vowel], dtype=float) for vowel in DIGITS[digit])
        glide = 1 / (1 + np.exp(-(share - 0.5) / 0.12))
        formants[:, inside] = size * (first[:, None] + (second - first)[:, None] * glide)
        loudness[inside] = np.sin(np.pi * share) ** 0.5
        start += length + rng.uniform(0.0, 0.06)
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 3) * time))) / RATE
    numbers = np.arange(1, int(0.45 * RATE / pitch))[:, None]
    loud = sum(1 / (1 + ((numbers * pitch - formant) / 90) ** 2) for formant in formants)
    voice = loudness * (loud * np.sin(numbers * phase) / numbers**0.5).sum(0)
    return voice + rng.uniform(0.02, 0.15) * rng.standard_normal(len(time))


def filter_banks(sound: Tensor) -> Tensor:
    """`(…,samples)` → `(…,T,MELS)`, the logarithms, of mean 0 and variance 1 in each utterance."""
    logs = (mel_power(sound, RATE, WINDOW, HOP, MELS, 60.0) + 1e-6).log()
    return (logs - logs.mean((-1, -2), keepdim=True)) / logs.std((-1, -2), keepdim=True)


def draw_utterances(count: int, seed: int, stream: int = _TRAIN) -> Utterances:
    """Each of three to six digits; the same for the same arguments."""
    sounds, labels = [], torch.full((count, 7), -100)
    for number in range(count):
        rng = np.random.default_rng([seed, stream, number])
        digits = rng.integers(len(DIGITS), size=int(rng.integers(3, 7))).tolist()
        sounds.append(torch.from_numpy(say(digits, rng)).float())
        labels[number, : len(digits) + 1] = torch.tensor([digit + _FIRST for digit in digits] + [2])
    return Utterances(filter_banks(torch.stack(sounds)), labels)


class FrameTransformer(nn.Module):
    """The baseline's encoder: convolutions that leave a quarter of the frames, and a self-attention more than a
    Perceiver has, in the place of its cross-attention.
    """

    def __init__(self, config: S2TPerceiverConfig) -> None:
        super().__init__()
        self.input_array = InputArray(config)
        self.blocks = nn.Sequential(
            *(
                AttentionBlock(config.hidden_size, config.num_attention_heads, config.intermediate_size)
                for _ in range(config.num_hidden_layers + 1)
            )
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, features: Tensor, lengths: Tensor | None = None, **_: Any) -> ModelOutput:
        """`(B,T,F)`, all real → `last_hidden_state (B,T/4,D)`."""
        tokens, _ = self.input_array(features, torch.full((len(features),), features.shape[1]))
        return ModelOutput(last_hidden_state=self.norm(self.blocks(tokens)))


@dataclass(frozen=True)
class Heard:
    """A model at a number of latents (None: frames) in the test: the share of utterances that it writes as they are,
    digits that are wrong, missing or too many over those that were said, operations of encoding one (a multiply-add is
    two). chosen: diverse, random, or all.
    """

    model: str
    latents: int | None
    chosen: str
    right: float
    errors: float
    gflops: float


@dataclass(frozen=True)
class SpokenDigitsReport(BenchReport):
    """What each training came to. minutes: of each, by its model's name. guesser: the share of errors of one who says
    nothing but the most frequent digit, as often as there are digits.
    """

    heard: list[Heard]
    minutes: dict[str, float]
    guesser: float
    utterances: int
    tested: int
    steps: int

    def sections(self) -> list[Section]:
        """A row a model and a choice of its latents."""
        rows = [
            (
                one.model,
                "frames" if one.latents is None else f"{one.latents}, {one.chosen}",
                f"{100 * one.right:.1f}",
                f"{100 * one.errors:.1f}",
                f"{one.gflops:.3f}",
                f"{self.minutes[one.model]:.1f}",
            )
            for one in self.heard
        ]
        columns = ("trained with", "latents in use", "utterances right, %", "errors, %", "GFLOPs", "minutes")
        note = (
            f"Trained on {self.utterances} utterances, {self.steps} steps of {BATCH}, the same for all. "
            f"The most frequent digit every time: {100 * self.guesser:.1f} % errors."
        )
        return [Section(f"digits of {self.tested} utterances", columns, rows, (note,))]


def measure_spoken_digits(
    *, utterances: int = 4000, tested: int = 400, steps: int = 1000, seed: int = 0, progress: bool = False
) -> SpokenDigitsReport:
    """Train on all latents, on a quarter drawn for each example, and on frames, and test each."""
    with ProgressBars(progress) as stages:
        training, test = draw_utterances(utterances, seed), draw_utterances(tested, seed, _TEST)
        names = {
            f"all {LATENTS} latents": _config(),
            f"{FEW} drawn of {LATENTS}": _config(num_train_latents=FEW),
            "frames, no latents": _config(stride=2),
        }
        heard, minutes = [], {}
        for name, config in names.items():
            torch.manual_seed(seed)
            model = S2TPerceiverForConditionalGeneration(config)
            if config.stride > 1:
                model.model = FrameTransformer(config)  # type: ignore[assignment]
            minutes[name] = _learn(model, training, steps, seed, stages.stage(name, steps))
            heard += _test(name, model, test, seed)
    said = test.labels[test.labels >= _FIRST]
    guesser = 1 - said.bincount().max().item() / len(said)
    return SpokenDigitsReport(heard, minutes, guesser, utterances, tested, steps, runs=1, seed=seed)


def _config(**changes: Any) -> S2TPerceiverConfig:
    sizes: dict[str, Any] = {
        "num_features": MELS,
        "conv_channels": 64,
        "conv_output_size": 64,
        "num_latents": LATENTS,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_decoder_layers": 2,
        "vocab_size": _FIRST + len(DIGITS),
        "max_target_length": 16,
        "dropout": 0.0,
    }
    return S2TPerceiverConfig(**(sizes | changes))


def _learn(model: nn.Module, training: Utterances, steps: int, seed: int, advance: Callable[..., object]) -> float:
    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        some = torch.randint(len(training.labels), (BATCH,), generator=draw)
        return model(training.features[some], labels=training.labels[some]).loss

    return train(model, loss_of, steps, learning_rate=2e-3, weight_decay=0.01, warm_up=0.1, advance=advance).minutes


def _test(name: str, model: S2TPerceiverForConditionalGeneration, test: Utterances, seed: int) -> list[Heard]:
    config, frames = model.config, test.features.shape[1]
    uses: list[tuple[int | None, str, dict[str, Any]]] = [(config.num_latents, "all", {})]
    if isinstance(model.model, FrameTransformer):
        uses = [(None, "all", {})]
    else:
        choice = drawn_latents(config.num_latents, FEW, seed, len(test.labels))
        uses += [(2 * FEW, "diverse", {"num_latents": 2 * FEW}), (FEW, "diverse", {"num_latents": FEW})]
        uses += [(FEW, "random", {"choice": choice})]
    found = []
    for latents, chosen, given in uses:
        written: list[list[int]] = []
        for start in range(0, len(test.labels), BATCH):
            own = {key: value[start : start + BATCH] if key == "choice" else value for key, value in given.items()}
            words = model.transcribe(test.features[start : start + BATCH], max_length=10, **own)
            written += [[word for word in row if word >= _FIRST] for row in words.tolist()]
        said = [[word for word in row if word >= _FIRST] for row in test.labels.tolist()]
        wrong = [edit_distance(one, other) for one, other in zip(written, said, strict=True)]
        right = sum(number == 0 for number in wrong) / len(wrong)
        cost = _frames_flops(config, frames) if latents is None else encoder_flops(
            config, frames, latents, training=chosen == "random"
        )  # fmt: skip
        found.append(Heard(name, latents, chosen, right, sum(wrong) / sum(map(len, said)), cost / 1e9))
    return found


def edit_distance(first: list[int], second: list[int]) -> int:
    """How many words are put in, left out or replaced to make `second` of `first`."""
    row = list(range(len(second) + 1))
    for number, word in enumerate(first, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
    return row[-1]


def _frames_flops(config: S2TPerceiverConfig, frames: int) -> int:
    """Of a `FrameTransformer`."""
    total, inputs, before = 0, frames, config.num_features
    for size, width in zip(config.kernel_sizes, (config.conv_channels // 2, config.conv_output_size), strict=True):
        inputs = (inputs - 1) // config.stride + 1
        total += 2 * inputs * size * before * 2 * width
        before = width
    block = block_flops(inputs, inputs, config.hidden_size, intermediate_size=config.intermediate_size)
    return total + (config.num_hidden_layers + 1) * block
