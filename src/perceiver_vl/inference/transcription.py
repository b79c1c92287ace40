"""Sound → notes, with a Perceiver TF: windows of a recording, rolls of onsets and frames, notes, and a MIDI file.

Shapes: S samples, T frames, I instruments, P pitches.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from perceiver_vl.data.synthetic.music import Note
from perceiver_vl.media.sound import decode_sound
from perceiver_vl.models.folder import model_type_of, weight_files
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription
from perceiver_vl.models.perceiver_tf.spectrum import spectrogram
from perceiver_vl.utils.console import quiet
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, Setting, UsageError, first_line
from perceiver_vl.utils.files import write_with

MIDI = (".mid", ".midi")
LIKELY = 0.4
"""How likely a note must be, unless said otherwise: notes are rare, and models say so."""
_PROGRAMS = {"plucked": 24, "reed": 71, "flute": 73, "notes": 0}  # General MIDI


@dataclass(frozen=True)
class Transcription:
    """The notes of a recording of so many seconds; instruments: what their numbers mean. lost: the file was damaged or
    cut short, and these are the seconds that could be heard.
    """

    notes: list[Note]
    seconds: float
    instruments: list[str]
    lost: bool = False


def load_transcriber(folder: str | Path) -> PerceiverTFForTranscription:
    """The model of a folder, in evaluation mode.

    Raises `UsageError` for a folder that holds no such model, or one without all its weights; `PerceiverVLError` if its
    files are damaged.
    """
    folder = Path(folder)
    _check_kind(folder)
    weight_files(folder)
    try:
        with quiet():
            model, loading = PerceiverTFForTranscription.from_pretrained(folder, output_loading_info=True)
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if "ignore_mismatched_sizes" in str(error):  # what transformers says of weights of other shapes
            raise UsageError(
                f"{folder}: weights of other shapes than its config.json says, name a folder of a Perceiver TF"
            ) from error
        raise PerceiverVLError(f"{folder}: cannot be loaded ({first_line(error)}), save the model again") from error
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"{folder}: without weights for transcription ({missing[0]} and {len(missing) - 1} more), name a folder of "
            "a Perceiver TF that was trained for it"
        )
    found: PerceiverTFForTranscription = model.eval()
    return found


def _check_kind(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"{folder}: no model in it (no config.json), name a folder of a Perceiver TF")
    kind = model_type_of(config)
    if kind != PerceiverTFConfig.model_type:
        other = f"a model of kind {kind}" if kind else "no Perceiver TF, and its config.json does not say what it is"
        raise UsageError(f"{folder}: {other}, name a folder of a Perceiver TF")


def transcribe_file(
    model: PerceiverTFForTranscription, path: str | Path, *, threshold: float = LIKELY
) -> Transcription:
    """Of a file with sound. Raises `MediaError` for one that cannot be read, or is too short; else as `transcribe`."""
    _check_threshold(threshold)
    sound = decode_sound(path, model.config.sample_rate)
    if problem := _too_short(len(sound.samples), model.config):
        raise MediaError(path, problem)
    return replace(transcribe(model, sound.samples, threshold=threshold), lost=sound.lost)


def transcribe(
    model: PerceiverTFForTranscription, samples: npt.NDArray[np.float32], *, threshold: float = LIKELY
) -> Transcription:
    """Of a recording `(S,)` at the model's rate, of any length from one frame on.

    Raises `UsageError` for a shorter one and a threshold that is no share, `PerceiverVLError` where the model's answers
    are not finite numbers.
    """
    _check_threshold(threshold)
    config = model.config
    if problem := _too_short(len(samples), config):
        raise UsageError(f"samples: {problem}")
    frames = spectrogram(torch.from_numpy(samples)[None], config)
    onsets, there = rolls(model, frames, config.max_frames)
    if not (onsets.isfinite().all() and there.isfinite().all()):
        raise PerceiverVLError("the model's answers are not finite numbers: train it again")
    notes = notes_of(onsets[0], there[0], config.frames_per_second, config.lowest_pitch, threshold=threshold)
    return Transcription(notes, len(samples) / config.sample_rate, list(config.instruments))


def _check_threshold(threshold: float) -> None:
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"threshold={threshold}: a probability, between 0 and 1")


def _too_short(samples: int, config: PerceiverTFConfig) -> str | None:
    """What is wrong with a recording of less than a frame; None of a longer one."""
    if samples >= config.hop_length:
        return None
    has, needs = (1000 * count / config.sample_rate for count in (samples, config.hop_length))
    return f"{has:.1f} ms of sound, need at least {needs:.1f} ms, a frame of the model"


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
    onsets: Tensor, frames: Tensor, frames_per_second: float, lowest_pitch: int, *, threshold: float = LIKELY
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


def check_midi(out: Path, sound: Path, overwrite: bool = False) -> None:
    """Before any work: whether the notes of `sound` may be written to `out`.

    Raises `UsageError` for the recording itself, a name that is not of a MIDI file, and without `overwrite` a file that
    is there.
    """
    if out.suffix.lower() not in MIDI:
        named = out.with_name(f"{out.stem or 'notes'}{MIDI[0]}")
        raise UsageError(f"out={out}: not the name of a MIDI file, give one, as in ", Setting("out", str(named)))
    if out.resolve() == sound.resolve() or (out.exists() and sound.exists() and out.samefile(sound)):
        raise UsageError(f"out={out}: is the recording itself, give another name")
    if out.exists() and not overwrite:
        raise UsageError(
            f"out={out}: is there already, give another name, or replace it with ", Setting("overwrite", True)
        )


def write_midi(transcription: Transcription, path: str | Path) -> None:
    """A track an instrument, 480 ticks a beat, 120 beats a minute; whole, or not at all. What is there is replaced."""
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
    write_with(Path(path), lambda beside: file.save(str(beside)))
