"""Ideas at equal cost: the switches, how long they train, what is kept, what is chosen, and the page."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from perceiver_vl import PerceiverVLConfig, PerceiverVLForPreTraining
from perceiver_vl.bench.components import equal_cost
from perceiver_vl.bench.components.equal_cost import Cost, equal_steps, training_cost
from perceiver_vl.bench.components.measure import choose_together, measure_components
from perceiver_vl.bench.components.report import ComponentsReport, Gain, Line, TrialLines, render_page
from perceiver_vl.bench.components.switches import (
    EVERYWHERE,
    QUESTIONS,
    RETRIEVAL,
    SWITCHES,
    WORLD,
    Switch,
    beside_recipes,
    choose_switches,
    together,
)
from perceiver_vl.bench.components.trials import Trial, lasting, steps_of, world_trials
from perceiver_vl.bench.learning.costs import step_and_answer
from perceiver_vl.bench.learning.runs import RunResult
from perceiver_vl.bench.profiling import count_flops, count_training_flops
from perceiver_vl.training.recipe import Stage, read_recipe
from perceiver_vl.training.signals import stop_on_signals
from perceiver_vl.utils.errors import PreemptedError, UsageError

QUICK = {trial.name: trial for trial in world_trials(2, quick=True)}
REAL = {trial.name: trial for trial in world_trials()}
FEW = {"per_device_train_batch_size": 4}
QUICK_PARAMETERS = 50_000
COST = Cost(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was counted once."""
    return tmp_path_factory.mktemp("components")


class TestSwitches:
    def test_are_told_apart_and_each_is_of_somebody_and_tried_on_something(self) -> None:
        assert len({switch.name for switch in SWITCHES}) == len(SWITCHES)
        for switch in SWITCHES:
            assert switch.system
            assert switch.idea
            assert switch.trials
            assert set(switch.trials) <= set(EVERYWHERE)
            assert re.fullmatch(r"[a-z0-9-]+", switch.name)

    @pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
    def test_each_is_one_that_the_recipes_take_and_changes_them(self, switch: Switch) -> None:
        for name in set(switch.trials) & set(WORLD):
            recipe = REAL[name].changed(switch)
            assert recipe != REAL[name].recipe
            assert steps_of(recipe) == steps_of(REAL[name].recipe)

    @pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
    def test_each_is_a_model_that_answers_or_a_way_to_train_one(self, switch: Switch) -> None:
        for name in [name for name in WORLD if name in switch.trials][:1]:
            trial = REAL[name]
            recipe = trial.changed(switch)
            if recipe.model == trial.recipe.model:
                step, answer = step_and_answer(replace(recipe, training=recipe.training | FEW))
                assert count_training_flops(step) > count_flops(answer) > 0
                continue
            model = PerceiverVLForPreTraining(PerceiverVLConfig(**recipe.model, vocab_size=60, mask_token_id=4)).eval()
            words, clip = torch.randint(5, 60, (1, 7)), torch.randn(1, recipe.data.num_frames, 3, 64, 64)
            assert count_flops(lambda m=model, w=words, c=clip: m.match_jointly(w, pixel_values=c)) > 0  # type: ignore[misc]

    def test_beside_the_recipes_what_they_have_is_left_out_and_all_of_it_is_the_papers_model(self) -> None:
        for trial in world_trials(recipes=True):
            left_out = [one for one in beside_recipes() if one.name.startswith("without-") and trial.name in one.trials]
            assert left_out
            for one in left_out:
                assert trial.changed(one) != trial.recipe, one.name
            [without] = choose_switches(["+".join(one.name for one in left_out)], left_out)
            found, paper = trial.changed(without), REAL[trial.name].recipe
            assert found.optimizer == paper.optimizer
            differing = {key for key, value in paper.model.items() if found.model[key] != value}
            assert differing == {"frame_class_token"}

    @pytest.mark.parametrize("trial", world_trials(recipes=True), ids=lambda trial: trial.name)
    def test_beside_the_recipes_every_other_one_is_still_a_change(self, trial: Trial) -> None:
        others = [one for one in beside_recipes() if trial.name in one.trials]
        assert all(trial.changed(one) != trial.recipe for one in others)

    def test_two_are_one_that_turns_on_both(self) -> None:
        [both] = choose_switches(["patch-norm+muon"])
        recipe = REAL[RETRIEVAL].changed(both)
        assert recipe.model["patch_norm"] is True
        assert recipe.optimizer == "muon"
        assert both.trials == WORLD

    def test_what_does_not_go_together_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"only=text-first\+separate: both set model.modality_aggregation"):
            choose_switches(["text-first+separate"])
        with pytest.raises(UsageError, match="no task is for both"):
            choose_switches(["text-first+hard-negatives"])
        with pytest.raises(UsageError, match="only=muonn: unknown, did you mean muon"):
            choose_switches(["muonn"])


