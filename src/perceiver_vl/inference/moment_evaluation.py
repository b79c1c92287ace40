"""A model on a benchmark of moments: its videos indexed in segments, each query asked of its video, or of them all."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from perceiver_vl.data.datasets.moment_queries import (
    DIDEMO_SEGMENT,
    SALIENCY_CLIP,
    Format,
    MomentQuery,
    read_moment_queries,
)
from perceiver_vl.data.metadata import IGNORED
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.media.segments import SCENES
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.search.build import build_index
from perceiver_vl.search.calibrate import learn_length_weight
from perceiver_vl.search.filters import Filters, quoted
from perceiver_vl.search.moments import MomentOptions, MomentResult
from perceiver_vl.search.searcher import Searcher
from perceiver_vl.tasks.moment_baselines import joined_windows, trivial_figures
from perceiver_vl.tasks.moment_metrics import (
    CORPUS_RANKS,
    MOST_WINDOWS,
    MomentFigures,
    Scored,
    corpus_figures,
    didemo_figures,
    retrieval_figures,
)
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError

LONGEST = 150.0
"""Seconds; of the videos of QVHighlights."""
_DIDEMO_SEGMENTS = 6
_FIXED = (1, 2, 4, 8)


@dataclass
class MomentEvaluation:
    """The official figures, and of the whole corpus where that was asked for; `baselines`, where these were: of who
    knows neither words nor video, and of the same model by each segment alone, neighbours joined, and with windows of
    one length, 1, 2, 4 or 8 segments.
    `length_weight`: as it was learned. `without_video`: queries whose video is not there; they are unanswered.
    `predictions`: for the submission file.
    """

    format: Format
    figures: MomentFigures
    corpus: MomentFigures | None
    baselines: dict[str, MomentFigures]
    length_weight: float | None
    videos: int
    without_video: int
    segments: int
    notes: list[str]
    skipped: list[SkippedSample]
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the predictions go into the submission file."""
        plain = asdict(self)
        del plain["predictions"]
        return plain

    def submission(self) -> str:
        """The lines of the file that the server of QVHighlights takes; the others have none, and get the same."""
        return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in self.predictions)


