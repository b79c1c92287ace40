"""Encode a folder of clips and images once; every later run encodes only what is new or changed."""

import time
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.metadata import IGNORED
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION, check_failures, check_listed
from perceiver_vl.data.transcode.features import check_features
from perceiver_vl.media.decode import decoder_version
from perceiver_vl.media.segments import check_segments
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.modalities import modality_of_file
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.search import table as tables
from perceiver_vl.search.encode import encode_files
from perceiver_vl.search.found import content_id, is_same_file, is_within, look_at_files
from perceiver_vl.search.rows import (
    EncodedClip,
    IndexEntry,
    IndexSettings,
    SkippedFile,
    Vectors,
    WrittenClips,
    numbers,
    rows_of,
)
from perceiver_vl.search.segments import SEGMENT_FPS, SegmentsReport, update_segments
from perceiver_vl.search.skipped import read_skipped, write_skipped
from perceiver_vl.search.table import ClipTable
from perceiver_vl.utils.console import Listener, ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError

COMMIT_CLIPS = 256
COMMIT_SECONDS = 30.0
RECALL_QUERIES = 64
_READ_AT_ONCE = 10_000  # rows that are written anew without being encoded


@dataclass
class IndexReport:
    """What a run did: clips `encoded` (new or changed), `moved` (known by their content under another name, or touched
    without a change), `removed` (gone from the folder), `total` (can be searched).

    skipped: what could not be read; damaged: of those encoded, files that lacked frames; mended: rows of the index that
    were damaged, and belong to the encoded ones now. recall: of the approximate index; None: the search is exact.
    segments: the same of the videos in segments, where these are asked for.
    """

    index: str
    encoded: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    mended: int = 0
    skipped: list[SkippedSample] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    total: int = 0
    notes: list[str] = field(default_factory=list)
    recall: float | None = None
    segments: SegmentsReport | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.encoded} encoded", f"{self.unchanged} unchanged", f"{self.removed} removed"]
        parts += [f"{count} {name}" for name in ("moved", "mended") if (count := getattr(self, name))]
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        line = f"{self.index}: {self.total} clips ({', '.join(parts)}) in {self.seconds:.1f} s"
        if (cut := self.segments) is None:
            return line
        return f"{line}; {cut.total} segments of {cut.hours:.2f} h of video ({cut.encoded} encoded)"


_ELSEWHERE = Setting("out", "OTHER")


