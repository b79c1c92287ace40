"""The evidence on real data: a folder laid out as it says, and the sets beside the project where they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceiver_vl.bench.learning.parts import Part
from perceiver_vl.bench.learning.real import (
    CLIPS,
    DESCRIBED,
    DRAWINGS,
    PHOTOGRAPHS,
    QUESTIONS,
    ROOMS,
    blind_baselines_section,
    question_run,
    real_parts,
    retrieval_run,
)
from perceiver_vl.bench.learning.recipes import QUICK
from perceiver_vl.bench.learning.runs import JOINT, OURS, Test
from perceiver_vl.data.folder import read_folder
from perceiver_vl.training.recipe import DataSource
from perceiver_vl.utils.errors import UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED}: not there")


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One small picture in each set, in every split."""
    for name in (CLIPS, PHOTOGRAPHS, DESCRIBED, ROOMS, DRAWINGS):
        folder = tmp_path / name
        folder.mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
        rows = [{"file": "a.png", "split": split} for split in ("train", "val", "test")]
        more = {"start": "0:01:00", "end": "0:00:09"} if name == DESCRIBED else {}
        write_lines(folder / "captions.jsonl", [row | more | {"captions": ["a", "b"]} for row in rows])
        write_lines(folder / "qa.jsonl", [row | {"question": "what is it", "answer": "a"} for row in rows])
    return tmp_path


def splits_of(part: Part) -> list[tuple[str, DataSource]]:
    """What is trained on, chosen by and tested on, of the runs of a part."""
    found: list[tuple[str, DataSource]] = []
    for run in part.runs:
        chain = run if run.start is None else run.start
        for one in (run, chain):
            validation = one.recipe.data.validation
            assert validation is not None
            found += [("train", split) for split in one.recipe.data.train] + [("validation", validation)]
        found += [("test", test.split) for test in run.tests]
    return found


def names(split: DataSource) -> set[str]:
    """The files of a split."""
    assert split.folder is not None
    how = {"metadata": split.metadata, "columns": split.columns, "need": None}
    return {record.file_name for record in read_folder(split.folder, split=split.split, **how).records}


class TestRealParts:
    def test_ours_stands_beside_the_same_run_of_the_joint_transformer(self, data: Path) -> None:
        for part in real_parts(data):
            for table in part.tables:
                for ours, joint in zip(table.rows[::2], table.rows[1::2], strict=True):
                    (first,), (second,) = ours.runs, joint.runs
                    assert (first.architecture, second.architecture) == (OURS, JOINT)
                    assert (first.recipe, ours.tests) == (second.recipe, joint.tests)

    def test_the_model_is_chosen_on_validation_and_tested_on_what_it_never_saw(self, data: Path) -> None:
        for part in real_parts(data):
            for use, split in splits_of(part):
                assert split.split == {"train": "train", "validation": "val", "test": "test"}[use] or (
                    use == "test" and split.folder is not None and split.folder.name == DESCRIBED
                )
            assert all(run.recipe.training["load_best_model_at_end"] for run in part.runs)

    def test_questions_start_from_retrieval_of_the_same_architecture(self, data: Path) -> None:
        run = question_run(data, CLIPS, JOINT)
        assert run.start == retrieval_run(data, CLIPS, JOINT)

    def test_quick_is_short(self, data: Path) -> None:
        runs = [run for part in real_parts(data, QUICK) for run in part.runs]
        assert max(run.recipe.training["max_steps"] for run in runs) <= 5

    def test_chance_is_said_of_what_is_there(self, data: Path) -> None:
        retrieval, _ = real_parts(data)
        assert len(retrieval.tables) == 6  # each set in two streams
        clips, photographs, described = (table.notes[0] for table in retrieval.tables[::2])
        assert clips == photographs == "Chance: R@1 100.0, R@5 100.0, R@10 100.0; of texts for a clip R@1 100.0."
        assert described.startswith("Chance: R@1 33.3, R@5 100.0")

    def test_a_set_that_is_not_there_is_named(self, data: Path) -> None:
        (data / ROOMS / "qa.jsonl").unlink()
        for ask in (real_parts, blind_baselines_section):
            with pytest.raises(UsageError, match=r"no daquar/qa\.jsonl in it"):
                ask(data)

    def test_blind_baselines_of_every_set_of_questions(self, data: Path) -> None:
        section = blind_baselines_section(data)
        assert [row[0] for row in section.rows] == [f"{asked.title}, 1" for asked in QUESTIONS.values()]
        assert all(row[1:] == ("100.0",) * 4 for row in section.rows)


@needs_shared
class TestOnTheSetsBesideTheProject:
    def test_all_splits_can_be_read_and_share_no_file(self) -> None:
        distinct = {(use, str(split)): split for part in real_parts(SHARED) for use, split in splits_of(part)}
        of: dict[tuple[str, str], set[str]] = {}
        for (use, _), split in distinct.items():
            assert split.folder is not None
            of.setdefault((split.folder.name, use), set()).update(names(split))
        assert {name for name, _ in of} == {CLIPS, PHOTOGRAPHS, DESCRIBED, ROOMS, DRAWINGS}
        for name, use in of:
            for other in {"train", "validation", "test"} - {use}:
                assert of[name, use].isdisjoint(of.get((name, other), set()))

    def test_sizes_are_those_that_chance_is_reckoned_from(self) -> None:
        retrieval, questions = real_parts(SHARED)
        found = {row.tests[0].name: table.title for table in retrieval.tables for row in table.rows}
        assert found[CLIPS].endswith("against 115")
        assert found[PHOTOGRAPHS].endswith("1230 texts against 246")
        assert found[DESCRIBED].endswith("101 texts against 101")
        tests: list[Test] = [row.tests[0] for row in questions.tables[0].rows]
        assert len(names(tests[0].split)) == 115