def evaluate_moments(
    model_folder: str | Path,
    media: str | Path,
    annotations: str | Path,
    *,
    index: str | Path | None = None,
    segments: str | float | None = None,
    segment_fps: float | None = None,
    corpus: bool = False,
    baselines: bool = False,
    calibrate: str | Path | None = None,
    labelled: bool = True,
    budget: ComputeBudget | None = None,
    batch_size: int = 16,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = False,
) -> MomentEvaluation:
    """Answer the queries of an official file (`read_moment_queries`) about the videos of a folder, and score that.

    `index`: kept, or brought up to date, if it is named; else made in a scratch folder. `segments`, `segment_fps`: as
    of `build_index`; by default of 5 s for DiDeMo and 2 s for others, at one frame a second. `corpus`: each query is
    also asked of all videos at once. `calibrate`: a file of other queries about videos of the folder, from which it is
    learned first what a window gains with its length (`search.length`). `baselines`: those too, which the candidates of
    DiDeMo have none of. A video is known by its name without ending. Without `labelled` a file may be of a test split
    that does not say what is right, and nothing is scored then but a submission made. Of several queries of one `qid`
    the last counts, as in the official scripts.
    Raises `UsageError` for a file that is none of the official ones, and where no query has a video.
    """
    known = read_moment_queries(annotations)
    others = None if calibrate is None else read_moment_queries(calibrate)
    queries = list({query.qid: query for query in known.queries}.values())
    if labelled and not any(query.windows for query in queries):
        raise UsageError(
            f"{annotations}: does not say what is right, write the predictions with ", Setting("submission", "FILE")
        )
    didemo = known.format == "didemo"
    cut = segments or (DIDEMO_SEGMENT if didemo else SALIENCY_CLIP)
    if didemo and str(cut) not in ("5", "5.0"):
        raise UsageError(f"segments={cut}: the candidates of DiDeMo are of 5 s, leave it out")
    with ExitStack() as stack:
        if index is None:
            index = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perceiver-vl-moments-"))) / "index"
        with _of_an_index():
            report = build_index(
                model_folder,
                media,
                index,
                metadata=IGNORED,
                segments=cut,
                segment_fps=segment_fps,
                budget=budget,
                batch_size=batch_size,
                strict=strict,
                max_failed_fraction=max_failed_fraction,
                device=device,
                dtype=dtype,
                progress=progress,
            )
        searcher = Searcher(index, model_folder, device)
        files = _files_of(searcher, queries)
        if not files:
            raise UsageError(f"{media}: has none of the videos of {annotations}, such as {queries[0].video}")
        with ProgressBars(progress) as bar:
            weight = None if others is None else _learn(searcher, str(calibrate), others.queries, bar)
            advance = bar.stage("Asking", len(queries))
            found = {
                query.qid: _ask(searcher, query, files, advance, replace(_options(query), length_weight=weight))
                for query in queries
            }
            asked = _ask_corpus(searcher, queries, files, weight, bar) if corpus else None
            beside = _baselines(searcher, queries, files, found, cut, bar) if baselines and not didemo else {}
    windows = {qid: _windows(result) for qid, result in found.items()}
    saliency = {qid: [point.score for point in _curve(result)] for qid, result in found.items()}
    if str(cut) not in ("2", "2.0"):
        queries = [replace(query, saliency=None) for query in queries]  # of clips of two seconds
    if didemo:
        rankings = {query.qid: _ranking(windows[query.qid]) for query in queries}
        figures = didemo_figures(queries, rankings)
    else:
        figures = retrieval_figures(queries, windows, saliency)
    assert report.segments is not None
    missing = sum(query.video not in files for query in queries)
    notes = [*known.notes, *([f"{missing} queries are about videos that are not there"] if missing else [])]
    if figures.answered < figures.queries:
        notes.append("official figures leave unanswered queries out of the mean, the others count them as 0")
    return MomentEvaluation(
        known.format,
        figures,
        None if asked is None else corpus_figures(queries, asked),
        beside,
        weight,
        len(set(files.values())),
        missing,
        report.segments.total,
        notes,
        [*known.skipped, *(others.skipped if others else ()), *report.skipped],
        [_prediction(query, windows[query.qid], saliency[query.qid]) for query in queries],
    )


@contextmanager
def _of_an_index() -> Iterator[None]:
    """What errors from in here ask for as `out` is `index` to an evaluation."""
    try:
        yield
    except PerceiverVLError as error:
        error.args = tuple(
            replace(part, name="index") if isinstance(part, Setting) and part.name == "out" else part
            for part in error.args
        )
        raise


def _files_of(searcher: Searcher, queries: Sequence[MomentQuery]) -> dict[str, str]:
    """The file of each video that is there, by the name that the queries have for it, with or without its ending."""
    names = sorted(set(searcher.segments().columns(["file"])["file"].to_pylist()))
    by_name = {Path(name).stem: name for name in names} | {Path(name).name: name for name in names}
    return {
        query.video: by_name[one]
        for query in queries
        for one in (query.video, Path(query.video).stem, query.video.removeprefix("v_"))
        if one in by_name
    }


