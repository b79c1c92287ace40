"""The settings of a model's dials that are worth choosing, kept with it, and the best of them within a limit.

`perceiver-vl bench frontier` measures them and writes `frontier.json` into the model's folder. What costs are of:
one example of the model's task, from pixels and word numbers to its score, alone in its batch (`unit_of`). Decoding a
file is not in it. Operations are counted, and the same everywhere. Times are of the machine that measured the front;
here each setting that is considered is timed anew, and the front's times serve as an order only.
Shapes: T frames, L text tokens.
"""

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

import torch

from perceiver_vl.models.budget import ComputeBudget, CostLimit
from perceiver_vl.models.folder import check_model_folder, model_fingerprint
from perceiver_vl.models.loading import load_folder
from perceiver_vl.models.perceiver_vl import (
    PerceiverVLForImageClassification,
    PerceiverVLForImagesAndTextClassification,
    PerceiverVLForMultipleChoice,
    PerceiverVLForRetrieval,
    PerceiverVLPreTrainedModel,
)
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks import example_task_of, task_for
from perceiver_vl.utils.errors import PerceiverVLError, UsageError
from perceiver_vl.utils.files import write_json
from perceiver_vl.utils.timing import timed

FORMAT = 1
FILE = "frontier.json"
RETRIEVAL = "retrieval"
_RUNS = 5


@dataclass(frozen=True)
class OperatingPoint:
    """A setting of the dials (as text): its score, larger is better, and what an example costs at it."""

    budget: str
    score: float
    gflops: float
    milliseconds: float


@dataclass(frozen=True)
class Frontier:
    """The settings that no other beats in both score and operations, or both score and time; and where that is from.

    `metric` names the score; `lower_is_better`: the metric is the score's negative. `model_hash`: `fingerprint` of the
    model. `unit`: what one example is.
    """

    settings: tuple[OperatingPoint, ...]
    task: str
    metric: str
    lower_is_better: bool
    unit: str
    model_hash: str
    data: str
    examples: int
    dtype: str
    command: str
    machine: str
    versions: dict[str, str]
    format: int = FORMAT


@dataclass(frozen=True)
class Choice:
    """A setting of the front, and what it costs here: `cost` in the limit's unit."""

    budget: ComputeBudget
    setting: OperatingPoint
    cost: float
    limit: CostLimit
    frontier: Frontier

    def __str__(self) -> str:
        front, score = self.frontier, -self.setting.score if self.frontier.lower_is_better else self.setting.score
        here = "ms here" if self.limit.unit == "ms" else "GFLOPs"
        return (
            f"budget {self.limit}: {self.budget} takes {self.cost:.3g} {here} for {front.unit} "
            f"({front.metric} {score:.1f} on {front.data})"
        )


def write_frontier(model_folder: str | Path, frontier: Frontier) -> Path:
    """Write the front into the model's folder, atomically; → the file."""
    path = Path(model_folder) / FILE
    write_json(path, asdict(frontier))
    return path


def read_frontier(model_folder: str | Path) -> Frontier:
    """The front of a model folder.

    Raises `UsageError` if none was measured, or that of other weights; `PerceiverVLError` for a damaged file.
    """
    folder = check_model_folder(model_folder)
    path = folder / FILE
    measure = f"perceiver-vl bench frontier --model {shlex.quote(str(folder))} --data FOLDER{_task_option(folder)}"
    if not path.is_file():
        raise UsageError(f"{folder}: what its budgets cost is not measured yet, run {measure}")
    try:
        stored = loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise UsageError(f"{path}: of another version (format {stored['format']}, not {FORMAT}), run {measure}")
        settings = tuple(OperatingPoint(**one) for one in stored["settings"])
        found = Frontier(**(stored | {"settings": settings}))
        order = [(one.score + one.gflops + one.milliseconds, ComputeBudget.parse(one.budget)) for one in settings]
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise PerceiverVLError(f"{path}: damaged ({type(error).__name__}), run {measure}") from error
    if not order:
        raise PerceiverVLError(f"{path}: holds no settings, run {measure}")
    if found.model_hash != model_fingerprint(folder):
        raise UsageError(f"{path}: measured on another model or other weights, run {measure}")
    return found


def _task_option(folder: Path) -> str:
    """What `bench frontier` has to be told of a model that is not one of retrieval."""
    task = task_for(PerceiverVLConfig.from_pretrained(folder))
    return f" --task {task}" if task else ""


