"""Sound to notes: windows, rolls, MIDI files, and what cannot be transcribed."""

import wave
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.bench.siblings.notes import SMALL, onset_f1, roll_of
from perceiver_vl.data.synthetic.music import Note, draw_score
from perceiver_vl.inference.transcription import (
    Transcription,
    check_midi,
    load_transcriber,
    notes_of,
    rolls,
    transcribe,
    transcribe_file,
    write_midi,
)
from perceiver_vl.media.sound import read_sound, write_wav
from perceiver_vl.models.gcog import GCOGConfig
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription
from perceiver_vl.models.perceiver_tf.modeling import TranscriptionOutput
from perceiver_vl.utils.errors import MediaError

CONFIG = PerceiverTFConfig(**SMALL)


class Echo(nn.Module):
    """Says what it was given: `(B,T,1)` → logits `(B,T,1,1)`."""

    def forward(self, frames: Tensor) -> TranscriptionOutput:
        return TranscriptionOutput(None, frames[..., None], -frames[..., None])


@pytest.mark.parametrize("length", [1, 8, 9, 12, 13, 40])
def test_windows_are_the_whole(length: int) -> None:
    frames = torch.randn(2, length, 1)
    onsets, there = rolls(Echo(), frames, 8)
    assert torch.allclose(onsets[..., 0], frames.sigmoid())
    assert torch.allclose(there[..., 0], (-frames).sigmoid())


def test_the_roll_of_a_score_is_the_score_again() -> None:
    for seed in range(5):
        score = draw_score(np.random.default_rng(seed), 2.0, lowest=CONFIG.lowest_pitch, pitches=CONFIG.num_pitches)
        onsets, there = roll_of(score, CONFIG, 62)
        found = notes_of(onsets, there, CONFIG.frames_per_second, CONFIG.lowest_pitch)
        for number in range(len(CONFIG.instruments)):
            own = [[note for note in some if note.instrument == number] for some in (found, score)]
            right, *counts = onset_f1(*own)
            assert [right, right] == counts


def test_a_note_begins_at_its_peak_and_ends_when_it_is_gone_or_begins_again() -> None:
    onsets, there = torch.zeros(8, 1, 2), torch.zeros(8, 1, 2)
    onsets[1:4, 0, 1] = torch.tensor([0.6, 0.9, 0.7])
    onsets[5, 0, 1] = 0.8
    there[2:7, 0, 1] = 0.9
    found = notes_of(onsets, there, 2.0, 60)
    assert [(note.pitch, note.start, note.end) for note in found] == [(61, 1.0, 2.5), (61, 2.5, 3.5)]
    assert notes_of(onsets, there, 2.0, 60, threshold=0.95) == []


def test_midi_holds_the_notes(tmp_path: Path) -> None:
    notes = [Note(0, 60, 0.5, 1.0), Note(1, 64, 0.25, 0.75), Note(0, 60, 1.0, 1.5)]
    write_midi(Transcription(notes, 2.0, ["plucked", "reed"]), tmp_path / "some.mid")
    file = mido.MidiFile(tmp_path / "some.mid")
    assert [track.name for track in file.tracks] == ["plucked", "reed"]
    time, found = 0.0, []
    for message in file:
        time += message.time
        if message.type in ("note_on", "note_off"):
            found.append((message.type, message.channel, message.note, round(time, 3)))
    assert ("note_on", 1, 64, 0.25) in found
    assert found.index(("note_off", 0, 60, 1.0)) < found.index(("note_on", 0, 60, 1.0))  # it is struck again
    assert len(found) == 6


def recording(path: Path, rate: int = 11025, seconds: float = 0.5) -> Path:
    tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.repeat(tone[:, None], 2, 1) * 20000).astype("<i2").tobytes())
    return path


def test_a_recording_of_any_rate_and_channels_is_read(tmp_path: Path) -> None:
    samples = read_sound(recording(tmp_path / "tone.wav"), 8000)
    assert len(samples) == pytest.approx(4000, abs=40)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / 8000)[spectrum.argmax()] == pytest.approx(440, abs=4)


def test_a_model_of_a_folder_transcribes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    PerceiverTFForTranscription(CONFIG).save_pretrained(tmp_path / "model")
    model = load_transcriber(tmp_path / "model")
    found = transcribe(model, read_sound(recording(tmp_path / "tone.wav", seconds=3.0), 8000), threshold=0.3)
    assert found.seconds == pytest.approx(3.0, abs=0.02)
    assert found.instruments == CONFIG.instruments
    assert all(note.start < note.end <= 3.0 for note in found.notes)
    with pytest.raises(UsageError, match=r"threshold=1.0: a probability"):
        transcribe(model, np.zeros(100, dtype=np.float32), threshold=1.0)


