"""The benches of long videos, of second questions and of re-ranking, at a small size."""

import json

import pytest

from perceiver_vl import UsageError
from perceiver_vl.bench.length import LengthReport, measure_length
from perceiver_vl.bench.reranking import measure_reranking
from perceiver_vl.bench.vision_cache import measure_vision_cache
from tiny import tiny_config


@pytest.fixture(scope="module")
def lengths() -> LengthReport:
    return measure_length(tiny_config(image_size=32), minutes=(1, 3), chunk_frames=4)


def test_chunks_hold_the_memory_of_a_chunk(lengths: LengthReport) -> None:
    peaks = {(one.form, one.minutes): one.peak_mib for one in lengths.lengths}
    assert len(peaks) == 8
    assert peaks["chunks", 3] < 1.3 * peaks["chunks", 1]  # type: ignore[operator]
    assert peaks["whole", 3] > 2.5 * peaks["whole", 1] > 5 * peaks["chunks", 1]  # type: ignore[operator]
    assert lengths.max_difference < 1e-5
    assert json.loads(json.dumps(lengths.to_dict()))["lengths"][0]["seconds_per_minute"] > 0


def test_a_long_video_costs_as_much_a_minute_as_a_short_one(lengths: LengthReport) -> None:
    flops = {(one.form, one.minutes): one.gflops for one in lengths.lengths}
    for form in ("chunks", "whole"):
        assert 2.5 < flops[form, 3] / flops[form, 1] < 3
    assert (
        flops["chunks", 1]
        > flops["whole", 1]
        > flops["chunks, 1 cross-attention", 1]
        == flops["whole, 1 cross-attention", 1]
    )


def test_videos_that_would_take_too_long_are_left_out() -> None:
    report = measure_length(tiny_config(), minutes=(1,), most_seconds=0)
    assert all(one.skipped and one.seconds is None for one in report.lengths)
    assert any("Not run" in note for note in report.sections()[0].notes)


def test_the_second_question_does_not_pay_for_the_clip() -> None:
    report = measure_vision_cache(tiny_config(num_labels=5), frames=(2, 5), runs=1)
    assert set(report.second_over_first) == {"2", "5"}
    by_setting = {(one.frames, one.cross_attentions): one for one in report.questions}
    assert len(by_setting) == 4
    for one in report.questions:
        assert one.second_over_first == one.second_ms / one.first_ms
        assert one.second_gflops < one.first_gflops
        assert one.max_difference < 1e-5
    assert by_setting[2, 1].second_gflops == by_setting[5, 1].second_gflops
    assert by_setting[2, 3].second_gflops < by_setting[5, 3].second_gflops
    assert by_setting[5, 1].cache_mib == by_setting[2, 1].cache_mib < by_setting[2, 3].cache_mib
    assert json.loads(json.dumps(report.to_dict()))["questions"]
    assert len(report.sections()[0].rows) == 4


def test_partial_attentions_rank_as_the_decoder_does() -> None:
    config = tiny_config(num_latents=6)
    report = measure_reranking(config, candidates=70, runs=1)  # more than a batch
    assert report.max_difference < 1e-4 * report.logits_std
    assert report.bytes_ratio == 6 * 16 / (16 + 4)
    assert report.speedup == report.projected_ms / report.partial_attention_ms > 0
    assert report.speedup_over_decoder == report.decoder_ms / report.partial_attention_ms
    assert json.loads(json.dumps(report.to_dict()))["candidates"] == 70
    assert len(report.sections()[0].rows) == 3


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="minutes=0"):
        measure_length(tiny_config(), minutes=(0,))
    with pytest.raises(UsageError, match="chunk_frames=0"):
        measure_length(tiny_config(), minutes=(1,), chunk_frames=0)
    with pytest.raises(UsageError, match="frames=0"):
        measure_vision_cache(tiny_config(), frames=(0,))
    with pytest.raises(UsageError, match="candidates=0"):
        measure_reranking(tiny_config(), candidates=0)
