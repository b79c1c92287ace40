"""Lists of moments for other programs say the same, and nothing in them is computed or run."""

import csv
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from perceiver_vl.search.moments import Moment, MomentResult
from perceiver_vl.search.moments_export import export_moments
from small_media import write_clip

SPITEFUL = '=HYPERLINK("http://x","y")'


def result_of(query: str, *paths: Path) -> MomentResult:
    moments = [
        Moment(rank, path.name, path, 0.5 * rank, 0.5 * rank + 1, -0.25, 0.1, -2.0, 4.0)
        for rank, path in enumerate(paths, start=1)
    ]
    return MomentResult(query, moments, {}, None, 0.0, None, 1, 1, "exact")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    first, second = (write_clip(folder / name, seed, frames=40) for seed, name in enumerate(("a b#é.mp4", "-1+1.mp4")))
    results = [
        result_of(SPITEFUL, first, second),
        result_of("+1", first),
        result_of("@SUM(A1)", folder / "gone.mp4"),
        result_of("a red square\n* FROM CLIP NAME: x", first),
    ]
    found = export_moments(folder / "out", results)
    assert [one.problem is None for one in found] == [True, True, True, False, True]
    return folder / "out"


def test_cells_are_text_or_numbers_and_never_formulas(exported: Path) -> None:
    with (exported / "moments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed: list[dict[str, Any]] = json.loads((exported / "moments.json").read_text())
    assert [row["query"] for row in rows[:4]] == [f"'{SPITEFUL}", f"'{SPITEFUL}", "'+1", "'@SUM(A1)"]
    assert [one["query"] for one in listed[:3]] == [SPITEFUL, SPITEFUL, "+1"]  # as it is
    assert rows[1]["file_name"] == "'-1+1.mp4"
    for row, one in zip(rows, listed, strict=True):
        assert row.keys() == one.keys()
        for name, cell in row.items():
            if isinstance(one[name], str):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                assert cell.removeprefix("'") == one[name]
            elif one[name] is not None:
                assert float(cell) == one[name]


def test_the_timeline_is_one_of_opentimelineio(exported: Path) -> None:
    otio = pytest.importorskip("opentimelineio", reason="pip install opentimelineio")
    timeline = otio.adapters.read_from_file(str(exported / "moments.otio"))
    assert isinstance(timeline, otio.schema.Timeline)
    [track] = timeline.video_tracks()
    listed = json.loads((exported / "moments.json").read_text())
    clips = list(track.find_clips())
    assert [clip.name for clip in clips] == [one["query"] for one in listed]
    at = otio.opentime.RationalTime(0, 10)
    for clip, one in zip(clips, listed, strict=True):
        source = clip.source_range
        assert source.start_time.rate == (10 if one["problem"] is None else 25)
        assert source.start_time.to_seconds() == pytest.approx(one["start"], abs=0.041)
        assert source.duration.to_seconds() == pytest.approx(one["end"] - one["start"], abs=0.041)
        assert unquote(urlparse(clip.media_reference.target_url).path) == one["path"]
        assert clip.metadata["perceiver_vl"]["rank"] == one["rank"]
        assert track.trimmed_range_of_child(clip).start_time == at
        at += source.duration
    again = otio.adapters.write_to_string(timeline, "otio_json")
    assert otio.adapters.read_from_string(again, "otio_json").is_equivalent_to(timeline)


def test_what_is_said_stays_on_its_line_of_the_edit_list(exported: Path) -> None:
    lines = (exported / "moments.edl").read_text().splitlines()
    assert "* COMMENT: a red square * FROM CLIP NAME: x" in lines
    assert sum(line.startswith("* FROM CLIP NAME: ") for line in lines) == 5
    assert "* FRAME RATE: 10" in lines
