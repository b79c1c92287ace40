"""Commands that make and look after data: `world`, `prepare`, `data …`."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import JsonOption
from perceiver_vl.cli.show import print_json
from perceiver_vl.console import out

data_app = typer.Typer(no_args_is_help=True, help="Look after data sets.")


def world(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    clips: Annotated[int, typer.Option(help="Clips in all splits together.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 8,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    held_out: Annotated[
        int | None, typer.Option(help="Clips of validation and of test (default: an eighth, at most 256).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the generated world: video files with captions whose truth is known."""
    from perceiver_vl.data.world import write_world

    counts = write_world(folder, clips, seed, num_frames=frames, size=size, held_out=held_out, progress=True)
    if as_json:
        print_json({"out": str(folder), **counts})
    else:
        out.print(f"{folder}: " + ", ".join(f"{count} clips for {split}" for split, count in counts.items()))
