"""`perceiver-vl watch`: a training run as it goes on, in a terminal."""

import json
import shlex
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perceiver_vl.cli.options import JsonOption
from perceiver_vl.cli.show import print_json
from perceiver_vl.utils.console import out

if TYPE_CHECKING:
    from rich.console import RenderableType

    from perceiver_vl.training.reporting.monitor import RunState

REFRESH = 1.0
"""Seconds between two looks at the run."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH, _VALIDATIONS = 40, 5


def watch(
    run: Annotated[Path, typer.Argument(help="Output folder of a training run.")],
    once: Annotated[bool, typer.Option("--once", help="Print how the run is doing now, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how a training run is doing, until it ends: steps, losses, validations, speed, health, what was skipped."""
    from rich.live import Live

    from perceiver_vl.training.reporting.monitor import RunReader

    reader = RunReader(run)
    state = reader.read()
    if once:
        print_json(state.to_dict()) if as_json else out.print(picture(state))
    elif as_json:
        print(json.dumps(state.to_dict(), ensure_ascii=False), flush=True)
        while not state.ended:
            time.sleep(REFRESH)
            before, state = state, reader.read()
            if (state.step, state.ended, state.stopped) != (before.step, before.ended, before.stopped):
                print(json.dumps(state.to_dict(), ensure_ascii=False), flush=True)
    else:
        with Live(picture(state), console=out, auto_refresh=False) as live:
            while not state.ended:
                time.sleep(REFRESH)
                state = reader.read()
                live.update(picture(state), refresh=True)


def picture(state: "RunState") -> "RenderableType":
    """A run as a few lines and a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    total = "" if not state.steps else f" of {state.steps} ({state.step / state.steps:.0%})"
    parts: list[RenderableType] = [Text(str(state.folder)), f"step {state.step}{total}, {_how(state)}"]
    numbers = Table.grid(padding=(0, 2))
    for name in state.log[-1] if state.log else ():
        if "loss" in name or name == "learning_rate":
            values = [line[name] for line in state.log if name in line]
            numbers.add_row(name, f"{values[-1]:.4g}", sparkline(values))
    parts.append(numbers)
    parts.extend(_health(state.health))
    if state.validations:
        parts.append(_validations(state.validations))
    kept = "none yet" if state.checkpoint is None else f"step {state.checkpoint}"
    parts.append(f"last checkpoint: {kept}; files skipped: {state.skipped}; steps skipped: {state.nonfinite}")
    parts.extend(Text(f"! {said}", style="yellow") for said in state.diagnostics)
    return Group(*parts)


def _health(figures: dict[str, float]) -> list[str]:
    """Lines of figures that a person can take in."""
    lines = []
    gradients = {name[10:]: value for name, value in figures.items() if name.startswith("grad_norm_")}
    if gradients:
        lines.append(f"gradient norms: {', '.join(f'{part} {value:.2g}' for part, value in gradients.items())}")
    for name in figures:
        if name.startswith("cross_attention_") and name.endswith("_entropy"):
            layer, update = name[:-8], figures[f"{name[:-8]}_update"]
            spread = f"attention {figures[name]:.0%} of uniform"
            lines.append(f"{layer.replace('_', ' ')}: {spread}, finds {update:.2g} times what it is added to")
    alike = [
        f"{name}s {figures[f'{name}_similarity']:.2f}"
        for name in ("latent", "example")
        if f"{name}_similarity" in figures
    ]
    if alike:
        lines.append(f"alike (1: all the same): {', '.join(alike)}")
    if "share_of_peak" in figures:
        held = {"memory": figures.get("memory_mib"), "GPU memory": figures.get("gpu_memory_mib")}
        memory = "".join(f", {what} {mib / 1024:.1f} GiB" for what, mib in held.items() if mib is not None)
        lines.append(
            f"{figures['share_of_peak']:.1%} of the machine's peak, {figures['data_wait']:.0%} of the time waiting for "
            f"data{memory}"
        )
    return lines


def sparkline(values: list[float]) -> str:
    """Values as a line of blocks, each the mean of a stretch of them; what is not finite is a space."""
    count = min(len(values), _WIDTH)
    edges = [number * len(values) // count for number in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if abs(mean) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    return "".join(
        _BLOCKS[round((mean - low) / span * (len(_BLOCKS) - 1))] if abs(mean) < float("inf") else " " for mean in means
    )


def _how(state: "RunState") -> str:
    if state.ended:
        return "ended"
    if state.stopped:
        again = f"perceiver-vl train {shlex.quote(str(state.folder / 'recipe.yaml'))} --resume"
        return f"nothing written for {_duration(state.silent)}, it may have stopped: go on with {again}"
    if state.steps_per_second is None:
        return "running"
    speed = f"{state.steps_per_second:.3g} steps a second"
    if state.examples_per_second is not None:
        speed = f"{state.examples_per_second:.3g} examples a second"
    return speed if state.seconds_left is None else f"{speed}, {_duration(state.seconds_left)} left"


def _validations(validations: list[dict[str, float]]) -> "RenderableType":
    """The last ones; of retrieval only R@1 from text, the rest is in `log.jsonl`."""
    from rich.table import Table

    names = [name for name in validations[-1] if name != "step"]
    recalls = [name for name in names if name.endswith("_r1") and "v2t" not in name]
    table = Table("step", *(recalls or names))
    for found in validations[-_VALIDATIONS:]:
        table.add_row(
            f"{found['step']:.0f}", *(f"{found[name]:.4g}" if name in found else "" for name in recalls or names)
        )
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
