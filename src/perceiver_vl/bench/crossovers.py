"""Who costs less, and from where on: said in words, whoever wins."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perceiver_vl.bench.peers import PEERS
from perceiver_vl.bench.settings import OURS, Setting

if TYPE_CHECKING:
    from perceiver_vl.bench.cost import Cost

Point = tuple[int, float, float]  # frames, theirs, ours
FEW = (1, 2, 4)  # where the others may still be ahead


def crossovers(costs: "Sequence[Cost]", count_at: Callable[[Setting], float], full: Setting) -> list[str]:
    """For each of the others: at which numbers of frames a clip and words cost it less than ours at `full` dials.

    By operations (`count_at`) at few frames more than were measured, by seconds where both were.
    """
    frames = [cost for cost in costs if cost.part == "frames"]
    reference = {cost.frames: cost for cost in frames if _is(cost, full)}
    said = []
    for peer in PEERS:
        theirs = {cost.frames: cost for cost in frames if cost.model == peer.name}
        counted = [
            (number, count_at(replace(full, model=peer.name, frames=number)), count_at(replace(full, frames=number)))
            for number in sorted({*FEW, *theirs})
        ]
        timed = []
        for number, cost in sorted(theirs.items()):
            mine = reference[number].milliseconds
            if cost.milliseconds is not None and mine is not None:
                timed.append((number, cost.milliseconds, mine))
        said.append(in_words(peer.title, counted, "GFLOPs"))
        if timed:
            said.append(in_words(peer.title, timed, "ms"))
    words = {cost.label: cost for cost in costs if cost.part == "words"}
    ours = [cost for cost in words.values() if cost.model == OURS]
    if ours:
        listed = ", ".join(f"{cost.label} {cost.gflops:.1f}" for cost in words.values())
        said.append(f"{ours[0].words} words alone, GFLOPs: {listed}.")
    return said


def in_words(title: str, points: Sequence[Point], unit: str) -> str:
    """One sentence on `points`, in ascending order of frames."""
    less = [(frames, theirs, ours) for frames, theirs, ours in points if theirs < ours]
    ends = ", ".join(dict.fromkeys((_pair(points[0]), _pair(points[-1]))))
    measure = f"{title} ({unit}): "
    if not less:
        return measure + f"costs more than ours at every number of frames, {ends}."
    if len(less) == len(points):
        return measure + f"costs less than ours at every number of frames, {ends}."
    if less == list(points[: len(less)]):
        turn = points[len(less)]
        return measure + f"costs less than ours up to {_pair(less[-1])}; more from {_pair(turn)} on."
    if less == list(points[-len(less) :]):
        return measure + f"costs more than ours up to {_pair(points[-len(less) - 1])}; less from {_pair(less[0])} on."
    return measure + "costs less than ours at " + ", ".join(_pair(point) for point in less) + "; more elsewhere."


def _pair(point: Point) -> str:
    frames, theirs, ours = point
    return f"{frames} frame{'s' if frames > 1 else ''} ({_amount(theirs)} against {_amount(ours)})"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _is(cost: "Cost", setting: Setting) -> bool:
    return (cost.model, cost.image_size, cost.latents, cost.reads) == (
        setting.model,
        setting.image_size,
        setting.budget.latents,
        setting.budget.cross_attentions,
    )
