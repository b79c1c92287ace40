"""Options that several commands have, and what is made of them."""

import inspect
import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from perceiver_vl.models.budget import ComputeBudget, CostLimit, is_limit
from perceiver_vl.utils.console import err
from perceiver_vl.utils.errors import Setting, UsageError

ModelOption = Annotated[Path, typer.Option("--model", help="Model folder, as written by train or save_pretrained.")]
BudgetOption = Annotated[
    str,
    typer.Option(
        help="Dials, as in frames=8,latents=64,text_latents=16,cross_attentions=1,blocks=2 (those left out stay "
        "full); or what an example may take, as in 50ms or 10GFLOPs, where bench frontier has measured the model."
    ),
]
SplitOption = Annotated[str | None, typer.Option(help="Keep one split of the metadata.")]
MetadataOption = Annotated[Path | None, typer.Option(help="Metadata file, if it is not metadata.jsonl|csv|parquet.")]
ColumnsOption = Annotated[
    str, typer.Option(help="Names of the metadata's columns, as in file_name=file,text=captions,split=split.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Names to leave out, as in '*.gif' (may be repeated)."),
]
BenchmarkOption = Annotated[
    str | None, typer.Option(help="Read the folder as the official files of this benchmark; see data list.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first broken file instead of skipping it.")]
MaxFailedFractionOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Stop when more than this share of the files cannot be read.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU if there is one).")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or int8 (default: as the weights were saved).")
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the encoder first, which takes minutes and pays in long runs; CUDA graphs on a GPU."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads to compute with (default: a core each, or OMP_NUM_THREADS).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StartOption = Annotated[float | None, typer.Option(min=0, help="Look from this second on.")]
EndOption = Annotated[float | None, typer.Option(min=0, help="Look up to this second.")]
FpsOption = Annotated[
    float | None,
    typer.Option(help="Read every frame at this rate, however long the clip is, instead of a few sampled ones."),
]
SpillOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for a temporary file of what is read at --fps, instead of decoding for each cross-attention."
    ),
]


def as_typed(setting: Setting) -> str:
    """A setting as it is typed: an option of a command, or (`data.num_frames=8`) a key of a recipe."""
    name, value = setting.name, setting.value
    if setting.in_recipe or "." in name:
        plain = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
        return shlex.quote(f"{name}={plain}")
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return option
    text = ",".join(f"{key}={of_it}" for key, of_it in value.items()) if isinstance(value, dict) else str(value)
    return f"{option} {shlex.quote(text)}"


def parse_overrides(overrides: Sequence[str], example: str, function: Callable[..., object]) -> dict[str, Any]:
    """`key=value`, values as in YAML, for `function` to be called with beside what it names itself; `example` is one
    that would do.
    """
    parsed, named = {}, inspect.signature(function).parameters
    for override in overrides:
        key, equals, value = override.partition("=")
        if not (key and equals):
            raise UsageError(f"{override!r}: need key=value, as in {example}")
        if key in named:
            raise UsageError(f"{override}: not of the configuration, as is {example}; options begin with --")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"{override}: not a value, as in {example}") from None
    return parsed


def check_file(option: str, path: Path | None) -> None:
    """Before any work: whether a file of this name can be written; `UsageError` where its folder is not there."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder, name a file to write")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise UsageError(f"{option} {path}: {there} is a file, not a folder, name another place")
    if not path.parent.is_dir():
        make = f"mkdir -p {shlex.quote(str(path.parent))}"
        raise UsageError(f"{option} {path}: no folder {path.parent} to write it into, make it first: {make}")


def read_names(text: str) -> list[str]:
    """The names of a list such as "multi, mixed"; none of an empty one."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_numbers(name: str, text: str) -> list[int]:
    """`8,16,32` → the numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{name}={text}: need whole numbers, as in 8,16,32")
    return [int(part) for part in parts]


def read_seconds(name: str, text: str) -> float:
    """`90`, `1:30` or `0:01:30` → seconds."""
    try:
        return float(sum(60**place * float(part) for place, part in enumerate(reversed(text.split(":")))))
    except ValueError:
        raise UsageError(f"{name}={text}: need seconds or mm:ss") from None


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


def read_budget(text: str, model: Path, device: str | None, dtype: str | None) -> ComputeBudget:
    """Typed dials as they are; for a limit on the cost, the model's best setting within it, which is printed."""
    if not is_limit(text):
        return ComputeBudget.parse(text)
    limit = CostLimit.parse(text)
    from perceiver_vl.inference.budget_selection import choose_budget

    choice = choose_budget(model, limit, device, dtype)
    err.print(str(choice))
    return choice.budget
