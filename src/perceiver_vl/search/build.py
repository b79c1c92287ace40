"""Encode a folder of clips and images once; every later run encodes only what is new or changed."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Record, SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_failures, check_listed
from perceiver_vl.media.decode import decoder_version
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.loading import load_retriever, model_fingerprint
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.search import store
from perceiver_vl.search.encode import encode_files
from perceiver_vl.search.store import EncodedClip, IndexEntry, IndexSettings, SkippedFile, StoredIndex
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError

PART_CLIPS = 256
PART_SECONDS = 30.0


@dataclass
class IndexReport:
    """What a run did: clips `encoded` (new or changed), `removed` (gone from the folder), `total` (can be searched).

    skipped: what could not be read; damaged: of those encoded, files that lacked frames.
    """

    index: str
    encoded: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.encoded} encoded", f"{self.unchanged} unchanged", f"{self.removed} removed"]
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"{self.index}: {self.total} clips ({', '.join(parts)}) in {self.seconds:.1f} s"


def build_index(
    model_folder: str | Path,
    media: str | Path,
    out: str | Path,
    *,
    budget: ComputeBudget = FULL_BUDGET,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    num_frames: int | None = None,
    batch_size: int = 16,
    part_clips: int = PART_CLIPS,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    progress: bool = False,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    compiled: bool = False,
    ray: str | None = None,
) -> IndexReport:
    """Bring the index `out` up to date with the folder `media`, making it if it is not there.

    A file is encoded if its size or time of change is not the one in the index; files that are gone are forgotten, and
    captions follow the metadata. `num_frames`: frames decoded of a clip; None: those of the budget, or the processor's.
    Files that cannot be decoded are skipped and reported, and not tried again before they change; with `strict` the
    first one raises. Whatever ends a run, at most the last `part_clips` clips (or 30 s of work) must be encoded again.
    `dtype`, `compiled`: as of `load_folder`; queries are encoded in the same dtype.
    `ray`: encode on the machines of the Ray cluster at this address (`auto`, `HOST:PORT`), or on all cores of this one
    (`local`), into the same index; `search.ray_encoder` says how.

    Raises `UsageError` for folders or settings that do not fit each other, `MediaError` with `strict`,
    `PerceiverVLError` when more than the share `max_failed_fraction` of the files cannot be read.
    """
    started = time.perf_counter()
    if batch_size < 1 or part_clips < 1:
        raise UsageError(f"batch_size={batch_size}, part_clips={part_clips}: need at least 1 of each")
    if compiled and ray is not None:
        raise UsageError(f"compile, ray={ray}: the workers of a cluster do not compile, leave one out")
    model, processor = load_retriever(model_folder, device if ray is None else "cpu", dtype, compiled)
    model.config.check_budget(budget)
    folder = read_folder(media, split=split, metadata=metadata, columns=columns, need=None, strict=strict)
    check_listed(folder.skipped, len(folder.records), max_failed_fraction)
    index = Path(out).resolve()
    report = IndexReport(str(out), skipped=list(folder.skipped))
    settings = _settings(model, processor, Path(model_folder), folder.path, budget, num_frames, dtype)
    found = _look_at_files(folder.records, report)
    with store.locked(index):
        stored = _open_or_create(index, settings, found)
        unchanged = {name: clip for name, clip in stored.items() if name in found and _same_file(clip, found[name])}
        store.keep_only(index, {name: found[name] for name in unchanged})
        broken = {} if strict else _still_broken(store.read_skipped(index), found)
        report.unchanged = len(unchanged)
        report.removed = sum(name not in found for name in stored)
        todo = [clip for name, clip in found.items() if name not in unchanged and name not in broken]
        if ray is None:
            encoded = encode_files(model, processor, settings, budget, batch_size, todo, strict)
        else:
            from perceiver_vl.search.ray_encoder import RayEncoder

            place = None if device is None else str(device)
            encoded = RayEncoder(ray, settings, budget, batch_size, place).encode(todo, strict)
        known = len(found) - len(todo)
        parts = _Parts(index, part_clips)
        try:
            with closing(encoded), ProgressBars(progress) as bar:
                advance = bar.stage("Encoding clips", len(todo))
                _check_broken(broken, known, len(found), max_failed_fraction)
                for tried, one in enumerate(encoded, start=known + 1):
                    if isinstance(one, SkippedFile):
                        broken[one.file_name] = one
                    else:
                        parts.add(one)
                        report.encoded += 1
                        report.damaged += [one.clip.file_name] if one.damaged else []
                    _check_broken(broken, tried, len(found), max_failed_fraction)
                    advance()
        finally:
            parts.write()
            listed = (SkippedFile(problem.file_name, 0, 0, problem.reason) for problem in report.skipped)
            store.write_skipped(index, [*listed, *broken.values()])
    report.skipped += [SkippedSample(one.file_name, one.reason) for one in broken.values()]
    report.total = report.unchanged + report.encoded
    report.seconds = time.perf_counter() - started
    return report


def _settings(
    model: PerceiverVLForRetrieval,
    processor: PerceiverVLProcessor,
    model_folder: Path,
    media: Path,
    budget: ComputeBudget,
    num_frames: int | None,
    dtype: str | None,
) -> IndexSettings:
    config = model.config
    asked = num_frames if num_frames is not None else budget.frames
    frames = asked if asked is not None else int(processor.image_processor.num_frames)
    if not 1 <= frames <= config.max_frames:
        raise UsageError(f"num_frames={frames}: need 1 to {config.max_frames}, the model's max_frames")
    return IndexSettings(
        model=str(model_folder.resolve()),
        fingerprint=model_fingerprint(model_folder),
        media=str(media.resolve()),
        budget=str(budget),
        frames=frames,
        vector_size=config.projection_dim,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        decoders=(decoder_version(),),
        dtype=dtype,
    )


def _look_at_files(records: Sequence[Record], report: IndexReport) -> dict[str, IndexEntry]:
    """File name → the file as it is now; the captions of several records of one file are joined."""
    found: dict[str, IndexEntry] = {}
    for record in records:
        if (earlier := found.get(record.file_name)) is not None:
            texts = tuple(dict.fromkeys(earlier.texts + record.texts))
            found[record.file_name] = replace(earlier, texts=texts)
            continue
        try:
            record.file_name.encode()
            status = record.path.stat()
        except UnicodeEncodeError:
            report.skipped.append(SkippedSample(ascii(record.file_name), "its name is not Unicode, rename it"))
        except OSError as error:
            report.skipped.append(SkippedSample(record.file_name, error.strerror or "cannot be read"))
        else:
            found[record.file_name] = IndexEntry(
                record.file_name, status.st_size, status.st_mtime_ns, record.texts, None
            )
    return found


def _same_file(one: IndexEntry | SkippedFile, other: IndexEntry) -> bool:
    return (one.size, one.mtime_ns) == (other.size, other.mtime_ns)


def _still_broken(skipped: Sequence[SkippedFile], found: Mapping[str, IndexEntry]) -> dict[str, SkippedFile]:
    return {one.file_name: one for one in skipped if one.file_name in found and _same_file(one, found[one.file_name])}


def _open_or_create(index: Path, settings: IndexSettings, found: Mapping[str, IndexEntry]) -> dict[str, IndexEntry]:
    """The clips in the index, after checking that it was made with the same settings."""
    if not (index / "index.json").exists():
        if any(path.name != ".lock" for path in index.iterdir()):
            raise UsageError(f"{index}: a folder with other things in it, give a new or empty one")
        store.write_settings(index, settings)
        return {}
    opened = StoredIndex(index)
    before = opened.settings
    if before.fingerprint != settings.fingerprint:
        raise UsageError(
            f"{index}: made by another model ({before.model}), use --model {before.model} or another --out"
        )
    for dial in ("budget", "frames", "dtype"):
        was, asked = (getattr(made, dial) or "as saved" for made in (before, settings))
        if was != asked:
            raise UsageError(f"{index}: made with {dial} {was}, not {asked}; ask for {was} or give another --out")
    stored = {clip.file_name: clip for clip in opened.clips}
    # A folder that moved keeps its index; another folder would silently replace all that is in it.
    moved = before.media != settings.media
    if moved and stored and not any(name in found and _same_file(clip, found[name]) for name, clip in stored.items()):
        raise UsageError(
            f"{index}: holds clips of {before.media}, none of them is in {settings.media}; give another --out"
        )
    decoders = tuple(dict.fromkeys(before.decoders + settings.decoders))
    if (now := replace(settings, decoders=decoders)) != before:
        store.write_settings(index, now)
    return stored


def _check_broken(broken: Mapping[str, SkippedFile], tried: int, total: int, most: float) -> None:
    """Raise where too many of the files are broken."""
    first = next((SkippedSample(file.file_name, file.reason) for file in broken.values()), None)
    check_failures(len(broken), tried, total, most, first)


class _Parts:
    """Clips, gathered and written in parts of at most `most`, or of what half a minute of work gave."""

    def __init__(self, index: Path, most: int) -> None:
        self._index, self._most = index, most
        self._clips: list[EncodedClip] = []
        self._begun = time.monotonic()

    def add(self, clip: EncodedClip) -> None:
        self._clips.append(clip)
        if len(self._clips) == self._most or time.monotonic() - self._begun > PART_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what there is; what could not be written is not tried again."""
        clips, self._clips, self._begun = self._clips, [], time.monotonic()
        if clips:
            store.write_part(self._index, clips)
