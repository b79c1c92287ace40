"""`perceiver-vl bench perceiver` and its like: the other models of the family, trained or measured."""

from typing import Annotated

import typer

from perceiver_vl.cli.bench import QuickOption, RunsOption, SeedOption
from perceiver_vl.cli.options import JsonOption, ThreadsOption, read_numbers
from perceiver_vl.cli.show import print_bench
from perceiver_vl.utils.threads import use_threads


def perceiver(
    pictures: Annotated[int, typer.Option(min=1, help="To train on.")] = 8000,
    tested: Annotated[int, typer.Option(min=1, help="Others, to test with.")] = 1000,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 32 pictures.")] = 500,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a Perceiver and a Perceiver IO on made pictures, in order and with permuted pixels, beside convolutions."""
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


def perceiver_io(
    tasks: Annotated[
        str, typer.Option(help="Some of language, image-fourier, image-learned, image-conv and flow.")
    ] = "language,image-fourier,flow",
    training: Annotated[bool, typer.Option("--training/--no-training", help="Training steps, too.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at once.")] = 1,
    runs: RunsOption = 1,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Perceiver IO beside transformers' own classes, on the same weights at the published sizes: seconds and memory."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.perceiver_io import measure_perceiver_io

    report = measure_perceiver_io(
        [task.strip() for task in tasks.split(",") if task.strip()],
        training=training,
        batch_size=batch_size,
        runs=1 if quick else runs,
        quick=quick,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json)


def perceiver_ar(
    text: Annotated[str, typer.Option(help="Folder of text files that it reads.")] = "docs",
    copy_context: Annotated[int, typer.Option(min=256, help="Tokens of a sequence whose halves are equal.")] = 8192,
    copy_steps: Annotated[int, typer.Option(min=0, help="Of copying; 0 leaves it out.")] = 600,
    contexts: Annotated[str, typer.Option(help="Bytes that it reads, one number or more.")] = "256,512,1024,2048,4096",
    steps: Annotated[int, typer.Option(min=1, help="Of each training to read.")] = 200,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train Perceiver ARs to copy from far before, and to read bytes from contexts of several lengths."""
    numbers = read_numbers("contexts", contexts)
    use_threads(threads)
    from perceiver_vl.bench.siblings.long_context import measure_long_context

    report = measure_long_context(
        text,
        copy_context=min(copy_context, 256) if quick else copy_context,
        copy_steps=min(copy_steps, 2) if quick else copy_steps,
        contexts=sorted({min(number, 256) for number in numbers}) if quick else numbers,
        steps=min(steps, 2) if quick else steps,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")


def monoxiver(
    scenes: Annotated[int, typer.Option(min=1, help="To train on.")] = 800,
    tested: Annotated[int, typer.Option(min=1, help="Others, to test with.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 8 scenes.")] = 1200,
    runs: RunsOption = 10,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train MonoXiver's head to move boxes that are wrong in depth to where they fit, beside a plain network."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.denoised_boxes import measure_denoised_boxes

    report = measure_denoised_boxes(
        scenes=min(scenes, 12) if quick else scenes,
        tested=min(tested, 4) if quick else tested,
        steps=min(steps, 2) if quick else steps,
        runs=1 if quick else runs,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json)
