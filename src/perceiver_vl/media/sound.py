"""Files with sound → samples, and back.

Shapes: S samples.
"""

import wave
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from perceiver_vl.utils.errors import MediaError, first_line
from perceiver_vl.utils.files import write_with

Samples = npt.NDArray[np.float32]

LONGEST = 3600.0  # seconds of a recording, which is held as a whole
RATES = range(1000, 768_001)
"""Samples a second that a recording can have."""


def read_sound(path: str | Path, sample_rate: int) -> Samples:
    """The first sound of a file that PyAV reads, as one channel at `sample_rate` → `(S,)` from -1 to 1. Raises
    `MediaError` for a file without sound, a damaged one, or one of more than an hour.
    """
    return _decode(path, sample_rate)[0]


def load_sound(path: str | Path) -> tuple[Samples, int]:
    """The same at the file's own rate, which comes with it."""
    return _decode(path, None)


def _decode(path: str | Path, sample_rate: int | None) -> tuple[Samples, int]:
    parts: list[Samples] = []
    length = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise MediaError(path, "there is no sound in it")
            rate = sample_rate or container.streams.audio[0].rate
            if rate not in RATES:
                raise MediaError(path, f"of {rate} samples a second, which no sound has")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(audio=0):
                for one in resampler.resample(frame):
                    parts.append(one.to_ndarray()[0])
                    length += len(parts[-1])
                if length > LONGEST * rate:
                    raise MediaError(path, f"is longer than {LONGEST / 60:.0f} minutes, cut it")
            parts += [one.to_ndarray()[0] for one in resampler.resample(None)]
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError(path, first_line(error)) from error
    if not parts or not sum(map(len, parts)):
        raise MediaError(path, "there is no sound in it")
    return np.concatenate(parts).astype(np.float32), rate


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """`samples (S,)` of `rate` a second at `wanted` a second, as `read_sound` resamples a file."""
    if rate == wanted:
        return samples
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
    frame.rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    parts = [one.to_ndarray()[0] for given in (frame, None) for one in resampler.resample(given)]
    return cast(Samples, np.concatenate(parts).astype(np.float32))


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
