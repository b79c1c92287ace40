"""Any video or image file → a few sampled frames, or one clear `MediaError`.

Videos go through PyAV: a first pass reads the packets without decoding them, so the time of every frame is known
exactly; then only the stretches from a keyframe to a wanted frame are decoded. Pictures and animated pictures go
through Pillow. The first bytes of the file decide which of the two, its name does not.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import PIL
from PIL import UnidentifiedImageError

from perceiver_vl.media.pictures import Picture, is_picture
from perceiver_vl.media.sampling import DecodedFrame, Frames, Indices, Request
from perceiver_vl.media.source import MAX_CLIP_BYTES, Source, open_source
from perceiver_vl.media.video import VideoFile
from perceiver_vl.utils.errors import MediaError, UsageError


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video or a picture.

    frames: (T, H, W, 3) uint8 RGB. timestamps: (T,) float64, the seconds from the first frame of the stream at which
    each of them is first shown, exactly as the file has it.
    duration: seconds from the first frame to the end of the last; None where nothing tells, as for a picture.
    lost: the file breaks off or was found damaged, whether or not frames that were asked for lie there.
    missing: how many of those could not be decoded; for each the next that could stands in, with its own time, or if
    there is none before the next one asked for, T is smaller.
    shape: (H, W) as stored, upright and with square pixels. created: when it was recorded, if the file says.
    """

    frames: Frames
    timestamps: npt.NDArray[np.float64]
    duration: float | None
    lost: bool
    missing: int = 0
    shape: tuple[int, int] | None = None
    created: datetime | None = None


def decoder_version() -> str:
    """The decoders and their versions, for evaluation records: their pixels differ."""
    return f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info}), Pillow {PIL.__version__}"


def frame_times(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None
) -> tuple[npt.NDArray[np.float64], float | None]:
    """When every frame is first shown (seconds from the first, increasing), and the duration as in `Clip`.

    A video is not decoded for it, only read. A damaged animation has no more times than frames that decode.

    Raises MediaError if the file cannot be read.
    """
    with _opened(open_source(source, name)) as medium:
        return medium.times, medium.duration


