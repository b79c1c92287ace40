"""`perceiver-vl search --moments`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from perceiver_vl.cli.show import print_json, print_skipped
from perceiver_vl.utils.console import out, print_whole
from perceiver_vl.utils.errors import UsageError

if TYPE_CHECKING:
    from perceiver_vl.search import MomentOptions, MomentResult, Searcher, SearchResult
    from perceiver_vl.search.calibrate import Known
    from perceiver_vl.tasks.moment_metrics import MomentFigures


def read_options(
    min_length: float | None,
    max_length: float | None,
    top_k: int,
    per_video: int | None,
    shortlist: int,
    rerank: str,
    always: bool,
    length_weight: float | None,
) -> "MomentOptions":
    """Those that are given; the others are as they are."""
    from perceiver_vl.search import MomentOptions

    given = {"min_length": min_length, "max_length": max_length, "per_video": per_video}
    given["length_weight"] = length_weight
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return MomentOptions(top_k=top_k, shortlist=shortlist, rerank=rerank, always=always, **options)


def calibrate_with(searcher: "Searcher", queries: "Sequence[Known]", options: "MomentOptions", as_json: bool) -> None:
    """Learn from queries whose answers are known, and say what."""
    from perceiver_vl.search.calibrate import calibrate

    found = calibrate(searcher, queries, options, progress=True)
    if as_json:
        print_json(found.as_dict())
        return
    if found.timed and found.length_weight is not None:
        out.print(f"{found.timed} moments: a window gains {found.length_weight:.2f} with each e-fold of its length")
    out.print(
        f"{found.queries} queries: the best window must stand out by {found.threshold:.2f} standard deviations; "
        f"{100 * found.found:.0f} % do with their video, {100 * found.false_alarms:.0f} % without it"
    )


def check_export(folder: Path, searcher: "Searcher") -> None:
    """Before any search: raise `UsageError` for a folder that holds something, or lies in the index or its media."""
    place, media = folder.resolve(), searcher.table.settings.media
    for what, other in (("index", str(searcher.index)), ("indexed media", media)):
        if other and "://" not in other and place.is_relative_to(Path(other).resolve()):
            raise UsageError(f"export={folder}: lies in the folder of the {what}, {other}, name a new folder elsewhere")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"export={folder}: is a file, name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"export={folder}: is not empty, name a new folder")


def export_to(folder: Path, results: "Sequence[SearchResult | MomentResult]", cut: str) -> list[str]:
    """Cut the moments into files; what to say of it."""
    from perceiver_vl.media.cutting import check_cut
    from perceiver_vl.search import MomentResult
    from perceiver_vl.search.moments_export import export_moments

    moments = [result for result in results if isinstance(result, MomentResult)]
    found = export_moments(folder, moments, check_cut(cut), progress=True)
    problems = [f"not cut: {one.file_name}: {one.problem}" for one in found if one.problem is not None]
    return [f"{len(found) - len(problems)} moments cut: {folder}", *problems]


def print_moment_evaluation(
    model: Path, data: str, annotations: Path | str, submission: Path | None, as_json: bool, how: dict[str, Any]
) -> None:
    """Evaluate a model, and print the figures or write the predictions, or both."""
    from perceiver_vl.inference.moment_evaluation import evaluate_moments
    from perceiver_vl.utils.files import write_text

    found = evaluate_moments(model, data, annotations, labelled=submission is None, progress=True, **how)
    if submission:
        write_text(submission, found.submission())
    if as_json:
        print_json(found.to_dict())
        return
    out.print(f"{found.format}: {found.figures.queries} queries, {found.videos} videos, {found.segments} segments")
    table = Table()
    table.add_column("")
    for column in ("official", "unanswered as 0"):
        table.add_column(column, justify="right")
    for figures in filter(None, (found.figures, found.corpus)):
        for name, value in figures.official.items():
            table.add_row(name, f"{value:.2f}", f"{figures.all_queries[name]:.2f}")
    print_whole(table)
    if found.baselines:
        print_whole(_beside(found.figures, found.baselines))
    if found.length_weight is not None:
        out.print(f"a window gains {found.length_weight:.2f} with each e-fold of its length, as was learned")
    for note in found.notes:
        out.print(f"note: {note}")
    print_skipped(found.skipped)
    if submission:
        out.print(f"{len(found.predictions)} predictions: {submission}")


def _beside(figures: "MomentFigures", baselines: "Mapping[str, MomentFigures]") -> Table:
    table = Table()
    table.add_column("official")
    names = [name for name in figures.official if not name.startswith("HL")]
    for name in names:
        table.add_column(name, justify="right")
    for title, row in {**baselines, "this model": figures}.items():
        table.add_row(title, *(f"{row.official[name]:.2f}" for name in names))
    return table


def print_moments(result: "MomentResult") -> None:
    """A line a moment."""
    from perceiver_vl.search.moments import clock

    table = Table(title=f"“{result.query}”", title_justify="left")
    for column in ("", "file", "start", "end", "score", "multi_score", "mixed_score"):
        table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
    for one in result.moments:
        mixed = "" if one.mixed_score is None else f"{one.mixed_score:.2f}"
        about = f"{one.score:.2f}", f"{one.multi_score:.3f}", mixed
        table.add_row(str(one.rank), one.file_name, clock(one.start), clock(one.end), *about)
    if result.moments:
        print_whole(table)
    if result.found is False:
        chance = f"{result.surprise:.1f} standard deviations, chance reaches {result.threshold:.1f}"
        shown = "the best are shown all the same" if result.moments else "--always shows the best all the same"
        out.print(f"“{result.query}”: nothing found ({chance}); {shown}")
    for note in result.notes:
        out.print(f"note: {note}")
    total = 1e3 * result.seconds["total"]
    out.print(f"{result.windows} windows of {result.searched} segments scored in {total:.1f} ms ({result.method})")
