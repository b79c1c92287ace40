"""A student learns a teacher's vectors: of clips without captions, and answers words as its teacher does."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from perceiver_vl import PerceiverVLForRetrieval, PerceiverVLProcessor, UsageError
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.flops import encoder_flops, pooling_flops, pretrained_flops
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from perceiver_vl.search import Searcher, build_index
from perceiver_vl.training import TrainingResult, train
from perceiver_vl.training.distillation import distillation_loss
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.utils.distributed import GlobalBatch
from small_encoders import SMALL, save_dual, save_text, save_vision
from tiny import lose_the_end, tiny_model

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (250, 250, 250)}
TEXTS = ["a dog runs", "two cats sleep on the grass", "a man plays"]
TEACHERS = ("dual", "encoders", "patches")
STUDENT = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_attention_heads": 4, "num_latents": 4}
STUDENT |= {"num_blocks": 1, "self_attentions_per_block": 1, "layer_drop": 0.0, "max_frames": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of teachers, a model over a small vision encoder (`small`), and pictures without a word (`media`)."""
    folder = tmp_path_factory.mktemp("teachers")
    save_dual(folder / "clip", "clip")
    save_vision(folder / "vision", "vit")
    save_text(folder / "text")
    initialise(folder / "dual", dual=folder / "clip", **SMALL, num_frames=1)
    initialise(folder / "small", vision=folder / "vision", text=folder / "text", **SMALL, num_frames=1)
    torch.manual_seed(3)
    _save_trained(folder / "encoders", PerceiverVLForRetrieval.from_pretrained(folder / "small"), folder / "small")
    patches = tiny_model(PerceiverVLForRetrieval, vocab_size=80, image_size=32, max_text_length=16).float()
    _save_trained(folder / "patches", patches, folder / "small")
    draw = np.random.default_rng(0)
    (folder / "media").mkdir()
    for number in range(40):
        above, below = draw.choice(list(COLOURS), 2)
        pixels = np.zeros((32, 32, 3)) + COLOURS[above]
        pixels[16:] = COLOURS[below]
        pixels = (pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "media" / f"{number:02}.png")
    return folder


