"""The bench of decoders, at a small size."""

import json
from importlib.util import find_spec

import pytest

from perceiver_vl.bench.decoding import CODECS, OURS, measure_decoding


@pytest.mark.parametrize("codec", CODECS)
def test_decoders_are_measured_on_the_same_frames(codec: str) -> None:
    report = measure_decoding(codecs=[codec], heights=[120], frame_counts=[3, 8], seconds=0.5, runs=2)
    found = json.loads(json.dumps(report.to_dict()))
    assert {row["frames"] for row in found["rows"]} == {3, 8}
    assert {row.decoder for row in report.rows} >= {OURS, "PyAV, every frame"}
    for row in report.rows:
        assert 0 < row.fastest <= row.milliseconds <= row.slowest
        assert row.clips_per_second == pytest.approx(1e3 / row.milliseconds)
        assert (row.codec, row.height) == (codec, 120)
        assert row.difference == 0 if row.decoder == OURS else row.difference < 12  # another frame: above 30


def test_what_is_not_installed_is_named() -> None:
    report = measure_decoding(codecs=["H.264"], heights=[32], frame_counts=[1], seconds=0.1, runs=1)
    measured = {row.decoder for row in report.rows}
    for name, module in (("OpenCV", "cv2"), ("decord", "decord"), ("torchcodec", "torchcodec")):
        assert (name in measured) != (name in report.absent)
        assert find_spec(module) is not None or name in report.absent
        assert name in report.versions or name in report.absent
    (section,) = report.sections()
    assert [row[3] for row in section.rows] == [row.decoder for row in report.rows]
    assert {len(row) for row in section.rows} == {len(section.columns)}
    assert len(section.notes) == len(report.absent)