def build_index(
    model_folder: str | Path | None,
    media: str | Path | None,
    out: str | Path,
    *,
    budget: ComputeBudget | None = None,
    metadata: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    num_frames: int | None = None,
    segments: str | float | None = None,
    segment_fps: float | None = None,
    batch_size: int = 16,
    commit_clips: int = COMMIT_CLIPS,
    exact_rows: int = tables.EXACT_ROWS,
    exclude: Sequence[str] = (),
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    verify: bool = False,
    progress: bool | Listener = False,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    compiled: bool = False,
    ray: str | None = None,
) -> IndexReport:
    """Bring the index `out`, a folder or an address such as `s3://bucket/index`, up to date with the folder `media`.

    It is made if it is not there. An index that is knows its model and media, how these are read (split, metadata,
    columns, exclude), budget, frames and dtype: what is not given here is as it was. `exclude`: patterns of names to
    leave out, beside those of thumbnails and rubbish. A file is encoded if its size or time of change is not the one in
    the index, and no clip there has the same content; until then what the index has of it serves. Files that are gone
    are forgotten, those that could not be looked at are not, and captions follow the metadata; media that no row names
    have none. `num_frames`: frames decoded of a clip; None: those of the budget, or the processor's.
    Files that cannot be decoded are skipped and reported, and not tried again before they change; with `strict` the
    first one raises. Whatever ends a run, no more than `commit_clips` clips (or 30 s of work) must be encoded again.
    segments: also cut every video into pieces of so many seconds, or into `scenes`, and encode each with `segment_fps`
    frames a second (1 unless said), for searches for moments; an index without them gets them by being brought up to
    date with this.
    More than `exact_rows` clips are searched through an approximate index. `verify`: check every row, encode again what
    is damaged, and make all indexes anew; a small index is checked in any case.
    `dtype`, `compiled`: as of `load_folder`; queries are encoded in the same dtype. progress: shown, or told to a
    function.
    `ray`: encode on the machines of the Ray cluster at this address (`auto`, `HOST:PORT`), or on all cores of this one
    (`local`), into the same index; `search.ray_encoder` says how.

    Raises `UsageError` for folders or settings that do not fit each other, `MediaError` with `strict`,
    `PerceiverVLError` when more than the share `max_failed_fraction` of the files cannot be read.
    """
    started = time.perf_counter()
    if batch_size < 1 or commit_clips < 1:
        raise UsageError(f"batch_size={batch_size}, commit_clips={commit_clips}: need at least 1 of each")
    if segments is not None and ray is not None:
        raise UsageError(
            f"segments={segments}, ray={ray}: a cluster encodes whole clips, cut them by a run without ray"
        )
    if compiled and ray is not None:
        raise UsageError(f"compile, ray={ray}: the workers of a cluster do not compile, leave one out")
    cut = None if segments is None else check_segments(str(segments))
    if segment_fps is not None and not (0 < segment_fps <= 120):
        raise UsageError(f"segment_fps={segment_fps}: need frames a second, more than 0 and at most 120")
    before = tables.settings_of(out)
    if segment_fps is not None and cut is None and (before is None or before.segments is None):
        raise UsageError(
            f"segment_fps={segment_fps}: is of segments, say how long these are with ", Setting("segments", 2)
        )
    if before is None and (model_folder is None or media is None):
        needed = Setting("model", "MODEL"), " and ", Setting("media", "FOLDER")
        raise UsageError(f"{out}: not an index, say what to make one of with ", *needed)
    if before is not None:
        model_folder, media = model_folder or before.model, media or before.media
        budget = ComputeBudget.parse("" if before.budget == "full" else before.budget) if budget is None else budget
        if num_frames is None and budget.frames is None:
            num_frames = before.frames
        dtype = dtype or before.dtype
        cut, segment_fps = cut or before.segments, segment_fps or before.segment_fps
        if Path(media).resolve() == Path(before.media):  # of another folder nothing is known
            split, metadata = split or before.split, metadata or before.metadata
            columns, exclude = columns or dict(before.columns), exclude or before.exclude
    budget = budget or FULL_BUDGET
    assert model_folder is not None
    assert media is not None
    model, processor = load_retriever(model_folder, device if ray is None else "cpu", dtype, compiled)
    model.config.check_budget(budget)
    how = {"split": split, "metadata": metadata, "columns": columns, "exclude": exclude}
    folder = read_folder(media, need=None, strict=strict, unnamed=True, **how)  # type: ignore[arg-type]
    if folder.records and all(modality_of_file(record.path) for record in folder.records):
        raise UsageError(
            f"{media}: an index is of videos and pictures, this folder has none; of other files compare the vectors "
            "that get_vision_features gives (docs/add-a-modality.md)"
        )
    check_listed(folder.skipped, len(folder.records), max_failed_fraction)
    warning = model.config.search_warning()
    notes = [*folder.notes, *([f"{model_folder}: {warning}"] if warning else [])]
    report = IndexReport(str(out), skipped=list(folder.skipped), notes=notes)
    settings = replace(
        _settings(model, processor, Path(model_folder), folder.path, budget, num_frames, dtype),
        split=split,
        metadata=None if metadata is None else _lasting(folder.path, metadata),
        columns=tuple((columns or {}).items()),
        exclude=tuple(exclude),
        segments=cut,
        segment_fps=None if cut is None else float(segment_fps or SEGMENT_FPS),
    )
    check_features(folder.path, model, processor, settings.frames)
    found, unseen = look_at_files(folder.records, report.skipped)
    unseen |= set(folder.unseen)
    with tables.locked(out), ProgressBars(progress) as bar:
        table, report.mended = _open_or_create(out, settings, verify)
        stored = _unique(table)
        _check_media(out, table.settings, settings, stored, found)
        decoders = tuple(dict.fromkeys(table.settings.decoders + settings.decoders))
        table.describe(replace(settings, decoders=decoders))
        broken = {} if strict else _still_broken(read_skipped(out), found)
        todo = _update_known(table, stored, found, unseen, broken, report, bar)
        encoded: Generator[EncodedClip | WrittenClips | SkippedFile, None, None]
        if ray is None:
            encoded = encode_files(model, processor, settings, budget, batch_size, todo, strict)
        else:
            from perceiver_vl.search.ray_encoder import RayEncoder

            place = None if device is None else str(device)
            encoded = RayEncoder(ray, out, settings, budget, batch_size, place).encode(todo, strict)
        known_broken = set(broken)
        commits = _Commits(table, commit_clips)
        try:
            with closing(encoded):
                advance = bar.stage("Encoding clips", len(todo))
                _check_broken(broken, len(found) - len(todo), len(found), max_failed_fraction)
                for one in encoded:
                    if isinstance(one, SkippedFile):
                        broken[one.file] = one
                        advance()
                    else:
                        commits.add(one)
                        of_one = [one.clip.file] if isinstance(one, EncodedClip) else one.files
                        report.encoded += len(of_one)
                        report.damaged += (
                            (of_one if one.damaged else []) if isinstance(one, EncodedClip) else one.damaged
                        )
                        advance(len(of_one))
                    tried = len(found) - len(todo) + report.encoded + len(broken.keys() - known_broken)
                    _check_broken(broken, tried, len(found), max_failed_fraction)
        finally:
            commits.write()
            listed = (SkippedFile(problem.file_name, 0, 0, problem.reason) for problem in report.skipped)
            write_skipped(out, [*listed, *broken.values()])
        table.commit(gone=[name for name in broken if name in stored])
        table.finish(lambda: _sample_queries(model, processor, budget, table), exact_rows)
        if cut is not None:
            pieces, report.segments = update_segments(
                model,
                processor,
                table,
                out,
                budget,
                batch_size=batch_size,
                commit_rows=commit_clips,
                commit_seconds=COMMIT_SECONDS,
                verify=verify,
                strict=strict,
                bar=bar,
            )
            pieces.finish(lambda: _sample_queries(model, processor, budget, table), exact_rows)
            report.skipped += report.segments.skipped
    report.skipped += [SkippedSample(one.file, one.reason) for one in broken.values()]
    report.total, report.recall = len(table), table.seal.recall
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


