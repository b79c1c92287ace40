"""What a Perceiver TF hears (Lu et al. 2023): the notes of several instruments at once, in music whose scores are
known, beside a convolutional recurrent net of as many weights.
"""

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.data.synthetic.music import TIMBRES, Note, Samples, draw_score, render_score
from perceiver_vl.inference.transcription import Transcription, notes_of, rolls, write_midi
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription
from perceiver_vl.models.perceiver_tf.blocks import ConvBlock
from perceiver_vl.models.perceiver_tf.convert import YOURMT3
from perceiver_vl.models.perceiver_tf.modeling import RARE, TranscriptionOutput, roll_loss
from perceiver_vl.models.perceiver_tf.spectrum import spectrogram
from perceiver_vl.utils.console import ProgressBars, quiet
from perceiver_vl.utils.errors import UsageError

BATCH = 8
SECONDS = 2.0
_TRAIN, _TEST = range(2)  # streams of chance
SMALL: dict[str, Any] = {
    "sample_rate": 8000,
    "fft_size": 2048,
    "hop_length": 256,
    "num_bins": 128,
    "bins_per_octave": 24,
    "lowest_pitch": 48,
    "num_pitches": 36,
    "conv_channels": 16,
    "num_conv_blocks": 2,
    "num_latents": 8,
    "hidden_size": 48,
    "num_blocks": 2,
    "num_local_layers": 1,
    "num_temporal_layers": 1,
    "num_attention_heads": 4,
    "num_cross_attention_heads": 4,
    "max_frames": 62,
    "instruments": list(TIMBRES),
    "dropout": 0.0,
    "positive_weight": 4.0,
}
"""Two seconds of 32 ms, bins of quarter tones over five octaves."""
WAYS: dict[str, dict[str, Any]] = {
    "added": {"read": "channels"},
    "frequencies": {},
    "positions": {"frequency_positions": True},
    "channels": dict(YOURMT3),
}
"""How latents read. frequencies: vectors of channels, added to the latents (the paper's reading); positions: these,
with vectors for the frequencies; channels: vectors of frequencies, in the place of the latents (YourMT3+); added: the
same, added to them.
"""


class RecurrentNet(nn.Module):
    """The same convolutions, then a recurrent net in both directions of time, as wide as its weights are many."""

    def __init__(self, config: PerceiverTFConfig, hidden: int) -> None:
        super().__init__()
        self.config = config
        widths = [1, *[config.conv_channels] * config.num_conv_blocks]
        self.front_end = nn.Sequential(*(ConvBlock(*pair, nn.ReLU()) for pair in pairwise(widths)))
        self.cell = nn.GRU(config.conv_channels * config.num_frequencies, hidden, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden, 2 * len(config.instruments) * config.num_pitches)
        nn.init.constant_(self.classifier.bias, RARE)

    def forward(self, frames: Tensor) -> TranscriptionOutput:
        """`(B,T,F)` → logits `(B,T,I,P)`."""
        features = self.front_end(frames[:, None]).movedim(1, -1).flatten(2)
        found = self.classifier(self.cell(features)[0]).unflatten(-1, (2, len(self.config.instruments), -1))
        return TranscriptionOutput(None, found[:, :, 0], found[:, :, 1])


@dataclass(frozen=True)
class Pieces:
    """`frames (N,T,F)`, rolls `(N,T,I,P)` of onsets and of what is there, and the scores."""

    frames: Tensor
    onsets: Tensor
    there: Tensor
    scores: list[list[Note]]


def draw_pieces(count: int, config: PerceiverTFConfig, seed: int, stream: int = _TRAIN) -> Pieces:
    """Of two seconds each; the same for the same arguments."""
    sounds, scores = [], []
    for number in range(count):
        sound, score = draw_piece(config, [seed, stream, number])
        sounds.append(torch.from_numpy(sound))
        scores.append(score)
    frames = spectrogram(torch.stack(sounds), config)
    labels = [roll_of(score, config, frames.shape[1]) for score in scores]
    onsets, there = (torch.stack(part) for part in zip(*labels, strict=True))
    return Pieces(frames, onsets, there, scores)


def draw_piece(config: PerceiverTFConfig, key: Sequence[int], seconds: float = SECONDS) -> tuple[Samples, list[Note]]:
    """Sound and score."""
    rng = np.random.default_rng(key)
    score = draw_score(rng, seconds, lowest=config.lowest_pitch, pitches=config.num_pitches)
    return render_score(score, seconds, config.sample_rate, rng), score


def roll_of(score: Sequence[Note], config: PerceiverTFConfig, frames: int) -> tuple[Tensor, Tensor]:
    """`(T,I,P)` of onsets, which last two frames, and of what is there, 0 or 1."""
    shape = frames, len(config.instruments), config.num_pitches
    onsets, there = torch.zeros(shape), torch.zeros(shape)
    for note in score:
        first = min(frames - 1, round(note.start * config.frames_per_second))
        last = max(first + 1, round(note.end * config.frames_per_second))
        pitch = note.pitch - config.lowest_pitch
        onsets[first : first + 2, note.instrument, pitch] = 1
        there[first:last, note.instrument, pitch] = 1
    return onsets, there


def onset_f1(found: Sequence[Note], wanted: Sequence[Note]) -> tuple[int, int, int]:
    """How many notes are found rightly (`mir_eval`: the same pitch, begun within 50 ms), how many are found, and how
    many there are; of one instrument.
    """
    import mir_eval.transcription as measure

    if not found or not wanted:
        return 0, len(found), len(wanted)
    intervals = [np.array([[one.start, max(one.end, one.start + 1e-3)] for one in some]) for some in (wanted, found)]
    pitches = [440.0 * 2 ** ((np.array([one.pitch for one in some]) - 69) / 12) for some in (wanted, found)]
    matched = measure.match_notes(intervals[0], pitches[0], intervals[1], pitches[1], offset_ratio=None)
    return len(matched), len(found), len(wanted)


