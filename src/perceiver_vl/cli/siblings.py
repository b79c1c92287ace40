"""`perceiver-vl bench perceiver` and its like: the other models of the family, trained or measured."""

from typing import Annotated

import typer

from perceiver_vl.cli.bench import QuickOption, SeedOption, bench_app
from perceiver_vl.cli.options import JsonOption
from perceiver_vl.cli.show import print_bench


@bench_app.command()
def perceiver(
    pictures: Annotated[int, typer.Option(min=1, help="To train on.")] = 8000,
    tested: Annotated[int, typer.Option(min=1, help="Others, to test with.")] = 1000,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 64 pictures.")] = 1500,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a Perceiver on made pictures, in order and with permuted pixels, beside convolutions."""
    from perceiver_vl.bench.siblings.permuted_pixels import measure_permuted_pixels

    report = measure_permuted_pixels(
        pictures=min(pictures, 200) if quick else pictures,
        tested=min(tested, 100) if quick else tested,
        size=size,
        steps=min(steps, 2) if quick else steps,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")
