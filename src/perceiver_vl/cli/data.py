"""Commands that make and look after data: `world`, `prepare`, `data …`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from perceiver_vl.cli.options import (
    ColumnsOption,
    ExcludeOption,
    JsonOption,
    MetadataOption,
    SplitOption,
    StrictOption,
    parse_columns,
)
from perceiver_vl.cli.show import print_json, print_skipped
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import UsageError

if TYPE_CHECKING:
    from perceiver_vl.data.checksums import Verification

data_app = typer.Typer(no_args_is_help=True, help="Look after data sets.")


def world(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    clips: Annotated[int, typer.Option(help="Clips of a task in training, validation and test together.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a clip (default: 8; with questions 16).")] = None,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    held_out: Annotated[
        int | None, typer.Option(help="Clips of each split but training (default: an eighth, at most 256).")
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="TASK,…",
            help="captions, action, transition, frame, count, yesno, image, pairs, long; several go into OUT/TASK. Or "
            "moments, alone: videos with timed captions; or sounds, alone, with captions.",
        ),
    ] = "captions",
    layout: Annotated[str, typer.Option(help="folder, or official: the benchmarks' own files.")] = "folder",
    seconds: Annotated[
        float | None,
        typer.Option(help="How long a clip of long is (default: 60), or a video of moments (default: 60 to 600)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the generated world: video and picture files with captions and questions whose truth is known."""
    from perceiver_vl.data.synthetic.moments import write_moments_world
    from perceiver_vl.data.synthetic.sounds import write_sounds_world
    from perceiver_vl.data.synthetic.writing import write_world

    if (task := tasks.strip()) in ("moments", "sounds") and (num_frames is not None or layout != "folder"):
        name = "num_frames" if num_frames is not None else "layout"
        raise UsageError(f"{name}: says nothing of {task}, leave it out")
    if task == "sounds":
        if seconds is not None:
            raise UsageError(f"seconds={seconds:g}: says nothing of sounds, which last one to two; leave it out")
        counts = write_sounds_world(folder, clips, seed, held_out=held_out, progress=True)
    elif task == "moments":
        sizes = {"held_out": held_out, "seconds": seconds, "size": size}
        counts = write_moments_world(folder, clips, seed, progress=True, **sizes)  # type: ignore[arg-type]
    else:
        counts = write_world(
            folder,
            clips,
            seed,
            num_frames=num_frames,
            size=size,
            held_out=held_out,
            progress=True,
            tasks=[task.strip() for task in tasks.split(",")],
            layout=layout,
            seconds=seconds,
        )
    if as_json:
        print_json({"out": str(folder), **counts})
    else:
        out.print(f"{folder}: " + ", ".join(f"{count} clips for {split}" for split, count in counts.items()))


def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of media, or of a benchmark; with --verify a prepared one.")],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write, new, empty or to be brought up to date.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="Short side in pixels, never enlarged; or HEIGHTxWIDTH, to which frames are squashed.")
    ] = "256",
    fps: Annotated[float, typer.Option(help="Frames kept of a second, at most.")] = 4.0,
    min_frames: Annotated[int, typer.Option(help="But of a short clip so many, if it has them.")] = 64,
    format: Annotated[str, typer.Option(help="jpeg (every frame a picture: the quickest to sample) or h264.")] = "jpeg",
    keyframes: Annotated[
        int | None, typer.Option(help="With h264: a frame in so many can be decoded by itself (default: 4).")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="Read SOURCE as this benchmark, see data list.")] = None,
    split: SplitOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    exclude: ExcludeOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one a core).")] = None,
    strict: StrictOption = False,
    features: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Instead, what the vision encoder of this model makes of each clip."),
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="With --features: frames of a clip (default: the processor's).")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare the files of a prepared folder with their checksums.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a folder or data set again once, small, for quick training and search; again: what is new or changed."""
    workers = workers or os.cpu_count() or 1
    if verify:
        from perceiver_vl.data.transcode.prepared import verify_prepared

        _print_verification(verify_prepared(output or source, workers, progress=True), as_json)
        return
    if output is None:
        raise UsageError("OUT is missing: give the folder to write")
    names = parse_columns(columns)
    from perceiver_vl.data.open import read_records
    from perceiver_vl.data.transcode.one_file import TranscodeSettings
    from perceiver_vl.data.transcode.prepare import prepare as run

    settings: Any = TranscodeSettings(_parse_size(size), fps, min_frames, format, keyframes)  # type: ignore[arg-type]
    if features is not None:
        if settings != TranscodeSettings():
            raise UsageError(f"--features {features}: of frames at the encoder's size, leave size, fps and format out")
        from perceiver_vl.data.transcode.features import feature_settings

        settings = feature_settings(features, num_frames)
    elif num_frames is not None:
        raise UsageError(f"--num-frames {num_frames}: of --features, which is not given; see --fps and --min-frames")
    folder = read_records(
        source, benchmark, split=split, metadata=metadata, columns=names, strict=strict, exclude=exclude or ()
    )
    about = {"benchmark": benchmark, "split": split}
    report = run(folder, output, settings, workers=workers, strict=strict, progress=True, about=about)
    if as_json:
        print_json(report)
        return
    for note in report.notes:
        out.print(note)
    out.print(report.summary())
    print_skipped(report.skipped)


def _parse_size(text: str) -> int | tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"size={text}: need the short side in pixels, as in 256, or height and width, as in 224x224")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _print_verification(result: "Verification", as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif not result.problems:
        out.print(f"{result.folder}: {result.files} files are as they were written")
    for problem in result.problems:
        err.print(f"{result.folder / problem.file_name}: {problem.reason}")
    if result.problems:
        raise typer.Exit(1)


@data_app.command()
def check(
    name: Annotated[str, typer.Argument(help="A benchmark, see data list; or folder, for a folder of your own.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where its files lie.")],
    split: Annotated[
        str | None, typer.Option(help="Only this split (default: all whose annotations are there).")
    ] = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    decode: Annotated[bool, typer.Option("--decode", help="Decode one frame of every file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Count what a data set names, what is there and what cannot be used; exit code 1 if anything is amiss."""
    names = parse_columns(columns)
    from perceiver_vl.cli.show_data import print_check
    from perceiver_vl.data.validate import check_data

    result = check_data(name, folder, split=split, metadata=metadata, columns=names, decode=decode, progress=True)
    if as_json:
        print_json(result.to_dict())
    else:
        print_check(result)
    if not result.complete:
        raise typer.Exit(1)


