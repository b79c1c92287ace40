"""One elastic checkpoint at each budget, beside an individual model of that budget, on the same clips and steps.

An individual model is as small as its budget: fewer frames, latents, blocks. A run that is done is not trained again.
"""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from perceiver_vl.bench.tables import Section
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import encoder_flops
from perceiver_vl.tasks.provenance import RunInfo
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.tasks.retrieval_result import RECALLS
from perceiver_vl.training import train
from perceiver_vl.training.recipe import RECIPES, Recipe, read_recipe
from perceiver_vl.training.setup import open_split
from perceiver_vl.utils.console import ProgressBars, err
from perceiver_vl.utils.errors import UsageError

BUDGETS = (
    "full;latents=8,text_latents=4;latents=4,text_latents=2;frames=4;frames=2;cross_attentions=1;blocks=2;blocks=1;"
    "frames=4,latents=8,text_latents=4,cross_attentions=1;frames=2,latents=4,text_latents=2,blocks=1"
)
RECIPE = RECIPES / "world_elastic.yaml"


@dataclass(frozen=True)
class BudgetScore:
    """Recall (text to video, per cent) at one budget, of each seed: `elastic`, of the one checkpoint; `individual`, of
    the model trained for it.

    `difference`: elastic less individual, averaged over the seeds; `standard_error`: of that, None with one seed.
    `gflops_per_clip`: encoding a clip.
    """

    budget: str
    gflops_per_clip: float
    elastic: list[float]
    individual: list[float]
    difference: float
    standard_error: float | None


@dataclass(frozen=True)
class ElasticReport(RunInfo):
    """All budgets. `within_a_point`: at how many budgets the elastic checkpoint is at most a point below. `seconds`: of
    training the elastic model, of the first seed; `seconds_individual`: of all the others of that seed together.
    """

    stream: str
    metric: str
    clips: int
    steps: int
    elastic_steps: int
    seconds: float
    seconds_individual: float
    seeds: list[int]
    scores: list[BudgetScore]
    within_a_point: int

    def sections(self) -> list[Section]:
        """A row a budget."""
        rows = [
            (
                one.budget,
                f"{one.gflops_per_clip:.4f}",
                f"{statistics.mean(one.elastic):.1f}",
                f"{statistics.mean(one.individual):.1f}",
                f"{one.difference:+.1f}" + ("" if one.standard_error is None else f" ± {one.standard_error:.1f}"),
            )
            for one in self.scores
        ]
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
        title = f"{self.stream} stream, R@{self.metric.removeprefix('r')} among {self.clips} clips, {seeds}"
        notes = (
            f"Elastic: one checkpoint at all budgets, {self.elastic_steps} steps, {self.seconds / 60:.1f} minutes of "
            f"training. Individual: a model of that size, trained for it, {self.steps} steps each, "
            f"{self.seconds_individual / 60:.1f} minutes together (seed {self.seeds[0]}).",
            f"At {self.within_a_point} of {len(self.scores)} budgets the elastic one is at most a point below.",
        )
        return [Section(title, ("budget", "GFLOPs a clip", "elastic", "individual", "difference"), rows, notes)]


def measure_elastic(
    output: Path,
    recipe: Path = RECIPE,
    overrides: Sequence[str] = (),
    *,
    budgets: str = BUDGETS,
    seeds: Sequence[int] = (0,),
    stream: str = "mixed",
    metric: str = "r1",
    elastic_steps: int | None = None,
    progress: bool = False,
) -> ElasticReport:
    """Train in `output`, for each seed, the elastic recipe and one model for each budget, and score them all on the
    recipe's validation clips. Again: what is there is only scored, and what was interrupted goes on.

    `budgets`: as after `--budget`, with semicolons between. `stream`: of retrieval, whose recall is compared:
    `metric`, one of `RECALLS`. `elastic_steps`: of the elastic recipe, None: as many as of the others.
    Raises `UsageError` for a recipe that is not elastic, has no validation clips or is of a task, for a budget that no
    model of its own can have, and for a folder that holds runs of another recipe.
    """
    plan = read_recipe(recipe, overrides)
    if plan.elastic is None or plan.task is not None or plan.data.validation is None:
        raise UsageError(f"recipe {recipe}: need one of retrieval with an elastic section and data.validation")
    compared = parse_budgets(budgets)
    if metric not in RECALLS:
        raise UsageError(f"metric={metric}: choose from {', '.join(RECALLS)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds={','.join(map(str, seeds))}: need one or more, each once")
    runs: dict[tuple[ComputeBudget | None, int], Recipe] = {}
    for seed in seeds:
        longer = plan.training if elastic_steps is None else plan.training | {"max_steps": elastic_steps}
        runs[None, seed] = _run(replace(plan, training=longer), output / f"elastic-{seed}", seed)
    for budget, seed in product(compared, seeds):
        runs[budget, seed] = _run(_individual(plan, budget), output / f"{_name(budget)}-{seed}", seed)
    for one in runs.values():  # before any of them is trained
        _check_holds(one)
    with ProgressBars(progress) as bar:
        advance = bar.stage("Training", len(runs))
        for one in runs.values():
            if not (one.output / "metrics.json").is_file():
                if progress:
                    err.print(f"training {one.output}")
                train(one, resume=True, progress=False)
            advance()
        advance = bar.stage("Scoring", len(runs) - len(seeds))
        recalls: dict[tuple[ComputeBudget, bool], list[float]] = {}
        clips = 0
        for budget, seed in product(compared, seeds):
            for is_elastic in (True, False):
                folder = runs[None if is_elastic else budget, seed].output
                recall, clips = _recall(plan, folder, budget, is_elastic, stream, metric)
                recalls.setdefault((budget, is_elastic), []).append(recall)
            advance()
    found = [_compared(plan, budget, recalls[budget, True], recalls[budget, False]) for budget in compared]
    trained = {key: json.loads((one.output / "metrics.json").read_text("utf-8")) for key, one in runs.items()}
    first = seeds[0]
    return ElasticReport(
        stream=stream,
        metric=metric,
        clips=clips,
        steps=trained[compared[0], first]["steps"],
        elastic_steps=trained[None, first]["steps"],
        seconds=trained[None, first]["seconds"],
        seconds_individual=sum(trained[budget, first]["seconds"] for budget in compared),
        seeds=list(seeds),
        scores=found,
        within_a_point=sum(one.difference >= -1 for one in found),
    )


