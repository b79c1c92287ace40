"""How a run goes on in another number of processes: with the batches that it began with."""

import json
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from perceiver_vl.training.checkpoint_trainer import SUMS
from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """What a step is made of. examples: of all processes at a time; each: of a process, as its recipe has it."""

    examples: int
    each: int
    processes: int
    accumulated: int

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"batch": asdict(self)}


def batch_of(arguments: TrainingArguments, checkpoint: Path | None) -> tuple[Batch, str | None]:
    """The batch of a run, which a checkpoint keeps whatever the number of processes, and a line about what changes.

    The arguments' own batch is set to a process's part of it. Raises `UsageError` for a recipe that asks for another
    batch than the run has.
    """
    each, processes = arguments.train_batch_size, arguments.world_size
    now = Batch(each * processes, each, processes, arguments.gradient_accumulation_steps)
    before = None if checkpoint is None else _kept_in(checkpoint)
    if before is None or before == now:
        return now, None
    if now.accumulated != before.accumulated:
        raise UsageError(
            f"training.gradient_accumulation_steps={now.accumulated}: the run accumulates {before.accumulated}, and "
            "keeps that in any number of processes; leave it, or begin another run from its model (initialise.model)"
        )
    if now.examples != before.examples and now.each != before.each:
        raise UsageError(
            f"training.per_device_train_batch_size={now.each}: {now.examples} examples a batch in {_count(processes)}, "
            f"but the run has {before.examples}, and keeps them in any number of processes; leave it at {before.each}, "
            "or begin another run from its model (initialise.model)"
        )
    part = ceil(before.examples / processes)
    arguments.per_device_train_batch_size = ceil(part / max(1, arguments.n_gpu))
    kept = Batch(before.examples, now.each, processes, now.accumulated)
    if processes == before.processes:
        return kept, None
    return kept, (
        f"going on in {_count(processes)} instead of {before.processes}: batches of {kept.examples} examples as "
        f"before, {part} a process; data, schedule, optimiser and all that is drawn from the step or the example go on "
        "as they would have, dropout is drawn anew"
    )


def _kept_in(checkpoint: Path) -> Batch | None:
    kept = json.loads((checkpoint / SUMS).read_text(encoding="utf-8")).get("batch")
    return kept and Batch(**kept)


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"
