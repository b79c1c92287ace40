"""Music whose notes are known: random tracks of several timbres, made of their harmonics, in a room, with noise.

Shapes: T samples, I instruments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Note:
    """A pitch (MIDI number) of an instrument (its number), from `start` to `end` in seconds."""

    instrument: int
    pitch: int
    start: float
    end: float
    loudness: float = 1.0


@dataclass(frozen=True)
class Timbre:
    """How loud each harmonic is, how quickly a note comes (seconds) and how quickly it goes by itself (0: it stays)."""

    harmonics: tuple[float, ...]
    attack: float
    decay: float
    vibrato: float = 0.0  # share of the frequency


TIMBRES: dict[str, Timbre] = {
    "plucked": Timbre((1.0, 0.6, 0.45, 0.3, 0.2, 0.12, 0.08), 0.004, 4.0),
    "reed": Timbre((0.7, 0.05, 0.8, 0.05, 0.55, 0.05, 0.3), 0.03, 0.0, 0.004),
    "flute": Timbre((1.0, 0.25, 0.06, 0.02), 0.05, 0.0, 0.006),
}
"""Each an instrument of its own in what is transcribed."""


def draw_score(
    rng: np.random.Generator, seconds: float, *, instruments: int = len(TIMBRES), lowest: int = 48, pitches: int = 36
) -> list[Note]:
    """One to all of the instruments, each with one note at a time or a chord of two, and rests."""
    notes: list[Note] = []
    playing = rng.permutation(instruments)[: int(rng.integers(1, instruments + 1))]
    for instrument in playing.tolist():
        time, pitch = float(rng.uniform(0.0, 0.3)), int(rng.integers(pitches))
        while time < seconds - 0.1:
            length = float(rng.uniform(0.15, 0.7))
            end = min(time + length, seconds)
            pitch = int(np.clip(pitch + rng.integers(-7, 8), 0, pitches - 1))
            chord = {pitch, min(pitch + int(rng.integers(3, 8)), pitches - 1)} if rng.random() < 0.25 else {pitch}
            loudness = float(rng.uniform(0.5, 1.0))
            notes += [Note(instrument, lowest + one, time, end, loudness) for one in sorted(chord)]
            time = end + float(rng.choice([0.02, 0.05, 0.3], p=[0.5, 0.3, 0.2]))
    return sorted(notes, key=lambda note: (note.start, note.instrument, note.pitch))


def render_score(
    notes: Sequence[Note],
    seconds: float,
    sample_rate: int,
    rng: np.random.Generator,
    *,
    timbres: Sequence[Timbre] = tuple(TIMBRES.values()),
) -> Samples:
    """`(T,)` from -1 to 1: every note from its harmonics, the echo of a room, and noise 20 to 40 dB below."""
    sound = np.zeros(int(seconds * sample_rate))
    for note in notes:
        played = _note(note, timbres[note.instrument], sample_rate, rng)
        first = int(note.start * sample_rate)
        played = played[: max(0, len(sound) - first)]
        sound[first : first + len(played)] += played
    sound = _in_a_room(sound, sample_rate, rng)
    level = float(np.sqrt(np.mean(sound**2))) or 1.0
    sound = sound + rng.standard_normal(len(sound)) * level * 10 ** (-rng.uniform(20, 40) / 20)
    return (0.9 * sound / max(1e-9, float(np.abs(sound).max()))).astype(np.float32)


def _note(note: Note, timbre: Timbre, sample_rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    release = 0.06
    times = np.arange(int((note.end - note.start + release) * sample_rate)) / sample_rate
    frequency = 440.0 * 2 ** ((note.pitch - 69) / 12)
    phase = 2 * np.pi * frequency * times
    phase += timbre.vibrato * frequency / 5.5 * np.sin(2 * np.pi * 5.5 * times + rng.uniform(0, 6.3))
    wave = np.zeros_like(times)
    for number, strength in enumerate(timbre.harmonics, 1):
        if number * frequency < 0.45 * sample_rate:
            wave += strength * rng.uniform(0.7, 1.3) * np.sin(number * phase + rng.uniform(0, 6.3))
    held = note.end - note.start
    envelope = np.minimum(1.0, times / timbre.attack) * np.exp(-timbre.decay * times)
    envelope *= np.clip(1 - (times - held) / release, 0.0, 1.0)
    return note.loudness * envelope * wave / sum(timbre.harmonics)


def _in_a_room(sound: npt.NDArray[np.float64], sample_rate: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """With the echo of noise that dies away in a tenth to half of a second."""
    seconds = float(rng.uniform(0.1, 0.5))
    times = np.arange(int(seconds * sample_rate)) / sample_rate
    echo = rng.standard_normal(len(times)) * np.exp(-6.9 * times / seconds) * rng.uniform(0.01, 0.04)
    echo[0] = 1.0
    size = 1 << (len(sound) + len(echo) - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)[: len(sound)]
