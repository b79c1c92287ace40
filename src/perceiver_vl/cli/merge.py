"""`perceiver-vl merge`: the average of models that were trained apart, and the accuracy between two of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from perceiver_vl.cli.options import (
    BenchmarkOption,
    ColumnsOption,
    DeviceOption,
    JsonOption,
    MetadataOption,
    SplitOption,
    ThreadsOption,
    parse_columns,
    read_names,
)
from perceiver_vl.cli.show import print_json
from perceiver_vl.tasks import EXAMPLE_TASKS
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import Setting, UsageError
from perceiver_vl.utils.threads import use_threads

if TYPE_CHECKING:
    from perceiver_vl.inference.merge_path import PathPoint

_TASKS = ("retrieval", *EXAMPLE_TASKS)
PATH = "path.png"
"""The figure of the path, in the folder of the average."""


def merge(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write, new or empty.")],
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Two models of one configuration, or more.")],
    weights: Annotated[
        str | None, typer.Option(help="Of each model, as in 0.7,0.3 (default: all alike); they are made to sum to 1.")
    ] = None,
    path: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Of two models, score N averages from the one to the other, too."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help=f"With --path: one of {', '.join(_TASKS)} (default: retrieval).")
    ] = None,
    data: Annotated[str | None, typer.Option(help="With --path: folder of media, or folder or URL of shards.")] = None,
    split: SplitOption = None,
    benchmark: BenchmarkOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="With --path: frames of a clip (default: the processor's).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --path: clips scored at a time (default: 32).")
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Average the weights of models that began with the same and were trained apart."""
    shares = None if weights is None else _numbers(weights)
    unused: dict[str, object] = {
        "task": task,
        "data": data,
        "split": split,
        "benchmark": benchmark,
        "metadata": metadata,
    }
    unused |= {"columns": columns or None, "num_frames": num_frames, "batch_size": batch_size, "device": device}
    for name, value in unused.items():
        if path is None and value is not None:
            raise UsageError(
                f"{name}={value}: of the path between two models, say how many points with ", Setting("path", 11)
            )
    if path is not None:
        _check_path(models, task or "retrieval", data)
    use_threads(threads)
    from perceiver_vl.models.merging import check_free, shares_of
    from perceiver_vl.models.merging import merge as run
    from perceiver_vl.training.reporting.model_card import write_model_card

    parts = shares_of(models, shares)
    check_free(output)
    points: list[PathPoint] = []
    if path is not None:  # before anything is written: what cannot be scored leaves nothing behind
        where = {"split": split, "benchmark": benchmark, "metadata": metadata, "columns": parse_columns(columns)}
        how = {"num_frames": num_frames, "batch_size": batch_size or 32}
        points = _path(models, path, task or "retrieval", str(data), where, how, device)
    merged = run(
        models, output, shares, write_card=lambda folder: write_model_card(folder, merged=parts), progress=True
    )
    told: dict[str, Any] = {"out": str(output), "shares": merged.shares, "tensors": merged.tensors}
    told["averaged"] = merged.averaged
    if points:
        _draw_path(points, models, task or "retrieval", output)
        told["path"] = [{"share": point.share, **point.figures} for point in points]
    if as_json:
        print_json(told)
        return
    said = ", ".join(f"{name} {100 * share:.3g} %" for name, share in merged.shares.items())
    out.print(f"{output}: {merged.averaged} of {merged.tensors} tensors averaged: {said}")
    if points:
        _print_path(points, [*merged.shares])
        out.print(f"the path between them: {output / PATH}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(name) for name in read_names(text)]
    except ValueError:
        raise UsageError(f"weights={text}: need numbers, as in 0.7,0.3") from None


def _check_path(models: list[Path], task: str, data: str | None) -> None:
    if task not in _TASKS:
        raise UsageError(f"task={task}: unknown, choose from {', '.join(_TASKS)}")
    if len(models) != 2:
        raise UsageError(f"path: goes from one model to another, not along {len(models)}; give two")
    if data is None:
        raise UsageError("path: what is between two models is scored on clips, name them with ", Setting("data", "DIR"))


def _path(
    models: list[Path],
    points: int,
    task: str,
    data: str,
    where: dict[str, Any],
    how: dict[str, Any],
    device: str | None,
) -> "list[PathPoint]":
    """Measure the path."""
    from perceiver_vl.data.open import open_dataset
    from perceiver_vl.inference.merge_path import accuracy_path
    from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
    from perceiver_vl.models.perceiver_vl.processing import PerceiverVLImageProcessor
    from perceiver_vl.tasks import task_of

    size = PerceiverVLImageProcessor.from_pretrained(models[0]).size
    modalities = PerceiverVLConfig.from_pretrained(models[0]).modalities
    need = task_of(task).need
    source, _ = open_dataset(data, (size["height"], size["width"]), need=need, modalities=modalities, **where)
    return accuracy_path(models, points, task, source, device=device, progress=True, **how)


def _draw_path(points: "list[PathPoint]", models: list[Path], task: str, output: Path) -> None:
    """Draw the path into the folder of the average."""
    from perceiver_vl.utils.plots import write_curves

    shares = [point.share for point in points]
    series = {name: (shares, [point.figures[name] for point in points]) for name in _drawn(points)}
    write_curves(output / PATH, series, x=f"share of {models[1].name}", y=task, title="Between two models")


def _drawn(points: "list[PathPoint]") -> list[str]:
    """Of retrieval R@1 of each stream, text to video; else the task's first metric."""
    names = [*points[0].figures]
    return [name for name in names if name.endswith("_r1") and "v2t" not in name] or names[:1]


def _print_path(points: "list[PathPoint]", names: list[str]) -> None:
    table = Table(pad_edge=False)
    table.add_column(f"share of {names[1]}", justify="right")
    figures = _drawn(points) if len(points[0].figures) > 5 else [*points[0].figures]
    for name in figures:
        table.add_column(name, justify="right")
    for point in points:
        table.add_row(f"{point.share:.2f}", *(f"{point.figures[name]:.1f}" for name in figures))
    out.print(table, soft_wrap=False)
