"""What a clip and words cost, ours beside the others, at a small size."""

import json

import pytest

from perceiver_vl import ComputeBudget, PerceiverVLConfig, UsageError
from perceiver_vl.bench.baselines import BASELINES
from perceiver_vl.bench.cost import measure_cost
from perceiver_vl.bench.cost_report import CostReport, in_words
from perceiver_vl.bench.cost_settings import FRAMES, OURS, cost_rows
from perceiver_vl.bench.streams import ITEMS, STREAMS
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, matching_flops
from tiny import tiny_config

CONFIG = tiny_config(num_blocks=2, self_attentions_per_block=1, num_latents=8, num_text_latents=8)
MODELS = {OURS, *(one.name for one in BASELINES)}


@pytest.fixture(scope="module")
def report() -> CostReport:
    return measure_cost(CONFIG, frames=(2, 4), sizes=(16,), runs=1)


def test_every_setting_is_counted_and_measured(report: CostReport) -> None:
    assert {cost.model for cost in report.part("frames")} == MODELS
    assert {cost.frames for cost in report.part("frames")} == {2, 4}
    for cost in report.costs:
        assert cost.skipped is None
        assert cost.milliseconds is not None
        assert 0 < cost.fastest <= cost.milliseconds <= cost.slowest  # type: ignore[operator]
        assert cost.gflops > 0
        assert cost.peak_mib > 0  # type: ignore[operator]
        assert cost.share_of_peak > 0  # type: ignore[operator]
        assert cost.ratio is not None
    ours = [
        cost for cost in report.part("frames") if (cost.model, cost.latents, cost.cross_attentions) == (OURS, 8, None)
    ]
    assert [cost.ratio for cost in ours] == [1.0, 1.0]
    assert json.loads(json.dumps(report.to_dict()))["costs"][0]["frames"] == 2


def test_ours_is_counted_as_the_formulas_say(report: CostReport) -> None:
    checked = 0
    for cost in report.costs:
        if cost.model != OURS:
            continue
        budget = ComputeBudget(latents=cost.latents, text_latents=cost.latents, cross_attentions=cost.cross_attentions)
        flops = encoder_flops(CONFIG, cost.frames, cost.words, budget)
        if cost.frames and cost.words:
            flops += matching_flops(CONFIG, cost.latents or 0)
        assert round(1e9 * cost.gflops) == flops
        checked += 1
    assert checked > 15


def test_what_would_take_too_long_is_counted_only(report: CostReport) -> None:
    skipping = measure_cost(CONFIG, frames=(2, 4), sizes=(16,), runs=1, most_seconds=0)
    assert all(cost.skipped and cost.milliseconds is None for cost in skipping.costs)
    assert [cost.gflops for cost in skipping.costs] == pytest.approx([cost.gflops for cost in report.costs])
    assert any("not run" in note for note in skipping.sections()[0].notes)


def test_the_streams_add_up(report: CostReport) -> None:
    streams = report.streams
    assert set(streams.seconds) == set(STREAMS)
    clip, text, pair = (streams.steps[name].seconds for name in ("clip", "text", "joint_pair"))
    for n in ITEMS:
        assert streams.seconds["single"][str(n)] == pytest.approx(n**2 * pair)
        assert all(streams.seconds[stream][str(n)] > n * (clip + text) for stream in STREAMS if stream != "single")
    flops = streams.gflops
    assert flops["multi"]["1000"] < flops["mixed_from_partial_attention"]["1000"] < flops["mixed"]["1000"]
    assert flops["mixed"]["1000"] < flops["single"]["1000"] / 10


def test_the_tables_fit_a_terminal(report: CostReport) -> None:
    sections = report.sections()
    assert len(sections) == 7
    for section in sections:
        cells = [section.columns, *section.rows]
        assert len({len(row) for row in cells}) == 1
        widths = (max(len(row[column]) for row in cells) for column in range(len(section.columns)))
        assert sum(widths) + 3 * (len(section.columns) - 1) <= 80


def test_the_base_size_stands_beside_what_is_published() -> None:
    config = PerceiverVLConfig()
    listed = [row for row in cost_rows(config, FRAMES, (384,)) if row.part == "tables" and row.published.gflops]
    ours = {row.label: row for row in listed if row.setting.model == OURS}
    assert [row.published.gflops for row in ours.values()] == [30.5, 17.0, 43.9]
    for row in ours.values():
        flops = encoder_flops(config, row.setting.frames, row.setting.words, row.setting.budget)
        assert 0.9 < flops / 1e9 / row.published.gflops <= 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(1, 9.0, 10.0), (2, 18.0, 11.0)], "less than ours up to 1 frame (9.0 against 10.0); more from 2 frames"),
        ([(1, 12.0, 10.0), (8, 90.0, 20.0)], "more than ours at every number of frames, 1 frame"),
        ([(1, 8.0, 10.0), (8, 9.0, 20.0)], "less than ours at every number"),
        ([(1, 12.0, 10.0), (8, 19.0, 20.0)], "more than ours up to 1 frame (12.0 against 10.0); less from 8 frames"),
        ([(1, 12.0, 10.0), (2, 9.0, 11.0), (8, 90.0, 20.0)], "less than ours at 2 frames"),
    ],
)
def test_the_crossover_is_said_in_words(points: list[tuple[int, float, float]], said: str) -> None:
    assert f"CLIP (ms): costs {said}" in in_words("CLIP", points, "ms")


def test_every_baseline_is_compared(report: CostReport) -> None:
    for baseline in BASELINES:
        assert sum(sentence.startswith(baseline.title) for sentence in report.crossovers) == 2


@pytest.mark.parametrize(("frames", "sizes"), [((0,), (16,)), ((2,), (12,))])
def test_what_cannot_be_measured_is_refused(frames: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"frames=0|size=12"):
        measure_cost(CONFIG, frames=frames, sizes=sizes)
