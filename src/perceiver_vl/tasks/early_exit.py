"""Thresholds by which a model's examples leave early, solved on a split that it is not scored on and kept beside it.

Shapes: B batch, E exits (blocks), n examples, K answers.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perceiver_vl.data.prefetch import read_ahead
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import MAX_FAILED_FRACTION
from perceiver_vl.data.sources import VideoDataset
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, CostLimit, EarlyExitBudget
from perceiver_vl.models.early_exit import ExitPolicy, solve_budget
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.exit_flops import exit_flops
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.tasks.evaluation import checked_frames, evaluating, vision_batch_of
from perceiver_vl.tasks.example_task import LabelTask
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError, first_line
from perceiver_vl.utils.files import write_text

FILE = "early_exit.json"


@dataclass(frozen=True)
class ExitsTaken:
    """What early exits came to: GFLOPs of an example (mean), of one that takes all blocks, and how many examples left
    after each block.
    """

    gflops: float
    whole: float
    after_block: dict[int, int]

    def __str__(self) -> str:
        left = ", ".join(f"{count} after block {block}" for block, count in self.after_block.items())
        return f"early exit: {self.gflops:.4g} GFLOPs an example, {self.whole:.4g} with all blocks; {left}"


@torch.inference_mode()
def solve_exits(
    task: LabelTask,
    model: PerceiverVLPreTrainedModel,
    processor: PerceiverVLProcessor,
    source: VideoDataset,
    limit: CostLimit,
    *,
    num_frames: int | None = None,
    budget: ComputeBudget = FULL_BUDGET,
    batch_size: int = 32,
    strict: bool = False,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    progress: bool = False,
) -> ExitPolicy:
    """The thresholds at which the labelled examples of `source` are right most often at a mean cost of `limit`; cost in
    GFLOPs, accuracy by the task's first metric, 0 to 1.

    Raises `UsageError` for a limit in time, one below what the first block costs, and a split without labels.
    """
    gflops = _gflops(limit)
    frames = checked_frames(model, processor, num_frames, budget, batch_size)
    indices, _ = task.usable_examples(source, labelled=True)
    blocks = range(1, model.config.blocks_of(budget) + 1)
    at = [replace(budget, blocks=n, cross_attentions=min(model.config.cross_attentions_of(budget), n)) for n in blocks]
    problems: list[SkippedSample] = []
    sure, right, most_tokens = [], [], 0
    with evaluating(model), ProgressBars(progress) as bar:
        advance = bar.stage("Solving thresholds", len(indices))
        media = task.media_sources(source, processor)
        for batch in read_ahead(media, indices, frames, batch_size, problems, strict, max_failed_fraction):
            records = [source.record(index) for index in batch.indices]
            vision = vision_batch_of(batch, processor, frames, model.device)
            words = task.text_inputs(records, processor).get("input_ids")
            most_tokens = max(most_tokens, 0 if words is None else words.shape[-1])
            said = [torch.stack(list(task.answers(model, processor, records, vision, dials))) for dials in at]
            sure.append(torch.stack([logits.softmax(-1).amax(-1) for logits in said]))
            scores = [
                task.score(record, row, model.config)[task.metrics[0]] / 100
                for logits in said
                for record, row in zip(records, logits, strict=True)
            ]
            right.append(torch.tensor(scores).view(len(at), len(records)))
            advance(len(records))
    costs = [flops / 1e9 for flops in exit_flops(model.config, frames, most_tokens, budget)]
    return solve_budget(gflops, torch.cat(sure, 1), costs, torch.cat(right, 1))


def exits_taken(config: PerceiverVLConfig, frames: int, budget: EarlyExitBudget) -> ExitsTaken:
    """What the examples that left at `budget` have cost, each by its own words."""
    dials = replace(budget, taken=[])
    costs = {tokens: exit_flops(config, frames, tokens, dials) for tokens in {tokens for _, tokens in budget.taken}}
    each = [costs[tokens][block - 1] / 1e9 for block, tokens in budget.taken]
    whole = [costs[tokens][-1] / 1e9 for _, tokens in budget.taken]
    left = Counter(block for block, _ in budget.taken)
    number = max(1, len(each))
    return ExitsTaken(sum(each) / number, sum(whole) / number, dict(sorted(left.items())))


def save_exits(
    folder: Path, limit: CostLimit, budget: ComputeBudget, policy: ExitPolicy, split: str
) -> EarlyExitBudget:
    """Keep what was solved in a model's folder, for `load_exits` of the same limit."""
    path, dials = folder / FILE, vars(budget)
    known = _read(path) if path.is_file() else {}
    known[str(limit)] = {"model": model_fingerprint(folder), "dials": dials, "split": split, **asdict(policy)}
    write_text(path, json.dumps(known, indent=2) + "\n")
    return EarlyExitBudget(**dials, thresholds=policy.thresholds)


def load_exits(folder: Path, limit: CostLimit) -> EarlyExitBudget:
    """What was solved for a limit; raises `UsageError` where nothing was, or for other weights."""
    path = folder / FILE
    known = _read(path) if path.is_file() else {}
    if str(limit) not in known:
        solved = f", there are some for {', '.join(known)}" if known else ""
        raise UsageError(
            f"early_exit={limit}: {folder} has no thresholds for it{solved}; evaluate the model on its data with ",
            Setting("early_exit", str(limit).replace(" ", "")),
        )
    found = known[str(limit)]
    try:
        if found["model"] != model_fingerprint(folder):
            raise UsageError(
                f"early_exit={limit}: solved before {folder} was changed, evaluate it on its data again with ",
                Setting("early_exit", str(limit).replace(" ", "")),
            )
        return EarlyExitBudget(**found["dials"], thresholds=tuple(float(one) for one in found["thresholds"]))
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise PerceiverVLError(f"{path}: damaged ({first_line(error)}), delete it and evaluate again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PerceiverVLError(f"{path}: damaged ({first_line(error)}), delete it and evaluate again") from error
    if not isinstance(known, dict):
        raise PerceiverVLError(f"{path}: damaged, delete it and evaluate again")
    return known


def _gflops(limit: CostLimit) -> float:
    if limit.unit != "GFLOPs":
        raise UsageError(f"early_exit={limit}: thresholds keep a number of operations, give it as in 3GFLOPs")
    return limit.amount
