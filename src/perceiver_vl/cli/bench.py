"""`perceiver-vl bench …`: cost and accuracy, measured."""

from typing import Annotated

import typer
from rich.table import Table

from perceiver_vl.cli.options import JsonOption
from perceiver_vl.cli.show import print_json, print_provenance
from perceiver_vl.console import out

bench_app = typer.Typer(no_args_is_help=True, help="Measure cost and accuracy.")


@bench_app.command()
def cost(
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each setting.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Operations and seconds of encoding at several settings of the dials, at base size with random weights."""
    from perceiver_vl.bench.cost import measure_cost

    report = measure_cost(runs=runs, seed=seed, device=device, progress=True)
    if as_json:
        print_json(report.to_dict())
        return
    table = Table(title=f"encoding one example, base size, {report.parameters / 1e6:.1f} M parameters")
    for column in ("input", "GFLOPs", "ms (median)", "fastest", "slowest", "relative"):
        table.add_column(column, justify="left" if column == "input" else "right")
    reference = report.costs[0].milliseconds
    for row in report.costs:
        times = (f"{value:.0f}" for value in (row.milliseconds, row.fastest, row.slowest))
        table.add_row(row.name, f"{row.gflops:.1f}", *times, f"{row.milliseconds / reference:.2f}")
    out.print(table)
    print_provenance(report)


@bench_app.command()
def kernels(
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips, each with 40 words.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each form.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of a forward: eager, sdpa, compiled; float32, bfloat16; at base size with random weights."""
    from perceiver_vl.bench.kernels import measure_kernels

    report = measure_kernels(frames=frames, batch_size=batch_size, runs=runs, seed=seed, device=device, progress=True)
    if as_json:
        print_json(report.to_dict())
        return
    table = Table(title=f"encoding {report.batch_size} × {report.frames} frames and 40 words, base size")
    for column in ("form", "dtype", "ms", "fastest", "slowest", "ratio", "MiB", "max diff"):
        table.add_column(column, justify="left" if column in ("form", "dtype") else "right", no_wrap=True)
    reference = next(row for row in report.forms if (row.form, row.dtype) == ("sdpa", "float32"))
    for row in report.forms:
        times = (f"{value:.0f}" for value in (row.milliseconds, row.fastest, row.slowest))
        relative = f"{row.milliseconds / reference.milliseconds:.2f}"
        table.add_row(row.form, row.dtype, *times, relative, f"{row.peak_mib:.0f}", f"{row.difference:.1e}")
    out.print(table)
    print_provenance(report)