def test_what_an_answer_costs_is_that_of_the_longest_clips_of_a_mixture() -> None:
    whole = QUICK[RETRIEVAL].recipe
    whole = replace(whole, training=whole.training | FEW)
    pictures = replace(whole.data.train[0], num_frames=1, world=replace(whole.data.train[0].world, seed=9))  # type: ignore[type-var]
    alone = replace(whole, data=replace(whole.data, train=(pictures,)))
    one, clip = (count_flops(step_and_answer(recipe)[1]) for recipe in (alone, whole))
    for order in (1, -1):
        mixture = replace(whole, data=replace(whole.data, train=(whole.data.train[0], pictures)[::order]))
        found = count_flops(step_and_answer(mixture)[1])
        assert abs(found - clip) < 0.2 * (clip - one)  # captions are not all as long


class TestEqualCost:
    def test_the_operations_of_a_step_are_those_of_a_naive_count(self, kept: Path) -> None:
        layer = nn.Linear(6, 5)
        inputs = torch.randn(3, 6, requires_grad=True)

        def step() -> None:
            layer(inputs).sum().backward()

        assert count_training_flops(step) == 3 * 2 * 3 * 6 * 5, "forward, to the inputs, to the weights"

    def test_the_fused_attention_of_a_cpu_is_counted_on_its_way_back(self) -> None:
        query, key = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (5, 7))
        product = 2 * 2 * 5 * 7 * 8

        def step() -> None:
            nn.functional.scaled_dot_product_attention(query, key, key).sum().backward()

        assert count_training_flops(step) == (2 + 5) * product, "the weights are made once more"

    def test_what_is_done_once_is_not_a_steps(self, kept: Path) -> None:
        recipe = QUICK[RETRIEVAL].recipe
        one, three = training_cost(recipe, kept, counted=1), training_cost(recipe, kept, counted=3)
        assert one.step_gflops == pytest.approx(three.step_gflops, rel=0.2), "captions differ in length"
        assert one.mib > 4 * QUICK_PARAMETERS / 2**20

    def test_twice_the_batch_has_half_the_steps(self, kept: Path) -> None:
        recipe = replace(QUICK[QUESTIONS].recipe, model=QUICK[QUESTIONS].recipe.model | {"layer_drop": 0})
        batch = recipe.training["per_device_train_batch_size"]
        twice = replace(recipe, training=recipe.training | {"per_device_train_batch_size": 2 * batch})
        assert equal_steps(recipe, recipe, 100, kept, counted=1) == 100
        assert equal_steps(recipe, twice, 100, kept, counted=1) == pytest.approx(50, abs=3)

    def test_the_optimizers_products_count(self, kept: Path) -> None:
        trial = QUICK[RETRIEVAL]
        muon = trial.changed(choose_switches(["muon"])[0])
        assert equal_steps(trial.recipe, muon, 100, kept, counted=1) < 100

    def test_a_count_is_kept(self, kept: Path) -> None:
        recipe = QUICK[RETRIEVAL].recipe
        training_cost(recipe, kept, counted=1)
        files = {path: path.stat().st_mtime_ns for path in (kept / "flops").iterdir()}
        training_cost(lasting(recipe, 50), kept, counted=1)
        assert files == {path: path.stat().st_mtime_ns for path in (kept / "flops").iterdir()}


