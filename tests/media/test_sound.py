"""Files with sound → samples: what cannot be read is said in a line, and what is cut short is told."""

import os
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from perceiver_vl.media.sound import decode_sound, load_sound, read_sound, resample, write_wav
from perceiver_vl.utils.errors import MediaError


def tone(path: Path, seconds: float = 1.0, rate: int = 8000) -> Path:
    write_wav(path, 0.5 * np.sin(np.arange(int(rate * seconds)) * 0.3), rate)
    return path


def encoded(path: Path, codec: str, seconds: int = 2) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=16_000)
        stream.layout = "mono"
        for number in range(16 * seconds):
            samples = (0.5 * np.sin(np.arange(1000) * 0.1)).astype(np.float32)[None]
            frame: Any = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 1000 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_a_whole_file_is_not_lost(tmp_path: Path) -> None:
    sound = decode_sound(tone(tmp_path / "tone.wav"))
    assert (len(sound.samples), sound.rate, sound.lost) == (8000, 8000, False)
    assert np.array_equal(load_sound(tmp_path / "tone.wav")[0], sound.samples)
    assert len(read_sound(tmp_path / "tone.wav", 4000)) == pytest.approx(4000, abs=20)
    for name, codec in (("a.aiff", "pcm_s16be"), ("a.flac", "flac"), ("a.m4a", "aac"), ("a.mp3", "libmp3lame")):
        found = decode_sound(encoded(tmp_path / name, codec))
        assert not found.lost, name
        assert len(found.samples) / found.rate == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.aiff", "pcm_s16be")])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_file_that_is_cut_short_gives_what_is_there_and_tells(
    name: str, codec: str, share: float, tmp_path: Path
) -> None:
    found = decode_sound(cut(encoded(tmp_path / name, codec), share))
    assert found.lost
    assert len(found.samples) / found.rate == pytest.approx(2.0 * share, abs=0.05)


@pytest.mark.parametrize(("rate", "wanted"), [(1000, 8000), (8000, 1000), (768_000, 1000), (44_100, 16_000)])
@pytest.mark.parametrize("samples", [1, 5, 40, 70])
def test_few_samples_are_resampled_too(samples: int, rate: int, wanted: int) -> None:
    found = resample(np.full(samples, 0.5, np.float32), rate, wanted)
    assert len(found) == pytest.approx(samples * wanted / rate, abs=1)
    assert len(found) > 0


def test_a_file_of_few_samples_is_too_short(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.full(5, 0.5), 1000)
    assert len(decode_sound(tmp_path / "a.wav").samples) == 5
    with pytest.raises(MediaError, match=r"a.wav: too short, 5 samples of sound"):
        read_sound(tmp_path / "a.wav", 8000)


def broken(path: Path, kind: str) -> Path:
    if kind == "folder":
        path.mkdir()
    elif kind == "garbage":
        path.write_bytes(b"no sound" * 100)
    elif kind == "list of other files":
        path.write_text("#EXTM3U\n#EXTINF:1,\n" + str(tone(path.with_name("other.wav"))))
    elif kind == "cut within":
        cut(encoded(path.with_suffix(".flac"), "flac"), 0.6).rename(path)
    elif kind == "no index":
        cut(encoded(path.with_suffix(".m4a"), "aac"), 0.6).rename(path)
    elif kind == "head alone":
        tone(path, seconds=0)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "not finite":
        with av.open(str(path), "w", format="wav") as container:
            stream: Any = container.add_stream("pcm_f32le", rate=8000)
            stream.layout = "mono"
            frame: Any = av.AudioFrame.from_ndarray(np.full((1, 100), np.nan, np.float32), format="flt", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif kind == "slow":
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(20)
            file.writeframes(bytes(200))
    elif kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gone", "no such file"),
        ("empty", r"empty file \(0 bytes\)"),
        ("folder", "is a folder, not a media file"),
        ("pipe", "not a regular file"),
        ("garbage", "not a file with sound, or damaged from its start"),
        ("list of other files", "not a file with sound, or damaged from its start"),
        ("cut within", "damaged: cannot be decoded"),
        ("no index", r"truncated: the index of the file \(moov\) is missing"),
        ("head alone", "there is no sound in it"),
        ("not finite", "holds samples that are no finite numbers"),
        ("slow", "of 20 samples a second, which no sound has"),
    ],
)
def test_what_is_no_sound_is_said_as_of_videos(kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=reason) as error:
        decode_sound(broken(tmp_path / "snd.wav", kind))
    assert "Errno" not in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.path == tmp_path / "snd.wav"
