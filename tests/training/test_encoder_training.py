"""Training over pretrained encoders: the base, what stays frozen, features instead of media, a run that goes on."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from perceiver_vl import PerceiverVLForRetrieval, PerceiverVLProcessor, UsageError, pipeline
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.transcode.features import feature_settings
from perceiver_vl.data.transcode.prepare import prepare
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.from_encoders import initialise
from perceiver_vl.search import Searcher, build_index
from perceiver_vl.training import TrainingResult, train
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.recipe import read_recipe
from small_encoders import SMALL, save_onnx, save_text, save_vision
from tiny import lose_the_end, tiny_model

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model over two encoders that never met (`model`), and pictures whose captions say their colours (`media`)."""
    folder = tmp_path_factory.mktemp("encoders")
    save_vision(folder / "vision", "vit")
    save_text(folder / "text")
    sources = {"vision": folder / "vision", "text": folder / "text"}
    initialise(folder / "model", **sources, **SMALL, num_frames=1)
    draw = np.random.default_rng(0)
    rows = []
    for number in range(40):
        above, below = draw.choice(list(COLOURS), 2)
        pixels = np.zeros((32, 32, 3)) + COLOURS[above]
        pixels[16:] = COLOURS[below]
        pixels = (pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        name = f"{number:02}.png"
        (folder / "media").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "media" / name)
        split = "validation" if number % 5 == 0 else "train"
        rows.append({"file_name": name, "text": [f"{above} {below}", f"{above} a {below}"], "split": split})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "media" / "metadata.jsonl").write_text(lines, encoding="utf-8")
    return folder


def run(
    place: Path,
    output: Path,
    media: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    change: Callable[[PerceiverVLPreTrainedModel], None] | None = None,
    **changes: Any,
) -> TrainingResult:
    media = media or place / "media"
    recipe: dict[str, Any] = {
        "output": str(output),
        "data": {
            "train": {"folder": str(media), "split": "train"},
            "validation": {"folder": str(media), "split": "validation"},
            "num_frames": 1,
            "sampling": "uniform",
            "cache": True,
        },
        "initialise": {"model": str(place / "model")},
        "objectives": {"vtm": 0, "mlm": 0, "vtc": 1},
        "evaluation": {"streams": ["multi"]},
        "training": {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "report_to": "none"},
    }
    for name, value in changes.items():
        recipe[name] = {**recipe.get(name, {}), **value} if isinstance(value, dict) else value
    if "stages" in recipe:  # which say themselves how long
        del recipe["training"]["max_steps"]
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return train(read_recipe(file), resume=resume, progress=progress, change=change)


