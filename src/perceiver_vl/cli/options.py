"""Options that several commands have, and what is made of them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.errors import UsageError

ModelOption = Annotated[Path, typer.Option("--model", help="Model folder, as written by train or save_pretrained.")]
BudgetOption = Annotated[
    str,
    typer.Option(help="Dials, as in frames=8,latents=64,text_latents=16,cross_attentions=1; those left out stay full."),
]
SplitOption = Annotated[str | None, typer.Option(help="Keep one split of the metadata.")]
MetadataOption = Annotated[Path | None, typer.Option(help="Metadata file, if it is not metadata.jsonl|csv|parquet.")]
ColumnsOption = Annotated[
    str, typer.Option(help="Names of the metadata's columns, as in file_name=file,text=captions,split=split.")
]
BenchmarkOption = Annotated[
    str | None, typer.Option(help="Read the folder as the official files of this benchmark; see data list.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first broken file instead of skipping it.")]
MaxBrokenOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Stop when more than this share of the files cannot be read.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU if there is one).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def require_extra(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"{module} is not installed: pip install 'perceiver-vl[{extra}]'")


def parse_columns(text: str) -> dict[str, str]:
    columns = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = part.partition("=")
        if not (name and equals):
            raise UsageError(f"columns {part!r}: need name=column, as in file_name=file (or name= to ignore one)")
        columns[name] = column
    return columns
