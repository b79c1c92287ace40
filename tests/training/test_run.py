"""Training runs: what they write, that a resume changes nothing, and that a small model learns."""

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
from torch import Tensor
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from perceiver_vl import (
    MediaError,
    PerceiverVLError,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLProcessor,
    UsageError,
)
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.shards.writing import write_shards
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.models.perceiver_vl.tokenizer import train_tokenizer
from perceiver_vl.training import train
from perceiver_vl.training.recipe import read_recipe
from small_runs import log_of, recipe_of, run, training_log_of
from tiny import tiny_recipe

EVERYTHING = {"vtm": 1, "mlm": 1, "vtc": 1, "mixed_vtm": 1, "mixed_vtc": 1, "hard_negatives": True}
SGD = {"optim": "sgd", "max_grad_norm": 0.0}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=0.0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


# --- What a run writes ----------------------------------------------------------------------------------------------


def test_a_run_writes_what_it_promises(tmp_path: Path) -> None:
    validation = {"validation": {"split": "validation", "world": {"clips": 5, "size": 16}}}
    how = {"eval_strategy": "steps", "eval_steps": 3, "warmup_steps": 2}
    result = run(tmp_path / "run", objectives=EVERYTHING, data=validation, training=how)
    output = tmp_path / "run"
    assert (result.output, result.steps, result.skipped) == (output, 6, [])
    assert result.retrieval is not None
    assert result.retrieval.clips == 5
    assert result.seconds > 0

    model = PerceiverVLForRetrieval.from_pretrained(output)
    processor = PerceiverVLProcessor.from_pretrained(output)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id
    assert model.encode_text(**processor(text="a red square moves left")).isfinite().all()
    assert not list(output.glob("*.bin"))

    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["steps"], metrics["skipped"]) == (6, [])
    assert metrics["retrieval"] == json.loads(json.dumps(result.retrieval.to_dict()))
    assert read_recipe(output / "recipe.yaml") == recipe_of(
        output, objectives=EVERYTHING, data=validation, training=how
    )

    lines = training_log_of(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    assert any(line["data_wait"] > 0 for line in lines)
    for line in lines:
        parts = [line[f"loss_{name}"] for name in EVERYTHING if name != "hard_negatives"]
        assert line["loss"] == pytest.approx(sum(parts), abs=1e-3)
    assert len([line for line in log_of(output) if "eval_mixed_r1" in line]) == 2
    assert log_of(output)[-1]["train_loss"] == pytest.approx(np.mean([line["loss"] for line in lines]), abs=1e-3)
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == [
        f"checkpoint-{step}" for step in (2, 4, 6)
    ]


def test_the_weights_of_the_objectives_count(tmp_path: Path) -> None:
    run(tmp_path / "run", objectives={"vtm": 0.5, "mlm": 3}, training={"max_steps": 1})
    line = log_of(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(0.5 * line["loss_vtm"] + 3 * line["loss_mlm"], abs=1e-3)


def test_a_broken_file_is_passed_over_and_reported(tmp_path: Path) -> None:
    write_world(tmp_path / "world", clips=12, num_frames=4, size=16, held_out=3)
    broken = tmp_path / "world" / "clips" / "train" / "000002.mp4"
    broken.write_bytes(b"no video")
    (tmp_path / "world" / "clips" / "validation" / "000001.mp4").unlink()
    data = {
        "train": {"folder": str(tmp_path / "world"), "split": "train"},
        "validation": {"folder": str(tmp_path / "world"), "split": "validation"},
    }
    result = run(tmp_path / "run", data=data, training={"max_steps": 3})
    assert sorted(problem.file_name for problem in result.skipped) == [
        "clips/train/000002.mp4",
        "clips/validation/000001.mp4",
    ]
    assert result.retrieval is not None
    assert result.retrieval.clips == 2
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped"]
    assert written == skipped_of(tmp_path / "run") == [vars(problem) for problem in result.skipped]


def skipped_of(output: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]


def spoilt_world(folder: Path, broken: int, clips: int = 32) -> list[str]:
    """A world of `clips` training clips, the first `broken` of which cannot be read; their names."""
    write_world(folder, clips=clips + 2, num_frames=2, size=16, held_out=1)
    names = [f"clips/train/{number:06d}.mp4" for number in range(broken)]
    for name in names:
        (folder / name).write_bytes(b"no video")
    return names


def test_too_many_broken_files_stop_a_run_early_in_one_line(tmp_path: Path) -> None:
    names = spoilt_world(tmp_path / "world", broken=24)
    data = {"train": {"folder": str(tmp_path / "world"), "split": "train"}}
    with pytest.raises(
        PerceiverVLError, match=r"^\d+ of \d+ clips cannot be read[^\n]+max_failed_fraction=0.1[^\n]+$"
    ) as stop:
        run(tmp_path / "run", data=data)
    assert not isinstance(stop.value, UsageError)
    listed = skipped_of(tmp_path / "run")
    assert {problem["file_name"] for problem in listed} <= set(names)
    assert len(listed) >= 10
    assert all(problem["reason"].startswith("not a media file") for problem in listed)
    assert not (tmp_path / "run" / "model.safetensors").exists()

    allowed = run(tmp_path / "allowed", data={**data, "max_failed_fraction": 0.75})
    assert {problem.file_name for problem in allowed.skipped} == set(names)
    assert [vars(problem) for problem in allowed.skipped] == skipped_of(tmp_path / "allowed")


def test_what_a_list_names_in_vain_counts_before_the_run(tmp_path: Path) -> None:
    for name in spoilt_world(tmp_path / "world", broken=8):
        (tmp_path / "world" / name).unlink()
    data = {"train": {"folder": str(tmp_path / "world"), "split": "train"}}
    with pytest.raises(PerceiverVLError, match=r"^8 of 32 clips cannot be read[^\n]+train/000000\.mp4: [^\n]+$"):
        run(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_a_broken_file_in_one_line_from_any_process(tmp_path: Path, workers: int) -> None:
    spoilt_world(tmp_path / "world", broken=32)
    data = {"train": {"folder": str(tmp_path / "world"), "split": "train"}, "strict": True}
    with pytest.raises(MediaError, match=r"^[^\n]+train/0000\d\d\.mp4: not a media file[^\n]+$"):
        run(tmp_path / "run", data=data, training={"dataloader_num_workers": workers})


def test_a_resumed_run_still_knows_what_it_could_not_read_before(tmp_path: Path) -> None:
    names = spoilt_world(tmp_path / "world", broken=2, clips=12)
    data = {"train": {"folder": str(tmp_path / "world"), "split": "train"}}
    whole = run(tmp_path / "run", data=data)
    assert [problem.file_name for problem in whole.skipped] == names
    (tmp_path / "run" / "metrics.json").unlink()
    resumed = run(tmp_path / "run", resume=True, data=data)  # of a checkpoint at its end: nothing is read any more
    assert (resumed.steps, resumed.skipped) == (6, whole.skipped)


def test_the_best_model_is_the_one_that_is_kept(tmp_path: Path) -> None:
    """The first of the best; the learning rate is so high that the last is not among them."""
    how = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "multi_r1",
        "max_steps": 8,
    }
    validation = {"validation": {"split": "validation", "world": {"clips": 10, "size": 16}}}
    result = run(tmp_path / "run", objectives={"vtc": 1}, data=validation, training=how)
    recalls = {line["step"]: line["eval_multi_r1"] for line in log_of(tmp_path / "run") if "eval_multi_r1" in line}
    assert sorted(recalls) == [2, 4, 6, 8]
    best = min(step for step in recalls if recalls[step] == max(recalls.values()))
    assert best != 8
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}"))
    assert result.retrieval is not None
    assert result.retrieval.stream("multi").text_to_video.r1 == pytest.approx(recalls[best])


# --- The same run again ---------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    """Across the end of an epoch (6 steps) and from the middle of one, with everything that is drawn."""
    changes = {
        "objectives": EVERYTHING,
        "model": {"layer_drop": 0.5, "hidden_dropout_prob": 0.1, "num_blocks": 3},
        "data": {"sampling": "random"},
        "training": {"max_steps": 12, "save_steps": 4, "learning_rate": 0.01},
    }
    output = tmp_path / "run"
    run(output, **changes)
    whole, log = weights(output), training_log_of(output)
    for left in (["checkpoint-4", "checkpoint-8"], ["checkpoint-4"]):
        for path in output.glob("*.*"):
            if path.name != "log.jsonl":
                path.unlink()
        for path in (output / "checkpoints").iterdir():
            if path.name not in left:
                shutil.rmtree(path)
        assert run(output, resume=True, **changes).steps == 12
        assert_equal(weights(output), whole)
        for name in ("step", "loss", "loss_mlm"):
            assert [line[name] for line in training_log_of(output)] == [line[name] for line in log]


def mixed_data(folder: Path) -> dict[str, Any]:
    """Videos of a folder, pictures of a folder and the world, augmented and in buckets."""
    write_world(folder / "clips", clips=14, num_frames=4, size=16, held_out=1)
    (folder / "pictures").mkdir()
    lines = []
    for number in range(9):
        name = f"{number}.png"
        Image.fromarray(np.full((20, 20, 3), 20 * number, np.uint8)).save(folder / "pictures" / name)
        lines.append(json.dumps({"file_name": name, "text": [f"a plain picture of grey {number}", "a picture"]}))
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    sources = [
        {"folder": str(folder / "clips"), "split": "train", "weight": 1},
        {"folder": str(folder / "pictures"), "weight": 2},
        {"world": {"clips": 10, "size": 16}, "weight": 1},
    ]
    return {"train": sources, "bucket": 2, "augmentation": {"crop": 0.5, "flip": True, "randaugment": [1, 9]}}


def test_a_mixture_is_trained_on_and_resumed_bit_for_bit_with_any_number_of_workers(tmp_path: Path) -> None:
    """An epoch is seven batches; it is resumed in the middle of the first and of the second."""
    data = mixed_data(tmp_path)
    how = {"max_steps": 10, "save_steps": 3, "learning_rate": 0.01}
    output = tmp_path / "run"
    run(output, data=data, training=how)
    whole, log = weights(output), [line["loss"] for line in training_log_of(output)]
    assert read_recipe(output / "recipe.yaml") == recipe_of(output, data=data, training=how)
    assert "the folder `pictures`; 10 clips of" in (output / "README.md").read_text()
    for left, workers in (("checkpoint-3", 1), ("checkpoint-9", 0)):
        for path in (output / "checkpoints").iterdir():
            if path.name != left:
                shutil.rmtree(path)
        run(output, resume=True, data=data, training={**how, "dataloader_num_workers": workers})
        assert_equal(weights(output), whole)
        assert [line["loss"] for line in training_log_of(output)] == log


def test_shards_are_trained_on_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    write_world(tmp_path / "world", clips=26, num_frames=2, size=16, held_out=1)
    write_shards(read_folder(tmp_path / "world"), tmp_path / "shards", samples_per_shard=5, workers=1)
    data = {"train": {"shards": str(tmp_path / "shards"), "split": "train"}}
    output = tmp_path / "run"
    run(output, data=data, training={"max_steps": 9, "save_steps": 4, "learning_rate": 0.01})
    whole = weights(output)
    shutil.rmtree(output / "checkpoints" / "checkpoint-9")
    run(output, resume=True, data=data, training={"max_steps": 9, "save_steps": 4, "learning_rate": 0.01})
    assert_equal(weights(output), whole)


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(output, training={"learning_rate": 0.01})
    whole = weights(output)
    (output / "checkpoints" / "checkpoint-6" / "trainer_state.json").unlink()
    run(output, resume=True, training={"learning_rate": 0.01})
    assert_equal(weights(output), whole)


def test_the_same_recipe_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        torch.manual_seed(len(name))
        run(tmp_path / name, training={"seed": seed, "max_steps": 2})
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    word_table = "perceiver_vl.embeddings.text.word_embeddings.weight"
    assert not torch.equal(weights(tmp_path / "one")[word_table], weights(tmp_path / "three")[word_table])


def test_the_seed_of_the_data_is_its_own_where_it_is_given(tmp_path: Path) -> None:
    first = {}
    for name, data_seed in (("none", None), ("one", 1), ("zero", 0)):
        given = {} if data_seed is None else {"data_seed": data_seed}
        run(tmp_path / name, objectives={"vtm": 0}, training={"max_steps": 1, **given})
        first[name] = log_of(tmp_path / name)[0]["loss"]
    assert first["none"] == first["one"] != first["zero"]


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """For VTM, a mean over pairs: its negatives are neighbours, so that half a batch has its own."""
    changes = {"objectives": {"vtm": 1, "mlm": 0}, "model": {"layer_drop": 0.5}}
    how = SGD | {"max_steps": 3}
    run(tmp_path / "one", **changes, training={**how, "per_device_train_batch_size": 8})
    run(tmp_path / "two", **changes, training={**how, "gradient_accumulation_steps": 2})
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"), tolerance=1e-6)
    start = PerceiverVLForPreTraining(PerceiverVLForPreTraining.config_class.from_pretrained(tmp_path / "one"))
    assert start.state_dict().keys() == weights(tmp_path / "one").keys()


def test_accumulated_batches_weigh_by_their_examples(tmp_path: Path) -> None:
    """The last step of an epoch of 23 is of 4 and 3."""
    changes: dict[str, Any] = {
        "objectives": {"vtm": 1, "mlm": 0},
        "data": {"train": {"world": {"clips": 23, "size": 16}}},
    }
    how = SGD | {"max_steps": 3, "dataloader_drop_last": False}
    run(tmp_path / "one", **changes, training={**how, "per_device_train_batch_size": 8})
    run(tmp_path / "two", **changes, training={**how, "gradient_accumulation_steps": 2})
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"), tolerance=1e-6)


def test_recomputing_chunks_and_fused_steps_give_the_same_weights(tmp_path: Path) -> None:
    how = SGD | {"max_steps": 2, "per_device_train_batch_size": 8}
    objectives = {**EVERYTHING, "ttc": 1}
    run(tmp_path / "plain", objectives=objectives, training=how)
    run(tmp_path / "recomputed", objectives=objectives, training=how | {"activation_checkpointing": True})
    run(tmp_path / "chunks", objectives=objectives | {"chunk": 3}, training=how)
    for name in ("recomputed", "chunks"):
        assert_equal(weights(tmp_path / name), weights(tmp_path / "plain"), tolerance=1e-5)
    one_step = {"max_steps": 1}  # then Adam makes steps of a size out of roundings of zero
    for optim in ("adamw_torch", "adamw_torch_fused"):
        run(tmp_path / optim, objectives=objectives, training=one_step | {"optim": optim})
    assert_equal(weights(tmp_path / "adamw_torch"), weights(tmp_path / "adamw_torch_fused"), tolerance=1e-6)


def test_two_processes_train_as_one_on_both_their_batches(two_processes: Path, tmp_path: Path) -> None:
    training = {"optim": "sgd", "per_device_train_batch_size": 8}
    run(tmp_path / "run", objectives={"vtm": 1, "mlm": 0, "vtc": 1}, training=training)
    assert_equal(weights(tmp_path / "run"), weights(two_processes / "run"), tolerance=1e-5)
    assert [line["step"] for line in training_log_of(two_processes / "run")] == [1, 2, 3, 4, 5, 6]


def test_two_processes_resume_in_the_middle_of_a_later_epoch(two_processes: Path) -> None:
    assert_equal(weights(two_processes / "run"), load_file(two_processes / "uninterrupted.safetensors"))
    assert (two_processes / "run" / "checkpoints" / "checkpoint-6").is_dir()


def test_mixed_precision_reaches_the_objectives(tmp_path: Path) -> None:
    losses = []
    for name, bf16 in (("full", False), ("mixed", True)):
        run(tmp_path / name, training={"bf16": bf16, "max_steps": 1})
        losses.append(log_of(tmp_path / name)[0]["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_papers_adam_decays_weights_in_the_gradient(tmp_path: Path) -> None:
    models = {}
    for optimizer in ("adamw", "adam"):
        output = tmp_path / optimizer
        recipe = tiny_recipe(output, training={"max_steps": 2, "weight_decay": 0.5})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"optimizer": optimizer}))
        train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
        models[optimizer] = weights(output)
    name = "perceiver_vl.embeddings.text.word_embeddings.weight"
    assert (models["adam"][name] - models["adamw"][name]).abs().max() > 1e-3