@dataclass(frozen=True)
class Heard:
    """A model's onset F1, of each instrument and of all their notes together."""

    model: str
    f1: float
    by_instrument: dict[str, float]
    loss: float
    minutes: float
    parameters: int


@dataclass(frozen=True)
class NotesReport(BenchReport):
    """What each model heard. saved: the folder of the first one, if it was to be kept."""

    heard: list[Heard]
    steps: int
    pieces: int
    tested: int
    saved: str | None

    def sections(self) -> list[Section]:
        """A row a model."""
        rows = [
            (
                one.model,
                f"{100 * one.f1:.1f}",
                *(f"{100 * value:.1f}" for value in one.by_instrument.values()),
                f"{one.parameters / 1e3:.0f}",
                f"{one.minutes:.1f}",
            )
            for one in self.heard
        ]
        title = f"onset F1 of {self.tested} pieces, % (mir_eval, 50 ms)"
        columns = ("model", "all", *TIMBRES, "1,000 weights", "minutes")
        note = f"{self.steps} steps of {BATCH} of {self.pieces} pieces of {SECONDS:.0f} s, the same for all."
        return [Section(title, columns, rows, (note,))]


def measure_notes(
    *,
    pieces: int = 1000,
    tested: int = 100,
    steps: int = 1500,
    ways: Sequence[str] = ("added", "frequencies", "channels"),
    out: str | Path | None = None,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
) -> NotesReport:
    """Train a Perceiver TF in each of `ways` (`WAYS`), and a recurrent net. `out`: a new folder for the first, with a
    piece of ten seconds beside it, `example.wav`, and its score, `example-score.mid`.

    Raises `UsageError` for a way that there is not, or a folder that is not empty.
    """
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"ways={way}: unknown, choose from {', '.join(WAYS)}")
    folder = None if out is None else _new_folder(out)
    config = PerceiverTFConfig(**SMALL)
    with ProgressBars(progress) as stages:
        advance = stages.stage("drawing", 2)
        training, test = draw_pieces(pieces, config, seed), draw_pieces(tested, config, seed, _TEST)
        advance(2)
        builders: dict[str, Callable[[], nn.Module]] = {
            f"Perceiver TF, {way}": lambda way=way: PerceiverTFForTranscription(  # type: ignore[misc]
                PerceiverTFConfig(**SMALL, **WAYS[way])
            )
            for way in ways
        }
        heard: list[Heard] = []
        for name, build in builders.items():
            torch.manual_seed(seed)
            model = build()
            heard.append(
                _learn(name, model, config, training, test, steps, learning_rate, seed, stages.stage(name, steps))
            )
            if folder is not None and len(heard) == 1:
                assert isinstance(model, PerceiverTFForTranscription)
                with quiet():
                    model.save_pretrained(folder)
                write_example(folder, config, seed)
        torch.manual_seed(seed)
        net = recurrent_net(config, heard[0].parameters)
        name = "convolutions and GRU"
        heard.append(_learn(name, net, config, training, test, steps, learning_rate, seed, stages.stage(name, steps)))
    saved = None if folder is None else str(folder)
    return NotesReport(heard, steps, pieces, tested, saved, runs=1, seed=seed)


def _new_folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"out={folder}: is not empty, name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def recurrent_net(config: PerceiverTFConfig, parameters: int) -> RecurrentNet:
    """The widest with no more weights."""
    hidden = 4
    while _size(RecurrentNet(config, hidden + 4)) <= parameters:
        hidden += 4
    return RecurrentNet(config, hidden)


def _size(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _learn(
    name: str,
    model: nn.Module,
    config: PerceiverTFConfig,
    training: Pieces,
    test: Pieces,
    steps: int,
    learning_rate: float,
    seed: int,
    advance: Callable[..., object],
) -> Heard:
    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        some = torch.randint(len(training.frames), (BATCH,), generator=draw)
        output = model(training.frames[some])
        loss = roll_loss(
            (output.onset_logits, output.frame_logits),
            (training.onsets[some], training.there[some]),
            config.positive_weight,
        )
        assert loss is not None
        return loss

    trained = train(model, loss_of, steps, learning_rate=learning_rate, advance=advance)
    counts = {instrument: np.zeros(3, dtype=int) for instrument in config.instruments}
    for start in range(0, len(test.frames), BATCH):
        onsets, there = rolls(model, test.frames[start : start + BATCH], config.max_frames)
        for row, score in enumerate(test.scores[start : start + BATCH]):
            found = notes_of(onsets[row], there[row], config.frames_per_second, config.lowest_pitch)
            for number, instrument in enumerate(config.instruments):
                own = [[one for one in some if one.instrument == number] for some in (found, score)]
                counts[instrument] += np.array(onset_f1(*own))
    by_instrument = {instrument: _f1(*count) for instrument, count in counts.items()}
    total = _f1(*np.sum(list(counts.values()), axis=0))
    return Heard(name, total, by_instrument, trained.loss, trained.minutes, _size(model))


def _f1(right: int, found: int, wanted: int) -> float:
    return float(2 * right / max(1, found + wanted))


def write_example(folder: Path, config: PerceiverTFConfig, seed: int) -> None:
    """Ten seconds of music and its score."""
    sound, score = draw_piece(config, [seed, _TEST, 1_000_003], seconds=10.0)
    with wave.open(str(folder / "example.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(config.sample_rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    notes = [replace(note) for note in score]
    write_midi(Transcription(notes, 10.0, list(config.instruments)), folder / "example-score.mid")
