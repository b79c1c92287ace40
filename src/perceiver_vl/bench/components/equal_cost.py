"""What a recipe costs, and for how many steps it costs as much as another.

The operations of a training step are counted as the trainer makes them: the forward passes of all that takes part, the
backward pass, and the products of the optimizer.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perceiver_vl.bench.components.trials import lasting
from perceiver_vl.bench.learning.costs import of_few_clips, step_and_answer
from perceiver_vl.bench.learning.runs import digest, share_texts
from perceiver_vl.bench.profiling import count_flops, count_training_flops, peak_memory_mib, time_interleaved
from perceiver_vl.training import train
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.utils.files import write_json
from perceiver_vl.utils.threads import threads_in_use
from perceiver_vl.utils.timing import MatrixProduct

COUNTED = 4
"""Steps whose operations are counted: some differ, as which cross-attentions are dropped is drawn."""
_REPEATS, _PRODUCT = 9, 512


@dataclass(frozen=True)
class Cost:
    """Of a recipe, on random weights. step_gflops: of a training step with its optimizer; training_mib: held at once by
    a training; answer: one example, words and clip in one input array, its milliseconds those of the processor on one
    thread; answer_ratio: to the baseline's, measured in turn with it.
    """

    step_gflops: float
    training_mib: float
    answer_gflops: float
    answer_ms: float
    answer_ratio: float
    answer_mib: float


@dataclass(frozen=True)
class TrainingCost:
    """GFLOPs of a step, and MiB that a training holds at once."""

    step_gflops: float
    mib: float


def training_cost(recipe: Recipe, output: Path, counted: int = COUNTED) -> TrainingCost:
    """A step's operations, the mean of `counted` after the first; kept in `output`. What is done once, before the first
    step, is not in them.
    """
    path = output / "flops" / f"{digest(_for_counting(recipe, 1 + counted))}.json"
    if not path.is_file():
        if recipe.data.train[0].world is None:  # a frozen text encoder is to know all captions, as from earlier runs
            _few_steps(recipe, 1)
        first: list[int] = []
        mib = peak_memory_mib(lambda: first.append(count_training_flops(lambda: _few_steps(recipe, 1))))
        all_of_them = count_training_flops(lambda: _few_steps(recipe, 1 + counted))
        write_json(path, asdict(TrainingCost((all_of_them - first[0]) / counted / 1e9, mib)))
    return TrainingCost(**json.loads(path.read_text(encoding="utf-8")))


def equal_steps(baseline: Recipe, other: Recipe, steps: int, output: Path, counted: int = COUNTED) -> int:
    """For how many steps `other` costs as many operations as `steps` of `baseline`, at least one."""
    ours, others = (training_cost(one, output, counted).step_gflops for one in (baseline, other))
    return max(1, round(steps * ours / others))


def measure_cost(baseline: Recipe, recipe: Recipe, output: Path, counted: int = COUNTED) -> Cost:
    """Of `recipe`, timed in turn with `baseline`; kept in `output`."""
    key = digest([_for_counting(one, 1 + counted) for one in (baseline, recipe)])
    path = output / "costs" / f"{key}.json"
    if path.is_file():
        return Cost(**json.loads(path.read_text(encoding="utf-8")))
    training = training_cost(recipe, output, counted)
    theirs, answer = (step_and_answer(one)[1] for one in (baseline, recipe))
    with threads_in_use(1):
        product = MatrixProduct(_PRODUCT, "cpu")
        found = time_interleaved((theirs, answer), _REPEATS, product, lambda: None, time.process_time).timings
    before, ms = (one.milliseconds for one in found)
    cost = Cost(
        step_gflops=training.step_gflops,
        training_mib=training.mib,
        answer_gflops=count_flops(answer) / 1e9,
        answer_ms=ms,
        answer_ratio=ms / before,
        answer_mib=peak_memory_mib(answer),
    )
    write_json(path, asdict(cost))
    return cost


def _for_counting(recipe: Recipe, steps: int) -> Recipe:
    """All that a step's cost depends on: without validation, and with everything that learns learning at once."""
    stages = {"stages": (), "training": recipe.training | {"max_steps": steps}} if recipe.stages else {}
    recipe = lasting(replace(recipe, **stages), steps)  # type: ignore[arg-type]
    training: dict[str, Any] = recipe.training | {"eval_strategy": "no", "save_strategy": "no", "warmup_steps": 0}
    training |= {"load_best_model_at_end": False, "logging_steps": 1000, "seed": 0}
    data = replace(recipe.data, validation=None)
    return of_few_clips(replace(recipe, output=Path(), data=data, training=training, patience=None))


def _few_steps(recipe: Recipe, steps: int) -> None:
    with TemporaryDirectory() as folder:
        recipe = replace(_for_counting(recipe, steps), output=Path(folder) / "model")
        train(recipe, progress=False, change=share_texts)
