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
    sums: dict[str, float] = {}
    draw = torch.Generator().manual_seed(0)
    for record in records:
        guesses = list(_guesses(config, record, draw))
        for logits in guesses:
            for name, score in task.score(record, logits, config).items():
                sums[name] = sums.get(name, 0.0) + score / len(guesses)
    return {name: total / len(records) for name, total in sums.items()}


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
    return task.metrics_of([Scored(record, "", task.score(record, _for(record, often), config)) for record in records])


def _guesses(config: PerceiverVLConfig, record: Record, draw: torch.Generator) -> Iterator[Tensor]:
    """Logits `(K,)`: in all of them together each answer is the highest once, the second once, and so on."""
    if config.problem_type == "regression":
        yield from (torch.tensor([float(count)]) for count in range(LEAST_COUNTED, MOST_COUNTED + 1))
        return
    answers = len(record.choices) or config.num_labels
    ranks = torch.arange(float(answers))
    for turn in torch.randperm(answers, generator=draw)[:MOST_GUESSES].tolist():
        yield ranks.roll(turn)


def _frequencies(task: LabelTask, config: PerceiverVLConfig, training: Sequence[Record]) -> Tensor:
    """How often each answer is right `(K,)`; of counts and choices K is what there are at most."""
    often = torch.zeros(max([config.num_labels, MOST_COUNTED + 1, *(len(record.choices) for record in training)]))
    for start in range(0, len(training), _READ):
        targets = task.targets(training[start : start + _READ], config)
        if targets.dim() == 2:  # the score of each answer
            often[: targets.shape[1]] += targets.sum(0)
        else:
            right = targets[targets >= 0].long().clamp(max=len(often) - 1)
            often += torch.bincount(right, minlength=len(often))
    return often if config.problem_type == "regression" else often[: _answers(config, training)]


def _answers(config: PerceiverVLConfig, training: Sequence[Record]) -> int:
    return max((len(record.choices) for record in training), default=0) or config.num_labels


def _for(record: Record, often: Tensor) -> Tensor:
    """Of the choices that a record has."""
    if not record.choices:
        return often
    padded = torch.zeros(len(record.choices))
    padded[: len(often)] = often[: len(record.choices)]
    return padded
