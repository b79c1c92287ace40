"""Evidence over pretrained encoders: features of every set, smaller and blind training, the ridge matrix, the runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_vl import UsageError
from perceiver_vl.bench.learning.over_encoders import FRAMES, PARTS, OverEncoders, encoder_parts, ridge_sections
from perceiver_vl.bench.learning.real import CLIPS, PHOTOGRAPHS, QUESTIONS
from perceiver_vl.bench.learning.recipes import QUICK
from perceiver_vl.bench.learning.ridge import RidgeVectors, Vectors, ridge_recall
from perceiver_vl.bench.learning.runs import make_runs
from perceiver_vl.data.folder import read_folder
from small_encoders import save_text, save_vision

SETS = (CLIPS, PHOTOGRAPHS, "flickr8k_extra", "autoeval_video", "panda70m_samples", "daquar", "nlvr")
SPLITS = ("train", "train", "train", "val", "val", "test", "test")


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> OverEncoders:
    """Both encoders, and every set with a few pictures."""
    folder = tmp_path_factory.mktemp("over")
    save_vision(folder / "vision", "vit")
    save_text(folder / "text")
    draw = np.random.default_rng(0)
    for name in SETS:
        (folder / "data" / name).mkdir(parents=True)
        captions, questions = [], []
        for number, split in enumerate(SPLITS):
            file = f"{number}.png"
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "data" / name / file)
            split = "train" if name == "flickr8k_extra" else split
            captions.append({"file": file, "captions": ["a dog runs", f"two cats {number}"], "split": split})
            for asked in ("who runs", "what sleeps"):
                questions.append({"file": file, "question": asked, "answer": f"{number % 2}", "split": split})
        if name not in ("daquar", "nlvr"):
            _write(folder / "data" / name / "captions.jsonl", captions)
        if name in QUESTIONS:
            _write(folder / "data" / name / "qa.jsonl", questions)
    found = OverEncoders(str(folder / "vision"), str(folder / "text"), folder / "data", folder / "out", QUICK)
    found.prepare()
    return found


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_every_set_is_seen_once(over: OverEncoders) -> None:
    for name in SETS:
        folder = over.features(name)
        assert len(list(folder.glob("*.npy"))) == len(SPLITS)
        if name in QUESTIONS:
            asked = read_folder(folder, need="question").records
            blind = read_folder(folder, metadata=folder / "blind.jsonl", need="question").records
            assert [(one.question, one.answers, one.split) for one in blind] == [
                (one.question, one.answers, one.split) for one in asked
            ]
            assert len({one.file_name for one in blind}) == 1 < len({one.file_name for one in asked})
    made = {path: path.stat().st_mtime_ns for path in over.output.glob("encoders/**/*.npy")}
    over.prepare()
    assert made == {path: path.stat().st_mtime_ns for path in over.output.glob("encoders/**/*.npy")}


def test_few_pairs_are_some_of_every_set(over: OverEncoders) -> None:
    records = [
        record
        for source in over.training("pairs-100.jsonl")
        for record in read_folder(source.folder, split=source.split, metadata=source.metadata).records
    ]
    assert len(records) == 3 + 3 + 7, "there are fewer than a hundred: all of them"
    assert all(len(record.texts) == 1 for record in records)


def test_a_set_that_is_not_there_is_named(over: OverEncoders, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no msrvtt_keyframes/captions\.jsonl in it"):
        OverEncoders(over.vision, over.text, tmp_path, tmp_path / "out").prepare()


def test_the_parts_have_the_names_that_are_said_before_a_clip_is_looked_at(over: OverEncoders) -> None:
    assert [part.name for part in encoder_parts(over)] == list(PARTS)


def test_the_ridge_matrix_finds_what_is_linear_and_nothing_where_nothing_is() -> None:
    torch.manual_seed(0)
    clips, way = torch.randn(300, 20).double(), torch.randn(20, 12).double()
    said = torch.nn.functional.normalize(clips @ way, dim=-1)
    owner = torch.arange(100)
    parts = [Vectors(clips[n : n + 100], said[n : n + 100], owner) for n in (0, 100, 200)]
    found = ridge_recall(*parts)
    assert found.text_to_video.r1 > 95 < found.video_to_text.r1
    mixed = [Vectors(part.clips, part.captions[torch.randperm(100)], owner) for part in parts]
    assert ridge_recall(*mixed).text_to_video.r1 < 10


def test_the_ridge_matrix_reads_both_encoders(over: OverEncoders) -> None:
    vectors = RidgeVectors(over.model(), FRAMES)
    found = vectors.of_all(over.training())
    assert found.clips.shape == (3 + 3 + 7, 32)
    assert found.captions.shape == (2 * 13, 28)
    assert found.owner.tolist() == [clip for clip in range(13) for _ in range(2)]
    assert torch.allclose(found.captions.norm(dim=-1), torch.ones(26).double(), atol=1e-5)
    [section] = ridge_sections(over, ["encoders-retrieval"]).values()
    assert [row[:2] for row in section[0].rows] == [("Flickr8k", "13, 26"), ("MSR-VTT key frames", "13, 26")]


def test_runs_stand_beside_what_they_start_from(over: OverEncoders, tmp_path: Path) -> None:
    parts = {part.name: part for part in encoder_parts(over)}
    retrieval, asked = (parts[f"encoders-{name}"].tables[0].rows for name in ("retrieval", "questions"))
    rows = [retrieval[0], retrieval[2], asked[2]]
    assert [row.label for row in rows] == ["base, nothing trained", "base and joint transformer", "without the picture"]
    results, failed = make_runs([replace(row.runs[0], tests=row.tests) for row in rows], tmp_path)
    assert not failed
    for row, path in zip(rows, (("cascade-single", "r1"), ("mixed", "r1"), ("accuracy",)), strict=True):
        measured = results[row.runs[0].key].figure(row.tests[0], *path)
        assert measured is not None
        assert 0 <= measured <= 100