@data_app.command("list")
def list_benchmarks(
    name: Annotated[str | None, typer.Argument(help="Say what to download for this one, and how it must lie.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the benchmarks that can be read, with the published counts of their splits."""
    from perceiver_vl.cli.show_data import benchmark_as_dict, print_benchmark, print_benchmarks
    from perceiver_vl.data.datasets.read import find_benchmark
    from perceiver_vl.data.datasets.table import BENCHMARKS

    chosen = [find_benchmark(name)] if name else list(BENCHMARKS.values())
    if as_json:
        print_json([benchmark_as_dict(benchmark) for benchmark in chosen])
    elif name:
        print_benchmark(chosen[0])
    else:
        print_benchmarks(chosen)


@data_app.command()
def shard(
    name: Annotated[
        str, typer.Argument(help="A benchmark, see data list; or folder, for one of your own; with --verify only OUT.")
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where its files lie; they are only read.")
    ] = None,
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder of shards, new, or begun by this command.")
    ] = None,
    split: SplitOption = None,
    metadata: MetadataOption = None,
    columns: ColumnsOption = "",
    samples_per_shard: Annotated[int | None, typer.Option(help="Media in a shard.")] = None,
    shard_bytes: Annotated[
        int | None, typer.Option(help="Bytes of source files in a shard, instead (default: 268435456, 256 MiB).")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Transcode as prepare does, to this size (default: the files as they are).")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one a core).")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare the shards of a folder with their checksums.")
    ] = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pack media and annotations into WebDataset shards with an index, for training at scale; resumable."""
    workers = workers or os.cpu_count() or 1
    if verify:
        from perceiver_vl.data.shards.manifest import verify_shards

        _print_verification(verify_shards(output or folder or Path(name), workers, progress=True), as_json)
        return
    if folder is None or output is None:
        raise UsageError("DIR and OUT are needed: where the files lie, and the folder to write")
    names = parse_columns(columns)
    from perceiver_vl.data.folder import has_class_folders
    from perceiver_vl.data.open import read_records
    from perceiver_vl.data.shards.writing import write_shards
    from perceiver_vl.data.transcode.one_file import TranscodeSettings
    from perceiver_vl.data.validate import FOLDER

    transcoding = None if size is None else TranscodeSettings(_parse_size(size))
    benchmark = None if name == FOLDER else name
    need: Literal["label"] | None = "label" if benchmark is None and has_class_folders(folder, metadata) else None
    source = read_records(folder, benchmark, split=split, metadata=metadata, columns=names, need=need, strict=strict)
    report = write_shards(
        source,
        output,
        name=name,
        samples_per_shard=samples_per_shard,
        shard_bytes=shard_bytes,
        transcoding=transcoding,
        workers=workers,
        strict=strict,
        progress=True,
    )
    if as_json:
        print_json(report)
        return
    parts = ", ".join(f"{count} for {part}" if part else f"{count}" for part, count in report.splits.items())
    out.print(
        f"{output}: {report.shards} shards ({report.written} written now), {report.samples} media in "
        f"{report.bytes / 1e6:.1f} MB, records: {parts}",
        markup=False,
    )
    for note in source.notes:
        out.print(note)
    print_skipped(report.skipped)
