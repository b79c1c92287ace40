"""`perceiver-vl index` and `search`."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import (
    BudgetOption,
    ColumnsOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxFailedFractionOption,
    MetadataOption,
    ModelOption,
    SplitOption,
    StrictOption,
    ThreadsOption,
    parse_columns,
    read_budget,
    require_extra,
)
from perceiver_vl.cli.show import print_damaged, print_hits, print_json, print_skipped
from perceiver_vl.utils.console import out
from perceiver_vl.utils.threads import use_threads


def index(
    model: ModelOption,
    media: Annotated[Path, typer.Option(help="Folder of clips and images.")],
    output: Annotated[Path, typer.Option("--out", help="Index folder, made or brought up to date.")],
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    split: SplitOption = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames sampled of a clip (default: the processor's).")] = None,
    budget: BudgetOption = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    strict: StrictOption = False,
    max_failed_fraction: MaxFailedFractionOption = 0.1,
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
    names = parse_columns(columns)
    if ray is not None:
        require_extra("ray", "cluster")
    dials = read_budget(budget, model, device, dtype)
    use_threads(threads)
    from perceiver_vl.search import build_index

    report = build_index(
        model,
        media,
        output,
        budget=dials,
        metadata=metadata,
        columns=names,
        split=split,
        num_frames=num_frames,
        batch_size=batch_size,
        strict=strict,
        max_failed_fraction=max_failed_fraction,
        progress=True,
        device=device,
        dtype=dtype,
        compiled=compiled,
        ray=ray,
    )
    if as_json:
        print_json(report.as_dict())
        return
    out.print(report.summary())
    print_skipped(report.skipped)
    print_damaged(report.damaged)


def search(
    index: Annotated[Path, typer.Option(help="Index folder.")],
    queries: Annotated[list[str], typer.Argument(metavar="WORDS...", help="One or more queries, each in quotes.")],
    top_k: Annotated[int, typer.Option("--top-k", "--top", help="Clips to show.")] = 10,
    shortlist: Annotated[int, typer.Option(help="Candidates that the mixed stream re-ranks.")] = 100,
    rerank: Annotated[str, typer.Option(help="combined, mixed or none.")] = "combined",
    html: Annotated[Path | None, typer.Option(help="Also write a page of filmstrips here.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the index's model is now, if it has moved.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find clips by words: shortlist by the multi-stream, re-rank by the mixed stream."""
    use_threads(threads)
    from perceiver_vl.search import Searcher, write_page

    searcher = Searcher(index, model, device)
    results = [searcher.search(words, top_k=top_k, shortlist=shortlist, rerank=rerank) for words in queries]  # type: ignore[arg-type]
    if html:
        write_page(html, results)
    if as_json:
        print_json([result.as_dict() for result in results])
        return
    for result in results:
        print_hits(result)
    if html:
        out.print(f"filmstrips: {html}")
