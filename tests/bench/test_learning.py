"""The evidence that it learns: the comparator, runs that are kept, tables, and the page."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from perceiver_vl import PerceiverVLConfig, PerceiverVLForQuestionAnswering
from perceiver_vl.bench.joint_transformer import replace_encoder
from perceiver_vl.bench.learning.costs import costs_section, measure_costs
from perceiver_vl.bench.learning.parts import Column, Part, Row, Table
from perceiver_vl.bench.learning.recipes import FULL, QUICK, small_recipe
from perceiver_vl.bench.learning.report import measure_learning
from perceiver_vl.bench.learning.runs import JOINT, OURS, Run, RunResult, Test, digest, load_model, make_runs
from perceiver_vl.bench.learning.single_stream import rank_jointly
from perceiver_vl.bench.learning.world import cost_runs, world_parts
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.layers.perceiver import Inputs
from perceiver_vl.models.budget import FULL_BUDGET
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from perceiver_vl.training.recipe import DataSource, WorldSplit
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_blocks": 2, "num_latents": 4, "num_text_latents": 2}
SMALLER = [f"model.{name}={value}" for name, value in SMALL.items()] + ["training.per_device_train_batch_size=4"]
ASKED = Test("asked", DataSource(split="test", world=WorldSplit(clips=16, task="frame")), 1)
FOUND = Test("found", DataSource(split="test", world=WorldSplit(clips=16)), 2, streams=("multi", "single"))


def retrieval(steps: int = 2, **how: object) -> Run:
    few = ["data.train.world.clips=3200", "data.num_frames=2", "model.patch_size=16", "training.max_steps=400"]
    recipe = small_recipe(QUICK, "world", [*SMALLER, *few])
    return replace(Run("found", replace(recipe, training=recipe.training | {"max_steps": steps})), **how)


def questions(**how: object) -> Run:
    few = ["data.train.world.clips=6400", "model.patch_size=16", "training.max_steps=400"]
    recipe = small_recipe(QUICK, "world_questions", [*SMALLER, *few])
    return replace(Run("asked", recipe, tests=(ASKED,)), **how)


class TestJointTransformer:
    @pytest.fixture
    def model(self) -> PerceiverVLForQuestionAnswering:
        torch.manual_seed(0)
        sizes = {"image_size": 16, "patch_size": 8, "vocab_size": 50, "mask_token_id": 4, "num_labels": 3}
        model = PerceiverVLForQuestionAnswering(PerceiverVLConfig(**SMALL, **sizes, initializer_range=0.2))
        replace_encoder(model)
        return model.eval()

    def test_what_is_masked_changes_nothing(self, model: PerceiverVLForQuestionAnswering) -> None:
        ids, pixels = torch.randint(5, 50, (2, 6)), torch.rand(2, 3, 3, 16, 16)
        words, frames = torch.ones(2, 6), torch.ones(2, 3)
        words[0, 4:], frames[1, 2:] = 0, 0
        other_ids, other_pixels = ids.clone(), pixels.clone()
        other_ids[0, 4:], other_pixels[1, 2:] = 7, 0.5
        first = model(ids, words, pixels, frames).logits
        assert torch.allclose(first, model(other_ids, words, other_pixels, frames).logits, atol=1e-6)
        assert not torch.allclose(first, model(other_ids, torch.ones(2, 6), pixels, frames).logits, atol=1e-3)

    def test_every_token_sees_every_token(self, model: PerceiverVLForQuestionAnswering) -> None:
        pixels = torch.rand(1, 1, 3, 16, 16, requires_grad=True)
        model(torch.randint(5, 50, (1, 6)), pixel_values=pixels).logits.sum().backward()
        assert (pixels.grad.abs().amax(dim=(0, 1, 2)) > 0).all()

    def test_has_about_as_many_parameters_as_ours(self, model: PerceiverVLForQuestionAnswering) -> None:
        ours = PerceiverVLForQuestionAnswering(model.config)
        counts = [sum(value.numel() for value in one.perceiver_vl.encoder.parameters()) for one in (model, ours)]
        assert counts[0] == pytest.approx(counts[1], rel=0.05)

    def test_has_no_cache_of_vision(self, model: PerceiverVLForQuestionAnswering) -> None:
        encoder = model.perceiver_vl.encoder
        with pytest.raises(UsageError, match="vision_cache"):
            encoder([Inputs(parts=[])], encoder.first_latents(4))


class TestRuns:
    def test_are_made_once_and_tested_again_only_by_what_is_new(self, tmp_path: Path) -> None:
        run = questions(architecture=JOINT)
        results, failed = make_runs([run, run], tmp_path)
        assert not failed
        weights = run.folder(tmp_path) / "model" / "model.safetensors"
        before = weights.stat().st_mtime_ns
        another = replace(ASKED, split=DataSource(split="validation", world=WorldSplit(clips=16, task="frame")))
        again, _ = make_runs([replace(run, tests=(ASKED, another))], tmp_path)
        assert weights.stat().st_mtime_ns == before
        kept, learned = results[run.key], again[run.key]
        assert learned.figure(ASKED, "accuracy") == kept.figure(ASKED, "accuracy") is not None
        assert 0 <= learned.figure(another, "accuracy") <= 100
        assert kept.figure(another, "accuracy") is None
        assert learned.steps == run.recipe.training["max_steps"]

    def test_a_run_starts_from_another_and_one_that_fails_takes_those_with_it(self, tmp_path: Path) -> None:
        good = retrieval(tests=(FOUND,))
        bad = replace(good, name="bad", recipe=replace(good.recipe, model=good.recipe.model | {"num_blocks": 0}))
        after = questions(name="after the good", start=good, tests=())
        never = questions(name="after the bad", start=bad, tests=())
        results, failed = make_runs([never, after, good], tmp_path, workers=2)
        assert set(results) == {good.key, after.key}
        assert "num_blocks=0" in failed["bad"]
        assert failed["after the bad"] == "starts from bad, which failed"
        words = [json.loads((run.folder(tmp_path) / "model" / "tokenizer.json").read_text()) for run in (good, after)]
        assert words[0] == words[1]

    def test_of_the_single_stream_the_ranks_are_those_of_the_evaluation(self, tmp_path: Path) -> None:
        run = retrieval()
        make_runs([run], tmp_path)
        model, processor = load_model(run, run.folder(tmp_path) / "model")
        world = World("test", 20)
        ours = rank_jointly(model, processor, world, 2, FULL_BUDGET)
        theirs = evaluate_retrieval(
            model, processor, world, streams=("single",), num_frames=2, captions_per_clip=1
        ).streams[0]
        assert ours.pop("milliseconds_per_query") > 0
        assert ours == {"r1": theirs.text_to_video.r1, "v2t_r1": theirs.video_to_text.r1}

    def test_the_hash_is_that_of_what_is_not_as_by_default(self) -> None:
        @dataclass
        class Old:
            a: int
            b: int = 1

        @dataclass
        class New(Old):
            c: int = 2

        assert digest(Old(1)) == digest(New(1))
        assert digest(New(1)) != digest(New(1, c=3))
        assert digest(Old(1)) != digest(Old(2))

    def test_what_a_model_depends_on_is_in_its_hash(self) -> None:
        run = questions()
        keys = {
            one.key
            for one in (
                run,
                replace(run, architecture=JOINT),
                replace(run, start=retrieval()),
                replace(run, recipe=replace(run.recipe, training=run.recipe.training | {"seed": 1})),
            )
        }
        assert len(keys) == 4
        assert replace(run, name="another", tests=()).key == run.key


class TestWorldParts:
    def test_have_the_same_batches_for_both_architectures(self) -> None:
        pairs = cost_runs(FULL)
        assert [run.architecture for _, run in pairs] == [OURS, JOINT] * (len(pairs) // 2)
        for (_, ours), (_, theirs) in zip(pairs[::2], pairs[1::2], strict=True):
            assert ours.recipe == theirs.recipe

    def test_never_test_on_what_was_trained_on(self) -> None:
        for part in world_parts(FULL):
            for run in part.runs:
                assert run.tests
                assert all(test.split.split.startswith("test") for test in run.tests)
                assert all(split.split in (None, "train") for split in run.recipe.data.train)

    def test_tell_their_runs_apart_by_name(self) -> None:
        runs = {run.key: run.name for part in world_parts(FULL) for run in part.runs}
        assert len(set(runs.values())) == len(runs)


def test_a_table_says_mean_and_spread_and_leaves_out_what_is_not_there() -> None:
    runs = [replace(questions(), recipe=replace(questions().recipe, training={"seed": seed})) for seed in (0, 1)]
    results = {
        run.key: RunResult("", OURS, 1, 2, 60.0, "", tests={ASKED.key: {"accuracy": score}})
        for run, score in zip(runs, (40.0, 50.0), strict=True)
    }
    column = Column("accuracy", ("accuracy",))
    minutes = Column("minutes", of_run="seconds", unit=60.0)
    rows = (Row("both", tuple(runs), (ASKED,)), Row("none", (retrieval(),), (FOUND,)))
    table = Table("t", rows, (column, minutes), x=(1.0, 2.0))
    assert table.section(results).rows == [("both", "45.0 ± 7.1", "1.0 ± 0.0"), ("none", "–", "–")]
    assert table.series(results)["accuracy"] == ([1.0], [45.0])
    assert table.to_dict(results)[0] == {"model": "both", "accuracy": [40.0, 50.0], "minutes": [1.0, 1.0]}


def test_the_page_has_every_figure_and_what_failed(tmp_path: Path) -> None:
    good, bad = questions(), questions(name="no <blocks>")
    bad = replace(bad, recipe=replace(bad.recipe, model=SMALL | {"num_blocks": 0}))
    rows = (Row("good", (good,), (ASKED,)), Row("bad", (bad,), (ASKED,)))
    table = Table("what is asked", rows, (Column("accuracy", ("accuracy",)),), x=(1.0, 2.0), x_title="n", y_title="%")
    report = measure_learning([Part("one", "Does it?", (table,))], tmp_path, cost_runs=[("asked", good)])
    written = json.loads((tmp_path / "learning.json").read_text())
    figures = written["parts"]["one"]["what is asked"]
    page = (tmp_path / "learning.html").read_text()
    assert f"<td>{figures[0]['accuracy'][0]:.1f}</td>" in page
    assert figures[1]["accuracy"] == []
    assert "no &lt;blocks&gt;: num_blocks=0" in page
    assert "<svg" in page
    assert "<script" not in page
    assert written["costs"][0]["gflops"] > 0
    assert report.minutes > 0


def test_if_every_run_fails_that_is_an_error(tmp_path: Path) -> None:
    run = questions()
    run = replace(run, recipe=replace(run.recipe, model=SMALL | {"num_blocks": 0}))
    table = Table("t", (Row("r", (run,), (ASKED,)),), (Column("accuracy", ("accuracy",)),))
    with pytest.raises(PerceiverVLError, match="every run failed, the first: asked: num_blocks=0"):
        measure_learning([Part("one", "t", (table,))], tmp_path)


def test_costs_count_more_for_the_joint_transformer_and_are_kept(tmp_path: Path) -> None:
    pairs = [("asked", questions()), ("asked", questions(architecture=JOINT))]
    costs = measure_costs(pairs, tmp_path, repeats=1)
    assert costs[1].gflops > costs[0].gflops > 0
    assert measure_costs(pairs, tmp_path, repeats=1) == costs
    assert costs_section(costs).rows[1][-1].endswith("×")
