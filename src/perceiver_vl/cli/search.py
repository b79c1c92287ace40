"""`perceiver-vl index`, `index export` and `search`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perceiver_vl.cli.options import (
    BudgetOption,
    ColumnsOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    ExcludeOption,
    JsonOption,
    MaxFailedFractionOption,
    MetadataOption,
    SplitOption,
    StrictOption,
    ThreadsOption,
    check_file,
    parse_columns,
    read_budget,
    read_seconds,
    require_extra,
)
from perceiver_vl.cli.show import print_damaged, print_hits, print_json, print_skipped
from perceiver_vl.models.budget import is_limit
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.threads import count_threads, use_threads

if TYPE_CHECKING:
    from perceiver_vl.search import MomentResult, SearchResult

index_app = typer.Typer(invoke_without_command=True)


@index_app.callback()
def index(
    context: typer.Context,
    output: Annotated[
        str | None, typer.Option("--out", help="Index, made or brought up to date: a folder, or s3://bucket/index.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model folder, or a dual encoder's hub name such as openai/clip-vit-base-patch32 (default: the model "
            "that made the index)."
        ),
    ] = None,
    media: Annotated[
        Path | None, typer.Option(help="Folder of clips and images (default: the one that the index is of).")
    ] = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    split: SplitOption = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames sampled of a clip (default: the processor's).")] = None,
    segments: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|scenes",
            help="Also encode every video in pieces of so many seconds, or its scenes, for search --moments.",
        ),
    ] = None,
    segment_fps: Annotated[
        float | None, typer.Option("--segment-fps", help="Frames a second that a segment is read with (default: 1).")
    ] = None,
    exclude: ExcludeOption = None,
    budget: BudgetOption = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    strict: StrictOption = False,
    max_failed_fraction: MaxFailedFractionOption = 0.1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every row, and encode again what is damaged.")
    ] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    compiled: CompileOption = False,
    threads: ThreadsOption = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Encode on a Ray cluster (auto, HOST:PORT), or on all cores (local)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode every clip and image of a folder once; again: only what is new, changed or gone."""
    if context.invoked_subcommand is not None:
        return
    if output is None:
        raise UsageError("--out is missing: say where the index is, or is to be made, with --out INDEX")
    names = parse_columns(columns)
    if ray is not None:
        require_extra("ray", "cluster")
    use_threads(threads)
    from perceiver_vl.search import build_index
    from perceiver_vl.search.query_export import write_query_graph

    if model is not None:
        from perceiver_vl.models.perceiver_vl.from_encoders import resolve_model

        model = resolve_model(model, err.print)
    if is_limit(budget) and model is None:
        raise UsageError(f"--budget {budget}: say of which model, with --model MODEL")
    dials = read_budget(budget, model or Path(), device, dtype) if budget else None

    try:
        report = build_index(
            model,
            media,
            output,
            budget=dials,
            metadata=metadata,
            columns=names,
            split=split,
            num_frames=num_frames,
            segments=segments,
            segment_fps=segment_fps,
            batch_size=batch_size,
            exclude=exclude or (),
            strict=strict,
            max_failed_fraction=max_failed_fraction,
            verify=verify,
            progress=True,
            device=device,
            dtype=dtype,
            compiled=compiled,
            ray=ray,
        )
        if note := write_query_graph(output, progress=True):
            report.notes.append(note)
    except KeyboardInterrupt:
        err.print(f"what is encoded is kept, go on with perceiver-vl index --out {shlex.quote(output)}")
        raise
    if as_json:
        print_json(report.as_dict())
        return
    for note in report.notes:
        err.print(note)
    out.print(report.summary())
    print_skipped(report.skipped)
    print_damaged([*report.damaged, *(report.segments.damaged if report.segments else [])])


