"""The bench of moments, at the smallest size: every figure is there, and what can be known beforehand is right."""

import json

import pytest

from perceiver_vl import UsageError
from perceiver_vl.bench.moments import measure_moments
from tiny import tiny_config


def test_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.bench.moments_library.SEGMENTS_AN_HOUR", 40)
    monkeypatch.setattr("perceiver_vl.bench.moments.SEGMENTS_AN_HOUR", 200)
    config = tiny_config(image_size=32, patch_size=16, max_frames=8, vocab_size=400, max_text_length=16)
    report = measure_moments(config, hours=[1, 2], segments=6, video_s=4.0, height=64, runs=1, dtype="bfloat16")
    assert report.max_difference < 1e-5
    assert (report.windows_tried, report.same_order) == (21, True)
    assert max(report.table_error.values()) < 1e-5
    assert (report.prefix_error["20"] or 1.0) > report.table_error["20"]
    assert 0 <= report.recall <= 1
    assert report.recall_hours == 2
    assert 0.99 < (report.dtype_cosine or 0) < 1.0
    found = json.loads(json.dumps(report.to_dict()))
    for name in (
        "windows_per_second",
        "windows_per_core_second",
        "matrices_per_core_second",
        "seconds_per_hour",
        "megabytes_per_hour",
        "clip_seconds_per_hour",
        "dtype_seconds_per_hour",
    ):
        assert found[name] > 0
    assert set(found["milliseconds_per_query"]) == {"1", "2"}
    assert [section.title for section in report.sections()][1:] == ["an hour of video", "a query"]
    for section in report.sections():
        assert {len(row) for row in section.rows} == {len(section.columns)}


def test_sizes_that_cannot_be() -> None:
    for how in ({"hours": []}, {"hours": [0]}, {"segments": 1}, {"video_s": 1.0}):
        with pytest.raises(UsageError, match="need hours of 1 or more, two segments and 4 s of video"):
            measure_moments(**how)  # type: ignore[arg-type]