def test_a_run_reports_the_base_beside_what_was_trained(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run")
    assert result.base is not None
    assert result.retrieval is not None
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["base"]["streams"][0]["stream"] == metrics["retrieval"]["streams"][0]["stream"] == "multi"
    config = PerceiverVLForRetrieval.from_pretrained(tmp_path / "run").config
    assert config.search_warning() is None


def test_the_base_that_is_fitted_tells_colours_apart(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run", training={"max_steps": 1, "learning_rate": 0.0})
    assert result.base is not None
    assert result.retrieval is not None
    base = result.base["streams"][0]["text_to_video"]
    assert base == vars(result.retrieval.streams[0].text_to_video)  # nothing was learned, and nothing was added
    assert base["r1"] > 3 * 100 / 8  # of 8 clips, some of which look alike
    fitted: Any = PerceiverVLForRetrieval.from_pretrained(tmp_path / "run").perceiver_vl.base
    assert fitted.hubness_weight > 0
    assert torch.allclose(fitted.queries.norm(dim=1), torch.ones(len(fitted.queries))), "all are texts"


def test_the_model_compares_as_the_fit_did(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(place, tmp_path / "run", progress=True, training={"max_steps": 1, "learning_rate": 0.0})
    told = re.search(
        r"base: canonical correlations of 32 clips with 64 captions, .*; R@1 ([\d.]+)", capsys.readouterr().err
    )
    assert told is not None
    assert result.base is not None
    assert float(told[1]) == pytest.approx(result.base["streams"][0]["text_to_video"]["r1"], abs=0.05)


def test_a_training_that_ends_below_the_base_is_undone(place: Path, tmp_path: Path) -> None:
    ruinous = {"max_steps": 4, "learning_rate": 3.0, "save_strategy": "steps", "save_steps": 2}
    result = run(place, tmp_path / "run", training=ruinous)
    assert result.base is not None
    assert result.retrieval is not None
    assert result.base["streams"][0]["text_to_video"] == vars(result.retrieval.streams[0].text_to_video)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    again = run(place, tmp_path / "run", training=ruinous, resume=True)
    assert again.base == result.base
    assert again.retrieval is not None
    assert again.retrieval.streams[0].text_to_video == result.retrieval.streams[0].text_to_video


def test_what_is_frozen_stays_to_the_bit(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", data={"validation": None})
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "model", tmp_path / "run"))
    of_encoders = {name for name in before if ".vision_encoder." in name or ".text_encoder." in name}
    assert of_encoders
    assert all(torch.equal(before[name], after[name]) for name in of_encoders)
    assert not torch.equal(
        before["contrastive.vision_projection.weight"], after["contrastive.vision_projection.weight"]
    )


def test_the_last_blocks_learn_where_a_recipe_says_so(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", encoders={"vision_blocks": 1, "text_blocks": 1}, data={"validation": None})
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "model", tmp_path / "run"))
    changed = {name for name in before if "_encoder." in name and not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"vision_encoder", "text_encoder"}
    assert all(".1." in name for name in changed)  # of the blocks 0 and 1
    with pytest.raises(UsageError, match=r"^encoders.text_blocks=9: the text encoder has 2 blocks [^\n]+$"):
        run(place, tmp_path / "more", encoders={"text_blocks": 9})


def test_adapters_learn_and_the_model_that_is_left_is_plain(place: Path, tmp_path: Path) -> None:
    models: list[PerceiverVLPreTrainedModel] = []
    run(
        place,
        tmp_path / "run",
        encoders={"vision_lora": 2, "text_lora": 2},
        data={"validation": None},
        training={"save_strategy": "steps", "save_steps": 4},
        change=models.append,
    )
    before, after, kept = (
        load_file(folder / "model.safetensors")
        for folder in (place / "model", tmp_path / "run", tmp_path / "run" / "checkpoints" / "checkpoint-4")
    )
    assert {name for name in after if not name.startswith("mlm_")} == before.keys()
    changed = {name for name in before if "_encoder." in name and not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"vision_encoder", "text_encoder"}
    assert {name.split(".")[-2] for name in changed if ".text_encoder." in name} == {"query", "value"}
    assert all(torch.equal(after[name], kept[name]) for name in after)  # a checkpoint is a plain model too
    [trained] = models
    original = PerceiverVLForRetrieval.from_pretrained(place / "model").state_dict()
    learning = {name for name, one in trained.named_parameters() if "_encoder." in name and one.requires_grad}
    assert learning == {name for name in trained.state_dict() if ".lora_" in name}
    for name, weight in trained.state_dict().items():
        if "_encoder." in name and name not in learning:  # all else is as it was
            assert torch.equal(weight, original[name.replace(".base_layer", "")]), name
    saved = PerceiverVLForRetrieval.from_pretrained(tmp_path / "run").eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "pixel_values": torch.randn(1, 1, 3, 32, 32)}
    with torch.no_grad():
        in_memory, loaded = (
            [model.get_text_features(inputs["input_ids"]), model.get_vision_features(inputs["pixel_values"])]
            for model in (trained.eval(), saved)
        )
    for one, other in zip(in_memory, loaded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"ema": 0.9}])