class TestLasting:
    def test_everything_keeps_its_share(self) -> None:
        recipe = read_recipe("world")
        shorter = lasting(recipe, 80)
        assert steps_of(shorter) == 80
        names = ("eval_steps", "save_steps", "warmup_steps")
        assert [shorter.training[name] for name in names] == [recipe.training[name] / 10 for name in names]

    def test_stages_too(self) -> None:
        recipe = read_recipe("encoders_questions")
        shorter = lasting(recipe, 100)
        assert [stage.steps for stage in shorter.stages] == [70, 30]
        assert shorter.stages[1] == replace(recipe.stages[1], steps=30, warmup_steps=3)
        assert isinstance(shorter.stages[0], Stage)
        assert "max_steps" not in shorter.training


def trial_lines(scores: dict[str, list[float]], gflops: dict[str, float] | None = None) -> TrialLines:
    """Rows of made-up scores, `baseline` and `baseline, 4 frames` among them, on test and on validation alike."""
    trial = REAL[RETRIEVAL]
    known = {switch.name: switch for switch in SWITCHES} | {"baseline, 4 frames": trial.with_frames(4)}
    lines, results = [], {}
    for name, values in scores.items():
        switch = None if name == "baseline" else known[name]
        row = trial.row(switch, 100, range(len(values)))
        for run, value in zip(row.runs, values, strict=True):
            tests = {test.key: {"cascade": {"r1": value}, "multi": {"r1": 1.0, "r10": 2.0}} for test in row.tests}
            results[run.key] = RunResult(run.name, run.architecture, 10, 100, 1.0, "", tests=tests)
        cost = replace(COST, answer_gflops=(gflops or {}).get(name, 1.0))
        lines.append(Line(switch, row, 100, cost, f"again --only {name}"))
    return TrialLines(trial, tuple(lines), results)


class TestGains:
    def test_are_above_the_baseline_at_the_same_operations(self) -> None:
        scores = {"baseline": [40.0], "baseline, 4 frames": [20.0], "patch-norm": [35.0], "muon": [35.0]}
        gflops = {"baseline": 4.0, "baseline, 4 frames": 1.0, "patch-norm": 2.0, "muon": 8.0}
        found = trial_lines(scores, gflops)
        half, beyond = found.gain(found.lines[2]), found.gain(found.lines[3])
        assert half == Gain(pytest.approx(5.0), None), "half way in logarithms: 30"
        assert beyond == Gain(pytest.approx(-5.0), None), "more than was tried: the last"

    def test_of_several_seeds_they_have_a_spread(self) -> None:
        found = trial_lines({"baseline": [40.0, 42.0], "patch-norm": [44.0, 46.0], "muon": [40.0, 43.0]})
        sure, unsure = (found.gain(line) for line in found.lines[1:])
        assert sure == Gain(pytest.approx(4.0), pytest.approx(2.0))
        assert (sure.sign, unsure.sign) == (1, 0)
        assert Gain(-3.0, 2.0).sign == -1
        assert Gain(9.0, None).sign == 0, "one seed says nothing"

    def test_the_best_that_go_together_are_chosen(self) -> None:
        scores = {"baseline": 40.0, "patch-norm": 43.0, "muon": 49.0, "layer-drop": 41.0, "focal-weights": 39.0}
        found = trial_lines({name: [score] for name, score in scores.items()})
        best = choose_together(found, SWITCHES)
        assert best is not None
        assert best.name == "muon+patch-norm+layer-drop"
        assert choose_together(found, SWITCHES[:2]) is None

    def test_what_no_model_can_have_together_is_not_chosen(self) -> None:
        scores = {"baseline": [40.0], "sampled-points": [49.0], "routed-regions": [45.0], "muon": [42.0]}
        best = choose_together(trial_lines(scores), SWITCHES)
        assert best is not None
        assert best.name == "sampled-points+muon"

    def test_of_two_that_set_the_same_the_better_is_taken(self) -> None:
        known = {switch.name: switch for switch in SWITCHES}
        other = replace(known["patch-norm"], name="other", overrides=("optimizer=muon",))
        with pytest.raises(UsageError):
            together(known["muon"], other)
        found = trial_lines({"baseline": [40.0], "muon": [49.0], "layer-drop": [42.0]})
        line = replace(found.lines[1], switch=other)
        found = replace(found, lines=(*found.lines, replace(line, row=found.lines[2].row)))
        best = choose_together(found, [known["muon"], known["layer-drop"], other])
        assert best is not None
        assert best.name == "muon+layer-drop"


