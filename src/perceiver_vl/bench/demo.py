"""The whole story on the generated world: train, evaluate the streams, index, search, and one page about it.

Each step is the public function behind a command; the page says which. A demo that was interrupted goes on where it
was.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from rich.table import Table

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.records import Folder
from perceiver_vl.data.sources import CachedDataset, FolderDataset
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.media.decode import load_frames
from perceiver_vl.media.filmstrip import Filmstrip, filmstrip
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search import Searcher, SearchResult, build_index
from perceiver_vl.tasks.provenance import machine, versions
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.tasks.retrieval_result import RetrievalResult, StreamResult
from perceiver_vl.training import train
from perceiver_vl.training.recipe import RECIPES, read_recipe
from perceiver_vl.utils.console import err
from perceiver_vl.utils.files import write_json, write_text
from perceiver_vl.utils.html import render
from perceiver_vl.utils.jsonl import parsed
from perceiver_vl.utils.launch import beside_others
from perceiver_vl.utils.plots import curves_svg, recall_against_latency_svg, write_picture

HELD_OUT = 256
WORLD_CLIPS = 768
SEARCHES = 5
BATCH = 64
STREAMS = ("multi", "mixed", "single", "cascade", "cascade-single")
CACHED_STREAMS = ("multi", "mixed", "cascade")


@dataclass
class DemoResult:
    """All that the page shows. `evaluations`: by number of cross-attentions; `seconds`: by step; `report`: the page."""

    seed: int
    parameters: int
    steps: int
    evaluations: dict[int, RetrievalResult] = field(default_factory=dict)
    searches: list[SearchResult] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    report: Path = Path()

    def rows(self) -> list[tuple[int, StreamResult]]:
        """(cross-attentions, stream's result), most cross-attentions first."""
        return [
            (cross_attentions, result)
            for cross_attentions in sorted(self.evaluations, reverse=True)
            for result in self.evaluations[cross_attentions].streams
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        evaluations = {str(cross_attentions): result.to_dict() for cross_attentions, result in self.evaluations.items()}
        searches = [
            {"query": search.query, "target": target, "found": [hit.file_name for hit in search.hits]}
            for search, target in zip(self.searches, self.targets, strict=True)
        ]
        plain = {name: getattr(self, name) for name in ("seed", "parameters", "steps", "seconds")}
        return {**plain, "evaluations": evaluations, "searches": searches, "report": str(self.report)}

    def table(self) -> Table:
        """For the terminal."""
        some = next(iter(self.evaluations.values()))
        title = f"{some.captions} unseen captions, {some.clips} held-out clips (chance R@1 {100 / some.clips:.1f})"
        table = Table(title=title, collapse_padding=True, pad_edge=False)  # as narrow as a terminal of 80 columns
        for column in ("stream", "cross-\nattentions", "R@1", "R@5", "R@10", "median rank", "ms/query", "MFLOPs/query"):
            table.add_column(column, justify="left" if column == "stream" else "right")
        for cross_attentions, stream in self.rows():
            recall = stream.text_to_video
            recalls = (f"{value:.1f}" for value in (recall.r1, recall.r5, recall.r10, recall.median_rank))
            cost = f"{1e3 * stream.seconds_per_query:.2f}", f"{stream.flops_per_query / 1e6:.1f}"
            table.add_row(stream.stream, str(cross_attentions), *recalls, *cost)
        return table


def run_demo(output: Path, seed: int = 0, overrides: tuple[str, ...] = ()) -> DemoResult:
    """Run the demo in the folder `output`; `overrides` change its recipe (`recipes/world.yaml`), as on the command
    line.
    """
    seconds: dict[str, float] = {}
    world, model_folder, index_folder = output / "world", output / "model", output / "index"

    with _step("Writing the world", seconds):
        write_world(world, clips=WORLD_CLIPS, seed=seed, held_out=HELD_OUT, progress=True)
    with _step("Training", seconds):
        steps = _train(model_folder, seed, overrides)
    model, processor = load_retriever(model_folder)
    result = DemoResult(seed, sum(p.numel() for p in model.parameters()), steps, seconds=seconds)

    test = read_folder(world, split="test")
    size = processor.image_processor.size
    clips = CachedDataset(FolderDataset(test.records, (size["height"], size["width"])))
    most = model.config.num_blocks
    for cross_attentions in (most, 1):
        budget = FULL_BUDGET if cross_attentions == most else ComputeBudget(cross_attentions=cross_attentions)
        streams = STREAMS if cross_attentions == most else CACHED_STREAMS
        with _step(f"Evaluating with {cross_attentions} cross-attention{'s' if cross_attentions > 1 else ''}", seconds):
            result.evaluations[cross_attentions] = evaluate_retrieval(
                model, processor, clips, streams=streams, captions_per_clip=1, budget=budget, progress=True
            )
    with _step("Indexing", seconds):
        build_index(model_folder, world, index_folder, split="test", progress=True)
    with _step("Searching", seconds):
        _search(result, Searcher(index_folder), test)
    result.report = output / "report.html"
    with _step("Reporting", seconds):
        _write_report(result, output)
    write_json(output / "demo.json", result.to_dict())
    return result


def demo_recipe() -> Path:
    """The recipe that the demo trains; part of the package, and `recipes/world.yaml` in the repository."""
    return RECIPES / "world.yaml"


@contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    err.print(f"{name} …", style="bold")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _train(folder: Path, seed: int, overrides: tuple[str, ...]) -> int:
    """Train, or go on with an interrupted run, or take what a finished one left; → optimiser steps."""
    finished = folder / "metrics.json"
    if not finished.is_file():
        changes = [f"output={folder}", f"training.seed={seed}", f"data.train.world.seed={seed}"]
        changes += [f"data.validation.world.seed={seed}"]
        processes = 1 if torch.cuda.is_available() else min(2, torch.get_num_threads())
        changes += [f"training.per_device_train_batch_size={BATCH // processes}", *overrides]
        with beside_others(processes, ["train", str(demo_recipe()), *changes, "--resume"]):
            train(read_recipe(demo_recipe(), changes), resume=True)
    return int(json.loads(finished.read_text(encoding="utf-8"))["steps"])


def _search(result: DemoResult, searcher: Searcher, test: Folder) -> None:
    """Search for the captions of the first clips: hits and misses, as they come."""
    for record in test.records[:SEARCHES]:
        result.searches.append(searcher.search(record.texts[0], top_k=5))
        result.targets.append(record.file_name)


def _write_report(result: DemoResult, output: Path) -> None:
    most = max(result.evaluations)
    points = [
        (
            stream.stream if cross_attentions == most else f"{stream.stream}, 1 cross-attention",
            1e3 * stream.seconds_per_query,
            stream.text_to_video.r1,
        )
        for cross_attentions, stream in result.rows()
    ]
    title = f"{HELD_OUT} unseen captions, {HELD_OUT} clips"
    strips: dict[Path, Filmstrip] = {hit.path: filmstrip(hit.path) for search in result.searches for hit in search.hits}
    page = render(
        "bench/demo.html.jinja",
        result=result,
        losses=Markup(_loss_curves(output / "model" / "log.jsonl")),
        validation=Markup(_validation_curves(output / "model" / "log.jsonl")),
        recall=Markup(recall_against_latency_svg(points, title)),
        strips=strips,
        machine=machine(),
        versions=versions(),
        recipe=(output / "model" / "recipe.yaml").read_text(encoding="utf-8"),
        output=output,
    )
    write_text(result.report, page)
    search, target = result.searches[0], result.targets[0]
    shown = [
        (
            f"{hit.rank}. {hit.texts[0]}" + ("   ← the clip described" if hit.file_name == target else ""),
            load_frames(hit.path, 8),
        )
        for hit in search.hits[:3]
    ]
    write_picture(output / "picture.png", search.query, shown, points, title)


def _loss_curves(log: Path) -> str:
    names = {"loss_vtc": "VTC", "loss_mixed_vtc": "VTC, mixed", "loss_ttc": "TTC", "loss_vtm": "VTM, single"}
    return curves_svg(_series(log, names), x="step", y="loss", title="Training losses")


def _validation_curves(log: Path) -> str:
    names = {f"eval_{stream}_r1": stream for stream in ("multi", "mixed", "cascade")}
    return curves_svg(_series(log, names), x="step", y="R@1 (%)", title="Validation, text → video")


def _series(log: Path, names: dict[str, str]) -> dict[str, tuple[list[float], list[float]]]:
    """The named figures of a log, each against the step."""
    lines = parsed(log.read_text(encoding="utf-8"))
    series = {}
    for figure, name in names.items():
        points = [(float(line["step"]), float(line[figure])) for line in lines if figure in line]
        if points:
            series[name] = ([step for step, _ in points], [value for _, value in points])
    return series
