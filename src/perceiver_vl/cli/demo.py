"""`perceiver-vl demo`."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import JsonOption, require_extra
from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import out


def demo(
    output: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option()] = 0,
    as_json: JsonOption = False,
) -> None:
    """The whole story in minutes: make a world, train, evaluate three streams and the cascade, index, search,
    report.
    """
    for module, extra in (("accelerate", "train"), ("jsonargparse", "train"), ("matplotlib", "report")):
        require_extra(module, extra)
    from perceiver_vl.bench.demo import run_demo

    result = run_demo(output, seed)
    if as_json:
        print_json(result.to_dict())
        return
    out.print(result.table())
    out.print(f"the page: {result.report}")
