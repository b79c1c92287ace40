"""A student beside its teacher: scores of both, and what both cost."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from perceiver_vl import PerceiverVLForRetrieval, UsageError
from perceiver_vl.bench.students import Loaded, measure_distillation
from perceiver_vl.bench.videos import open_videos
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from perceiver_vl.tasks.retrieval import evaluate_retrieval
from small_encoders import SMALL, save_dual
from tiny import tiny_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    write_world(folder / "media", clips=12, held_out=4, size=32)
    save_dual(folder / "clip", "clip")
    initialise(folder / "teacher", dual=folder / "clip", **SMALL, num_frames=4, max_frames=5)
    return folder


@pytest.fixture(scope="module")
def teacher(place: Path) -> Loaded:
    return load_retriever(place / "teacher", "cpu")


def test_a_model_beside_itself_is_its_equal(place: Path, teacher: Loaded) -> None:
    open_them = partial(open_videos, str(place / "media"), split="test", need=None)
    report = measure_distillation(
        load_retriever(place / "teacher", "cpu"), teacher, open_them, frames=(2, 4), runs=1, data="media"
    )
    assert [(one.model, one.num_frames) for one in report.measured] == [
        (name, number) for number in (2, 4) for name in ("teacher", "student")
    ]
    first, second, more, _ = report.measured
    assert second.cosine == pytest.approx(1, abs=1e-5)
    assert first.cosine is None
    assert (first.r1, first.r5, first.r10) == (second.r1, second.r5, second.r10)
    assert first.gflops == second.gflops
    assert more.gflops > 1.5 * first.gflops
    model, processor = teacher
    known = evaluate_retrieval(model, processor, open_them(processor), streams=["multi"], num_frames=2)
    assert first.r1 == pytest.approx(known.streams[0].text_to_video.r1)
    assert json.loads(json.dumps(report.to_dict()))["clips"] == 4
    [section] = report.sections()
    assert len(section.rows) == 4


def test_frames_beyond_the_table_of_times_are_looked_at(place: Path) -> None:
    pair = [load_retriever(place / "teacher", "cpu") for _ in range(2)]
    open_them = partial(open_videos, str(place / "media"), split="test", need=None)
    report = measure_distillation(pair[0], pair[1], open_them, frames=(8,), runs=1)
    assert [one.num_frames for one in report.measured] == [8, 8]


def test_models_of_other_vectors_are_refused(place: Path, teacher: Loaded) -> None:
    torch.manual_seed(0)
    other = PerceiverVLForRetrieval(tiny_config()).eval(), teacher[1]
    open_them = partial(open_videos, str(place / "media"), need=None)
    with pytest.raises(
        UsageError, match=r"^model: vectors of 12 numbers, its teacher's have 20; name its own teacher$"
    ):
        measure_distillation(teacher, other, open_them)
    with pytest.raises(UsageError, match=r"^num_frames=0: need at least one frame$"):
        measure_distillation(teacher, teacher, open_them, frames=(0,))
