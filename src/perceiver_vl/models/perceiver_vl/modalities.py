"""Inputs that are neither words nor pixels: one class says how a file becomes a tensor, and the tensor tokens.

The class is registered by a name (`register_modality`), a model names what it has of it in its configuration
(`modalities: {audio: {sample_rate: 8000}}`), and the latents attend to its tokens as to those of a clip. This is the
tokeniser of each modality before one shared encoder of Meta-Transformer (Zhang et al. 2023).
Shapes: B batch, T steps, M tokens, F features of a step, S samples, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from perceiver_vl.layers.log_mel import log_mel, mel_filters
from perceiver_vl.layers.series_tokens import SeriesTokens, series_token_count
from perceiver_vl.media.files import SOUND_EXTENSIONS
from perceiver_vl.media.recording import Recording
from perceiver_vl.media.sound import RATES, decode_sound, resample
from perceiver_vl.utils.errors import MediaError, UsageError, first_line
from perceiver_vl.utils.text import did_you_mean

Values = npt.NDArray[np.float32]
_MOST_STEPS = 1_000_000
SHORTEST = 0.01
"""Seconds of a sound below which there is nothing to hear in it."""


class Modality(ABC):
    """A kind of input, with a model's settings of it: a subclass is a frozen dataclass, its fields are what a
    configuration may set, and its `__post_init__` raises `UsageError` for what cannot be.

    `extensions`: the endings of its files, in lower case, by which a folder's records are known to be of it.
    """

    extensions: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def tokenizer(self, hidden_size: int) -> nn.Module:
        """A module whose `forward(values, mask)` makes `values (B,T,…)` and `mask (B,T)` bool, True where real, into
        tokens `(B,M,D)`, which know their places, and their mask `(B,M)`. What is masked must change nothing.

        Linear layers, tables and norms of it are initialised as the model's are.
        """

    @abstractmethod
    def values(self, recording: Recording) -> Values:
        """What was recorded as the tokenizer takes it, `(T,…)`, one example. Raises `UsageError` for what cannot be."""

    @abstractmethod
    def token_count(self, steps: int) -> int:
        """M of T steps."""

    @abstractmethod
    def flops(self, steps: int, hidden_size: int) -> int:
        """Operations of the tokenizer for T steps; a multiply-add is two."""

    @classmethod
    def load(cls, path: Path) -> tuple[Values, int | None] | tuple[Values, int | None, bool]:
        """What a file holds `(S,…)`, how many steps it has a second (None: it does not say), and, where that can be
        told, whether parts of it were lost.

        Raises `MediaError` for one that cannot be read.
        """
        raise MediaError(path, "its modality is of arrays alone, which no file holds")

    @classmethod
    def check(cls, recording: Recording) -> None:
        """Raises `UsageError` for what no model can use, whatever its settings; a file of a data set is left out then
        (`load_recording`).
        """
        if not len(recording) or not np.isfinite(recording.values).all():
            shape = recording.values.shape
            raise UsageError(f"{recording.modality} of shape {shape}: holds nothing, or what is no finite number")


@dataclass(frozen=True)
class Audio(Modality):
    """Sound, as patches of its log-mel spectrogram (AST's; here without overlap).

    sample_rate: Hz, to which every sound is brought; window, hop: samples of a frame, and from one to the next;
    mel_bins: from lowest_frequency, Hz, to half the rate; patch_steps, patch_bins: frames and bins of a patch;
    max_seconds: what is longer is cut.
    """

    extensions = SOUND_EXTENSIONS

    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    mel_bins: int = 80
    lowest_frequency: float = 20.0
    patch_steps: int = 16
    patch_bins: int = 16
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_settings("audio", self)
        if self.sample_rate not in RATES:
            raise UsageError(f"audio.sample_rate={self.sample_rate}: need {RATES[0]} to {RATES[-1]}")
        if self.window > self.sample_rate or self.hop > self.window:
            raise UsageError(f"audio.hop={self.hop}, audio.window={self.window}: need hop <= window <= a second")
        if self.mel_bins % self.patch_bins:
            raise UsageError(f"audio.patch_bins={self.patch_bins}: must divide mel_bins={self.mel_bins} evenly")
        if not self.lowest_frequency < self.sample_rate / 2:
            raise UsageError(f"audio.lowest_frequency={self.lowest_frequency:g}: need less than half of sample_rate")
        if not mel_filters(self.sample_rate, self.window, self.mel_bins, self.lowest_frequency).any(0).all():
            raise UsageError(
                f"audio.mel_bins={self.mel_bins}: more than a window of {self.window} samples at {self.sample_rate} Hz "
                "tells apart, set fewer or a longer audio.window"
            )
        if not 0 < self.max_seconds <= 3600 or self.max_steps > _MOST_STEPS:
            raise UsageError(f"audio.max_seconds={self.max_seconds:g}: need a length of at most {_MOST_STEPS:,} frames")
        if int(self.max_seconds * self.sample_rate) <= self.window // 2:
            raise UsageError(f"audio.max_seconds={self.max_seconds:g}: need more than half of window={self.window}")

    @property
    def max_steps(self) -> int:
        """Frames of the longest sound."""
        return 1 + int(self.max_seconds * self.sample_rate) // self.hop

    def tokenizer(self, hidden_size: int) -> nn.Module:
        """Log-mel frames `(B,T,F)` → a token a patch."""
        return SeriesTokens(hidden_size, self.mel_bins, self.patch_steps, self.patch_bins, self.max_steps, "audio")

    def values(self, recording: Recording) -> Values:
        """Samples `(S,)` → log-mel frames `(T,F)`, T = 1 + S // hop; silence makes up for less than half a window."""
        samples = recording.values
        if samples.ndim != 1:
            raise UsageError(f"audio of shape {samples.shape}: need one channel, (S,)")
        rate = self.sample_rate if recording.rate is None else recording.rate
        if rate not in RATES:
            raise UsageError(f"audio of {rate} samples a second: need {RATES[0]} to {RATES[-1]} (sampling_rate)")
        self.check(replace(recording, rate=rate))
        samples = resample(samples[: int(self.max_seconds * rate) + 1], rate, self.sample_rate)
        samples = samples[: int(self.max_seconds * self.sample_rate)]
        samples = np.pad(samples, (0, max(0, self.window // 2 + 1 - len(samples))))
        sizes = self.sample_rate, self.window, self.hop, self.mel_bins, self.lowest_frequency
        return log_mel(torch.from_numpy(samples), *sizes).numpy()

    def token_count(self, steps: int) -> int:
        """Of T frames."""
        return series_token_count(steps, self.mel_bins, self.patch_steps, self.patch_bins)

    def flops(self, steps: int, hidden_size: int) -> int:
        """The projection of patches."""
        return 2 * self.token_count(steps) * self.patch_steps * self.patch_bins * hidden_size

    @classmethod
    def load(cls, path: Path) -> tuple[Values, int, bool]:
        """The first sound of a file, one channel `(S,)`."""
        sound = decode_sound(path)
        return sound.samples, sound.rate, sound.lost

    @classmethod
    def check(cls, recording: Recording) -> None:
        """As of `Modality`; and for what is shorter than `SHORTEST`."""
        super().check(recording)
        if recording.rate is not None and len(recording) < SHORTEST * recording.rate:
            raise UsageError(
                f"audio of {len(recording)} samples at {recording.rate} Hz: need at least {1000 * SHORTEST:g} ms"
            )


@dataclass(frozen=True)
class TimeSeries(Modality):
    """Numbers over time, several channels, as patches of some steps of one channel each (PatchTST).

    channels: F; patch_steps: of a patch; max_steps: what is longer is cut; normalize: each channel of an example to
    mean 0 and variance 1, as PatchTST does (a channel that never changes to 0), or leave the numbers as they are.
    """

    extensions = frozenset({".csv"})

    channels: int = 1
    patch_steps: int = 16
    max_steps: int = 512
    normalize: bool = True

    def __post_init__(self) -> None:
        check_settings("time_series", self)

    def tokenizer(self, hidden_size: int) -> nn.Module:
        """`(B,T,F)` → a token for each channel of each patch of time."""
        return SeriesTokens(hidden_size, self.channels, self.patch_steps, 1, self.max_steps, "time_series")

    def values(self, recording: Recording) -> Values:
        """`(T,F)`, or of one channel `(T,)` → `(T,F)`."""
        series = recording.values[: self.max_steps]
        series = series[:, None] if series.ndim == 1 else series
        if series.ndim != 2 or series.shape[1] != self.channels or not len(series):
            raise UsageError(f"time_series of shape {recording.values.shape}: need (T,{self.channels}), T at least 1")
        if not self.normalize:
            return series
        return ((series - series.mean(0)) / np.maximum(series.std(0), 1e-6)).astype(np.float32)

    def token_count(self, steps: int) -> int:
        """Of T steps."""
        return series_token_count(steps, self.channels, self.patch_steps, 1)

    def flops(self, steps: int, hidden_size: int) -> int:
        """The projection of patches."""
        return 2 * self.token_count(steps) * self.patch_steps * hidden_size

    @classmethod
    def load(cls, path: Path) -> tuple[Values, None]:
        """A CSV file, a row a step, a column a channel; a first row of names is passed over."""
        try:
            first, *rows = path.read_text(encoding="utf-8").splitlines() or [""]
            names = not all(map(_is_number, first.split(",")))
            if names and not any(map(str.strip, rows)):
                raise MediaError(path, "no table of numbers: no row in it")
            return np.loadtxt(path, np.float32, delimiter=",", ndmin=2, skiprows=int(names), encoding="utf-8"), None
        except (OSError, ValueError) as error:
            raise MediaError(path, f"no table of numbers: {first_line(error)}") from error


MODALITIES: dict[str, type[Modality]] = {"audio": Audio, "time_series": TimeSeries}
"""Those that are registered, by name."""
_TAKEN = ("text", "images", "videos", "vision", "joint")


def register_modality(name: str, kind: type[Modality]) -> None:
    """Make `kind` known by `name`, under which configurations, processors and folders find it; before a model that has
    it is made or loaded, in every process that does. Registering another by the same name replaces it.

    Raises `UsageError` for a name that is no identifier or means something else, and for what is no `Modality` with the
    fields of a dataclass.
    """
    if not name.isidentifier() or name in _TAKEN or name.endswith("_kwargs"):
        raise UsageError(f"modality {name!r}: need a name of letters, digits and _, other than {', '.join(_TAKEN)}")
    if not (isinstance(kind, type) and issubclass(kind, Modality) and is_dataclass(kind)):
        raise UsageError(f"modality {name}: {kind!r} is no dataclass that is a Modality, see docs/add-a-modality.md")
    MODALITIES[name] = kind


def make_modalities(settings: Mapping[str, Any]) -> dict[str, Modality]:
    """The modalities of a configuration, `{name: {setting: value}}`, in its order.

    Raises `UsageError` for a name that is not registered, and settings that are unknown or cannot be.
    """
    found = {}
    for name, given in settings.items():
        if name not in MODALITIES:
            near = did_you_mean(name, MODALITIES, f"registered are {', '.join(MODALITIES)}")
            raise UsageError(f"modalities.{name}: not registered, {near}; see register_modality")
        known = [field.name for field in fields(MODALITIES[name])]  # type: ignore[arg-type]
        if not isinstance(given, Mapping):
            raise UsageError(f"modalities.{name}={given!r}: need a mapping, of {', '.join(known)}")
        for key, value in given.items():
            if key not in known:
                raise UsageError(f"modalities.{name}.{key}={value!r}: unknown, choose from {', '.join(known)}")
        found[name] = MODALITIES[name](**given)
    return found


def check_settings(name: str, settings: Any) -> None:
    """Raise `UsageError` for a field that is not of its type, and for a number below 1 (a fraction: not above 0), of
    the kinds int, float and bool: what most modalities have.
    """
    kinds = get_type_hints(type(settings))
    for field in fields(settings):
        value, kind = getattr(settings, field.name), kinds[field.name]
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise UsageError(f"{name}.{field.name}={value!r}: need {getattr(kind, '__name__', kind)}")
        most = float("inf") if kind is float else _MOST_STEPS
        if kind in (int, float) and not 0 < value <= most:
            raise UsageError(f"{name}.{field.name}={value}: need a number above 0, at most {most:,}")


def modality_of_file(path: Path) -> str | None:
    """The name of the modality that a file is of, by its ending; None of pictures and videos."""
    ending = path.suffix.lower()
    return next((name for name, kind in MODALITIES.items() if ending in kind.extensions), None)


def load_recording(
    name: str,
    path: Path,
    start: float | None = None,
    end: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recording:
    """A file of a modality, or its seconds [start, end); settings: those of a model, for which it is made.

    Raises `MediaError` for one that cannot be read, and for what no model can use (`Modality.check`), or not the one of
    these settings.
    """
    kind = MODALITIES[name]
    recording = replace(Recording(name, *kind.load(path)), path=path)
    try:
        recording = recording.between(start, end)
        kind.check(recording)
        if settings is not None:
            made = make_modalities({name: settings})[name]
            recording = replace(recording, values=made.values(recording), made_for=made)
    except UsageError as error:
        raise MediaError(path, str(error)) from error
    return recording


def as_recording(name: str, value: Any, rate: int | None = None) -> Recording:
    """A path, an array or a tensor as a recording of the modality `name`; `rate`: steps a second of an array.

    Raises `UsageError` for anything else, and for numbers that are not finite.
    """
    if isinstance(value, Recording):
        if value.modality != name:
            raise UsageError(f"{name}: a recording of {value.modality}, give it by that name")
        return value
    if isinstance(value, str | Path):
        return load_recording(name, Path(value))
    if not isinstance(value, np.ndarray | Tensor):
        raise UsageError(f"{name} of type {type(value).__name__}: need a path, an array or a tensor")
    array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
    if array.dtype.kind not in "fiu" or array.ndim < 1:
        raise UsageError(f"{name} of dtype {array.dtype} and shape {array.shape}: need an array of numbers over time")
    if not len(array) or not np.isfinite(array).all():
        raise UsageError(f"{name} of shape {array.shape}: holds nothing, or what is no finite number")
    return Recording(name, array.astype(np.float32), rate)


def batch_of(name: str, given: Any, settings: Mapping[str, Any], rate: int | None = None) -> dict[str, Any]:
    """One example of the modality `name` or a list of them, each as of `as_recording`, as a model takes them whose
    configuration has `settings`: `pixel_values (B,T,…)` float32, 0 where padded, `frame_mask (B,T)` int64, `modality`.

    Raises `UsageError` for a modality that the model does not have, and examples that cannot be.
    """
    if name not in settings:
        raise UsageError(f"{name}: not a modality of this model, which has {', '.join(settings) or 'none'}")
    kind = make_modalities({name: settings[name]})[name]
    several = given if isinstance(given, list | tuple) else [given]
    if not several:
        raise UsageError(f"{name}=[]: need at least one")
    values = [torch.from_numpy(_values(kind, as_recording(name, one, rate))) for one in several]
    if len(shapes := {tuple(one.shape[1:]) for one in values}) > 1:
        raise UsageError(f"{name}: steps of shapes {sorted(shapes)} in one batch, need those of one kind")
    padded = nn.utils.rnn.pad_sequence(values, batch_first=True)
    lengths = torch.tensor([len(one) for one in values])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return {"pixel_values": padded, "frame_mask": mask.long(), "modality": name}


def _values(kind: Modality, recording: Recording) -> Values:
    """`Modality.values`, unless they were made already; what cannot be is told with its file."""
    if recording.made_for == kind:
        return recording.values
    try:
        if recording.made_for is not None:
            raise UsageError(f"read for {recording.made_for}, not for {kind}")
        return kind.values(recording)
    except UsageError as error:
        if recording.path is None:
            raise
        raise MediaError(recording.path, str(error)) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
