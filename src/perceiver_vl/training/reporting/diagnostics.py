"""What the log of a run shows of trouble, in plain words. Needs no torch: `watch` reads logs anywhere."""

import re
from collections.abc import Iterator, Sequence
from statistics import median

SIMILAR = 0.98
"""Mean cosine from which latents, or examples, count as the same. Small models that had learned were at 0.79 and 0.25;
the published initialisation at width 64, which learns nothing for hundreds of steps, has examples at 0.999."""
UNIFORM = 0.98
"""Share of the entropy of uniform attention from which a cross-attention looks at everything alike; it was 0.3 to 0.7
in models that had learned.
"""
UNUSED = 0.02
"""Norm of what a cross-attention finds, relative to what it is added to, below which it does nothing; there it was 0.2
or more.
"""
WAITING = 0.2
"""Share of the time spent waiting for data above which the processor could do more."""
SPIKE = 2.0
"""How many times the median of the lines before it a loss must be to be called a spike."""
_BEFORE, _LATELY = 20, 3


def diagnose(log: Sequence[dict[str, float]], nonfinite: int) -> list[str]:
    """One sentence for each thing that calls for a look, in the latest figures of a log.

    nonfinite: steps that were skipped because their loss or gradient was not finite.
    """
    latest: dict[str, float] = {}
    for line in log:
        latest |= line
    return [*_of_steps(log, nonfinite), *_of_latents(latest), *_of_cross_attentions(latest), *_of_data(latest)]


def _of_steps(log: Sequence[dict[str, float]], nonfinite: int) -> Iterator[str]:
    if nonfinite:
        steps = "a step was" if nonfinite == 1 else f"{nonfinite} steps were"
        yield f"{steps} skipped, the loss or the gradient was not finite; the files are in nonfinite.jsonl"
    trained = [line for line in log if "loss" in line]
    asked = [{name for name in line if name.startswith("loss_")} for line in trained]  # others, where they take turns
    losses = [(int(line["step"]), line["loss"]) for line, one in zip(trained, asked, strict=True) if one == asked[-1]]
    for place in range(max(5, len(losses) - _LATELY), len(losses)):
        step, loss = losses[place]
        usual = median(value for _, value in losses[max(0, place - _BEFORE) : place])
        if loss > SPIKE * usual > 0:
            yield f"the loss jumped to {loss:.3g} at step {step} (it was about {usual:.3g}): a lower learning rate?"


def _of_latents(latest: dict[str, float]) -> Iterator[str]:
    if latest.get("example_similarity", 0) > SIMILAR:
        yield (
            f"all examples have nearly the same latents (cosine {latest['example_similarity']:.3f}): the model does "
            "not tell them apart; a larger model.initializer_range, or a lower learning rate"
        )
    if latest.get("latent_similarity", 0) > SIMILAR:
        yield (
            f"the latents collapse onto each other (cosine {latest['latent_similarity']:.3f}): they are as good as "
            "one; a larger model.latent_initializer_range, or fewer latents"
        )


def _of_cross_attentions(latest: dict[str, float]) -> Iterator[str]:
    for name in latest:
        found = re.fullmatch(r"cross_attention_(\d+)_?(\w*)_(entropy|update)", name)
        if found is None:
            continue
        which = " ".join(filter(None, ("cross-attention", found[1], found[2] and f"({found[2]})")))
        if found[3] == "entropy" and latest[name] > UNIFORM:
            yield f"{which} looks at everything alike (attention is {latest[name]:.1%} of uniform)"
        if found[3] == "update" and latest[name] < UNUSED:
            yield f"{which} is not used: what it finds is {latest[name]:.1%} of what it is added to"


def _of_data(latest: dict[str, float]) -> Iterator[str]:
    if latest.get("data_wait", 0) > WAITING:
        yield (
            f"{latest['data_wait']:.0%} of the time is spent waiting for data: more training.dataloader_num_workers, "
            "or clips that were prepared"
        )
