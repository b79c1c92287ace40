"""`perceiver-vl bench components` as typed."""

from pathlib import Path

import pytest
from command_line import run_cli, run_program

from perceiver_vl.bench.components.switches import SWITCHES


def test_the_list_says_which_there_are_and_whose() -> None:
    said = run_cli("bench", "components", "--list").out
    for switch in SWITCHES:
        assert switch.name[:8] in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--tasks", "none"), "tasks=none: unknown, choose from retrieval, questions"),
        (("--only", "patch-nrm"), "only=patch-nrm: unknown, did you mean patch-norm?"),
        (("--only", "text-first+separate"), "both set model.modality_aggregation"),
        (("--data", "somewhere"), "give vision, text and data together"),
        (("--recipes", "--only", "muon"), "only=muon: unknown, choose from"),
        (
            ("--recipes", "--data", "a", "--vision", "b", "--text", "c"),
            "recipes: are of the generated world, leave data",
        ),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_made(words: tuple[str, ...], why: str, tmp_path: Path) -> None:
    assert why in run_cli("bench", "components", "--out", tmp_path / "out", *words).error(2)
    assert not (tmp_path / "out").exists()


def test_quick_makes_the_table_the_page_and_the_commands_of_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_program("bench", "components", "--quick", "--out", out)
    assert said.code == 0, said.err
    assert "what it is worth" in said.out
    page = (out / "components.html").read_text(encoding="utf-8")
    report = run_cli("bench", "components", "--quick", "--out", out, "--only", "patch-norm", "--json").json()
    baseline, row = report["trials"]["retrieval"]
    assert (baseline["switch"], row["switch"]) == ("baseline", "patch-norm")
    assert row["command"] == f"perceiver-vl bench components --out {out} --seeds 3 --quick --only patch-norm"
    assert row["command"] in page
    assert len(row["scores"]) == 1


def test_beside_the_recipes_as_they_are_what_they_have_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("bench", "components", "--quick", "--recipes", "--seeds", "0", "--out", out)
    report = run_cli(*words, "--only", "without-patch-norm", "--json").json()
    baseline, row = report["trials"]["retrieval"]
    assert (baseline["switch"], row["switch"]) == ("baseline", "without-patch-norm")
    assert row["overrides"] == ["model.patch_norm=false"]
    assert row["command"].endswith(" --recipes --quick --only without-patch-norm")
