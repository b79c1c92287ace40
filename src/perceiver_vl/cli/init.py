"""`perceiver-vl init`."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import JsonOption, parse_overrides
from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import err, out

_SOURCE = "a hub name, a folder of transformers, or a folder with an ONNX file and encoder.json"


def init(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write, new or empty.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Fields of PerceiverVLConfig, as in token_grid=3 num_latents=32."
        ),
    ] = None,
    vision: Annotated[str | None, typer.Option(metavar="SOURCE", help=f"Vision encoder: {_SOURCE}.")] = None,
    text: Annotated[str | None, typer.Option(metavar="SOURCE", help="Text encoder: a hub name or a folder.")] = None,
    dual: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Both, of a dual encoder such as CLIP or SigLIP; needs no training."),
    ] = None,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames that the processor samples of a clip.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Write a Perceiver-VL over pretrained encoders: the tokens of these are what its latents attend to."""
    from perceiver_vl.models.perceiver_vl.from_encoders import initialise
    from perceiver_vl.training.reporting.model_card import write_model_card

    config = parse_overrides(overrides or (), "token_grid=3", initialise)
    made = initialise(
        output, vision=vision, text=text, dual=dual, num_frames=num_frames, write_card=write_model_card, **config
    )
    for warning in made.warnings():
        err.print(f"note: {warning}")
    if as_json:
        print_json(
            {
                "out": str(made.folder),
                "base": made.config.base,
                "parameters": made.parameters,
                "licenses": made.licenses,
            }
        )
        return
    out.print(f"model of {made.parameters / 1e6:.1f} M parameters over pretrained encoders: {made.folder}")
    if made.config.base == "linear":
        out.print("its two encoders have never met: train it before you search (docs/start-from-weights.md)")
