"""`perceiver-vl bench perception`."""

from typing import Annotated

import typer

from perceiver_vl.cli.bench import QuickOption, SeedOption
from perceiver_vl.cli.options import JsonOption, ThreadsOption, read_names
from perceiver_vl.cli.show import print_bench
from perceiver_vl.utils.threads import use_threads


def perception(
    tasks: Annotated[
        str, typer.Option(help="Some of motion, place, shape, place-of-3, shape-of-3, motion-of-2, motion-of-3.")
    ] = "motion,place,shape",
    variants: Annotated[
        str,
        typer.Option(
            help="Some of as-published, seeing, qk-norm, muon, qk-norm-muon, separate, text-first, soft-split, "
            "two-patch-sizes, tubelets, untied, layer-scale, maximum."
        ),
    ] = "seeing,qk-norm,muon,qk-norm-muon,maximum",
    seconds: Annotated[float, typer.Option(min=0.0, help="Processor time of each training, at most.")] = 180.0,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, at most, of 64 questions.")] = 5000,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="After the first 30 steps.")] = 2e-3,
    decay: Annotated[bool, typer.Option("--decay", help="Let the learning rate fall to 0 over the steps.")] = False,
    tested: Annotated[int, typer.Option(min=1, help="Other scenes to test with.")] = 500,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """How soon small models learn to see: one thing's motion, place or shape, or one of several, with curves."""
    use_threads(threads)
    from perceiver_vl.bench.perception import measure_perception

    report = measure_perception(
        tasks=read_names(tasks),
        variants=read_names(variants),
        seconds=seconds,
        most_steps=min(steps, 2) if quick else steps,
        learning_rate=learning_rate,
        decay=decay,
        tested=min(tested, 20) if quick else tested,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")