def parse_budgets(text: str) -> list[ComputeBudget]:
    """`full;latents=8;frames=4,blocks=1` → the budgets; raises `UsageError` for none, and for one twice."""
    typed = [part.strip() for part in text.split(";") if part.strip()]
    budgets = [FULL_BUDGET if one == "full" else ComputeBudget.parse(one) for one in typed]
    if not budgets or len(set(budgets)) < len(budgets):
        raise UsageError(f"budgets={text}: need one or more, each once, as in full;latents=8;frames=4,blocks=1")
    return budgets


def _run(recipe: Recipe, output: Path, seed: int) -> Recipe:
    """A recipe of this comparison: its last step is scored, so that no validation chooses for one and not the other."""
    training = {name: value for name, value in recipe.training.items() if not name.startswith(("eval_", "metric_"))}
    training |= {"eval_strategy": False, "load_best_model_at_end": False, "seed": seed}  # as YAML reads "no"
    return replace(recipe, output=output, training=training)


def _individual(recipe: Recipe, budget: ComputeBudget) -> Recipe:
    """The recipe of a model that has this budget and no other."""
    sizes = {"num_latents": budget.latents, "num_text_latents": budget.text_latents, "num_blocks": budget.blocks}
    model = recipe.model | {name: size for name, size in sizes.items() if size is not None}
    blocks = model.get("num_blocks", PerceiverVLConfig.num_blocks)
    if budget.latent_choice != "first" or budget.cross_attentions not in (None, 1, blocks):
        raise UsageError(
            f"budget {budget}: no model of its own has it, leave out latent_choice and have one cross-attention or all"
        )
    if budget.cross_attentions == 1:
        model["layer_drop"] = 1.0  # every cross-attention but the first
    data = recipe.data if budget.frames is None else replace(recipe.data, num_frames=budget.frames)
    return replace(recipe, data=data, model=model, elastic=None)


def _check_holds(recipe: Recipe) -> None:
    """Refuse a folder in which something else was trained."""
    written = recipe.output / "recipe.yaml"
    if written.is_file() and replace(read_recipe(written), output=recipe.output) != recipe:
        raise UsageError(f"out={recipe.output}: holds a run of another recipe, name another folder")


def _recall(
    recipe: Recipe, folder: Path, budget: ComputeBudget, is_elastic: bool, stream: str, metric: str
) -> tuple[float, int]:
    """A recall of a trained model, and among how many clips; an individual model is asked at its only budget."""
    model, processor = load_retriever(folder, "cpu")
    size = processor.image_processor.size["height"], processor.image_processor.size["width"]
    assert recipe.data.validation is not None
    clips, _ = open_split(recipe.data.validation, size, recipe.data)
    asked = budget if is_elastic else ComputeBudget(cross_attentions=budget.cross_attentions)
    how = recipe.evaluation
    result = evaluate_retrieval(
        model,
        processor,
        clips,
        streams=(stream,),
        num_frames=budget.frames or recipe.data.num_frames,
        captions_per_clip=how.captions_per_clip,
        shortlist=how.shortlist,
        budget=asked,
        batch_size=how.batch_size,
    )
    return getattr(result.stream(stream).text_to_video, metric), result.clips


def _compared(recipe: Recipe, budget: ComputeBudget, elastic: list[float], individual: list[float]) -> BudgetScore:
    differences = [mine - theirs for mine, theirs in zip(elastic, individual, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    flops = encoder_flops(PerceiverVLConfig(**recipe.model), recipe.data.num_frames, budget=budget)
    return BudgetScore(str(budget), flops / 1e9, elastic, individual, statistics.mean(differences), error)


def _name(budget: ComputeBudget) -> str:
    """A budget as the name of a folder."""
    return re.sub(r"[^a-z0-9_]+", "-", str(budget))
