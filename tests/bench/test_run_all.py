"""All benches in one run, and the page about them, at a small size; the commands' mistakes."""

import json
import re
from pathlib import Path

import pytest

from perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.bench.run_all import run_benches
from perceiver_vl.cli import main
from tiny import tiny_config, tiny_processor


def test_the_page_and_the_figures_are_written(tmp_path: Path) -> None:
    shallow = {"num_blocks": 2, "self_attentions_per_block": 1}
    config = tiny_config(**shallow, num_latents=8, num_text_latents=8, num_labels=5)
    trained = tmp_path.with_name("trained")
    PerceiverVLForRetrieval(tiny_config(num_blocks=1, vocab_size=60, max_text_length=30)).save_pretrained(trained)
    processor = tiny_processor(["a red circle", "a red circle"])
    processor.save_pretrained(trained)
    report = run_benches(tmp_path, config, quick=True, candidates=20, trained=trained, data="world")
    assert report.frontier is not None
    assert report.frontier.examples == 12
    assert report.cascade is not None
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report.to_dict()))
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)  # nothing from elsewhere
    assert page.count("<svg") == 9
    assert page.count("<table") == 13
    for sentence in report.cost.crossovers:
        assert sentence.replace("'", "&#39;") in page
    for said in (report.command, report.machine, *report.versions.values(), "seed 0"):
        assert said in page
    assert {path.name for path in tmp_path.iterdir()} == {"bench.html", "bench.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cost", "--num-frames", "8,x"], "frames=8,x: need whole numbers"),
        (["cost", "--num-frames", "0"], "frames=0: need at least one frame"),
        (["cost", "--sizes", "100"], "size=100: need multiples of patch_size=32"),
        (["length", "--minutes", "0"], "minutes=0: need"),
        (["ask", "--num-frames", ""], "frames=: need whole numbers"),
        (["all", "--out", "here", "--model", "there"], "model and data: go together"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["perceiver-vl", "bench", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
