"""Retrieval of sounds, and of series, trained and scored as that of clips; what cannot be trained on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perceiver_vl import PerceiverVLError, PerceiverVLForRetrieval, PerceiverVLProcessor, UsageError
from perceiver_vl.data.open import open_dataset
from perceiver_vl.data.synthetic.sounds import SoundWorld, write_sounds_world
from perceiver_vl.media.sound import write_wav
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.flops import (
    cached_vision_flops,
    encoder_flops,
    matching_flops,
    partial_match_flops,
    pooling_flops,
)
from perceiver_vl.search.build import build_index
from perceiver_vl.tasks.retrieval import STREAMS, evaluate_retrieval
from perceiver_vl.training import train
from perceiver_vl.training.dry_run import dry_run
from perceiver_vl.training.reporting.report import write_report
from small_runs import recipe_of
from tiny import lose_the_end

AUDIO = {
    "sample_rate": 4000,
    "window": 128,
    "hop": 80,
    "mel_bins": 8,
    "patch_steps": 8,
    "patch_bins": 4,
    "max_seconds": 3.0,
}
OF_SOUNDS: dict[str, Any] = {
    "data": {
        "train": {"world": {"task": "sounds", "clips": 24}},
        "validation": {"split": "validation", "world": {"task": "sounds", "clips": 8}},
        "num_frames": 1,
    },
    "model": {"modalities": {"audio": AUDIO}, "max_text_length": 40},
    "objectives": {"vtc": 1, "ttc": 0.3, "mixed_vtc": 1, "vtm": 1, "mlm": 1},
    "training": {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2},
}


def test_a_recipe_of_sounds_is_trained_scored_and_told(tmp_path: Path) -> None:
    result = train(recipe_of(tmp_path / "run", **OF_SOUNDS), progress=False)
    assert result.retrieval is not None
    assert result.retrieval.clips == 8
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("loss_vtm" in line and line["share_of_peak"] > 0 for line in lines)
    model, processor = load_retriever(tmp_path / "run", "cpu")
    assert processor.modalities == model.config.modalities == {"audio": AUDIO}
    world = SoundWorld("validation", 8)
    found = evaluate_retrieval(model, processor, world, streams=STREAMS, captions_per_clip=1)
    steps = max(processor(audio=[world.frames(index)])["pixel_values"].shape[1] for index in range(8))
    once = encoder_flops(model.config, steps, modality="audio") + pooling_flops(model.config)
    assert found.flops_per_clip == once + partial_match_flops(model.config, model.config.num_latents)
    tokens = processor(text=[world.record(index).texts[0] for index in range(8)])["input_ids"].shape[1]
    pair = cached_vision_flops(model.config, steps, tokens, modality="audio")
    assert found.streams[2].flops_per_query == 8 * (pair + matching_flops(model.config, model.config.num_latents))
    assert "by `processor(audio=…)`: hop 80" in (tmp_path / "run" / "README.md").read_text()
    write_sounds_world(tmp_path / "sounds", 3)
    with pytest.raises(UsageError, match=r"an index is of videos and pictures, this folder has none"):
        build_index(tmp_path / "run", tmp_path / "sounds", tmp_path / "index")
    write_report(tmp_path / "run")
    assert "audio: nothing to be seen" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        return PerceiverVLForRetrieval.from_pretrained(tmp_path / name).state_dict()

    changes = OF_SOUNDS | {"training": {"max_steps": 4}}
    train(recipe_of(tmp_path / "whole", **changes), progress=False)
    train(recipe_of(tmp_path / "parts", **changes), progress=False)
    lose_the_end(tmp_path / "parts", "checkpoint-4")
    train(recipe_of(tmp_path / "parts", **changes), resume=True, progress=False)
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("parts")[name]), name


def test_a_damaged_file_is_left_out_and_counted(tmp_path: Path) -> None:
    write_sounds_world(tmp_path / "sounds", 28, held_out=4)
    for name in ("train/000003", "validation/000001"):
        (tmp_path / "sounds" / "sounds" / f"{name}.wav").write_text("no sound")
    folder = str(tmp_path / "sounds")
    data = {"train": {"folder": folder, "split": "train"}, "validation": {"folder": folder, "split": "validation"}}
    changes = OF_SOUNDS | {"data": data | {"num_frames": 1, "max_failed_fraction": 0.5}, "training": {"max_steps": 6}}
    result = train(recipe_of(tmp_path / "run", **changes), progress=False)
    assert {skipped.file_name for skipped in result.skipped} == {
        "sounds/train/000003.wav",
        "sounds/validation/000001.wav",
    }
    assert result.retrieval is not None
    assert result.retrieval.clips == 3
    cut = tmp_path / "sounds" / "sounds" / "train" / "000002.wav"
    cut.write_bytes(cut.read_bytes()[:8000])
    again = train(recipe_of(tmp_path / "again", **changes), progress=False)
    assert again.damaged == ["sounds/train/000002.wav"]
    assert len(again.skipped) == 2
    with pytest.raises(PerceiverVLError, match=r"000003.wav"):
        train(recipe_of(tmp_path / "strict", **(changes | {"data": data | {"strict": True}})), progress=False)


def test_sounds_of_a_moment_are_left_out_and_counted(tmp_path: Path) -> None:
    write_sounds_world(tmp_path / "sounds", 28, held_out=4)
    for name in ("train/000003", "validation/000001"):
        write_wav(tmp_path / "sounds" / "sounds" / f"{name}.wav", np.zeros(10), 8000)
    folder = str(tmp_path / "sounds")
    data = {"train": {"folder": folder, "split": "train"}, "validation": {"folder": folder, "split": "validation"}}
    changes = OF_SOUNDS | {"data": data | {"num_frames": 1, "max_failed_fraction": 0.5}, "training": {"max_steps": 6}}
    result = train(recipe_of(tmp_path / "run", **changes), progress=False)
    assert {str(skipped) for skipped in result.skipped} == {
        "sounds/train/000003.wav: audio of 10 samples at 8000 Hz: need at least 10 ms",
        "sounds/validation/000001.wav: audio of 10 samples at 8000 Hz: need at least 10 ms",
    }
    assert result.retrieval is not None
    assert result.retrieval.clips == 3


def test_sounds_and_clips_are_learned_in_turns_by_one_model(tmp_path: Path) -> None:
    data = {"train": [OF_SOUNDS["data"]["train"], {"world": {"clips": 24, "size": 16}}], "num_frames": 2}
    train(recipe_of(tmp_path / "run", **(OF_SOUNDS | {"data": data, "training": {"max_steps": 4}})), progress=False)
    model, processor = load_retriever(tmp_path / "run", "cpu")
    sound = model.get_vision_features(**processor(audio=SoundWorld("test", 1).frames(0)))
    clip = model.get_vision_features(**processor(videos=np.zeros((2, 16, 16, 3), np.uint8)))
    assert sound.shape == clip.shape


def test_series_with_captions_are_found_by_words(tmp_path: Path) -> None:
    """Rising and falling lines of two channels in CSV files: what rises is told from what falls after some steps."""
    rows = []
    for number in range(48):
        rises = number % 2 == 0
        line = np.linspace(-1, 1, 20 + number % 5) * (1 if rises else -1)
        values = np.stack([line, np.random.default_rng(number).standard_normal(len(line))], 1)
        np.savetxt(tmp_path / f"{number}.csv", values, delimiter=",", header="load,noise", comments="")
        split = "validation" if number < 8 else "train"
        rows.append({"file_name": f"{number}.csv", "text": "it rises" if rises else "it falls", "split": split})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    series = {"channels": 2, "patch_steps": 4, "max_steps": 24}
    changes = {
        "data": {"train": {"folder": str(tmp_path), "split": "train"}, "num_frames": 1, "sampling": "uniform"},
        "model": {"modalities": {"time_series": series}, "layer_drop": 0.0, "num_blocks": 1},
        "objectives": {"vtc": 1, "vtm": 0, "mlm": 0},
        "training": {
            "max_steps": 100,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 8,
            "save_steps": 100,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 5,
        },
    }
    train(recipe_of(tmp_path / "run", **changes), progress=False)
    model, processor = load_retriever(tmp_path / "run", "cpu")
    source, _ = open_dataset(tmp_path, (16, 16), split="validation")
    found = [source.frames(index, 1) for index in range(len(source))]
    with torch.inference_mode():
        vectors = model.get_vision_features(**processor(time_series=found))
        texts = model.get_text_features(**processor(text=["it rises", "it falls"]))
    said = (vectors @ texts.T).argmax(1).tolist()
    assert said == [number % 2 for number in range(8)]
    assert isinstance(processor, PerceiverVLProcessor)


def test_series_that_the_models_settings_refuse_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = []
    for number in range(16):
        np.savetxt(tmp_path / f"{number}.csv", np.ones((9, 3 if number in (2, 9) else 2)), delimiter=",")
        split = "validation" if number < 8 else "train"
        rows.append({"file_name": f"{number}.csv", "text": f"number {number}", "split": split})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = {name: {"folder": str(tmp_path), "split": name} for name in ("train", "validation")}
    changes = {
        "data": splits | {"num_frames": 1, "sampling": "uniform", "max_failed_fraction": 0.5},
        "model": {"modalities": {"time_series": {"channels": 2, "patch_steps": 4, "max_steps": 24}}},
        "training": {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 4},
    }
    result = train(recipe_of(tmp_path / "run", **changes), progress=False)
    assert {str(skipped) for skipped in result.skipped} == {
        f"{number}.csv: time_series of shape (9, 3): need (T,2), T at least 1" for number in (2, 9)
    }
    assert result.retrieval is not None
    assert result.retrieval.clips == 7


@pytest.mark.parametrize(
    ("top", "changes", "message"),
    [
        ({}, {"model": {"modalities": {}}}, r"data: files of audio, which the model does not take"),
        ({}, {"data": {"augmentation": {"crop": 0.5}}}, r"data.augmentation: of frames, which audio has none of"),
        ({}, {"elastic": {"frames": 1}, "data": {"num_frames": 2}}, r"elastic.frames: of frames"),
    ],
)
def test_what_is_of_frames_is_refused(
    tmp_path: Path, top: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    merged = {name: OF_SOUNDS.get(name, {}) | changes.get(name, {}) for name in OF_SOUNDS.keys() | changes.keys()}
    with pytest.raises(UsageError, match=message):
        train(recipe_of(tmp_path / "run", top, **merged), progress=False)


def test_a_dry_run_counts_what_sounds_cost(tmp_path: Path) -> None:
    found = dry_run(recipe_of(tmp_path / "run", **OF_SOUNDS))
    assert found.flops_per_example > 0
    assert found.memory["activations"] > 0


def test_other_tasks_are_of_clips(tmp_path: Path) -> None:
    write_sounds_world(tmp_path / "sounds", 12, held_out=2)
    data = {"train": {"folder": str(tmp_path / "sounds"), "split": "train"}, "num_frames": 1}
    changes = {"data": data, "model": OF_SOUNDS["model"]}
    with pytest.raises(UsageError, match=r"task=captioning: of frames, which audio has none of"):
        train(recipe_of(tmp_path / "run", {"task": "captioning"}, **changes), progress=False)