@index_app.command()
def export(
    index: Annotated[str, typer.Argument(help="Index: a folder, or s3://bucket/index.")],
    parquet: Annotated[Path, typer.Option(help="File to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write all rows of an index to one Parquet file, for Milvus, Qdrant, pgvector and others."""
    check_file("--parquet", parquet)
    from perceiver_vl.search import export_parquet

    clips = export_parquet(index, parquet)
    if as_json:
        print_json({"index": index, "parquet": parquet, "clips": clips})
    else:
        out.print(f"{clips} clips: {parquet}")


def search(
    index: Annotated[str, typer.Option(help="Index: a folder, or s3://bucket/index.")],
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORDS]...", help="Queries, each in quotes; without any, one a line of the input."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "--top", help="Clips or moments to show.")] = 10,
    shortlist: Annotated[int, typer.Option(help="Candidates that the mixed stream re-ranks.")] = 100,
    rerank: Annotated[str, typer.Option(help="combined, mixed or none.")] = "combined",
    folder: Annotated[str | None, typer.Option(help="Only clips in this folder of the media folder.")] = None,
    after: Annotated[str | None, typer.Option(metavar="DAY", help="Only clips from this day or time on.")] = None,
    before: Annotated[str | None, typer.Option(metavar="DAY", help="Only clips from before this day or time.")] = None,
    longer: Annotated[str | None, typer.Option(metavar="TIME", help="Only clips of at least so long (1:30).")] = None,
    shorter: Annotated[str | None, typer.Option(metavar="TIME", help="Only clips of at most so long.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only video, or only image.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Only clips for which this holds, as in width >= 1920.")
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Also look for the words in captions and file names, and join both.")
    ] = False,
    moments: Annotated[
        bool, typer.Option("--moments", help="Where in the videos: start and end of the best windows of each.")
    ] = False,
    min_length: Annotated[
        str | None, typer.Option(metavar="TIME", help="Moments: of at least so long (default: 0).")
    ] = None,
    max_length: Annotated[
        str | None, typer.Option(metavar="TIME", help="Moments: of at most so long (default: 60).")
    ] = None,
    per_video: Annotated[int | None, typer.Option(help="Moments: at most so many of a video (default: 3).")] = None,
    always: Annotated[
        bool, typer.Option("--always", help="Moments: show the best even where they are no better than chance.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Moments: learn what is no better than chance, and how long moments are, from lines of JSON with "
            "query and file, and start and end."
        ),
    ] = None,
    length_weight: Annotated[
        float | None, typer.Option(help="Moments: what a window gains with each e-fold of its length.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Moments: cut them into this folder, with lists as CSV, JSON and EDL.")
    ] = None,
    cut: Annotated[
        str | None, typer.Option(help="Moments: cut at keyframes, without loss (default), or exact, encoded again.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page of filmstrips here.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the index's model is now, if it has moved.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    paths: Annotated[bool, typer.Option("--paths", help="Print the paths of the clips alone, one a line.")] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="With --paths: end each with a null character.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find clips, or moments of videos, by words: shortlist by the multi-stream, re-rank by the mixed stream."""
    if null and not paths:
        raise UsageError("-0: ends paths, ask for --paths")
    for option, path in (("html", html), ("export", export)):
        if path and not queries:
            raise UsageError(f"{option}={path}: is of queries that are given as words, give some")
    of_moments = {
        "min-length": min_length,
        "max-length": max_length,
        "per-video": per_video,
        "always": always or None,
        "calibrate": calibrate,
        "length-weight": length_weight,
        "export": export,
        "cut": cut,
    }
    given = [name for name, value in of_moments.items() if value is not None]
    if given and not moments:
        raise UsageError(f"{given[0]}: is of moments, ask for --moments")
    if cut is not None:
        from perceiver_vl.media.cutting import check_cut

        check_cut(cut)
    if calibrate and queries:
        raise UsageError(
            f"calibrate={calibrate}: asks the queries of its file alone, leave out {queries[0]!r}, ask after"
        )
    if moments and hybrid:
        raise UsageError("hybrid: moments are found by what is seen, leave it or moments out")
    from perceiver_vl.search.engine import how_to_make  # light, as the next: mistakes are told at once
    from perceiver_vl.search.filters import Filters

    filters = Filters(
        folder=folder,
        after=after,
        before=before,
        longer=None if longer is None else read_seconds("longer", longer),
        shorter=None if shorter is None else read_seconds("shorter", shorter),
        type=kind,  # type: ignore[arg-type]
        where=where,
    )
    if filters.sql() and calibrate:
        raise UsageError(f"calibrate={calibrate}: is of the whole index, leave out what says which videos")
    check_file("--html", html)
    if "://" not in index and not Path(index, "clips.lance").is_dir():
        raise UsageError(f"{index}: not an index, make one with {how_to_make(index)}")
    known = []
    if calibrate:
        from perceiver_vl.search.calibrate import read_queries

        known = read_queries(calibrate)
    from perceiver_vl.search import Searcher

    searcher = Searcher(index, model, device, light=True, threads=count_threads(threads))
    if export:
        from perceiver_vl.cli.moments import check_export

        check_export(export, searcher)
    for note in searcher.notes:
        err.print(note)
    options = None
    if moments:
        from perceiver_vl.cli.moments import calibrate_with, read_options

        shortest = None if min_length is None else read_seconds("min-length", min_length)
        longest = None if max_length is None else read_seconds("max-length", max_length)
        options = read_options(shortest, longest, top_k, per_video, shortlist, rerank, always, length_weight)
        if calibrate:
            calibrate_with(searcher, known, options, as_json)
            return

    def answer(words: str) -> "SearchResult | MomentResult":
        if options is not None:
            return searcher.moments(words, options, filters)
        return searcher.search(words, top_k, shortlist, rerank, filters, hybrid)  # type: ignore[arg-type]

    if not queries:
        for line in sys.stdin:  # each is answered at once, in a line of JSON if that is asked for
            if line.strip():
                _print_results([answer(line.strip())], as_json and "line", paths, null)
        return
    results = [answer(words) for words in queries]
    said = []
    if html:
        _write_page(html, results)
        said.append(f"filmstrips: {html}")
    if export:
        from perceiver_vl.cli.moments import export_to

        said += export_to(export, results, cut or "keyframes")
    _print_results(results, as_json and "list", paths, null)
    if not (as_json or paths):
        for line in said:
            out.print(line)


def _write_page(html: Path, results: "list[SearchResult | MomentResult]") -> None:
    from perceiver_vl.search import MomentResult, SearchResult, write_page
    from perceiver_vl.search.moments_html import write_moments_page

    if any(isinstance(result, MomentResult) for result in results):
        write_moments_page(html, [result for result in results if isinstance(result, MomentResult)])
    else:
        write_page(html, [result for result in results if isinstance(result, SearchResult)])


def _print_results(results: "list[SearchResult | MomentResult]", as_json: str | bool, paths: bool, null: bool) -> None:
    if as_json == "line":
        for result in results:
            print_json(result.as_dict(), indent=None)
    elif as_json:
        print_json([result.as_dict() for result in results])
    elif paths:
        for path in dict.fromkeys(path for result in results for path in result.paths()):
            sys.stdout.buffer.write(os.fsencode(path) + (b"\0" if null else b"\n"))
    else:
        from perceiver_vl.cli.moments import print_moments
        from perceiver_vl.search import SearchResult

        for result in results:
            if isinstance(result, SearchResult):
                print_hits(result)
            else:
                print_moments(result)
    sys.stdout.flush()
