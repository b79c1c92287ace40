"""A training run and what is measured of it, kept by the hash of all that it depends on.

A run that was measured is not trained again; one that was stopped goes on from its last checkpoint. Runs that start
from others wait for these; the rest are made side by side.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from perceiver_vl.bench.joint_transformer import replace_encoder
from perceiver_vl.bench.learning.single_stream import rank_jointly
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.data.synthetic.writing import version_of
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.language_bridge import class_for
from perceiver_vl.models.perceiver_vl import PerceiverVLForPreTraining, PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.provenance import machine
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.training import train
from perceiver_vl.training.recipe import DataSource, Recipe, WorldSplit
from perceiver_vl.training.setup import open_split
from perceiver_vl.utils.console import ProgressBars, err, quiet
from perceiver_vl.utils.errors import first_line
from perceiver_vl.utils.files import write_json
from perceiver_vl.utils.process_pool import process_pool

Architecture = Literal["Perceiver-VL", "joint transformer"]
OURS: Architecture = "Perceiver-VL"
JOINT: Architecture = "joint transformer"
ARCHITECTURES = (OURS, JOINT)
RESULT = "result.json"
SINGLE = "single"
"""The stream whose scores a joint transformer has, too."""


@dataclass(frozen=True)
class Test:
    """What a trained model is asked, once.

    streams, captions_per_clip: of retrieval, which a run without a task is tested by; `single` ranks every pair.
    """

    __test__ = False  # it is none of pytest's

    name: str
    split: DataSource
    num_frames: int
    budget: str = ""
    streams: tuple[str, ...] = ("multi",)
    captions_per_clip: int | None = 1

    @property
    def key(self) -> str:
        """Of its figures among those of its run: all but the name."""
        return digest(replace(self, name=""))


@dataclass(frozen=True)
class Run:
    """A recipe, whose `output` and `initialise.model` are set when it is run, and what its model is tested by.

    start: the run whose model it starts from.
    """

    name: str
    recipe: Recipe
    architecture: Architecture = OURS
    start: "Run | None" = None
    tests: tuple[Test, ...] = ()

    @cached_property
    def key(self) -> str:
        """Of all that its model depends on."""
        start = None if self.start is None else self.start.key
        return digest({"recipe": self.recipe, "architecture": self.architecture, "start": start})

    def folder(self, output: Path) -> Path:
        """Where its recipe, its model and its figures lie."""
        return output / "runs" / self.key


@dataclass
class RunResult:
    """A run's figures. seconds: of training, beside whatever else the machine did; tests: figures by the tests' keys.

    chosen: the validation that the recipe asked for, empty where it asked for none. processor_seconds: of training, of
    all threads; None where it was stopped on the way.
    """

    name: str
    architecture: str
    parameters: int
    steps: int
    seconds: float
    machine: str
    chosen: dict[str, Any] = field(default_factory=dict)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    processor_seconds: float | None = None

    def figure(self, test: Test, *path: str) -> float | None:
        """One figure of a test, as in `figure(test, "accuracy")`; None where it was not measured."""
        value: Any = self.tests.get(test.key)
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def make_runs(
    runs: Sequence[Run], output: Path, *, workers: int = 1, progress: bool = False
) -> tuple[dict[str, RunResult], dict[str, str]]:
    """Train and test what was not yet → figures by the runs' keys, and by name why a run has none.

    `workers` runs at a time, each on its share of the threads. A run that fails is left out, and those that start from
    it.
    """
    wanted = _with_starts(runs)
    failed: dict[str, str] = {}
    todo = [run for run in wanted if not is_done(run, output)]
    threads = max(1, torch.get_num_threads() // workers)
    with (
        ProgressBars(progress) as bar,
        process_pool(workers, preload=__name__) as pool,
    ):
        advance = bar.stage("Runs", len(wanted), done=len(wanted) - len(todo))
        asked: dict[Future[None], Run] = {}
        while todo or asked:
            waiting = {run.key for run in (*todo, *asked.values())}
            for run in [run for run in todo if run.start is None or run.start.key not in waiting]:
                todo.remove(run)
                if run.start is not None and run.start.name in failed:
                    failed[run.name] = f"starts from {run.start.name}, which failed"
                    continue
                asked[pool.submit(make_run, run, output, threads)] = run
            for done in as_completed(list(asked)):
                run = asked.pop(done)
                advance(note=run.name)
                try:
                    done.result()
                except Exception as error:  # whatever a run does, the others go on
                    failed[run.name] = first_line(error)
                    err.print(f"{run.name}: {first_line(error)}")
                break
    return {run.key: read_run(run, output) for run in wanted if is_done(run, output)}, failed


def make_run(run: Run, output: Path, threads: int) -> None:
    """Train, unless it is trained; then test what it was not tested by."""
    torch.set_num_threads(threads)
    folder, recipe = run.folder(output), placed_recipe(run, output)
    if not (folder / RESULT).is_file():

        def change(model: PerceiverVLPreTrainedModel) -> None:
            share_texts(model)
            if run.architecture == JOINT:
                replace_encoder(model, recipe.initialise.model)

        begun, start = (recipe.output / "checkpoints").is_dir(), time.process_time()
        training = train(recipe, resume=True, progress=False, change=change)
        used = None if begun else time.process_time() - start
        chosen = training.retrieval or training.task
        parameters = sum(value.numel() for value in load_file(recipe.output / "model.safetensors").values())
        result = RunResult(run.name, run.architecture, parameters, training.steps, training.seconds, machine())
        result.processor_seconds = used
        result.chosen = {} if chosen is None else chosen.to_dict()
        write_json(folder / RESULT, asdict(result))
        shutil.rmtree(recipe.output / "checkpoints", ignore_errors=True)
    result = read_run(run, output)
    missing = [test for test in run.tests if test.key not in result.tests]
    if missing:
        model, processor = load_model(run, recipe.output)
        for test in missing:
            result.tests[test.key] = measure(model, processor, recipe, test)
            write_json(folder / RESULT, asdict(result))


def placed_recipe(run: Run, output: Path) -> Recipe:
    """A run's recipe with where its model will lie, and that which it starts from."""
    recipe = replace(run.recipe, output=run.folder(output) / "model")
    if run.start is None:
        return recipe
    return replace(recipe, initialise=replace(recipe.initialise, model=run.start.folder(output) / "model"))


