"""`perceiver-vl convert` and `export`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from perceiver_vl.cli.options import BudgetOption, JsonOption, ModelOption, parse_overrides, read_budget, require_extra
from perceiver_vl.cli.show import print_conversion, print_json
from perceiver_vl.models.budget import is_limit
from perceiver_vl.utils.console import out
from perceiver_vl.utils.errors import UsageError


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="The authors' .ckpt, or weights of another model of the family, told by their names: a file, a "
            "folder, hf://owner/name or hf://owner/name/file."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write, new or empty.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Of a sibling's configuration, what no shape tells, as in num_blocks=8.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="pretraining, retrieval, question-answering or image-classification (default: what its heads are for)."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of its tokenizer (default: google-bert/bert-base-uncased, the released model's)."
        ),
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of every attention, which no shape tells (default: width / 64).")
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames that the processor samples of a clip (default: 8, or fewer if it has fewer)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn published weights into a folder that from_pretrained loads."""
    from perceiver_vl.models.convert_sibling import convert_sibling, read_source, sibling_of
    from perceiver_vl.models.perceiver_vl.convert import TOKENIZER
    from perceiver_vl.models.perceiver_vl.convert import convert as run

    fields = parse_overrides(overrides or (), "num_blocks=8", convert_sibling)
    state, config = read_source(source)
    if fields or config or sibling_of(state) is not None:
        for name, value in (("task", task), ("tokenizer", tokenizer), ("num_frames", num_frames)):
            if value is not None:
                raise UsageError(f"{name}={value}: of Perceiver-VL alone, leave it out")
        if num_attention_heads is not None:
            fields = {"num_attention_heads": num_attention_heads, **fields}
        made = convert_sibling(source, output, state, config, progress=True, **fields)
        if as_json:
            print_json({"out": str(made.folder), "model": made.model, "parameters": made.parameters})
        else:
            out.print(f"{made.model} of {made.parameters / 1e6:.1f} M parameters: {made.folder}")
        return
    from perceiver_vl.training.reporting.model_card import write_model_card

    given: dict[str, Any] = {} if num_attention_heads is None else {"num_attention_heads": num_attention_heads}
    result = run(
        source,
        output,
        task=task,
        tokenizer=tokenizer or TOKENIZER,
        num_frames=num_frames,
        progress=True,
        write_card=write_model_card,
        **given,
    )
    if as_json:
        print_json(
            {"out": str(result.folder), "task": result.task, "parameters": result.parameters, **vars(result.conversion)}
        )
        return
    print_conversion(result.conversion)
    out.print(f"{result.task} model of {result.parameters / 1e6:.1f} M parameters: {result.folder}")


def export(
    model: ModelOption,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    format: Annotated[str, typer.Option(help="onnx, or torch (exported programs, .pt2).")] = "onnx",
    budget: BudgetOption = "",
    as_json: JsonOption = False,
) -> None:
    """Write a model as graphs that run without this package, for any batch, number of frames and length of text."""
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require_extra(module, "export")
    dials = read_budget(budget, model, "cpu", None)
    if is_limit(budget):
        dials = replace(dials, frames=None)  # a graph takes any number
    from perceiver_vl.inference.export import export as run

    result = run(model, output, format=format, budget=dials, progress=True)  # type: ignore[arg-type]
    if as_json:
        print_json({"out": str(result.folder), "format": result.format, "parts": result.parts})
        return
    for part in result.parts:
        given, found = ", ".join(part.inputs), ", ".join(part.outputs)
        out.print(
            f"{result.folder / part.file}: {given} → {found}; differs from the model by {part.max_difference:.1e}"
        )