def test_what_is_no_sound_or_no_model_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(MediaError, match=r"text\.wav"):
        read_sound(tmp_path / "text.wav", 8000)
    with pytest.raises(MediaError, match=r"none\.wav"):
        read_sound(tmp_path / "none.wav", 8000)
    with pytest.raises(UsageError, match="no model in it"):
        load_transcriber(tmp_path)


def model_in(folder: Path) -> PerceiverTFForTranscription:
    torch.manual_seed(0)
    model = PerceiverTFForTranscription(CONFIG)
    model.save_pretrained(folder)
    return model.eval()


def test_a_recording_of_less_than_a_frame_is_named(tmp_path: Path) -> None:
    model = model_in(tmp_path / "model")
    write_wav(tmp_path / "click.wav", np.zeros(CONFIG.hop_length - 1), 8000)
    with pytest.raises(MediaError, match=r"click.wav: 31.9 ms of sound, need at least 32.0 ms"):
        transcribe_file(model, tmp_path / "click.wav")
    with pytest.raises(UsageError, match=r"samples: 0.0 ms of sound, need at least 32.0 ms"):
        transcribe(model, np.zeros(0, np.float32))
    write_wav(tmp_path / "frame.wav", np.zeros(CONFIG.hop_length), 8000)
    assert transcribe_file(model, tmp_path / "frame.wav").seconds == pytest.approx(0.032)


def test_a_recording_that_is_cut_short_is_told(tmp_path: Path) -> None:
    model, path = model_in(tmp_path / "model"), recording(tmp_path / "tone.wav", 8000, seconds=1.0)
    assert not transcribe_file(model, path).lost
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = transcribe_file(model, path)
    assert found.lost
    assert found.seconds == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("spoilt", ["latents", "classifier"])
def test_weights_that_are_no_numbers_give_no_notes_in_silence(spoilt: str) -> None:
    model = PerceiverTFForTranscription(CONFIG).eval()
    weight = model.perceiver_tf.latents if spoilt == "latents" else model.classifier.weight
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(PerceiverVLError, match="not finite numbers: train it again"):
        transcribe(model, np.zeros(8000, np.float32))


def test_a_folder_of_something_else_is_said_in_a_line(tmp_path: Path) -> None:
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    model_in(tmp_path / "model")
    whole, settings = weights.read_bytes(), config.read_text()

    def told(error: type[Exception]) -> str:
        with pytest.raises(error) as raised:
            load_transcriber(tmp_path / "model")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for share in (0.0, 0.3, 0.9):
        weights.write_bytes(whole[: int(share * len(whole))])
        assert "save the model again" in told(PerceiverVLError)
    weights.unlink()
    assert "cannot be loaded" in told(PerceiverVLError)
    weights.write_bytes(whole)
    config.write_text(settings.replace('"hidden_size": 48', '"hidden_size": 24'))
    assert "weights of other shapes" in told(UsageError)
    PerceiverTFForTranscription(CONFIG).perceiver_tf.save_pretrained(tmp_path / "model")
    assert "without weights for transcription" in told(UsageError)
    for text, message in [
        (GCOGConfig().to_json_string(), "a model of kind gcog, name a folder of a Perceiver TF"),
        ('{"model_type": "llama"}', "a model of kind llama, name a folder of a Perceiver TF"),
        ('{"model_type": "nobody-knows"}', "a model of kind nobody-knows, name a folder of a Perceiver TF"),
        ("{}", "no Perceiver TF, and its config.json does not say what it is"),
        ("[1]", "not a configuration"),
        ("no JSON", "not a configuration"),
    ]:
        config.write_text(text)
        assert message in told(UsageError)


def test_what_notes_may_be_written_to(tmp_path: Path) -> None:
    sound, there = recording(tmp_path / "tone.wav"), tmp_path / "there.mid"
    there.write_bytes(b"a score")
    check_midi(tmp_path / "new.MIDI", sound)
    check_midi(there, sound, overwrite=True)
    with pytest.raises(UsageError, match=r"there.mid: is there already, .* replace it with overwrite=True"):
        check_midi(there, sound)
    for name in ("tone.wav", "tone", "other.mp3"):
        with pytest.raises(UsageError, match="not the name of a MIDI file, give one, as in "):
            check_midi(tmp_path / name, sound, overwrite=True)
    (tmp_path / "link.mid").symlink_to(sound)
    (tmp_path / "same.mid").hardlink_to(sound)
    for name in ("link.mid", "same.mid"):
        with pytest.raises(UsageError, match="is the recording itself"):
            check_midi(tmp_path / name, sound, overwrite=True)
    with pytest.raises(UsageError, match="is the recording itself"):
        check_midi(there, there, overwrite=True)


def test_a_score_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.mid"
    write_midi(Transcription([Note(0, 60, 0.5, 1.0)], 2.0, ["reed"]), path)
    before = path.read_bytes()
    monkeypatch.setattr(mido.MidiFile, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        write_midi(Transcription([], 2.0, ["reed"]), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["some.mid"]