TEMPORAL = "perceiver_vl.embeddings.vision.temporal_embeddings"


# --- Starting from another model ------------------------------------------------------------------------------------


def test_a_run_can_go_on_from_another_model(tmp_path: Path) -> None:
    run(tmp_path / "first")
    recipe = tiny_recipe(tmp_path / "second", training={"max_steps": 1, "learning_rate": 0.0})
    recipe |= {"model": {"layer_drop": 0.0}, "initialise": {"model": str(tmp_path / "first")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    assert_equal(weights(tmp_path / "second"), weights(tmp_path / "first"))
    assert json.loads((tmp_path / "second" / "config.json").read_text())["layer_drop"] == 0.0
    words = [
        PerceiverVLProcessor.from_pretrained(tmp_path / name).tokenizer.get_vocab() for name in ("first", "second")
    ]
    assert words[0] == words[1]
    with pytest.raises(UsageError, match=r"^initialise.model=[^\n]+does not fit[^\n]+$"):
        train(read_recipe(tmp_path / "recipe.yaml", ["model.hidden_size=32", f"output={tmp_path / 'third'}"]))
    assert not (tmp_path / "third").exists()


def test_a_model_is_asked_with_as_many_frames_as_it_was_trained_with_last(tmp_path: Path) -> None:
    run(tmp_path / "first")
    known = PerceiverVLProcessor.from_pretrained(tmp_path / "first").image_processor.num_frames
    more = [f"initialise.model={tmp_path / 'first'}", f"output={tmp_path / 'second'}", "training.max_steps=1"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path / "second")))
    train(read_recipe(tmp_path / "recipe.yaml", [*more, f"data.num_frames={known - 1}"]), progress=False)
    assert PerceiverVLProcessor.from_pretrained(tmp_path / "second").image_processor.num_frames == known - 1


