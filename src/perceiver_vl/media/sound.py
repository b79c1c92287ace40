"""Files with sound → samples, and back.

Shapes: S samples.
"""

import math
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from perceiver_vl.media.source import Source, open_source
from perceiver_vl.media.video import FORMATS
from perceiver_vl.utils.errors import MediaError
from perceiver_vl.utils.files import write_with

Samples = npt.NDArray[np.float32]

LONGEST = 3600.0  # seconds of a recording, which is held as a whole
RATES = range(1000, 768_001)
"""Samples a second that a recording can have."""
_FORMATS = f"{FORMATS},ac3,aiff,ape,au,eac3,tta,w64,wv"  # of files that hold sound alone, too; no lists of other files
_STATED = ("aiff", "flac", "matroska", "mov", "w64", "wav")  # containers whose length is no guess
_FILTER = 64  # samples of the slower rate, of fewer the resampler may make none
_UNHEARD = 0.1  # seconds by which a whole file may be shorter than it says


@dataclass(frozen=True)
class Sound:
    """The first sound of a file as one channel: `samples (S,)` from -1 to 1, `rate` of them a second.

    lost: the file breaks off before the end that it tells of, or parts of it are marked as damaged.
    """

    samples: Samples
    rate: int
    lost: bool


def decode_sound(path: str | Path, sample_rate: int | None = None) -> Sound:
    """The sound of a file that PyAV reads, at `sample_rate` Hz (None: its own rate); as far as it goes where it is cut
    short.

    Raises `MediaError` for a file without sound, one that cannot be decoded, samples that are no finite numbers, and
    more than an hour.
    """
    source = open_source(path)
    try:
        with _opened(source) as container:
            return _decode(source.name, container, sample_rate)
    except MediaError:
        raise
    except Exception as error:  # the decoders raise whatever a damaged file leads them to
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(path, f"damaged: cannot be decoded ({detail})") from error


def read_sound(path: str | Path, sample_rate: int) -> Samples:
    """The samples of `decode_sound` at `sample_rate` Hz → `(S,)` from -1 to 1. Raises as that."""
    return decode_sound(path, sample_rate).samples


def load_sound(path: str | Path) -> tuple[Samples, int]:
    """The same at the file's own rate, which comes with it."""
    sound = decode_sound(path)
    return sound.samples, sound.rate


def _opened(source: Source) -> Any:
    """The file, kept to itself: no network, no playlist."""
    how = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        return av.open(f"file:{source.name}", options=how, metadata_errors="replace")
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:  # of no known format, or not an allowed one
        if source.head[4:8] == b"ftyp":
            raise MediaError(source.name, "truncated: the index of the file (moov) is missing") from error
        raise MediaError(source.name, "not a file with sound, or damaged from its start") from error


def _decode(path: Path, container: Any, sample_rate: int | None) -> Sound:
    if not container.streams.audio:
        raise MediaError(path, "there is no sound in it")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise MediaError(path, "no decoder for its sound")
    rate = sample_rate or stream.rate
    if rate not in RATES:
        raise MediaError(path, f"of {rate} samples a second, which no sound has")
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    parts: list[Samples] = []
    heard, length, lost = 0, 0, False
    for packet in container.demux(stream):
        lost |= packet.is_corrupt
        for frame in packet.decode():
            heard += frame.samples
            for one in resampler.resample(frame):
                parts.append(one.to_ndarray()[0])
                length += len(parts[-1])
        if length > LONGEST * rate:
            raise MediaError(path, f"is longer than {LONGEST / 60:.0f} minutes, cut it")
    parts += [one.to_ndarray()[0] for one in (resampler.resample(None) if parts else ())]
    if not sum(map(len, parts)):
        raise MediaError(path, f"too short, {heard} samples of sound" if heard else "there is no sound in it")
    samples = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(samples).all():
        raise MediaError(path, "holds samples that are no finite numbers")
    if stream.duration is not None and container.format.name.split(",")[0] in _STATED:
        lost |= len(samples) / rate < float(stream.duration * stream.time_base) - _UNHEARD
    return Sound(samples, rate, bool(lost))


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """`samples (S,)` of `rate` a second at `wanted` a second, as `read_sound` resamples a file."""
    if rate == wanted:
        return samples
    padded = np.pad(samples, (0, max(0, _FILTER * math.ceil(rate / wanted) - len(samples))))
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(padded[None]), format="flt", layout="mono")
    frame.rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    parts = [one.to_ndarray()[0] for given in (frame, None) for one in resampler.resample(given)]
    whole = np.concatenate(parts).astype(np.float32)
    return whole if len(padded) == len(samples) else whole[: math.ceil(len(samples) * wanted / rate)]


def as_16_bit(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Samples from -1 to 1 as a WAV file of 16 bits has them."""
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


def write_wav(path: Path, samples: npt.NDArray[np.floating], rate: int) -> None:
    """Write `samples (S,)` from -1 to 1 as one channel of 16 bits; whole, or not at all."""

    def write(beside: Path) -> None:
        with wave.open(str(beside), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(as_16_bit(samples).astype("<i2").tobytes())

    write_with(path, write)