_TEXTS: dict[str, dict[bytes, tuple[Tensor, Tensor]]] = {}


def share_texts(model: PerceiverVLPreTrainedModel) -> None:
    """Have a frozen text encoder know what it said in earlier runs of this process: they have the same captions."""
    encoder = model.base_model.text_encoder
    if encoder is not None and not encoder.trainable:
        sums = b"".join(weight.double().sum().numpy().tobytes() for weight in encoder.state_dict().values())
        encoder.remembered = _TEXTS.setdefault(hashlib.sha256(sums).hexdigest(), {})


def load_model(run: Run, folder: Path) -> tuple[PerceiverVLPreTrainedModel, PerceiverVLProcessor]:
    """A run's trained model, in evaluation mode."""
    kind = PerceiverVLForPreTraining if run.recipe.task is None else example_task_of(run.recipe.task).model_class
    with quiet():  # which of a joint transformer would say that it has another encoder
        processor = PerceiverVLProcessor.from_pretrained(folder)
        model = class_for(kind, PerceiverVLConfig.from_pretrained(folder)).from_pretrained(folder)
    if run.architecture == JOINT:
        replace_encoder(model, folder)
    share_texts(model)
    return model.eval(), processor


def measure(
    model: PerceiverVLPreTrainedModel, processor: PerceiverVLProcessor, recipe: Recipe, test: Test
) -> dict[str, Any]:
    """The figures of one test: of a task its metrics and `by_kind`, of retrieval R@1, R@5, R@10 by stream."""
    source = _opened(test, recipe, processor)
    budget = ComputeBudget.parse(test.budget)
    common: dict[str, Any] = {"num_frames": test.num_frames, "budget": budget, "batch_size": 50}
    if recipe.task is not None:
        found = example_task_of(recipe.task).evaluate(model, processor, source, **common)
        return {
            **found.metrics,
            "examples": found.labelled,
            "by_kind": {k: asdict(v) for k, v in found.by_kind.items()},
        }
    assert isinstance(model, PerceiverVLForPreTraining)
    figures: dict[str, Any] = {"clips": len(source)}
    encoded = [stream for stream in test.streams if stream != SINGLE]
    if encoded:
        result = evaluate_retrieval(
            model, processor, source, streams=encoded, captions_per_clip=test.captions_per_clip, **common
        )
        for one in result.streams:
            figures[one.stream] = {
                **{f"r{k}": getattr(one.text_to_video, f"r{k}") for k in (1, 5, 10)},
                "v2t_r1": one.video_to_text.r1,
                "milliseconds_per_query": 1e3 * one.seconds_per_query,
            }
    if SINGLE in test.streams:
        figures[SINGLE] = rank_jointly(model, processor, source, test.num_frames, budget)
    return figures


def read_run(run: Run, output: Path) -> RunResult:
    """The figures that were kept of a run."""
    return RunResult(**json.loads((run.folder(output) / RESULT).read_text(encoding="utf-8")))


def is_done(run: Run, output: Path) -> bool:
    """Whether a run was trained, and tested by all of its tests."""
    if not (run.folder(output) / RESULT).is_file():
        return False
    return {test.key for test in run.tests} <= read_run(run, output).tests.keys()


def _opened(test: Test, recipe: Recipe, processor: PerceiverVLProcessor) -> VideoDataset:
    size = processor.image_processor.size["height"], processor.image_processor.size["width"]
    data = replace(recipe.data, num_frames=test.num_frames, cache=False)
    return open_split(test.split, size, data, None if recipe.task is None else example_task_of(recipe.task))[0]


def _with_starts(runs: Sequence[Run]) -> list[Run]:
    """Each run once, after the one that it starts from; the tests of equal runs together."""
    found: dict[str, Run] = {}
    for run in runs:
        chain = [run]
        while chain[-1].start is not None:
            chain.append(chain[-1].start)
        for one in reversed(chain):
            known = found.get(one.key)
            found[one.key] = one if known is None else replace(known, tests=(*known.tests, *one.tests))
    return list(found.values())


def digest(value: Any) -> str:
    """Of whatever describes a run or a test: a short name that only the same has."""
    return hashlib.sha256(json.dumps(_without_defaults(value), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _without_defaults(value: Any) -> Any:
    """Of dataclasses what is not as by default: a new field leaves the hashes of old runs as they were."""
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_defaults(item) for item in value]
    if not is_dataclass(value):
        return value
    changed = (one.name for one in fields(value) if not _is_default(value, one))
    version = {"generator_version": version_of(value.task)} if isinstance(value, WorldSplit) else {}
    return version | {name: _without_defaults(getattr(value, name)) for name in changed}


def _is_default(value: Any, one: Field[Any]) -> bool:
    default = one.default if one.default_factory is MISSING else one.default_factory()
    return bool(getattr(value, one.name) == default)
