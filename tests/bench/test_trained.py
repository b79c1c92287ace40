"""The benches of trained models, the front that goes with a model, and budgets chosen from it, at a small size."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import (
    ComputeBudget,
    PerceiverVLError,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    UsageError,
)
from perceiver_vl.bench.cascade import measure_cascade
from perceiver_vl.bench.figures import cascade_figure, frontier_figures
from perceiver_vl.bench.frontier import FrontierReport, measure_frontier
from perceiver_vl.bench.videos import open_videos
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.inference import budget_selection
from perceiver_vl.inference.budget_selection import (
    FILE,
    OperatingPoint,
    choose_budget,
    front_of,
    read_frontier,
    write_frontier,
)
from perceiver_vl.models.budget import CostLimit, is_limit
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, merge_flops, partial_match_flops
from tiny import tiny_config, tiny_processor

GRID = {"frames": [2, 4], "latents": [6, 2], "text_latents": [4], "cross_attentions": [3, 1]}


def save(folder: Path, kind: Any = PerceiverVLForRetrieval, seed: int = 0, **changes: Any) -> Path:
    captions = [text for index in range(8) for text in World("test", 8).captions(index)]
    processor = tiny_processor(captions)
    torch.manual_seed(seed)
    config = tiny_config(vocab_size=len(processor.tokenizer), initializer_range=0.4, **changes)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def report(model: Path) -> FrontierReport:
    return measure_frontier(model, "world", clips=6, grid=GRID, runs=1, device="cpu")


def test_the_grid_is_measured(report: FrontierReport) -> None:
    assert [one.budget for one in report.settings] == [
        f"frames={frames},latents={latents},text_latents=4,cross_attentions={reads}"
        for frames in (4, 2)
        for latents in (6, 2)
        for reads in (3, 1)
    ]
    config = tiny_config()
    for one in report.settings:
        budget = ComputeBudget.parse(one.budget)
        sides = [encoder_flops(config, budget.frames or 0, 0, budget), encoder_flops(config, 0, 8, budget)]
        matching = (
            partial_match_flops(config, budget.latents or 0) + partial_match_flops(config, 4) + merge_flops(config)
        )
        assert one.gflops == pytest.approx((sum(sides) + matching) / 1e9)
        assert 0 < one.fastest <= one.milliseconds <= one.slowest
        assert one.scores.keys() == {"multi", "mixed", "cascade"}
        assert one.score == one.scores["mixed"]
    assert [one.dtype for one in report.dtypes] == ["float32", "bfloat16", "int8"]
    assert report.dtypes[0].score == report.settings[0].score
    assert report.dtypes[0].speedup == 1
    assert "a clip and a text of 8 tokens" in report.unit
    assert json.loads(json.dumps(report.to_dict()))["dtypes"]
    best, dtypes = report.sections()
    assert len(best.rows) == sum(one.on_gflops_front or one.on_time_front for one in report.settings)
    assert len(dtypes.rows) == 3
    assert all(figure.startswith("<svg") for figure in frontier_figures(report))


def test_the_front_goes_with_the_model(report: FrontierReport, model: Path) -> None:
    front = read_frontier(model)
    on_a_front = [one for one in report.settings if one.on_gflops_front or one.on_time_front]
    assert [one.budget for one in front.settings] == [one.budget for one in on_a_front]
    best = max(one.score for one in report.settings)
    choice = choose_budget(model, "1TFLOPs")
    assert choice.setting.score == best
    assert str(choice.budget) == choice.setting.budget
    assert choice.setting.gflops == min(one.gflops for one in report.settings if one.score == best)
    assert "for a clip and a text of 8 tokens" in str(choice)
    cheapest = min(front.settings, key=lambda one: one.gflops)
    assert choose_budget(model, CostLimit(cheapest.gflops, "GFLOPs")).setting == cheapest
    with pytest.raises(UsageError, match=f"^budget 1e-09 GFLOPs: even the cheapest setting, {cheapest.budget} takes"):
        choose_budget(model, CostLimit(1e-9, "GFLOPs"))
    assert choose_budget(model, "1000s", "cpu").setting.score == best  # timed here
    with pytest.raises(
        UsageError, match=r"^budget 1e-06ms: even the cheapest setting, .* takes .* ms; allow that much$"
    ):
        choose_budget(model, CostLimit(1e-6, "ms"), "cpu", "int8")


def test_other_weights_and_no_front_are_refused(report: FrontierReport, model: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="not measured yet, run perceiver-vl bench frontier --model"):
        choose_budget(other, "10ms")
    (other / FILE).write_bytes((model / FILE).read_bytes())
    with pytest.raises(UsageError, match="measured on another model or other weights, run perceiver-vl bench frontier"):
        choose_budget(other, "10GFLOPs")
    for text in ("", "[]", '{"format": 1}', '{"format": 1, "settings": [{"budget": "full"}]}'):
        (other / FILE).write_text(text)
        with pytest.raises(PerceiverVLError, match=r"frontier\.json: damaged \(\w+\), run"):
            read_frontier(other)
    (other / FILE).write_text('{"format": 2}')
    with pytest.raises(UsageError, match="another version"):
        read_frontier(other)


settings = st.builds(
    OperatingPoint,
    budget=st.integers(1, 99).map("latents={}".format),
    score=st.integers(0, 9).map(float),
    gflops=st.integers(1, 9).map(float),
    milliseconds=st.integers(1, 9).map(float),
)


@given(st.lists(settings, min_size=1, max_size=12), st.integers(1, 9))
def test_the_best_within_is_found_among_all(some: list[OperatingPoint], limit: int) -> None:
    front = front_of(some, "gflops")
    assert [one.gflops for one in front] == sorted({one.gflops for one in front})
    assert [one.score for one in front] == sorted({one.score for one in front})
    within = [one.score for one in some if one.gflops <= limit]
    found = [one.score for one in front if one.gflops <= limit]
    assert max(found, default=None) == max(within, default=None)


def test_times_are_those_of_this_machine(
    report: FrontierReport, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The front was measured elsewhere, on a machine ten times as fast."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    rungs = tuple(OperatingPoint(f"latents={n}", float(n), 1.0, float(n)) for n in range(1, 7))
    write_frontier(folder, replace(read_frontier(model), settings=rungs))
    tried: list[str] = []

    def here(_: object, setting: OperatingPoint) -> float:
        tried.append(setting.budget)
        return 10 * setting.milliseconds

    monkeypatch.setattr(budget_selection, "_milliseconds", here)
    choice = choose_budget(folder, "45ms", "cpu")
    assert (choice.setting.budget, choice.cost) == ("latents=4", 40)
    assert len(tried) < len(rungs)


def test_questions_have_a_front_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_world(data, tasks=["yesno"], clips=12, held_out=4, size=16)
    model = save(tmp_path / "model", PerceiverVLForQuestionAnswering, id2label={0: "yes", 1: "no"})
    grid = {"frames": [2], "latents": [6, 3], "cross_attentions": [2], "blocks": [3, 2, 1]}
    report = measure_frontier(
        model, str(data), task="question-answering", split="test", grid=grid, runs=1, device="cpu"
    )
    assert [one.budget for one in report.settings] == [  # no setting has more cross-attentions than blocks
        f"frames=2,latents={latents},cross_attentions=2{blocks}" for latents in (6, 3) for blocks in ("", ",blocks=2")
    ]
    assert report.metric == "accuracy"
    assert "read together" in report.unit
    assert asdict(read_frontier(model))["task"] == "question-answering"
    with pytest.raises(UsageError, match="text_latents: "):
        measure_frontier(model, str(data), task="question-answering", grid={"text_latents": [2]}, device="cpu")
    with pytest.raises(UsageError, match="data=world: has captions alone"):
        measure_frontier(model, "world", task="image-classification", device="cpu")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"runs": 0}, "runs=0"),
        ({"stream": "single"}, "stream=single: choose from multi, mixed, cascade"),
        ({"clips": 0}, "clips=0: need at least 1"),
        ({"grid": {"latents": [7]}}, "latents=7: more than 6"),
        ({"grid": {"blocks": [4]}}, "blocks=4: more than 3"),
        ({"task": "reading"}, "task=reading: unknown"),
        ({"dtype": "int4"}, "dtype=int4: choose from"),
    ],
)
def test_what_cannot_be_measured_is_refused(model: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        measure_frontier(model, "world", device="cpu", **how)


# Limits as typed


@given(st.floats(0.01, 1e5), st.sampled_from(["ms", "s", "MFLOPs", "gflops", "TFLOPs"]), st.sampled_from(["", " "]))
def test_limits_are_read(amount: float, unit: str, space: str) -> None:
    factor = {"ms": 1, "s": 1e3, "MFLOPs": 1e-3, "gflops": 1, "TFLOPs": 1e3}[unit]
    typed = f"{amount:.4f}{space}{unit}"
    limit = CostLimit.parse(typed)
    assert is_limit(typed)
    assert limit.amount == pytest.approx(float(f"{amount:.4f}") * factor)
    assert limit.unit == ("ms" if unit in ("ms", "s") else "GFLOPs")
    assert CostLimit.parse(str(limit)).unit == limit.unit


@pytest.mark.parametrize("typed", ["50", "50 miles", "0ms", "1.2.3ms", "5e3ms", "ms", "50ms,frames=2", "GFLOPs"])
def test_what_is_no_limit_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match=f"^budget {typed}: need "):
        CostLimit.parse(typed)


def test_dials_are_no_limit() -> None:
    assert not any(map(is_limit, ("", "frames=8", "latents=4,frames=2")))


# The cascade


def test_the_cascade_beside_the_single_stream(model: Path) -> None:
    retriever, processor = load_retriever(model, "cpu")
    source = open_videos("world", processor, default_clips=9)
    report = measure_cascade(
        retriever, processor, source, items=(3, 9), shortlist=2, runs=1, most_seconds=0, data="world"
    )
    runs = {(one.items, one.stream): one for one in report.streams}
    assert len(runs) == 8
    scaled = runs[9, "single"]
    assert (scaled.extrapolated_from, scaled.r1) == (3, None)
    assert scaled.seconds == 9 * runs[3, "single"].seconds
    assert report.time_ratio == runs[9, "cascade"].seconds / scaled.seconds
    assert (report.time_items, report.time_extrapolated_from, report.r1_items) == (9, 3, 3)
    cascade, single = runs[3, "cascade"].r1, runs[3, "single"].r1
    assert cascade is not None
    assert single is not None
    assert report.r1_difference == cascade - single
    assert json.loads(json.dumps(report.to_dict()))["time_ratio"] > 0
    (section,) = report.sections()
    assert "extrapolated from 3 × 3" in section.notes[0]
    assert section.rows[-1][2].startswith("~")
    assert "single, extrapolated" in cascade_figure(report)
    everything = measure_cascade(retriever, processor, source, items=(3, 9), runs=1, data="world")
    assert (everything.time_extrapolated_from, everything.r1_items) == (None, 9)


def test_more_items_than_clips_are_refused(model: Path) -> None:
    retriever, processor = load_retriever(model, "cpu")
    source = open_videos("world", processor, clips=3)
    with pytest.raises(UsageError, match="items=4: more than the 3 clips of world"):
        measure_cascade(retriever, processor, source, items=(2, 4), data="world")
    with pytest.raises(UsageError, match="items=1, runs=3: need two items"):
        measure_cascade(retriever, processor, source, items=(1,))


def test_times_that_fall_with_more_frames_are_told(report: FrontierReport) -> None:
    def timed(milliseconds: Callable[[int], float]) -> FrontierReport:
        frames = [ComputeBudget.parse(one.budget).frames or 0 for one in report.settings]
        paired = zip(report.settings, frames, strict=True)
        return replace(report, settings=[replace(one, milliseconds=milliseconds(count)) for one, count in paired])

    ordered, reversed_ = timed(float), timed(lambda count: -float(count))
    wrong, pairs = reversed_.out_of_order
    assert wrong == pairs > 0
    assert ordered.out_of_order == (0, pairs)
    assert "longer with fewer" not in str(ordered.sections())
    assert f"Of {pairs} pairs of settings that differ in frames alone {wrong} took longer" in str(reversed_.sections())
