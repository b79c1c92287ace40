"""An index of made-up clips: every figure is there, and what can be known beforehand is right."""

import pytest

from perceiver_vl import UsageError
from perceiver_vl.bench.index import measure_index


def test_every_figure_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.search.table.ClipTable.finish.__defaults__", (3000,))
    report = measure_index([4000, 2000], runs=4)
    small, large = report.sizes
    assert (small.rows, large.rows) == (2000, 4000)
    assert small.recall == 1.0, "exact"
    assert 0.5 < large.recall <= 1.0
    for one in report.sizes:
        assert one.bytes > one.rows * 4 * (256 + 780)
        assert one.open_ms > 0
        assert 0 < one.p50_ms <= one.p95_ms
        assert 0 < one.filtered_p50_ms <= one.filtered_p95_ms
        assert 0 < one.base_mib <= one.rss_mib
        assert one.build_s > 0
        assert one.update_s > 0
    [section] = report.sections()
    assert section.columns == ("", "2,000 clips", "4,000 clips")
    assert "100,000,000 clips" in section.notes[0]
    assert set(report.to_dict()["sizes"][0]) >= {"open_ms", "p50_ms", "p95_ms", "rss_mib", "recall", "update_s", "rows"}


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="rows=10: need at least 2000"):
        measure_index([10])