def test_a_damaged_model_to_start_from_is_one_line(tmp_path: Path) -> None:
    run(tmp_path / "first")
    whole = (tmp_path / "first" / "model.safetensors").read_bytes()
    (tmp_path / "first" / "model.safetensors").write_bytes(whole[:100])
    recipe = tiny_recipe(tmp_path / "second") | {"initialise": {"model": str(tmp_path / "first")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(PerceiverVLError, match=r"^[^\n]*first: cannot be loaded [^\n]+, save the model again$"):
        train(read_recipe(tmp_path / "recipe.yaml"))


def test_a_model_of_few_frames_goes_on_with_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sincos = ["model.sincos_positions=0.5", "training.max_steps=1"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path / "first")))
    train(read_recipe(tmp_path / "recipe.yaml", sincos), progress=False)
    few = weights(tmp_path / "first")
    most = len(few[TEMPORAL])
    more = [*sincos, f"model.max_frames={2 * most}", f"initialise.model={tmp_path / 'first'}"]
    more += [f"output={tmp_path / 'second'}", "training.learning_rate=0"]
    train(read_recipe(tmp_path / "recipe.yaml", more), progress=True)
    assert f"has no frames above {most}: starts fresh" in capsys.readouterr().err
    many = weights(tmp_path / "second")
    assert torch.equal(many[TEMPORAL][:most], few[TEMPORAL])
    assert len(many.pop(TEMPORAL)) == 2 * most
    del few[TEMPORAL]
    assert_equal(many, few)
    fewer = [f"model.max_frames={most - 1}", f"initialise.model={tmp_path / 'first'}", f"output={tmp_path / 'third'}"]
    with pytest.raises(UsageError, match=r"does not fit.*temporal_embeddings is"):
        train(read_recipe(tmp_path / "recipe.yaml", [*sincos, *fewer]))


