"""The smallest tasks of seeing: their answers are true, who knows all but which thing guesses; curves are told."""

import numpy as np
import pytest
import torch

from perceiver_vl import UsageError
from perceiver_vl.bench.perception import (
    LEARNED,
    TASKS,
    VARIANTS,
    Curve,
    PerceptionReport,
    measure_perception,
)
from perceiver_vl.data.synthetic.actions import ACTIONS
from perceiver_vl.data.synthetic.grid import CELLS
from perceiver_vl.data.synthetic.scene import COLOURS, SHAPES


@pytest.mark.parametrize("name", TASKS)
def test_the_thing_of_the_colour_has_the_answer_and_no_other_has(name: str) -> None:
    task, rng = TASKS[name], np.random.default_rng(0)
    for _ in range(30):
        scene, colour, label = task.draw(rng)
        assert len(scene.objects) == task.things
        said = {
            "motion": [tuple(ACTIONS).index(one.action_names[0]) if one.actions else 0 for one in scene.objects],
            "place": [CELLS.index(one.cell) for one in scene.objects],
            "shape": [SHAPES.index(one.shape) for one in scene.objects],
        }[task.asked]
        meant = [one.colour == tuple(COLOURS)[colour] for one in scene.objects]
        assert sum(meant) == 1
        assert said[meant.index(True)] == label < task.labels
        assert len(set(said)) == task.things
    questions, pixels, labels = task.batch(rng, 3)
    assert questions.shape == (3, 1)
    assert pixels.shape == (3, 8 if task.asked == "motion" else 1, 3, 32, 32)
    assert pixels.abs().max() <= 1
    assert labels.dtype == torch.int64


def test_who_knows_all_but_which_guesses() -> None:
    assert TASKS["motion"].guess == pytest.approx(100 / 12)
    assert TASKS["shape-of-3"].guess == pytest.approx(100 / 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_takes_its_steps(variant: str) -> None:
    report = measure_perception(tasks=["place"], variants=[variant], most_steps=2, tested=20)
    (curve,) = report.curves
    assert curve.steps == [2]
    assert 0 <= curve.accuracy[0] <= 100
    first, second = report.sections()
    assert first.rows[0][0] == second.rows[0][0] == f"place, {variant}"
    assert report.to_dict()["curves"][0]["guess"] == 100 / 9


def test_a_training_ends_with_its_time_and_is_the_same_from_the_same_seed() -> None:
    one, other = (
        measure_perception(tasks=["motion"], variants=["muon"], seconds=0.0, tested=10).curves[0] for _ in range(2)
    )
    assert one.steps == [1]
    assert one.accuracy == other.accuracy


def test_the_rate_may_fall_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *given: rates.append(self.param_groups[0]["lr"]) or step(self, *given)
    )
    report = measure_perception(tasks=["place"], variants=["seeing"], most_steps=3, tested=10, decay=True)
    assert rates == pytest.approx([2e-3 * share * number / 30 for number, share in ((1, 1), (2, 2 / 3), (3, 1 / 3))])
    assert "falls to 0" in report.sections()[0].notes[0]


def test_a_curve_tells_when_it_was_learned() -> None:
    curve = Curve("place", "muon", 11.1, [50, 100, 150], [1.0, 2.0, 3.0], [20.0, 60.0, 99.2])
    assert curve.first(50.0) == (100, 2.0)
    assert curve.first(LEARNED) == (150, 3.0)
    assert curve.first(99.5) is None
    report = PerceptionReport([curve], 9.0, runs=1)
    assert report.sections()[0].rows[0][-2:] == ("100", "150 (3 s)")
    assert report.sections()[1].rows == [("place, muon", "50:20 100:60 150:99")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["poem"]}, "tasks=poem: unknown, choose from motion, place"),
        ({"variants": ["wish"]}, "variants=wish: unknown, choose from as-published"),
        ({"tasks": []}, "tasks: none named"),
    ],
)
def test_what_is_not_known_is_refused(given: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure_perception(**given)  # type: ignore[arg-type]
