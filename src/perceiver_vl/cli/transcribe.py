"""`perceiver-vl transcribe`: sound to notes."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import JsonOption, ModelOption, check_file, require_extra
from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import err
from perceiver_vl.utils.console import out as console


def transcribe(
    sound: Annotated[Path, typer.Argument(metavar="FILE", help="A recording, or a video with sound.")],
    model: ModelOption,
    out: Annotated[Path | None, typer.Option(help="The MIDI file (default: FILE's name, in this folder).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the MIDI file if it is there.")] = False,
    threshold: Annotated[float | None, typer.Option(help="How likely a note must be (default: 0.4).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write down the notes of a recording as a MIDI file, a track an instrument."""
    require_extra("mido", "music")
    out = Path(sound.name).with_suffix(".mid") if out is None else out
    check_file("--out", out)
    from perceiver_vl.inference.transcription import LIKELY, check_midi, load_transcriber, transcribe_file, write_midi

    check_midi(out, sound, overwrite)
    found = transcribe_file(load_transcriber(model), sound, threshold=LIKELY if threshold is None else threshold)
    write_midi(found, out)
    if found.lost:
        err.print(f"{sound}: damaged or cut short, the notes are of the {found.seconds:.1f} s that can be heard")
    counts = dict.fromkeys(found.instruments, 0)
    for note in found.notes:
        counts[found.instruments[note.instrument]] += 1
    if as_json:
        told = {"file": str(out), "seconds": found.seconds, "notes": len(found.notes), "instruments": counts}
        print_json(told)
        return
    of_each = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"{len(found.notes)} notes in {found.seconds:.1f} s ({of_each}): {out}")