def _baselines(
    searcher: Searcher,
    queries: Sequence[MomentQuery],
    files: Mapping[str, str],
    answers: Mapping[str, MomentResult | None],
    cut: str | float,
    bar: ProgressBars,
) -> dict[str, MomentFigures]:
    """Without words or video; segments of which each is scored by itself, joined; and the best windows of so many
    segments, where these are of so many seconds.
    """
    plain = [replace(query, saliency=None) for query in queries]
    figures = trivial_figures(plain)
    joined = {
        qid: joined_windows([(point.start, point.end, point.score) for point in _curve(result)])[:MOST_WINDOWS]
        for qid, result in answers.items()
    }
    figures["segment by segment"] = retrieval_figures(plain, joined, {})
    seconds = 0.0 if str(cut) == SCENES else float(cut)
    for count in _FIXED if seconds else ():
        around = (count - 0.5) * seconds, (count + 0.5) * seconds
        options = MomentOptions(MOST_WINDOWS, MOST_WINDOWS, *around, always=True)
        advance = bar.stage(f"Windows of {count} segments", len(queries))
        found = {query.qid: _windows(_ask(searcher, query, files, advance, options)) for query in queries}
        figures[f"windows of {count * seconds:g} s"] = retrieval_figures(plain, found, {})
    return figures


def _learn(searcher: Searcher, annotations: str, queries: Sequence[MomentQuery], bar: ProgressBars) -> float:
    files = _files_of(searcher, queries)
    timed = [(query.query, files[query.video], query.windows) for query in queries if query.video in files]
    if not timed:
        raise UsageError(f"calibrate={annotations}: its videos are not in the folder, give them to it too")
    return learn_length_weight(searcher, timed, MomentOptions(max_length=LONGEST), bar)


def _options(query: MomentQuery) -> MomentOptions:
    if query.choices:  # every one of 21 candidates, best first
        every = _DIDEMO_SEGMENTS * (_DIDEMO_SEGMENTS + 1) // 2
        return MomentOptions(top_k=every, per_video=every, max_length=LONGEST, always=True, overlap=1.0)
    return MomentOptions(top_k=MOST_WINDOWS, per_video=MOST_WINDOWS, max_length=LONGEST, always=True)


def _ask(
    searcher: Searcher,
    query: MomentQuery,
    files: Mapping[str, str],
    advance: Callable[..., None],
    options: MomentOptions,
) -> MomentResult | None:
    advance()
    if query.video not in files:
        return None
    only = Filters(where=f"file = {quoted(files[query.video])}")
    return searcher.moments(query.query, options, only)


def _ask_corpus(
    searcher: Searcher,
    queries: Sequence[MomentQuery],
    files: Mapping[str, str],
    weight: float | None,
    bar: ProgressBars,
) -> dict[str, list[tuple[str, Scored]]]:
    """The best windows of all videos for each query, by the names that queries have for these."""
    names = {file: video for video, file in files.items()}
    most = max(CORPUS_RANKS)
    options = MomentOptions(most, MOST_WINDOWS, max_length=LONGEST, always=True, length_weight=weight)
    advance = bar.stage("Asking the corpus", len(queries))
    found = {}
    for query in queries:
        moments = searcher.moments(query.query, options).moments
        found[query.qid] = [
            (names.get(one.file_name, one.file_name), (one.start, one.end, one.score)) for one in moments
        ]
        advance()
    return found


def _windows(result: MomentResult | None) -> list[Scored]:
    return [] if result is None else [(one.start, one.end, one.score) for one in result.moments]


def _curve(result: MomentResult | None) -> list[Any]:
    return [] if result is None else [point for curve in result.curves.values() for point in curve]


def _ranking(windows: Sequence[Scored]) -> list[tuple[int, int]]:
    """As first and last segments: the last of a video may be shorter, and frames begin a little late."""
    return [(round(start / DIDEMO_SEGMENT), math.ceil(end / DIDEMO_SEGMENT - 0.01) - 1) for start, end, _ in windows]


def _prediction(query: MomentQuery, windows: Sequence[Scored], saliency: Sequence[float]) -> dict[str, Any]:
    return {
        "qid": int(query.qid) if query.qid.isdecimal() else query.qid,
        "query": query.query,
        "vid": query.video,
        "pred_relevant_windows": [[round(start, 3), round(end, 3), round(score, 4)] for start, end, score in windows],
        "pred_saliency_scores": [round(score, 4) for score in saliency],
    }