class TestReport:
    def test_the_page_has_every_row_and_says_what_contradicts_a_paper(self) -> None:
        scores = {"baseline": [40.0, 42.0], "patch-norm": [44.0, 46.0], "convolutional-stem": [20.0, 21.0]}
        found = trial_lines(scores)
        report = ComponentsReport(trials=(found,), together={RETRIEVAL: "a+b"}, failed={"muon": "<why>"})
        page = render_page(report)
        for line in found.lines:
            assert f"<td>{line.row.label}</td>" in page
            assert line.switch is None or line.command in page
        assert "above the baseline by more than the spread: patch-norm; below: convolutional-stem." in page
        [said] = report.contradictions()
        assert said in page
        assert "Xiao et al. 2021" in said
        assert "-20.5 ± 1.6" in said
        assert "&lt;why&gt;" in page
        assert json.loads(json.dumps(report.to_dict()))["trials"][RETRIEVAL][1]["gain"]["points"] == pytest.approx(4.0)

    def test_one_seed_says_nothing_of_what_pays(self) -> None:
        report = ComponentsReport(trials=(trial_lines({"baseline": [40.0], "convolutional-stem": [20.0]}),))
        assert not report.contradictions()
        assert "nothing is said" in report.verdicts()[0]


def test_what_was_measured_is_not_trained_again(tmp_path: Path) -> None:
    trial: Trial = QUICK[QUESTIONS]
    first = measure_components(
        [trial], choose_switches(["patch-norm"]), tmp_path, seeds=1, counted=1, again="again --only"
    )
    assert not first.failed
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert len(weights) == 2
    one = first.to_dict()["trials"][QUESTIONS][1]
    assert one["command"] == "again --only patch-norm"
    again = measure_components([trial], choose_switches(["patch-norm"]), tmp_path, seeds=1, counted=1)
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert again.to_dict()["trials"][QUESTIONS][1]["scores"] == one["scores"]
    assert one["scores"][0] is not None
    other = measure_components([trial], [], tmp_path, seeds=1, first_seed=3, counted=1)
    assert [run.recipe.training["seed"] for run in other.trials[0].lines[0].row.runs] == [3]
    assert len(list(tmp_path.rglob("model.safetensors"))) == 3
    costs_alone = measure_components([trial], [], tmp_path, seeds=0, counted=1)
    assert costs_alone.to_dict()["trials"][QUESTIONS][0]["scores"] == []


def test_a_signal_ends_the_bench_and_not_one_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial: Trial = QUICK[QUESTIONS]
    measure_components([trial], [], tmp_path, seeds=0, counted=1)  # the baseline's costs are kept

    def signalled(*_: object, **__: object) -> None:
        with stop_on_signals():
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(equal_cost, "train", signalled)
    with pytest.raises(PreemptedError, match="stopped; the same command goes on"):
        measure_components([trial], choose_switches(["patch-norm"]), tmp_path, seeds=0, counted=1)