def choose_budget(
    model_folder: str | Path,
    limit: str | CostLimit,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    compiled: bool = False,
) -> Choice:
    """The setting with the best score within `limit`, as `50ms` or `10GFLOPs`, on this machine.

    For a time the model is loaded and its settings are tried, log2 of their number, each the median of some runs at
    `device` and `dtype`. Raises `UsageError` where nothing is within the limit, and as `read_frontier` does.
    """
    limit = CostLimit.parse(limit) if isinstance(limit, str) else limit
    frontier = read_frontier(model_folder)
    if limit.unit == "GFLOPs":
        ladder = front_of(frontier.settings, "gflops")
        found = _best_within(ladder, [one.gflops for one in ladder].__getitem__, limit)
    else:
        ladder = front_of(frontier.settings, "milliseconds")
        model, _ = load_folder(model_class(frontier.task), frontier.task, model_folder, device, dtype, compiled)
        found = _best_within(ladder, lambda place: _milliseconds(model, ladder[place]), limit)
    setting, cost = found
    return Choice(ComputeBudget.parse(setting.budget), setting, cost, limit, frontier)


def front_of(settings: Sequence[OperatingPoint], cost: str) -> list[OperatingPoint]:
    """Those that no cheaper one equals in score, cheapest first; `cost`: gflops or milliseconds."""
    front: list[OperatingPoint] = []
    for one in sorted(settings, key=lambda one: (getattr(one, cost), -one.score)):
        if not front or one.score > front[-1].score:
            front.append(one)
    return front


def _best_within(
    ladder: Sequence[OperatingPoint], cost_of: Callable[[int], float], limit: CostLimit
) -> tuple[OperatingPoint, float]:
    """The last of `ladder`, whose costs increase, that is within the limit: found by halving, as costs are measured."""
    costs = {0: cost_of(0)}
    if costs[0] > limit.amount:
        cheapest = f"{ladder[0].budget} takes {costs[0]:.3g} {limit.unit}"
        raise UsageError(f"budget {limit}: even the cheapest setting, {cheapest}; allow that much")
    within, beyond = 0, len(ladder)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        costs[middle] = cost_of(middle)
        within, beyond = (middle, beyond) if costs[middle] <= limit.amount else (within, middle)
    return ladder[within], costs[within]


@torch.inference_mode()
def _milliseconds(model: PerceiverVLPreTrainedModel, setting: OperatingPoint) -> float:
    call = example_call(model, ComputeBudget.parse(setting.budget))
    call()
    return 1e3 * statistics.median(timed(call, model.device) for _ in range(_RUNS))


def model_class(task: str) -> type[Any]:
    """The model that does a task."""
    return PerceiverVLForRetrieval if task == RETRIEVAL else example_task_of(task).model_class


def unit_of(model: PerceiverVLPreTrainedModel) -> str:
    """What one example is, in words."""
    words = f"a text of {model.config.max_text_length} tokens"
    if isinstance(model, PerceiverVLForRetrieval):
        return f"a clip and {words}, encoded apart and matched"
    if isinstance(model, PerceiverVLForImageClassification):
        return "a clip"
    return f"a {'pair of clips' if _sees_two(model) else 'clip'} and {words}, read together"


def example_call(model: PerceiverVLPreTrainedModel, budget: ComputeBudget) -> Callable[[], object]:
    """One example, to be run: noise for T frames (those of the budget), numbers for L = max_text_length words."""
    config: Any = model.config
    draw = torch.Generator().manual_seed(0)
    shape = (1, budget.frames or config.max_frames, config.num_channels, config.image_size, config.image_size)
    pixels = torch.randn(shape, generator=draw).to(model.device)
    words = torch.randint(config.vocab_size, (1, config.max_text_length), generator=draw).to(model.device)
    if isinstance(model, PerceiverVLForRetrieval):
        return lambda: _match(model, pixels, words, budget)
    if isinstance(model, PerceiverVLForImageClassification):
        return lambda: model(pixels, budget=budget)
    if _sees_two(model):
        pixels = torch.stack([pixels, pixels], dim=1)
    if isinstance(model, PerceiverVLForMultipleChoice):
        words = words[:, None]  # one choice
    return lambda: model(words, pixel_values=pixels, budget=budget)


def _match(
    model: PerceiverVLForRetrieval, pixels: torch.Tensor, words: torch.Tensor, budget: ComputeBudget
) -> torch.Tensor:
    vision, text = model.encode_vision(pixels, budget=budget), model.encode_text(words, budget=budget)
    return model.merge_matches(model.partial_match(vision), model.partial_match(text))


def _sees_two(model: PerceiverVLPreTrainedModel) -> bool:
    return isinstance(model, PerceiverVLForImagesAndTextClassification)