def sampled_count(
    source: str | os.PathLike[str] | bytes,
    fps: float,
    *,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> int:
    """How many frames `load_clip` and `stream_clip` give at `fps`, if none is lost; a video is not decoded for it.

    Raises as `load_clip`.
    """
    request = Request(fps=fps, start=start, end=end)
    with _opened(open_source(source, name)) as medium:
        return len(request.indices(medium))


def load_frames(
    source: str | os.PathLike[str] | bytes,
    num_frames: int,
    *,
    rng: np.random.Generator | None = None,
    size: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Frames:
    """The frames of `load_clip`, which see: (T, H, W, 3) uint8 RGB."""
    return load_clip(source, num_frames, rng=rng, size=size, start=start, end=end).frames


def load_clip(
    source: str | os.PathLike[str] | bytes,
    num_frames: int | None = None,
    *,
    fps: float | None = None,
    timestamps: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
    size: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> Clip:
    """Decode some frames of a video, an animation or a picture (T = 1), upright and in RGB.

    source: a path, or the bytes of a whole file, which messages then call `name`.
    Which frames, one of: `num_frames`, at most so many: of that many equal segments of the frames the middle of each,
    or any frame of each, drawn from `rng`; a clip with fewer frames gives each once. `fps`: the frame on screen at each
    tick of a clock of that rate, again and again where it stays longer. `timestamps`: the frame on screen at each of
    these seconds, in the order given (of time, if any is lost).
    start, end: seconds from the first frame. Only frames on screen in [start, end) count; the clock of `fps` starts at
    `start`. An `end` after the end of the clip is its end.
    size: (H, W) that every frame is squashed to as it is decoded, with `resize_frame`; without it, the stored size with
    square pixels. Of interlaced frames the upper field is taken, HDR (PQ, HLG) is tone-mapped to BT.709 with the curve
    of BT.2390, transparency is laid on white, CMYK and 16-bit pictures become RGB of 8 bits.
    A damaged file gives the frames that could be decoded; `Clip.lost` and `Clip.missing` tell.

    Raises MediaError if no frame can be read, at times that the clip does not have, and for a file beyond the limits of
    `perceiver_vl.media.source`; UsageError for arguments that cannot work.
    """
    order = None
    if timestamps is not None:
        order = np.argsort(np.asarray(timestamps, np.float64), kind="stable")
        timestamps = [timestamps[place] for place in order]
    request = Request(num_frames, fps, timestamps, rng, size, start, end)
    (clip,) = _clips(open_source(source, name), request, chunk=None)
    if order is None or len(clip.frames) < len(order):
        return clip
    back = np.argsort(order, kind="stable")
    return replace(clip, frames=clip.frames[back], timestamps=clip.timestamps[back])


def stream_clip(
    source: str | os.PathLike[str] | bytes,
    num_frames: int | None = None,
    *,
    chunk: int = 64,
    fps: float | None = None,
    timestamps: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
    size: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> Iterator[Clip]:
    """The frames of `load_clip` with the same arguments, in clips of at most `chunk` frames, each decoded once.

    For clips of hours: never more than `chunk` frames are held, and a few that the decoder needs. `timestamps` must
    increase. `missing` counts the frames of a chunk, `lost` is what was noticed so far.

    Raises as `load_clip`: UsageError at once, MediaError when the first clip is asked for.
    """
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: need at least one frame")
    request = Request(num_frames, fps, timestamps, rng, size, start, end)
    if timestamps is not None and any(np.diff(timestamps) < 0):
        raise UsageError("timestamps: must increase, to be decoded in one go")
    return _clips(open_source(source, name), request, chunk)


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[VideoFile | Picture]:
    """An open file; whatever goes wrong with it becomes a `MediaError`."""
    try:
        with contextlib.closing(_open(source)) as medium:
            yield medium
    except MediaError:
        raise
    except Exception as error:  # the decoders raise whatever a damaged file leads them to
        raise MediaError(source.name, _reason(error)) from error


def _open(source: Source) -> VideoFile | Picture:
    if is_picture(source.head):
        return Picture(source)
    try:
        return VideoFile(source)
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:  # not of a known format, or not an allowed one
        try:
            return Picture(source)  # the rarer picture formats, known only to Pillow
        except UnidentifiedImageError:
            raise MediaError(source.name, _unreadable(source.head)) from error


def _unreadable(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "truncated: the index of the file (moov) is missing"
    return "not a media file, or damaged from its start"


def _reason(error: Exception) -> str:
    detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "truncated" in detail:
        return "truncated: the end of the file is missing"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, av.error.FFmpegError):
        return detail[0].lower() + detail[1:]
    return f"damaged: cannot be decoded ({detail})"


def _clips(source: Source, request: Request, chunk: int | None) -> Iterator[Clip]:
    """The frames wanted, in clips of `chunk`, or in one."""
    with _opened(source) as medium:
        yield from _read_clips(medium, request, chunk)


def _read_clips(medium: VideoFile | Picture, request: Request, chunk: int | None) -> Iterator[Clip]:
    wanted = request.indices(medium)
    if chunk is not None:
        _ = medium.duration  # plays an animation through, so that its first clip can tell
    chunk = chunk or len(wanted)
    frames: Frames | None = None
    seconds: list[float] = []
    missing, lost = 0, False

    def clip(frames: Frames) -> Clip:
        about = medium.duration, lost or medium.damaged, missing, medium.shape, medium.created
        return Clip(frames, np.array(seconds), *about)

    for place, decoded in enumerate(_decode(medium, wanted, request.size)):
        if decoded is not None:
            if frames is not None and len(seconds) == chunk:
                yield clip(frames)
                frames, seconds, missing = None, [], 0
            if frames is None:
                frames = _allocate(medium.name, min(chunk, len(wanted) - place), decoded.frame)
            frames[len(seconds)] = decoded.frame
            seconds.append(decoded.seconds)
        if decoded is None or not decoded.exact:
            missing, lost = missing + 1, True
    if frames is None:
        raise MediaError(medium.name, "no frame can be decoded: truncated or damaged")
    yield clip(frames[: len(seconds)])


def _decode(
    medium: VideoFile | Picture, wanted: Indices, size: tuple[int, int] | None
) -> Iterator[DecodedFrame | None]:
    """For each of the indices, which do not decrease: its frame, or None if it is lost."""
    indices, repeats = (values.tolist() for values in np.unique(wanted, return_counts=True))
    reading = medium.read(indices, size)
    decoded = next(reading, None)
    for index, times in zip(indices, repeats, strict=True):
        if decoded is None or decoded.wanted != index:
            yield from [None] * times
        else:
            yield from [decoded] * times
            decoded = next(reading, None)


def _allocate(name: Path, count: int, frame: Frames) -> Frames:
    if count * frame.nbytes > MAX_CLIP_BYTES:
        height, width, _ = frame.shape
        raise MediaError(
            name,
            f"{count} frames of {height}x{width} take more than the {MAX_CLIP_BYTES} bytes allowed: "
            "give a smaller size, ask for fewer, or use stream_clip",
        )
    return np.empty((count, *frame.shape), np.uint8)
