"""The service under load: what is measured is asked of a small one, in this process."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs pip install 'perceiver-vl[serve]'")

from perceiver_vl import UsageError
from perceiver_vl.bench import serving
from perceiver_vl.bench.moments_library import make_clips
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.search import Searcher, build_index
from small_media import write_clip
from small_service import running


@pytest.fixture(scope="module")
def index(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    for number in range(3):
        write_clip(folder / "media" / f"clip{number}.mp4", seed=number, frames=20)
    build_index(model_folder, folder / "media", folder / "index", segments=0.5, segment_fps=4)
    return folder / "index"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Services run in this process; the options of each."""
    options: list[tuple[str, ...]] = []

    @contextmanager
    def served(index: str, *words: str) -> Iterator[tuple[str, float]]:
        options.append(words)
        with running(Path(index)) as address:
            yield address, 0.0

    monkeypatch.setattr(serving, "served", served)
    return options


@pytest.mark.parametrize(("moments", "rows"), [(False, 3), (True, 12)])
def test_every_figure_is_measured(index: Path, here: list[tuple[str, ...]], moments: bool, rows: int) -> None:
    report = serving.measure_serving(str(index), moments=moments, callers=2, requests=16, runs=1)
    assert (report.rows, report.callers, report.seen_ms) == (rows, 2, None)
    assert here == [(), ("--most-at-once", "1", "--gather", "0")]
    for figure in (
        report.early_ms,
        report.p50_ms,
        report.p95_ms,
        report.together,
        report.apart,
        report.together_cpu_ms,
    ):
        assert math.isfinite(figure)
        assert figure > 0
    (section,) = report.sections()
    assert section.title == f"POST /v1/{'moments' if moments else 'search'}, {rows} rows"


@pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    reason="needs Chromium, as of apt-get install chromium",
)
def test_a_browser_shows_a_hit(index: Path, here: list[tuple[str, ...]]) -> None:
    pytest.importorskip("playwright", reason="needs pip install playwright, of the extra [dev]")
    with running(index) as address:
        seen = serving.seen_in_browser(address, iter(["a red square", "a blue circle"]))
    assert len(seen) == 2
    assert min(seen) > 0


def test_without_a_browser_that_is_said(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="needs Chromium"):
        serving.seen_in_browser("http://127.0.0.1:1", iter(()))


def test_no_two_queries_are_alike() -> None:
    queries = [serving.query(number) for number in range(5000)]
    assert len(set(queries)) == len(queries)


def test_made_up_clips_are_an_index(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PerceiverVLConfig.from_pretrained(model_folder)
    monkeypatch.setattr("perceiver_vl.bench.moments_library.VECTOR", config.projection_dim)
    done: list[int] = []
    make_clips(tmp_path / "index", model_folder, config, 40, 0, done.append)
    assert sum(done) == 40
    assert len(Searcher(tmp_path / "index").search("a red square", top_k=50).hits) == 40
