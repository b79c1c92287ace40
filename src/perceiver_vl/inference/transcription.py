"""Sound → notes, with a Perceiver TF: windows of a recording, rolls of onsets and frames, notes, and a MIDI file.

Shapes: S samples, T frames, I instruments, P pitches.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from perceiver_vl.data.synthetic.music import Note
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription
from perceiver_vl.models.perceiver_tf.spectrum import spectrogram
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import UsageError, first_line

_PROGRAMS = {"plucked": 24, "reed": 71, "flute": 73, "notes": 0}  # General MIDI


@dataclass(frozen=True)
class Transcription:
    """The notes of a recording of so many seconds; instruments: what their numbers mean."""

    notes: list[Note]
    seconds: float
    instruments: list[str]


def load_transcriber(folder: str | Path) -> PerceiverTFForTranscription:
    """Raises `UsageError` for a folder that holds no such model."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no model in it ({first_line(error)}), name a folder of a Perceiver TF") from error
    if not isinstance(config, PerceiverTFConfig):
        raise UsageError(f"{folder}: a model of kind {config.model_type}, name a folder of a Perceiver TF")
    with quiet():
        return PerceiverTFForTranscription.from_pretrained(folder).eval()


def transcribe(
    model: PerceiverTFForTranscription, samples: npt.NDArray[np.float32], *, threshold: float = 0.5
) -> Transcription:
    """Of a recording of any length. Raises `UsageError` for a threshold that is no share."""
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"threshold={threshold}: a probability, between 0 and 1")
    config = model.config
    frames = spectrogram(torch.from_numpy(samples)[None], config)
    onsets, there = rolls(model, frames, config.max_frames)
    notes = notes_of(onsets[0], there[0], config.frames_per_second, config.lowest_pitch, threshold=threshold)
    return Transcription(notes, len(samples) / config.sample_rate, list(config.instruments))


@torch.inference_mode()
def rolls(model: nn.Module, frames: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Probabilities of onsets and of notes `(B,T,I,P)` for `frames (B,T,F)`. Longer ones are taken in windows that
    overlap by half, of which the middle counts.
    """
    length, hop = frames.shape[1], max(1, window // 2)
    starts = [*range(0, max(1, length - window), hop), *([length - window] if length > window else [])]
    found: list[Tensor] = []
    for start in starts:
        output = model(frames[:, start : start + window])
        own = torch.stack([output.onset_logits, output.frame_logits]).sigmoid()
        if not found:
            found = [own.new_zeros(2, len(frames), length, *own.shape[3:])]
        unsure = window // 4 if start else 0  # frames that another window knows more about
        found[0][:, :, start + unsure : start + window] = own[:, :, unsure:]
    onsets, there = found[0]
    return onsets, there


def notes_of(
    onsets: Tensor, frames: Tensor, frames_per_second: float, lowest_pitch: int, *, threshold: float = 0.5
) -> list[Note]:
    """Rolls `(T,I,P)` → notes: one begins where an onset is likely, and likelier than just before and after; it ends
    where it is no longer likely to be there, or begins again.
    """
    before = torch.cat([torch.zeros_like(onsets[:1]), onsets[:-1]])
    after = torch.cat([onsets[1:], torch.zeros_like(onsets[:1])])
    begins = (onsets >= threshold) & (onsets > before) & (onsets >= after)
    notes = []
    for place, instrument, pitch in begins.nonzero().tolist():
        gone = (frames[place + 1 :, instrument, pitch] < threshold) | begins[place + 1 :, instrument, pitch]
        length = int(gone.int().argmax()) if bool(gone.any()) else len(gone)
        end = (place + 1 + length) / frames_per_second
        notes.append(Note(instrument, lowest_pitch + pitch, place / frames_per_second, end))
    return notes


def write_midi(transcription: Transcription, path: str | Path) -> None:
    """A track an instrument, 480 ticks a beat, 120 beats a minute."""
    import mido

    ticks = 960  # a second
    file = mido.MidiFile(ticks_per_beat=480)
    for number, name in enumerate(transcription.instruments):
        track, channel = file.add_track(name), min(number + (number >= 9), 15)  # channel 9 is for drums
        track.append(mido.Message("program_change", program=_PROGRAMS.get(name, 0), channel=channel))
        events = []
        for note in transcription.notes:
            if note.instrument == number:
                velocity = round(40 + 60 * note.loudness)
                events.append((round(note.start * ticks), "note_on", note.pitch, velocity))
                events.append((round(note.end * ticks), "note_off", note.pitch, 0))
        now = 0
        for time, kind, pitch, velocity in sorted(events):
            track.append(mido.Message(kind, note=pitch, velocity=velocity, time=time - now, channel=channel))
            now = time
    file.save(str(path))