def test_a_run_starts_from_a_vit_and_a_bert(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
    }
    vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8))
    vit.save_pretrained(tmp_path / "vit")
    tokenizer = train_tokenizer(["a circle moves left and a square moves right"] * 3, vocab_size=60)
    bert = BertModel(BertConfig(**sizes, vocab_size=len(tokenizer)))
    for saved in (bert, tokenizer):
        saved.save_pretrained(tmp_path / "bert")
    recipe = tiny_recipe(
        tmp_path / "run",
        initialise={"vision": str(tmp_path / "vit"), "text": str(tmp_path / "bert")},
        training={"max_steps": 1, "learning_rate": 0.0},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    found = weights(tmp_path / "run")
    assert torch.equal(
        found["perceiver_vl.encoder.blocks.2.self_attentions.0.mlp.fc1.weight"],
        vit.state_dict()["layers.2.mlp.fc1.weight"],
    )
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(
        found[f"perceiver_vl.embeddings.text.{words.removeprefix('embeddings.')}"], bert.state_dict()[words]
    )
    kept = PerceiverVLProcessor.from_pretrained(tmp_path / "run").tokenizer
    assert kept.get_vocab() == tokenizer.get_vocab()

    with pytest.raises(UsageError, match=r"^vision [^\n]+num_hidden_layers=3, but the model needs 6[^\n]+$"):
        train(read_recipe(tmp_path / "recipe.yaml", ["model.self_attentions_per_block=2", f"output={tmp_path / 'no'}"]))
    assert not (tmp_path / "no").exists()


def test_a_run_starts_from_a_clip_whose_tokenizer_has_no_mask_token(tmp_path: Path) -> None:
    letters = "acdefghilmnoqrstuv"
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, merges=[])
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "projection_dim": 16,
    }
    towers = {"text_config": sizes | {"vocab_size": len(tokenizer)}, "vision_config": sizes | {"image_size": 32}}
    clip = CLIPModel(CLIPConfig(**towers, projection_dim=16))
    for saved in (clip, tokenizer):
        saved.save_pretrained(tmp_path / "clip")
    recipe = tiny_recipe(
        tmp_path / "run",
        initialise={"vision": str(tmp_path / "clip"), "text": str(tmp_path / "clip")},
        objectives={"vtm": 1, "mlm": 1},
        training={"max_steps": 1, "learning_rate": 0.0},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    words = weights(tmp_path / "run")["perceiver_vl.embeddings.text.word_embeddings.weight"]
    theirs = clip.text_model.embeddings.token_embedding.weight
    assert torch.equal(words, torch.cat([theirs, theirs.mean(0, keepdim=True)]))
    kept = PerceiverVLProcessor.from_pretrained(tmp_path / "run").tokenizer
    assert (kept.mask_token, kept.mask_token_id) == ("[MASK]", len(vocabulary))
    assert kept("a circle").input_ids[:2] == [0, vocabulary.index("a</w>")]


@pytest.mark.parametrize("how", ["fresh", "interpolate"])
def test_a_run_with_another_number_of_latents(tmp_path: Path, how: str) -> None:
    run(tmp_path / "first", training={"max_steps": 1})
    recipe = tiny_recipe(tmp_path / "second", training={"max_steps": 1, "learning_rate": 0.0})
    recipe |= {"model": {"num_latents": 8}, "initialise": {"model": str(tmp_path / "first"), "latents": how}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    name = "perceiver_vl.encoder.latents"
    assert (len(first[name]), len(second[name])) == (4, 8)
    assert torch.equal(first[name][0], second[name][0]) == (how == "interpolate")
    assert all(torch.equal(first[other], second[other]) for other in first if "encoder.latent" not in other)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["num_latents"], config["num_text_latents"]) == (8, 8)


# --- What cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": {"learning_rat": 1e-3}}, "training.learning_rat=0.001"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate"),
        ({"training": {"output_dir": "elsewhere"}}, "training.output_dir='elsewhere'"),
        ({"training": {"per_device_train_batch_size": 1}}, "training.per_device_train_batch_size=1"),
        ({"model": {"num_block": 3}}, "num_block=3"),
        ({"model": {"num_attention_heads": 3}}, "num_attention_heads=3"),
        ({"model": {"hidden_size": "wide"}}, "hidden_size='wide'"),
        ({"model": {"vocab_size": 100}}, "model.vocab_size=100"),
        ({"data": {"num_frames": 5}}, "data.num_frames=5"),
        ({"data": {"train": {"folder": "nowhere"}}}, "nowhere"),
        (
            {"data": {"train": [{"world": {"clips": 24, "size": 16}}, {"world": {"clips": 3, "size": 16}}]}},
            "data.train[1]",
        ),
        ({"data": {"validation": {"split": "dev", "world": {"clips": 4, "size": 16}}}}, "split='dev'"),
        ({"tokenizer": {"name": "./no-tokenizer"}}, "tokenizer ./no-tokenizer"),
        ({"tokenizer": {"vocab_size": 3}}, "vocab_size=3"),
        ({"training": {"load_best_model_at_end": True, "save_steps": 3}}, "load_best_model_at_end"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as refused:
        run(tmp_path / "run", **changes)
    assert named in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(UsageError, match=r"^output=[^\n]+holds a run already, go on with it with resume=True[^\n]+$"):
        run(tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


# --- Learning (the slowest test of all) -----------------------------------------------------------------------------


def test_a_small_model_learns_to_find_clips_it_has_never_seen(tmp_path: Path) -> None:
    """64 held-out clips: chance is a median rank of 32 and a recall at 10 of 16 %."""
    recipe = tiny_recipe(tmp_path / "run")
    recipe["data"] = {
        "train": {"world": {"clips": 4000, "size": 32}},
        "validation": {"split": "validation", "world": {"clips": 64, "size": 32}},
        "num_frames": 2,
        "sampling": "uniform",
    }
    recipe["model"] |= {
        "hidden_size": 64,
        "num_blocks": 2,
        "num_latents": 8,
        "image_size": 32,
        "patch_size": 8,
        "layer_drop": 0.0,
        "initializer_range": 0.3,
        "latent_initializer_range": 0.1,
    }
    recipe["objectives"] = {"vtm": 0, "mlm": 0, "vtc": 1, "mixed_vtc": 1}
    recipe["evaluation"] = {"streams": ["multi", "mixed"], "captions_per_clip": 1}
    recipe["training"] |= {
        "max_steps": 250,
        "per_device_train_batch_size": 32,
        "learning_rate": 4e-3,
        "warmup_steps": 10,
        "lr_scheduler_type": "cosine",
        "adam_beta2": 0.98,
        "save_strategy": "no",
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    result = train(read_recipe(file), progress=False).retrieval
    assert result is not None
    for stream, least in (("multi", 40), ("mixed", 30)):
        found = result.stream(stream)
        assert min(found.text_to_video.r10, found.video_to_text.r10) > least
        assert max(found.text_to_video.median_rank, found.video_to_text.median_rank) < 20


def test_the_encoder_of_a_run_is_compiled_if_the_recipe_says_so(tmp_path: Path) -> None:
    torch._dynamo.reset()
    for name, training in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        recipe = tiny_recipe(tmp_path / name, training=training | {"max_steps": 2})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        torch._dynamo.utils.counters.clear()
        train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
        assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == (name == "compiled")
    assert_equal(weights(tmp_path / "compiled"), weights(tmp_path / "plain"), 1e-5)


def test_a_run_resumed_from_its_last_step_takes_no_other(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", training={"max_steps": 4, "save_steps": 4, "lr_scheduler_type": "constant"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train(read_recipe(tmp_path / "recipe.yaml"), progress=False).steps == 4  # in the middle of an epoch
    first = weights(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed before it was written
    assert train(read_recipe(tmp_path / "recipe.yaml"), resume=True, progress=False).steps == 4
    assert_equal(weights(tmp_path / "run"), first)