def _save_trained(folder: Path, model: PerceiverVLForRetrieval, processor: Path) -> None:
    """As training leaves it: its latents say something of clips and of texts."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("contrastive", "perceiver_vl.base")) and weight.ndim > 1:
                weight.normal_(std=0.3)
        if model.config.base_anchors:
            model.perceiver_vl.base.anchors.normal_()
    model.config.knows_search = True
    model.save_pretrained(folder)
    PerceiverVLProcessor.from_pretrained(processor).save_pretrained(folder)


def run(
    place: Path, output: Path, teacher: str = "dual", resume: bool = False, media: Path | None = None, **changes: Any
) -> TrainingResult:
    data = {"folder": str(media or place / "media")}
    recipe: dict[str, Any] = {
        "output": str(output),
        "teacher": {"model": str(place / teacher)},
        "data": {"train": data, "validation": data, "num_frames": 1, "sampling": "uniform", "cache": True},
        "model": STUDENT,
        "training": {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "report_to": "none"},
    }
    for name, value in changes.items():
        recipe[name] = {**recipe.get(name, {}), **value} if isinstance(value, dict) else value
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return train(read_recipe(file), resume=resume, progress=False)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_student_answers_words_as_its_teacher_does(place: Path, tmp_path: Path, teacher: str) -> None:
    run(place, tmp_path / "run", teacher)
    vectors = []
    for folder in (place / teacher, tmp_path / "run"):
        model, processor = load_retriever(folder, "cpu")
        assert model.config.search_warning() is None
        with torch.inference_mode():
            vectors.append(model.get_text_features(**processor(text=TEXTS)))
    assert vectors[0].std(0).max() > 0.01
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_student_comes_near_its_teacher(place: Path, tmp_path: Path, teacher: str) -> None:
    first = run(place, tmp_path / "first", teacher, training={"max_steps": 1, "learning_rate": 0.0})
    last = run(place, tmp_path / "last", teacher, training={"max_steps": 80})
    assert first.task is not None
    assert last.task is not None
    assert last.task.metrics["cosine"] > first.task.metrics["cosine"] + 0.2
    assert last.task.metrics["cosine"] > 0.9
    assert set(last.task.metrics) == {"cosine", "neighbour_r1"}  # nobody has said a word
    metrics = json.loads((tmp_path / "last" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["task"]["metrics"] == last.task.metrics


def test_captions_of_the_validation_are_searched_with(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "media", tmp_path / "media")
    lines = [json.dumps({"file_name": f"{number:02}.png", "text": f"a man {number}"}) for number in range(6)]
    (tmp_path / "media" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    result = run(place, tmp_path / "run", data={"validation": {"folder": str(tmp_path / "media")}})
    assert result.task is not None
    recalls = {name for name in result.task.metrics if "text" in name}
    assert recalls == {f"{whose}_r{k}" for whose in ("text", "teacher_text") for k in (1, 5, 10)}
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "| learned from | the vectors of `dual`" in card
    assert "| teacher_text_r1 |" in card


def test_a_student_is_searched_with(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run")
    report = build_index(tmp_path / "run", place / "media", tmp_path / "index")
    assert (report.total, report.skipped) == (40, [])
    assert len(Searcher(tmp_path / "index").search("a dog runs", top_k=5).hits) == 5


def test_a_student_over_a_smaller_encoder_keeps_that(place: Path, tmp_path: Path) -> None:
    small = {"initialise": {"model": str(place / "small")}, "model": {"num_latents": 4, "hidden_size": 24}}
    sizes = {"image_size": 32, "patch_size": 1, "num_attention_heads": 4}
    result = run(place, tmp_path / "run", **(small | {"model": {**STUDENT, **small["model"], **sizes}}))
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "small", tmp_path / "run"))
    of_vision = {name for name in before if ".vision_encoder." in name}
    assert of_vision
    assert all(torch.equal(before[name], after[name]) for name in of_vision)
    assert not any("base.maps.vision" in name or "anchors" in name for name in after)
    assert result.task is not None
    assert result.task.metrics["cosine"] > -1


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    run(place, tmp_path / "whole", training=saving)
    run(place, tmp_path / "parts", training=saving)
    lose_the_end(tmp_path / "parts", "checkpoint-4")

    def never(*_: object) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr("perceiver_vl.training.setup.load_teacher", never)
    run(place, tmp_path / "parts", training=saving, resume=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_clip_that_cannot_be_read_is_left_out(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "media", tmp_path / "media")
    (tmp_path / "media" / "07.png").write_bytes(b"no picture")
    result = run(place, tmp_path / "run", media=tmp_path / "media", training={"max_steps": 5})
    assert {sample.file_name for sample in result.skipped} == {"07.png"}
    assert result.task is not None
    assert (result.task.examples, result.task.left_out) == (39, 1)


def test_a_dry_run_does_not_ask_the_teacher(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place, tmp_path / "run", training={"max_steps": 1})

    def never(*_: object) -> None:
        raise AssertionError("the teacher looked at the clips")

    monkeypatch.setattr("perceiver_vl.training.setup.look_at", never)
    seen = dry_run(read_recipe(tmp_path / "run.yaml", [f"output={tmp_path / 'dry'}"])).to_dict()
    assert seen["model"] == "PerceiverVLForRetrieval"
    assert seen["flops_per_example"] > 0
    assert not (tmp_path / "dry").exists()


def test_the_loss_is_least_where_both_agree() -> None:
    draw = torch.Generator().manual_seed(0)
    teacher, other = (torch.nn.functional.normalize(torch.randn(2, 6, 8, generator=draw), dim=-1)).unbind()
    scale, batch = torch.tensor(10.0), GlobalBatch((6,))
    same, apart = (distillation_loss(student, teacher, scale, batch) for student in (teacher, other))
    assert set(same) == {"cosine", "likeness"}
    for name in same:
        assert same[name].abs() < 1e-5
        assert apart[name] > 0.1


def test_the_text_side_is_counted_as_the_teacher_s(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", training={"max_steps": 1})
    teacher, student = (
        PerceiverVLForRetrieval.from_pretrained(one).config for one in (place / "dual", tmp_path / "run")
    )
    theirs = encoder_flops(teacher, 0, 9) + pretrained_flops(teacher, 0, 9) + pooling_flops(teacher)
    assert pretrained_flops(student, 0, 9) == theirs
    assert pretrained_flops(student, 3) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "small"}, r"teacher.model=\S+small: its two encoders have never met: .+"),
        ({"teacher": "vision"}, r".*model_type='vit', need a model of type 'perceiver_vl'"),
        ({"model": {"projection_dim": 7}}, r"model.projection_dim=7: the teacher's text side .+ has 20; leave it out"),
        ({"objectives": {"vtc": 1}}, r"objectives: teacher.model=\S+ says what is learned .+; leave it out"),
        ({"task": "multiple-choice"}, r"task=multiple-choice: teacher.model=\S+ is learned from instead, .+"),
        ({"encoders": {"text_blocks": 1}}, r"encoders.text_blocks: teacher.model=\S+ says .+; leave it out"),
        ({"data": {"num_frames": 5}}, r"data.num_frames=5: more than model.max_frames=4, .+"),
    ],
)
def test_what_cannot_be_taught_is_refused_in_one_line(
    place: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=rf"^{message}$"):
        run(place, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_clip_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"^[^\n]*empty: no video, image or sound files in it, [^\n]+$"):
        run(place, tmp_path / "run", media=tmp_path / "empty")


def test_more_frames_than_a_teacher_takes_are_refused(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", training={"max_steps": 1})
    recipe = read_recipe(tmp_path / "run.yaml", [f"output={tmp_path / 'more'}", "teacher.num_frames=100"])
    with pytest.raises(UsageError, match=r"^teacher.num_frames=100: need 1 to 64, the teacher's max_frames$"):
        train(recipe, progress=False)
