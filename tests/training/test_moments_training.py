"""Training for moments, from a recipe to what a search adds for the length of a window."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from perceiver_vl import PerceiverVLForRetrieval, UsageError
from perceiver_vl.search import MomentOptions, Searcher, build_index
from perceiver_vl.search.table import SEGMENTS, open_table
from perceiver_vl.training import train
from perceiver_vl.training.dry_run import dry_run
from small_media import write_clip
from small_runs import recipe_of, run, training_log_of

OF_MOMENTS: dict[str, Any] = {
    "data": {
        "train": {"world": {"task": "moments", "clips": 2, "seconds": 60, "size": 16}},
        "stretch": {"segments": 4, "seconds": 2, "merge": 0.2},
    },
    "objectives": {"vtm": 0, "mlm": 0, "moments": 1},
}


def test_a_model_learns_moments_and_its_index_knows_what_length_is_worth(tmp_path: Path) -> None:
    changes = {**OF_MOMENTS, "model": {"length_weight": True}, "training": {"max_steps": 3, "save_steps": 3}}
    result = run(tmp_path / "run", **changes)
    assert result.steps == 3
    for line in training_log_of(tmp_path / "run"):
        assert line["loss_moments"] == pytest.approx(line["loss"], abs=1e-3)
        assert line["share_of_peak"] > 0
        assert line["clips_per_second"] > 0
    assert dry_run(recipe_of(tmp_path / "again", **changes)).flops_per_example > 0
    model = PerceiverVLForRetrieval.from_pretrained(tmp_path / "run")
    assert model.length_weight is not None
    learned = model.length_weight.item()
    assert learned != 0
    write_clip(tmp_path / "media" / "a.mp4", seed=0, frames=60)
    build_index(tmp_path / "run", tmp_path / "media", tmp_path / "index", segments=1)
    assert open_table(tmp_path / "index", name=SEGMENTS).settings.length_weight == pytest.approx(learned)
    by_itself = Searcher(tmp_path / "index").moments("a red square", MomentOptions(top_k=1)).moments[0]
    for rerank, unit in (("combined", 1.0), ("none", 1 / model.logit_scale.item())):
        (one,) = Searcher(tmp_path / "index").moments("a red square", MomentOptions(top_k=1, rerank=rerank)).moments
        plain = one.multi_score if one.mixed_score is None else model.logit_scale.item() * one.multi_score
        wanted = plain + (one.mixed_score or 0.0) + unit * learned * math.log(one.end - one.start)
        assert one.score == pytest.approx(wanted, abs=1e-4)
    assert by_itself.score == pytest.approx(
        Searcher(tmp_path / "index")
        .moments("a red square", MomentOptions(top_k=1, length_weight=learned))
        .moments[0]
        .score,
        abs=1e-4,
    )


def test_a_model_that_exists_gets_the_weight_and_keeps_the_rest(tmp_path: Path) -> None:
    run(tmp_path / "first", objectives={"vtc": 1, "vtm": 0, "mlm": 0}, training={"max_steps": 1})
    how = {**OF_MOMENTS, "training": {"max_steps": 1, "learning_rate": 0.0, "save_steps": 1}}
    recipe = recipe_of(
        tmp_path / "second",
        {"initialise": {"model": str(tmp_path / "first")}, "model": {"length_weight": True}},
        **how,
    )
    assert train(recipe, progress=False).fresh == ["length_weight"]
    first, second = (
        PerceiverVLForRetrieval.from_pretrained(tmp_path / name).state_dict() for name in ("first", "second")
    )
    assert second.keys() - first.keys() == {"contrastive.length_weight"}
    assert all((second[name] == value).all() for name, value in first.items())


def test_files_of_sentences_with_their_seconds_are_learned(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path / "videos" / f"v{number}.mp4", seed=number, frames=80)
    lines = [f"v{number} {start} {start + 2.5}##a red square {start}" for number in range(3) for start in (0, 3)]
    (tmp_path / "train.txt").write_text("\n".join([*lines, "v0 5 3##a blue circle"]))
    source = {"folder": str(tmp_path / "videos"), "moments": str(tmp_path / "train.txt")}
    data = {**OF_MOMENTS["data"], "train": source, "max_failed_fraction": 0.5}
    result = run(tmp_path / "run", **{**OF_MOMENTS, "data": data}, training={"max_steps": 1})
    assert [str(one) for one in result.skipped] == ["v0: query 7: a window from 5 to 3 s, left out"]
    rows = [{"file_name": f"v{number}.mp4", "text": "a red square"} for number in range(3)]
    (tmp_path / "videos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data["train"] = {"folder": str(tmp_path / "videos")}
    with pytest.raises(UsageError, match=r"^[^\n]*of 3; v0.mp4: no start and end of a moment, in seconds[^\n]*$"):
        run(tmp_path / "without", **{**OF_MOMENTS, "data": data})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": {}}, "data.stretch, objectives.moments: how videos are cut, and what is learned of it; need b"),
        ({"data": {"cache": True}}, "data.cache=true: a stretch is cut elsewhere each time"),
        ({"data": {"train": {"world": {"seconds": 60}}}}, "world.seconds=60: only task=long and moments"),
        ({"data": {"train": {"folder": "x", "moments": "y", "split": "train"}}}, "moments=y: needs the folder"),
    ],
)
def test_what_does_not_go_with_moments_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    merged = {
        name: {**OF_MOMENTS[name], **changes[name]} if changes.get(name) else changes.get(name, OF_MOMENTS[name])
        for name in OF_MOMENTS
    }
    with pytest.raises(UsageError, match=rf"^[^\n]*{said}[^\n]*$"):
        recipe_of(tmp_path / "run", **merged)
