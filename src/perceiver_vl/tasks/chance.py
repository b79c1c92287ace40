"""What is scored without looking: by answers and orders drawn at random, and by the most frequent answer."""

from collections.abc import Iterator, Sequence
from math import comb

import torch
from torch import Tensor

from perceiver_vl.data.records import Record
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.tasks.captioning import Captioning
from perceiver_vl.tasks.example_task import ExampleTask, LabelTask, Scored
from perceiver_vl.tasks.metrics import LEAST_COUNTED, MOST_COUNTED, per_cent
from perceiver_vl.tasks.multiple_choice import MultipleChoice
from perceiver_vl.utils.errors import UsageError

MOST_GUESSES = 64
"""Of an example: of more answers so many are drawn at random."""
_READ = 256
"""Records whose targets are held at a time: of VQA they are as wide as the head."""


def chance_recall(captions: Sequence[int], k: int) -> tuple[float, float]:
    """R@k that an order drawn at random is expected to have, in per cent: of clips for a text, of texts for a clip.

    captions: how many each clip has. A clip has found a text when the first of its own is among the first k of all.
    Raises `UsageError` without clips, or for a clip without captions.
    """
    if not captions or min(captions) < 1 or k < 1:
        raise UsageError(f"captions={list(captions)[:5]}, k={k}: need clips with at least one caption each, and k >= 1")
    every = sum(captions)
    missed = [comb(every - own, k) / comb(every, k) if k <= every else 0.0 for own in captions]
    return 100.0 * min(1.0, k / len(captions)), per_cent([1.0 - one for one in missed])


def chance_metrics(task: ExampleTask, config: PerceiverVLConfig, records: Sequence[Record]) -> dict[str, float]:
    """What answers drawn at random score on labelled records, by metric: those metrics that are means over examples;
    nothing of captions, as no set of them is given.
    """
    if not isinstance(task, LabelTask):
        return {}
    scores: dict[str, list[float]] = {}
    draw = torch.Generator().manual_seed(0)
    for record in records:
        guesses = list(_guesses(task, config, record, draw))
        found = [task.score(record, logits, config) for logits in guesses]
        for name in found[0]:
            scores.setdefault(name, []).append(sum(one[name] for one in found) / len(found))
    return {name: sum(column) / len(column) for name, column in scores.items()}


def majority_metrics(
    task: ExampleTask, config: PerceiverVLConfig, training: Sequence[Record], records: Sequence[Record]
) -> dict[str, float]:
    """What the answer (the caption) that is right most often in `training` scores on `records`, both labelled, by
    metric.
    """
    if isinstance(task, Captioning):
        said = task.most_frequent(training)
        return task.metrics_of([Scored(record, said, {}) for record in records])
    if not isinstance(task, LabelTask):
        return {}
    often = _frequencies(task, config, training)
    if config.problem_type == "regression":
        often = often.argmax()[None].float()
    scores = [task.score(record, _for(task, record, often), config) for record in records]
    return task.metrics_of([Scored(record, "", score) for record, score in zip(records, scores, strict=True)])


def _choices(task: LabelTask, record: Record) -> int:
    """How many answers are a record's own, where these are what a model chooses from."""
    return len(record.choices) if isinstance(task, MultipleChoice) else 0


def _guesses(task: LabelTask, config: PerceiverVLConfig, record: Record, draw: torch.Generator) -> Iterator[Tensor]:
    """Logits `(K,)`: in all of them together each answer is the highest once, the second once, and so on; who is before
    whom is drawn anew for each record.
    """
    if config.problem_type == "regression":
        yield from (torch.tensor([float(count)]) for count in range(LEAST_COUNTED, MOST_COUNTED + 1))
        return
    answers = _choices(task, record) or config.num_labels
    ranks = torch.randperm(answers, generator=draw).float()
    for turn in torch.randperm(answers, generator=draw)[:MOST_GUESSES].tolist():
        yield ranks.roll(turn)


def _frequencies(task: LabelTask, config: PerceiverVLConfig, training: Sequence[Record]) -> Tensor:
    """How often each answer is right `(K,)`; of counts and choices K is what there are at most."""
    often = torch.zeros(max([config.num_labels, MOST_COUNTED + 1, *(_choices(task, record) for record in training)]))
    for start in range(0, len(training), _READ):
        targets = task.targets(training[start : start + _READ], config)
        if targets.dim() == 2:  # the score of each answer
            often[: targets.shape[1]] += targets.sum(0)
        else:
            right = targets[targets >= 0].long().clamp(max=len(often) - 1)
            often += torch.bincount(right, minlength=len(often))
    return often if config.problem_type == "regression" else often[: _answers(task, config, training)]


def _answers(task: LabelTask, config: PerceiverVLConfig, training: Sequence[Record]) -> int:
    return max((_choices(task, record) for record in training), default=0) or config.num_labels


def _for(task: LabelTask, record: Record, often: Tensor) -> Tensor:
    """Of the choices that a record has."""
    if not (choices := _choices(task, record)):
        return often
    padded = torch.zeros(choices)
    padded[: len(often)] = often[:choices]
    return padded