def _lasting(media: Path, metadata: str | Path) -> str:
    """The name of a metadata file that means the same from any working directory."""
    elsewhere = str(metadata) != IGNORED and not (media / metadata).is_file()
    return str(Path(metadata).resolve()) if elsewhere else str(metadata)


def _update_known(
    table: ClipTable,
    stored: Mapping[str, IndexEntry],
    found: Mapping[str, IndexEntry],
    unseen: Collection[str],
    broken: Mapping[str, SkippedFile],
    report: IndexReport,
    bar: ProgressBars,
) -> list[IndexEntry]:
    """Commit what needs no encoding (files that moved, were touched or are gone, other captions); what is left to
    encode, with the ids of its contents.
    """
    same = {name for name, file in found.items() if name in stored and is_same_file(stored[name], file)}
    others = [file for name, file in found.items() if name not in same and name not in broken]
    of_content = {entry.id: name for name, entry in stored.items()}
    recaptioned = {name for name in same if stored[name].captions != found[name].captions}
    again: list[tuple[str, IndexEntry]] = [(name, replace(found[name], id=stored[name].id)) for name in recaptioned]
    todo = []
    advance = bar.stage("Looking at new files", len(others))
    for file in others:
        try:
            file = replace(file, id=content_id(Path(table.settings.media, file.file)))
        except OSError:
            todo.append(file)  # which the decoder says in its own words
        else:
            if (origin := of_content.get(file.id)) is not None:
                again.append((origin, file))
            else:
                todo.append(file)
        advance()
    gone = {name for name in stored.keys() - found.keys() if not any(is_within(name, place) for place in unseen)}
    report.unchanged, report.moved, report.removed = len(same), len(again) - len(recaptioned), len(gone)
    report.removed -= sum(origin in gone for origin, _ in again)
    for start in range(0, len(again), _READ_AT_ONCE):
        some = again[start : start + _READ_AT_ONCE]
        last = start + _READ_AT_ONCE >= len(again)
        table.commit(table.renamed(some), gone if last else ())
    if not again:
        table.commit(gone=gone)
    return todo


def _still_broken(skipped: Sequence[SkippedFile], found: Mapping[str, IndexEntry]) -> dict[str, SkippedFile]:
    return {one.file: one for one in skipped if one.file in found and is_same_file(one, found[one.file])}


