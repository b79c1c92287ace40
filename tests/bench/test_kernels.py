"""The bench of attention, compiling and data types, at a small size."""

import json

from perceiver_vl.bench.kernels import FORMS, measure_kernels
from tiny import tiny_config


def test_the_forms_are_measured() -> None:
    quick = [(form, dtype) for form, dtype in FORMS if form != "compiled"]  # compiling takes a minute
    report = measure_kernels(tiny_config(), frames=3, batch_size=2, runs=2, forms=quick)
    assert [(row.form, row.dtype) for row in report.forms] == quick
    assert json.loads(json.dumps(report.to_dict()))["runs"] == 2
    for row in report.forms:
        assert 0 < row.fastest <= row.milliseconds <= row.slowest
        assert row.peak_mib > 0
        assert row.difference < (1e-5 if row.dtype == "float32" else 0.2)
        assert row.relative_difference < (1e-5 if row.dtype == "float32" else 0.05)
        assert row.speedup is not None
        assert row.speedup > 0
    assert {row.dtype for row in report.forms} == {"float32", "bfloat16", "int8"}
    eager, sdpa = (next(row for row in report.forms if row.form == form) for form in ("eager", "sdpa"))
    assert sdpa.difference == 0 < eager.difference
    assert sdpa.speedup == 1
    (section,) = report.sections()
    assert [row[:2] for row in section.rows] == quick
    assert {len(row) for row in section.rows} == {len(section.columns)}


def test_more_input_holds_more_memory() -> None:
    def peak(batch_size: int) -> float:
        report = measure_kernels(tiny_config(), frames=3, batch_size=batch_size, runs=1, forms=(("eager", "float32"),))
        return report.forms[0].peak_mib

    assert peak(8) > 1.5 * peak(2)
