"""The table of scores on a run's page: the last validation, the best one of the run, and what is scored blindly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perceiver_vl.tasks import example_task_of
from perceiver_vl.tasks.chance import chance_metrics, chance_recall, majority_metrics
from perceiver_vl.training.recipe import Recipe
from perceiver_vl.training.setup import Start
from perceiver_vl.training.student_score import DISTILLATION

Line = Mapping[str, float]
Table = tuple[list[str], list[list[str]]]
_RANKS = ("r1", "r5", "r10", "median_rank")
_WAYS = {"text_to_video": ("text → video", ""), "video_to_text": ("video → text", "v2t_")}
_WORDS = ("R@1", "R@5", "R@10", "median rank")


@dataclass(frozen=True)
class Blind:
    """What is scored without looking at a clip. chance: an answer, or an order, drawn at random; majority: the answer
    that is right most often in training. By metric; of retrieval as in `log.jsonl`, but without the stream.
    """

    chance: dict[str, float] = field(default_factory=dict)
    majority: dict[str, float] = field(default_factory=dict)


def blind_scores(recipe: Recipe, start: Start) -> Blind:
    """Of the validation of a run, its files left alone; nothing where it has none."""
    if start.validation is None or recipe.teacher is not None:
        return Blind()
    records = [start.validation.record(place) for place in range(len(start.validation))]
    if start.task is None:
        most = recipe.evaluation.captions_per_clip
        captions = [len(record.texts[:most]) for record in records if record.texts]
        found = {k: chance_recall(captions, k) for k in (1, 5, 10)}
        chance = {f"{way}r{k}": both[place] for k, both in found.items() for place, way in enumerate(("", "v2t_"))}
        return Blind(chance | {"median_rank": (len(captions) + 1) / 2})
    task, config = start.task, start.config
    places = (place for pool in start.pools for place in pool.clips.tolist())
    training = [record for record in map(start.source.record, places) if task.is_labelled(record)]
    labelled = [record for record in records if task.missing(record) is None and task.is_labelled(record)]
    return Blind(chance_metrics(task, config, labelled), majority_metrics(task, config, training, labelled))


def score_table(metrics: Mapping[str, Any], validations: Sequence[Line], blind: Blind) -> Table | None:
    """Its head and its rows: of the end of the run (`metrics.json`), else of the last validation; None of neither."""
    if retrieval := metrics.get("retrieval"):
        return _of_retrieval(retrieval, validations, blind)
    if task := metrics.get("task"):
        lower = task["task"] != DISTILLATION and example_task_of(task["task"]).lower_is_better
        return _of_metrics("the end", task["metrics"], validations, blind, lower)
    if validations:
        last = {name: value for name, value in validations[-1].items() if not _is_no_score(name)}
        return _of_metrics(f"step {validations[-1]['step']:.0f}", last, validations, blind, False)
    return None


def _of_retrieval(retrieval: Mapping[str, Any], validations: Sequence[Line], blind: Blind) -> Table:
    """A row for each stream, one for its best validation by R@1 from text, and one for chance."""
    head = ["stream", *(f"{words} {one}" for words, _ in _WAYS.values() for one in _WORDS)]
    rows = []
    for one in retrieval["streams"]:
        rows.append([one["stream"], *(f"{one[way][rank]:.1f}" for way in _WAYS for rank in _RANKS)])
        name = one["stream"].replace("-", "_")
        if best := _best(f"{name}_r1", validations, False):
            keys = [f"{name}_{short}{rank}" for _, short in _WAYS.values() for rank in _RANKS]
            rows.append([f"{one['stream']}, best (step {best['step']:.0f})", *(_cell(best, key, 1) for key in keys)])
    keys = [f"{short}{rank}" for _, short in _WAYS.values() for rank in _RANKS]
    return head, [*rows, ["chance", *(_cell(blind.chance, key, 1) for key in keys)]] if blind.chance else rows


def _of_metrics(when: str, found: Line, validations: Sequence[Line], blind: Blind, lower: bool) -> Table:
    """A row for each metric. lower: whether the first is better the lower it is."""
    head = ["metric", f"at {when}", "best", "at step", "chance", "the most frequent answer"]
    rows = []
    for number, (name, value) in enumerate(found.items()):
        best = _best(name, validations, lower and number == 0) or {}
        blindly = _cell(blind.chance, _unstreamed(name, blind)), _cell(blind.majority, name)
        rows.append([name, f"{value:.2f}", _cell(best, name), _cell(best, "step", 0), *blindly])
    return head, rows


def _best(name: str, validations: Sequence[Line], lower: bool) -> Line | None:
    """The first of the validations with the best score."""
    with_it = [line for line in validations if name in line]
    return (min if lower else max)(with_it, key=lambda line: line[name], default=None)


def _cell(values: Line, name: str, digits: int = 2) -> str:
    return f"{values[name]:.{digits}f}" if name in values else "–"


def _unstreamed(name: str, blind: Blind) -> str:
    """`multi_v2t_r5` → `v2t_r5`, where that is what is known."""
    return next((key for key in sorted(blind.chance, key=len, reverse=True) if name.endswith(f"_{key}")), name)


def _is_no_score(name: str) -> bool:
    return name in ("step", "epoch", "runtime") or name.endswith("per_second")
