"""`perceiver-vl bench perceiver` and its like: the other models of the family, trained or measured."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.bench import QuickOption, RunsOption, SeedOption
from perceiver_vl.cli.options import JsonOption, ThreadsOption, read_names, read_numbers, require_extra
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
        read_names(tasks),
        training=training,
        batch_size=batch_size,
        runs=1 if quick else runs,
        quick=quick,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json)


def perceiver_ar(
    text: Annotated[
        str | None,
        typer.Option(help="Folder of text files that it reads (default: docs, or else this package's code)."),
    ] = None,
    copy_context: Annotated[int, typer.Option(min=256, help="Tokens of a sequence whose halves are equal.")] = 8192,
    copy_steps: Annotated[int, typer.Option(min=0, help="Of copying; 0 leaves it out.")] = 800,
    contexts: Annotated[str, typer.Option(help="Bytes that it reads, one number or more.")] = "256,512,1024,2048,4096",
    embedded: Annotated[str, typer.Option(help="Bytes that are embedded together, one number or more.")] = "1,4",
    steps: Annotated[int, typer.Option(min=1, help="Of each training to read.")] = 1500,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train Perceiver ARs to copy from far before, and to read bytes from contexts of several lengths."""
    numbers, together = read_numbers("contexts", contexts), read_numbers("embedded", embedded)
    use_threads(threads)
    from perceiver_vl.bench.siblings.long_context import measure_long_context

    report = measure_long_context(
        text,
        copy_context=min(copy_context, 256) if quick else copy_context,
        copy_steps=min(copy_steps, 2) if quick else copy_steps,
        contexts=sorted({min(number, 256) for number in numbers}) if quick else numbers,
        embedded=together,
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
    print_bench(report, as_json, repeats=f"seed {seed}")


def s2t_perceiver(
    utterances: Annotated[int, typer.Option(min=1, help="To train on.")] = 2000,
    tested: Annotated[int, typer.Option(min=1, help="Others, to test with.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 32 utterances.")] = 1000,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train S2T Perceivers to write down made digits, with all latents and with a quarter, beside a transformer."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.spoken_digits import measure_spoken_digits

    report = measure_spoken_digits(
        utterances=min(utterances, 32) if quick else utterances,
        tested=min(tested, 8) if quick else tested,
        steps=min(steps, 2) if quick else steps,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")


def dynamic_perceiver(
    pictures: Annotated[int, typer.Option(min=1, help="To train on.")] = 4000,
    tested: Annotated[int, typer.Option(min=1, help="To test with, and as many to solve thresholds on.")] = 1000,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 32 pictures.")] = 600,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a Dynamic Perceiver whose pictures leave where it is sure enough, beside exits on convolutions."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.early_exits import measure_early_exits

    report = measure_early_exits(
        pictures=min(pictures, 64) if quick else pictures,
        tested=min(tested, 8) if quick else tested,
        size=size,
        steps=min(steps, 2) if quick else steps,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")


def gcog(
    splits: Annotated[
        str, typer.Option(help="Some of distractor, systematic_depth1, systematic_depth3 and productive.")
    ] = "distractor,systematic_depth1,systematic_depth3,productive",
    only: Annotated[str, typer.Option(help="Models to train, as the report names them; none: all.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 32 instances.")] = 1200,
    per_operator: Annotated[int, typer.Option(min=1, help="Instructions, eight times so many.")] = 5000,
    tested: Annotated[int, typer.Option(min=32, help="Instances of each test.")] = 1024,
    width: Annotated[int, typer.Option(min=8, help="Of every model.")] = 48,
    numbers: Annotated[bool, typer.Option("--numbers", help="Tokens are numbers, as in the reference.")] = False,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train gCOG's model families and Perceiver-VL on its splits: more distractors, new pairs, longer instructions."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.gcog import measure_gcog

    report = measure_gcog(
        read_names(splits),
        read_names(only),
        steps=min(steps, 2) if quick else steps,
        per_operator=min(per_operator, 8) if quick else per_operator,
        tested=min(tested, 32) if quick else tested,
        width=min(width, 16) if quick else width,
        numbers=numbers,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")


def uni_perceiver(
    steps: Annotated[int, typer.Option(min=1, help="Of each task, of 32 examples.")] = 400,
    tested: Annotated[int, typer.Option(min=32, help="Examples of each test.")] = 512,
    width: Annotated[int, typer.Option(min=8, help="Of the model.")] = 64,
    alone: Annotated[bool, typer.Option("--alone/--no-alone", help="A model for each task, too.")] = True,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train Uni-Perceivers on tasks whose labels are words: together and apart, with experts; and on labels unseen."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.label_words import measure_label_words

    report = measure_label_words(
        steps=min(steps, 2) if quick else steps,
        tested=min(tested, 32) if quick else tested,
        width=min(width, 16) if quick else width,
        alone=alone,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")


def perceiver_tf(
    pieces: Annotated[int, typer.Option(min=1, help="Of two seconds, to train on.")] = 1000,
    tested: Annotated[int, typer.Option(min=1, help="Others, to test with.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Of each training, of 8 pieces.")] = 1500,
    ways: Annotated[
        str, typer.Option(help="How it reads, some of added, frequencies, positions and channels.")
    ] = "added,frequencies,channels",
    out: Annotated[str | None, typer.Option(help="New folder for the first model, and a piece to try it on.")] = None,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train Perceiver TFs to write down the notes of several instruments, beside a recurrent net of as many weights."""
    require_extra("mir_eval", "music")
    require_extra("mido", "music")
    use_threads(threads)
    from perceiver_vl.bench.siblings.notes import measure_notes

    report = measure_notes(
        pieces=min(pieces, 8) if quick else pieces,
        tested=min(tested, 4) if quick else tested,
        steps=min(steps, 2) if quick else steps,
        ways=read_names(ways),
        out=out,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")


def language_bridge(
    out: Annotated[Path, typer.Option(help="Folder that keeps what was trained; a second call goes on.")] = Path(
        "bench/language-bridge"
    ),
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A Perceiver-VL to begin with, in place of a new one.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="To train on.")] = 3000,
    tested: Annotated[int, typer.Option(min=1, help="Others, to test with.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Of each bridge, of 64 clips.")] = 300,
    retrieval_steps: Annotated[int, typer.Option(min=1, help="Of a new Perceiver-VL, which learns to search.")] = 300,
    language_steps: Annotated[int, typer.Option(min=1, help="Of the language model, of 64 captions.")] = 300,
    width: Annotated[int, typer.Option(min=8, help="Of the language model.")] = 128,
    frames: Annotated[int, typer.Option(min=1, help="Of a clip.")] = 8,
    only: Annotated[str, typer.Option(help="Bridges to train, as the report names them; none: all.")] = "",
    quick: QuickOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a frozen language model say what clips show, by soft tokens and otherwise, beside a captioner."""
    use_threads(threads)
    from perceiver_vl.bench.siblings.language_bridge import measure_language_bridge

    report = measure_language_bridge(
        out,
        model=model,
        only=read_names(only),
        clips=min(clips, 64) if quick else clips,
        tested=min(tested, 8) if quick else tested,
        size=32 if quick else 64,
        frames=min(frames, 2) if quick else frames,
        steps=min(steps, 2) if quick else steps,
        retrieval_steps=min(retrieval_steps, 2) if quick else retrieval_steps,
        language_steps=min(language_steps, 2) if quick else language_steps,
        width=min(width, 16) if quick else width,
        seed=seed,
        progress=True,
    )
    print_bench(report, as_json, repeats=f"seed {seed}")