def _open_or_create(out: str | Path, settings: IndexSettings, verify: bool) -> tuple[ClipTable, int]:
    """The table, after checking that it was made with the same settings, and how many damaged rows it has lost."""
    if tables.settings_of(out) is None:
        if "://" not in str(out) and any(path.name != ".lock" for path in Path(out).iterdir()):
            raise UsageError(f"{out}: a folder with other things in it, give a new or empty one")
        return tables.create_table(out, settings), 0
    table = tables.open_table(out, recover=True)
    before = table.settings
    if before.fingerprint != settings.fingerprint:
        own = Setting("model", before.model)
        raise UsageError(f"{out}: made by another model ({before.model}), use ", own, " or ", _ELSEWHERE)
    for dial in ("budget", "frames", "dtype", *(("segments", "segment_fps") if before.segments else ())):
        was, asked = (getattr(made, dial) or "as saved" for made in (before, settings))
        if was != asked:
            raise UsageError(f"{out}: made with {dial} {was}, not {asked}; leave that out or use ", _ELSEWHERE)
    mended = 0
    if verify or table.exact:
        try:
            table.check()
        except PerceiverVLError:
            verify = True
        mended = table.mend() if verify else 0
    return table, mended


def _unique(table: ClipTable) -> dict[str, IndexEntry]:
    """File name → what the index has of it; of a file with several rows, as damage leaves them, nothing is kept."""
    entries = table.entries()
    rows = Counter(entry.file for entry in entries)
    table.commit(gone=[file for file, count in rows.items() if count > 1])
    return {entry.file: entry for entry in entries if rows[entry.file] == 1}


def _check_media(
    out: str | Path,
    before: IndexSettings,
    settings: IndexSettings,
    stored: Mapping[str, IndexEntry],
    found: Mapping[str, IndexEntry],
) -> None:
    """A folder that moved keeps its index; another folder would silently replace all that is in it."""
    moved = before.media != settings.media
    if moved and stored and not any(name in found and is_same_file(clip, found[name]) for name, clip in stored.items()):
        raise UsageError(
            f"{out}: holds clips of {before.media}, none of them is in {settings.media}; use ",
            _ELSEWHERE,
        )


def _check_broken(broken: Mapping[str, SkippedFile], tried: int, total: int, most: float) -> None:
    """Raise where too many of the files are broken."""
    first = next((SkippedSample(file.file, file.reason) for file in broken.values()), None)
    check_failures(len(broken), tried, total, most, first)


@torch.inference_mode()
def _sample_queries(
    model: PerceiverVLForRetrieval, processor: PerceiverVLProcessor, budget: ComputeBudget, table: ClipTable
) -> Vectors:
    """Unit vectors of captions spread over the index; of clips, where it has no captions."""
    captioned = [captions[0] for captions in table.spread(16 * RECALL_QUERIES, "captions").to_pylist() if captions]
    if not captioned:
        return numbers(table.spread(RECALL_QUERIES, "vector"))
    inputs = processor(text=captioned[:: -(-len(captioned) // RECALL_QUERIES)]).to(model.device)
    features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"], budget)
    vectors: Vectors = features.float().cpu().numpy()
    return vectors


class _Commits:
    """Clips, gathered and committed by at most `most`, or by what half a minute of work gave."""

    def __init__(self, table: ClipTable, most: int) -> None:
        self._table, self._most = table, most
        self._clips: list[EncodedClip] = []
        self._written: list[WrittenClips] = []
        self._begun = time.monotonic()

    def add(self, clips: EncodedClip | WrittenClips) -> None:
        """Commit it sooner or later."""
        if isinstance(clips, EncodedClip):
            self._clips.append(clips)
        else:
            self._written.append(clips)
        waiting = len(self._clips) + sum(len(one.files) for one in self._written)
        if waiting >= self._most or time.monotonic() - self._begun > COMMIT_SECONDS:
            self.write()

    def write(self) -> None:
        """Commit what there is; what could not be committed is not tried again."""
        clips, written, self._clips, self._written = self._clips, self._written, [], []
        self._begun = time.monotonic()
        if clips:
            self._table.commit(rows_of(clips, self._table.settings))
        if written:
            fragments = [fragment for one in written for fragment in one.fragments]
            self._table.commit_fragments(fragments, [file for one in written for file in one.files])
