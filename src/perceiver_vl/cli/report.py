"""`perceiver-vl report`: a training run as one HTML page."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import DeviceOption, JsonOption, as_typed, check_file, require_extra
from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import PerceiverVLError


def report(
    run: Annotated[Path, typer.Argument(help="Output folder of a training run, ended or not.")],
    output: Annotated[Path | None, typer.Option("--out", help="HTML file to write (default: RUN/report.html).")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page about a training run: its curves, recipe and data, clips that it gets right and wrong."""
    require_extra("matplotlib", "report")
    check_file("--out", output)
    from perceiver_vl.training.reporting.report import write_report

    written = write_report(run, output, progress=True, device=device)
    if as_json:
        print_json({"report": str(written.path), "missing": written.missing})
        return
    for sentence in written.missing:
        out.print(f"not on the page: {sentence}")
    out.print(f"the page: {written.path}")


def report_at_end(run: Path) -> None:
    """The page of a run that has just ended; whatever keeps it from being written does not undo the run."""
    if find_spec("matplotlib") is None:
        err.print("no report.html: matplotlib is not installed: pip install 'perceiver-vl[report]'")
        return
    from perceiver_vl.training.reporting.report import write_report

    try:
        write_report(run, progress=True)
    except (PerceiverVLError, OSError) as error:
        said = error.spelled(as_typed) if isinstance(error, PerceiverVLError) else error
        err.print(f"no report.html: {said}")
