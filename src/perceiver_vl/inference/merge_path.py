"""How accurate the averages of two models are, from the one to the other: whether one valley holds both.

Source: linear mode connectivity (Frankle et al. 2020), as UnIVAL (Shukor et al. 2023) draws it of its tasks.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.merging import merge
from perceiver_vl.tasks import load_for, task_of
from perceiver_vl.tasks.retrieval_result import RetrievalResult
from perceiver_vl.utils.console import ProgressBars, quiet


@dataclass(frozen=True)
class PathPoint:
    """share: that of the second model. figures: of the task, by name; recalls in per cent, others as it says them."""

    share: float
    figures: dict[str, float]


def accuracy_path(
    folders: Sequence[Path],
    points: int,
    task: str,
    source: VideoDataset,
    *,
    device: str | None = None,
    progress: bool = False,
    **how: Any,
) -> list[PathPoint]:
    """What `points` averages of two models, both ends among them, reach on the clips of `source`.

    `how`: as of the task's `evaluate`. Each average is written to a temporary folder and loaded from there, one at a
    time. Raises what `merge` and the task raise.
    """
    chosen, found = task_of(task), []
    for folder in folders:  # an average could only say that something temporary is of another kind
        load_for(task, chosen.model_class, folder, device)
    with ProgressBars(progress) as bars:
        advance = bars.stage("The path between them", points)
        for number in range(points):
            share = number / (points - 1)
            with quiet(), tempfile.TemporaryDirectory() as place:
                merge(folders, Path(place) / "average", [1 - share, share])
                model, processor = load_for(task, chosen.model_class, Path(place) / "average", device)
            result = chosen.evaluate(model, processor, source, **how)
            figures = result.figures() if isinstance(result, RetrievalResult) else result.metrics
            found.append(PathPoint(share, {name: float(value) for name, value in figures.items()}))
            advance()
    return found
