"""The command line: parse, call, print. Heavy imports happen inside the commands, so that help and mistakes are
quick.
"""

import gc
import io
import os
import sys
from typing import Annotated

import typer

from perceiver_vl._version import __version__
from perceiver_vl.cli import data as data_commands
from perceiver_vl.cli import siblings
from perceiver_vl.cli.ask import ask
from perceiver_vl.cli.bench import bench_app
from perceiver_vl.cli.caption import caption
from perceiver_vl.cli.components import components
from perceiver_vl.cli.convert import convert, export
from perceiver_vl.cli.demo import demo
from perceiver_vl.cli.evaluate import evaluate
from perceiver_vl.cli.init import init
from perceiver_vl.cli.learning import learning
from perceiver_vl.cli.merge import merge
from perceiver_vl.cli.options import as_typed
from perceiver_vl.cli.perception import perception
from perceiver_vl.cli.report import report
from perceiver_vl.cli.search import index_app, search
from perceiver_vl.cli.serve import serve
from perceiver_vl.cli.train import train
from perceiver_vl.cli.transcribe import transcribe
from perceiver_vl.cli.watch import watch
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.errors import PREEMPTED, PerceiverVLError, PreemptedError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Perceiver-VL: train, evaluate and search video, images and text with iterative latent attention.",
)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"perceiver-vl {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for _command in (
    train,
    evaluate,
    search,
    ask,
    caption,
    transcribe,
    serve,
    watch,
    report,
    data_commands.prepare,
    data_commands.world,
    init,
    convert,
    merge,
    export,
    demo,
):
    app.command()(_command)
for _bench in (
    siblings.perceiver,
    siblings.perceiver_io,
    siblings.perceiver_ar,
    siblings.monoxiver,
    siblings.s2t_perceiver,
    siblings.dynamic_perceiver,
    siblings.gcog,
    siblings.uni_perceiver,
    siblings.perceiver_tf,
    siblings.language_bridge,
    perception,
    learning,
    components,
):
    bench_app.command()(_bench)
app.add_typer(index_app, name="index")
app.add_typer(data_commands.data_app, name="data")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point."""
    whole_process = "torch.distributed" not in sys.modules  # else somebody has called this, and goes on
    try:
        _run()
    except SystemExit as stop:
        if whole_process and "torch.distributed" in sys.modules:  # nothing heavy is imported for this
            from perceiver_vl.utils.launch import leave_at_once

            leave_at_once(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
        raise


def _run() -> None:
    """Errors are one line on standard error; exit code 2 for usage, 1 for failure."""
    gc.set_threshold(500_000, 20, 100)  # of a million objects that imports make, all stay: half a second to look
    for stream in (sys.stdout, sys.stderr):  # what an encoding lacks is shown by its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while waiting slow a busy machine down
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes its own comings and goings,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and its process group that a machine has no name
    try:
        app()
    except PreemptedError as stopped:
        err.print(stopped.spelled(as_typed))
        sys.exit(PREEMPTED)
    except UsageError as error:
        _fail(error.spelled(as_typed), 2)
    except PerceiverVLError as error:
        _fail(error.spelled(as_typed), 1)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except SystemExit as stop:  # typer makes a silent one of an interrupt
        if stop.code == 130:
            _fail("interrupted", 130)
        raise


def _fail(message: str, code: int) -> None:
    err.print(f"error: {' '.join(message.split())}")
    sys.exit(code)