def test_a_run_with_adapters_goes_on_as_one_that_was_never_stopped(
    place: Path, tmp_path: Path, more: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {"encoders": {"vision_lora": 2, "text_lora": 2}, "data": {"validation": None}, **more}
    how["training"] = {"save_strategy": "steps", "save_steps": 2}
    run(place, tmp_path / "whole", progress=True, **how)
    assert "448 weights of the text encoder learn\n" in capsys.readouterr().err
    run(place, tmp_path / "parts", **how)
    lose_the_end(tmp_path / "parts", "checkpoint-4")
    run(place, tmp_path / "parts", resume=True, **how)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "lora" not in " ".join(first)


@pytest.mark.parametrize("tuned", [{"vision_blocks": 1, "text_blocks": 1}, {"vision_lora": 2, "text_lora": 2}])
def test_the_best_model_has_the_encoders_that_it_had(
    place: Path, tmp_path: Path, tuned: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perceiver_vl.training.run.Base.is_better", lambda *_: False)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "multi_r1", "save_total_limit": 9}
    run(place, tmp_path / "run", encoders=tuned, training={"learning_rate": 0.3, **steps, **best})
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    step = state["best_global_step"]
    assert step < 4
    last, chosen, left = (
        load_file(folder / "model.safetensors")
        for folder in (*(tmp_path / "run" / "checkpoints" / f"checkpoint-{one}" for one in (4, step)), tmp_path / "run")
    )
    assert all(torch.equal(left[name], chosen[name]) for name in left)
    for side in ("vision", "text"):
        assert any(not torch.equal(last[name], chosen[name]) for name in left if f"{side}_encoder." in name)


def test_adapters_that_make_a_model_worse_are_undone(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", encoders={"text_lora": 2}, training={"learning_rate": 3.0})
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "model", tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before if "_encoder." in name)


def test_an_encoder_that_was_adapted_is_another(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", encoders={"vision_lora": 2}, data={"validation": None})
    first, second = (feature_settings(folder).encoder for folder in (place / "model", tmp_path / "run"))
    assert first != second
    features = tmp_path / "features"
    prepare(read_folder(place / "media"), features, feature_settings(place / "model"))
    with pytest.raises(UsageError, match=r"features of frozen frames, which no augmentation and no tuning"):
        run(place, tmp_path / "more", media=features, encoders={"vision_lora": 2})
    run(place, tmp_path / "text", media=features, encoders={"text_lora": 2})


def test_adapters_are_refused_where_they_cannot_be(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_onnx(tmp_path / "onnx")
    initialise(tmp_path / "other", vision=tmp_path / "onnx", text=place / "text", **SMALL)
    seen = {"encoders": {"vision_lora": 4}}
    with pytest.raises(UsageError, match=r"^encoders.vision_lora=4: the vision encoder has no blocks [^\n]+$"):
        run(place, tmp_path / "a", initialise={"model": str(tmp_path / "other")}, **seen)
    tiny_model(PerceiverVLForRetrieval, vocab_size=80).float().save_pretrained(tmp_path / "plain")
    PerceiverVLProcessor.from_pretrained(place / "model").save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"^encoders.vision_lora=4: the vision encoder is not there, leave it out$"):
        run(place, tmp_path / "b", initialise={"model": str(tmp_path / "plain")}, **seen)
    with pytest.raises(UsageError, match=r"encoders.text_lora=2: adapters leave [^\n]+ text_blocks=1 [^\n]+$"):
        run(place, tmp_path / "c", encoders={"text_lora": 2, "text_blocks": 1})
    with pytest.raises(UsageError, match=r"encoders.text_lora=-1: need 0 or more"):
        run(place, tmp_path / "d", encoders={"text_lora": -1})
    monkeypatch.setattr("perceiver_vl.training.run.is_sharded", lambda _: True)
    with pytest.raises(UsageError, match=r"^encoders.vision_lora=4: adapters are not sharded, [^\n]+$"):
        run(place, tmp_path / "e", **seen)


def test_structure_wants_encoders_that_stay_as_they_are(place: Path, tmp_path: Path) -> None:
    objectives = {"objectives": {"vtm": 0, "mlm": 0, "vtc": 1, "structure": 10}}
    run(place, tmp_path / "run", training={"logging_steps": 1}, **objectives)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(line.get("loss_structure", 0) > 0 for line in lines)
    with pytest.raises(UsageError, match=r"^objectives.structure=10: [^\n]+ the text encoder learns[^\n]+$"):
        run(place, tmp_path / "a", encoders={"text_lora": 2}, **objectives)
    tiny_model(PerceiverVLForRetrieval, vocab_size=80).float().save_pretrained(tmp_path / "plain")
    PerceiverVLProcessor.from_pretrained(place / "model").save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"^objectives.structure=10: [^\n]+ this model has no vision encoder[^\n]+$"):
        run(place, tmp_path / "b", initialise={"model": str(tmp_path / "plain")}, **objectives)


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(place: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    run(place, tmp_path / "whole", training=saving)
    run(place, tmp_path / "parts", training=saving)
    lose_the_end(tmp_path / "parts", "checkpoint-4")
    run(place, tmp_path / "parts", training=saving, resume=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_features_train_as_their_media_do(place: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    report = prepare(read_folder(place / "media"), features, feature_settings(place / "model"))
    assert (report.files, report.skipped) == (40, [])
    of_media = run(place, tmp_path / "a")
    of_features = run(place, tmp_path / "b", media=features)
    first, second = (result.base["streams"][0]["text_to_video"] for result in (of_media, of_features))
    assert first == second
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_are_indexed_and_found(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run")
    features = tmp_path / "features"
    prepare(read_folder(place / "media"), features, feature_settings(tmp_path / "run"))
    report = build_index(tmp_path / "run", features, tmp_path / "index")
    assert (report.total, report.skipped) == (40, [])
    media = build_index(tmp_path / "run", place / "media", tmp_path / "other")
    assert media.total == 40
    found, wanted = (
        [hit.file_name.removesuffix(".npy") for hit in Searcher(tmp_path / name).search("red a blue", top_k=5).hits]
        for name in ("index", "other")
    )
    assert found == wanted


def test_features_of_another_encoder_or_of_fewer_frames_are_refused(place: Path, tmp_path: Path) -> None:
    save_onnx(tmp_path / "onnx")
    initialise(tmp_path / "other", vision=tmp_path / "onnx", text=place / "text", **SMALL)
    features = tmp_path / "features"
    prepare(read_folder(place / "media"), features, feature_settings(tmp_path / "other", num_frames=1))
    with pytest.raises(UsageError, match=r"features: features of another encoder or token grid than this model has"):
        run(place, tmp_path / "run", media=features)
    with pytest.raises(UsageError, match=r"features of 1 frames a clip, 8 are asked for; ask for fewer"):
        build_index(tmp_path / "other", features, tmp_path / "index")
    tiny_model(PerceiverVLForRetrieval, vocab_size=80).float().save_pretrained(tmp_path / "plain")
    PerceiverVLProcessor.from_pretrained(place / "model").save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"features: of a pretrained vision encoder, which this model has none of"):
        feature_settings(tmp_path / "plain")


def test_arrays_beside_media_are_no_media(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "media", tmp_path / "media")
    for number in range(20):
        np.save(tmp_path / "media" / f"notes{number}.npy", np.zeros((2, 2)))
    report = build_index(place / "model", tmp_path / "media", tmp_path / "index")
    assert (report.total, report.skipped) == (40, [])


def test_a_training_that_is_undone_keeps_no_average(place: Path, tmp_path: Path) -> None:
    ruinous = {"max_steps": 4, "learning_rate": 3.0}
    result = run(place, tmp_path / "run", training=ruinous, ema=0.5)
    assert result.base is not None
    assert result.retrieval is not None
    assert result.base["streams"][0]["text_to_video"] == vars(result.retrieval.streams[0].text_to_video)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert not saved["contrastive.vision_projection.weight"].any()


def test_a_dry_run_reads_no_texts(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place, tmp_path / "run", training={"max_steps": 1})

    def never(*_: object) -> None:
        raise AssertionError("all texts of a run were encoded")

    monkeypatch.setattr("perceiver_vl.training.encoder_training.remember_texts", never)
    monkeypatch.setattr("perceiver_vl.training.run.remember_texts", never)
    recipe = read_recipe(tmp_path / "run.yaml", [f"output={tmp_path / 'dry'}"])
    assert dry_run(recipe).to_dict()
    assert not (tmp_path / "dry").exists()


def test_a_file_of_features_that_is_none_is_skipped(place: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    prepare(read_folder(place / "media"), features, feature_settings(place / "model"))
    (features / "00.png.npy").write_bytes(b"\x93NUMPY nothing")
    np.save(features / "01.png.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    report = build_index(place / "model", features, tmp_path / "index")
    assert sorted(sample.file_name for sample in report.skipped) == ["00.png.npy", "01.png.npy"]
    assert report.total == 38


def questions_of(place: Path, folder: Path, model: Path, steps: int, output: Path) -> TrainingResult:
    """A training on what is above in each picture, of what the encoders alone say of it."""
    shutil.copytree(place / "media", folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [
        {**row, "text": None, "question": "what is above?", "answer": row["text"][0].partition(" ")[0]} for row in rows
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return run(
        place,
        output,
        folder,
        progress=True,
        task="question-answering",
        objectives=None,
        evaluation=None,
        initialise={"model": str(model)},
        stages=[{"steps": steps, "train": ["base_answers"]}],
        training={"per_device_train_batch_size": 16, "learning_rate": 1e-2},
    )


def test_answers_are_learned_over_what_the_encoders_say(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(place, tmp_path / "met", training={"max_steps": 1, "learning_rate": 0.0})
    capsys.readouterr()
    result = questions_of(place, tmp_path / "questions", tmp_path / "met", 60, tmp_path / "answers")
    assert "never met" not in capsys.readouterr().err
    assert result.task is not None
    answers = [
        record.answers[0] for record in read_folder(tmp_path / "questions", split="validation", need="question").records
    ]
    most_frequent = 100 * max(map(answers.count, answers)) / len(answers)
    assert result.task.metrics["accuracy"] > most_frequent
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("met", "answers"))
    kept = [name for name in before if name.startswith("perceiver_vl.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_features_are_asked_about_as_their_media_are(place: Path, tmp_path: Path) -> None:
    prepare(read_folder(place / "media"), tmp_path / "features", feature_settings(place / "model"))
    choosing = pipeline("multiple-choice", place / "model", "cpu")
    choices = ["red blue", "green a white", "a man"]
    seen, kept = (choosing(str(one), choices) for one in (place / "media/03.png", tmp_path / "features/03.png.npy"))
    assert [one["answer"] for one in kept] == [one["answer"] for one in seen]
    assert [one["score"] for one in kept] == pytest.approx([one["score"] for one in seen], abs=2e-3)  # float16
    finding = pipeline("retrieval", place / "model", "cpu")
    files = [str(tmp_path / "features" / f"{number:02}.png.npy") for number in range(4)]
    assert {hit["index"] for hit in finding("red blue", files)} == set(range(4))
    shutil.copy(tmp_path / "features/03.png.npy", tmp_path / "alone.npy")
    for given, options, said in (
        (tmp_path / "alone.npy", {}, "in no folder of features"),
        (tmp_path / "features/03.png.npy", {"start": 1.0}, "seconds of a media file"),
        (tmp_path / "features/03.png.npy", {"fps": 1.0}, "features of some frames"),
    ):
        with pytest.raises(UsageError, match=said):
            choosing(str(given), choices, **options)
    initialise(tmp_path / "other", vision=place / "vision", text=place / "text", **SMALL, num_frames=1, token_grid=2)
    with pytest.raises(UsageError, match="features of another encoder"):
        pipeline("multiple-choice", tmp_path / "other", "cpu")(str(tmp_path / "features/03.png.npy"), choices)


def test_answers_over_encoders_that_never_met_are_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions_of(place, tmp_path / "questions", place / "model", 1, tmp_path / "answers")
    assert "its two encoders have never met" in capsys.readouterr().err
