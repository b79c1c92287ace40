"""What an error says to type works when it is pasted: each case provokes a message, types what that says, and the
command then ends well. A guard looks through the sources for messages that no case provokes.
"""

import ast
import json
import os
import re
import shlex
import shutil
import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Answer, run_cli, world_recipe, write_recipe
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PerceiverConfig, PerceiverForMaskedLM, ViTConfig, ViTModel

from perceiver_vl import PerceiverVLConfig, PerceiverVLForQuestionAnswering, PerceiverVLProcessor
from perceiver_vl.data.synthetic.sounds import write_sounds_world
from perceiver_vl.media.sound import write_wav
from perceiver_vl.models.perceiver_tf import PerceiverTFConfig, PerceiverTFForTranscription
from perceiver_vl.search.build import build_index
from perceiver_vl.search.table import open_table
from released_checkpoint import forty_words, released_state, save

ROOT = Path(__file__).resolve().parents[2]
KEY = r"[a-z_]+(?:\.[a-z0-9_]+)*="
LISTENING: list[socket.socket] = []
GRID = ("--num-frames", "2", "--latents", "6", "--text-latents", "3", "--cross-attentions", "1", "--runs", "1")


@dataclass(frozen=True)
class Workshop:
    """What commands work on: made once, not to be changed; `folder` is the case's own."""

    folder: Path
    world: Path
    questions: Path
    model: Path
    answering: Path
    counting: Path
    index: Path

    def copy(self, path: Path, name: str) -> Path:
        return Path(shutil.copytree(path, self.folder / name))

    def renamed_metadata(self) -> Path:
        world = self.copy(self.world, "world")
        (world / "metadata.jsonl").rename(world / "captions.jsonl")
        return world

    def renamed_column(self, name: str, other: str) -> Path:
        world = self.copy(self.world, "world")
        rows = [json.loads(line) for line in (world / "metadata.jsonl").read_text().splitlines()]
        lines = [json.dumps({other if key == name else key: row[key] for key in row}) for row in rows]
        (world / "metadata.jsonl").write_text("\n".join(lines))
        return world

    def broken(self) -> Path:
        world = self.copy(self.world, "world")
        for path in sorted((world / "clips").rglob("*.mp4"))[::3]:
            path.write_bytes(b"no video")
        return world

    def recipe(self, world: Path | None = None, **more: object) -> Path:
        recipe = world_recipe(self.folder / "run", world or self.world)
        recipe["data"]["validation"] = None if world is None else recipe["data"]["validation"]
        return write_recipe(self.folder / "recipe.yaml", {**recipe, **more})


@dataclass(frozen=True)
class Attempt:
    """A command that fails, and says so in words of which `says` are some; what follows them is to be typed.

    fills: what a person puts in the place of names in capitals. mends: whether the command then ends well; other
    remedies only show something, or make what another command is given.
    """

    words: tuple[object, ...]
    says: str
    fills: dict[str, object] = field(default_factory=dict)
    mends: bool = True


CASES: dict[str, Callable[[Workshop], Attempt]] = {}


def case(make: Callable[[Workshop], Attempt]) -> Callable[[Workshop], Attempt]:
    CASES[make.__name__] = make
    return make


# Folders


def evaluating(w: Workshop, data: Path, *more: object) -> tuple[object, ...]:
    return ("evaluate", "--model", w.model, "--data", data, *more)


@case
def evaluate_of_metadata_of_another_name(w: Workshop) -> Attempt:
    return Attempt(evaluating(w, w.renamed_metadata()), "name it with ")


@case
def train_of_metadata_of_another_name(w: Workshop) -> Attempt:
    return Attempt(("train", w.recipe(w.renamed_metadata())), "name it with ")


@case
def train_of_several_sources(w: Workshop) -> Attempt:
    recipe = world_recipe(w.folder / "run", w.world)
    recipe["data"]["train"] = [recipe["data"]["train"], {"folder": str(w.renamed_metadata()), "split": "train"}]
    return Attempt(("train", write_recipe(w.folder / "recipe.yaml", recipe)), "name it with ")


@case
def train_of_a_list_of_one_source(w: Workshop) -> Attempt:
    recipe = world_recipe(w.folder / "run", w.renamed_metadata())
    recipe["data"] |= {"train": [recipe["data"]["train"]], "validation": None}
    return Attempt(("train", write_recipe(w.folder / "recipe.yaml", recipe)), "name it with ")


@case
def a_dry_run_of_metadata_of_another_name(w: Workshop) -> Attempt:
    return Attempt(("train", "--dry-run", w.recipe(w.renamed_metadata())), "name it with ")


@case
def frontier_of_metadata_of_another_name(w: Workshop) -> Attempt:
    model, data = w.copy(w.model, "model"), w.renamed_metadata()
    return Attempt(("bench", "frontier", "--model", model, "--data", data, *GRID), "name it with ")


@case
def cascade_of_metadata_of_another_name(w: Workshop) -> Attempt:
    data = w.renamed_metadata()
    words = ("bench", "cascade", "--model", w.model, "--data", data, "--items", "3,6", "--runs", 1)
    return Attempt(words, "name it with ")


@case
def check_of_metadata_of_another_name(w: Workshop) -> Attempt:
    return Attempt(("data", "check", "folder", w.renamed_metadata()), "name it with ")


@case
def check_of_media_alone(w: Workshop) -> Attempt:
    return Attempt(("data", "check", "folder", w.renamed_metadata()), ", or check the media alone with ")


@case
def evaluate_of_another_column(w: Workshop) -> Attempt:
    return Attempt(evaluating(w, w.renamed_column("text", "Caption")), "map it with ")


@case
def train_of_another_column(w: Workshop) -> Attempt:
    return Attempt(("train", w.recipe(w.renamed_column("text", "Caption"))), "map it with ")


@case
def train_of_sounds_by_a_model_of_pictures(w: Workshop) -> Attempt:
    write_sounds_world(w.folder / "sounds", 40, held_out=2)
    data = {"train": {"folder": str(w.folder / "sounds"), "split": "train"}, "num_frames": 1}
    return Attempt(("train", w.recipe(data=data)), "name its settings, as in ")


@case
def index_of_another_column(w: Workshop) -> Attempt:
    media = w.renamed_column("file_name", "file")
    words = ("index", "--model", w.model, "--media", media, "--out", w.folder / "index")
    return Attempt(words, "map it with ")


@case
def prepare_of_another_column(w: Workshop) -> Attempt:
    return Attempt(("prepare", w.renamed_column("file_name", "file"), w.folder / "small"), "map it with ")


@case
def evaluate_of_broken_files(w: Workshop) -> Attempt:
    return Attempt(evaluating(w, w.broken()), "allow any number with ")


@case
def index_of_broken_files(w: Workshop) -> Attempt:
    words = ("index", "--model", w.model, "--media", w.broken(), "--out", w.folder / "index")
    return Attempt(words, "allow any number with ")


@case
def train_of_missing_files(w: Workshop) -> Attempt:
    world = w.broken()
    for path in (world / "clips").rglob("*.mp4"):
        path.unlink() if path.read_bytes() == b"no video" else None
    recipe = w.recipe(world, training={"max_steps": 2, "per_device_train_batch_size": 2})
    return Attempt(("train", recipe, "data.train.split=null"), "allow any number with ")


@case
def frontier_of_broken_files(w: Workshop) -> Attempt:
    words = ("bench", "frontier", "--model", w.copy(w.model, "model"), "--data", w.broken(), *GRID)
    return Attempt(words, "allow any number with ")


# Benchmarks and shards


@case
def a_benchmark_that_is_not_known(w: Workshop) -> Attempt:
    return Attempt(("data", "check", "msrvt", w.world), ": unknown benchmark, ", mends=False)


@case
def a_benchmark_whose_files_are_not_there(w: Workshop) -> Attempt:
    return Attempt(("data", "check", "didemo", w.world), "; see ", mends=False)


@case
def a_benchmark_of_which_nothing_is_left(w: Workshop) -> Attempt:
    folder = w.folder / "official"
    assert run_cli("world", folder, "--clips", 6, "--size", 32, "--layout", "official").code == 0
    shutil.rmtree(folder / "videos")
    return Attempt(("prepare", folder, w.folder / "out", "--benchmark", "msrvtt"), "; see ", mends=False)


@case
def how_a_benchmark_is_checked(w: Workshop) -> Attempt:
    folder = w.folder / "official"
    assert run_cli("world", folder, "--clips", 6, "--size", 32, "--layout", "official").code == 0
    return Attempt(("data", "list", "msrvtt"), "check: ", {"DIR": folder}, mends=False)


@case
def a_check_without_decoding(w: Workshop) -> Attempt:
    return Attempt(("data", "check", "folder", w.world), "to decode one frame of each: ")


@case
def shards_that_are_none(w: Workshop) -> Attempt:
    return Attempt(
        ("data", "shard", "--verify", w.folder / "s"), "; give what ", {"DIR": w.world, "OUT": w.folder / "s"}
    )


@case
def shards_of_something_else(w: Workshop) -> Attempt:
    (w.folder / "s").mkdir()
    (w.folder / "s" / "manifest.json").write_text("{}")
    words = ("data", "shard", "--verify", w.folder / "s")
    return Attempt(words, "; give what ", {"DIR": w.world, "OUT": w.folder / "other"}, mends=False)


# Models and tasks


@case
def weights_that_do_not_tell_all(w: Workshop) -> Attempt:
    torch.manual_seed(0)
    sizes = {"num_latents": 4, "d_latents": 16, "d_model": 8, "num_self_attends_per_block": 1, "vocab_size": 9}
    theirs = PerceiverForMaskedLM(PerceiverConfig(**sizes, max_position_embeddings=6))
    save_file(theirs.state_dict(), w.folder / "weights.safetensors")
    return Attempt(("convert", w.folder / "weights.safetensors", w.folder / "out"), "say what it is, as in ")


@case
def evaluate_of_a_model_for_questions(w: Workshop) -> Attempt:
    data = w.questions / "yesno"
    words = ("evaluate", "--model", w.answering, "--data", data, "--split", "test")
    return Attempt(words, ", or choose ", mends=False)  # of the tasks it names vqa needs other answers


@case
def frontier_of_a_model_for_questions(w: Workshop) -> Attempt:
    model = w.copy(w.answering, "model")
    words = ("bench", "frontier", "--model", model, "--data", w.questions / "yesno", "--split", "test")
    return Attempt((*words, "--num-frames", 2, "--latents", 6, "--runs", 1), ", or choose ", mends=False)


@case
def counting_as_answering(w: Workshop) -> Attempt:
    words = ("evaluate", "--model", w.counting, "--data", w.questions / "count", "--task", "question-answering")
    return Attempt((*words, "--split", "test"), "(problem_type=regression), use ")


@case
def one_answer_where_there_should_be_ten(w: Workshop) -> Attempt:
    words = ("evaluate", "--model", w.answering, "--data", w.questions / "yesno", "--task", "vqa", "--split", "test")
    return Attempt(words, "task vqa needs those of several annotators, use ")


@case
def training_on_one_answer_where_there_should_be_ten(w: Workshop) -> Attempt:
    recipe = world_recipe(w.folder / "run", w.questions / "yesno")
    del recipe["objectives"]
    path = write_recipe(w.folder / "recipe.yaml", recipe)
    return Attempt(("train", path, "task=vqa"), "task vqa needs those of several annotators, use ")


@case
def many_files_that_are_skipped(w: Workshop) -> Attempt:
    world = w.copy(w.world, "world")
    for path in sorted((world / "clips").rglob("*.mp4"))[2:]:
        path.write_bytes(b"no video")
    words = ("index", "--model", w.model, "--media", world, "--out", w.folder / "index", "--max-failed-fraction", 1)
    return Attempt(words, "more (all of them with ")


@case
def a_split_without_answers(w: Workshop) -> Attempt:
    world = w.copy(w.questions / "yesno", "world")
    rows = [json.loads(line) for line in (world / "metadata.jsonl").read_text().splitlines()]
    (world / "metadata.jsonl").write_text("\n".join(json.dumps({**row, "answer": None}) for row in rows))
    words = ("evaluate", "--model", w.answering, "--data", world, "--task", "question-answering")
    return Attempt(words, "write the predictions with ", {"FILE": w.folder / "answers.json"})


@case
def a_budget_that_is_not_measured(w: Workshop) -> Attempt:
    model = w.copy(w.model, "a model")
    words = ("evaluate", "--model", model, "--data", w.world, "--split", "test", "--budget", "1TFLOPs")
    return Attempt(words, "is not measured yet, run ", {"FOLDER": w.world})


@case
def a_budget_of_a_model_for_questions(w: Workshop) -> Attempt:
    model = w.copy(w.answering, "model")
    clip = next((w.world / "clips").rglob("*.mp4"))
    words = ("ask", "--model", model, clip, "is it red?", "--budget", "1TFLOPs")
    return Attempt(words, "is not measured yet, run ", {"FOLDER": w.questions / "yesno"})


@case
def a_budget_of_other_weights(w: Workshop) -> Attempt:
    model = w.copy(w.model, "model")
    assert run_cli("bench", "frontier", "--model", model, "--data", w.world, *GRID).code == 0
    weights = load_file(model / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    words = ("evaluate", "--model", model, "--data", w.world, "--budget", "1TFLOPs")
    return Attempt(words, "other weights, run ", {"FOLDER": w.world})


def leaving_early(w: Workshop, *more: object) -> tuple[object, ...]:
    data = w.questions / "yesno"
    return ("evaluate", "--model", w.copy(w.answering, "model"), "--data", data, "--task", "question-answering", *more)


@case
def an_early_exit_that_is_solved_on_what_is_scored(w: Workshop) -> Attempt:
    return Attempt(leaving_early(w, "--early-exit", "3GFLOPs"), "are solved on what is not; choose one with ")


@case
def thresholds_of_no_cost(w: Workshop) -> Attempt:
    words = leaving_early(w, "--split", "test", "--exits-from", "validation")
    return Attempt(words, "solves thresholds, give a cost, too: ")


@case
def an_early_exit_that_was_not_solved(w: Workshop) -> Attempt:
    clip = next((w.world / "clips").rglob("*.mp4"))
    words = ("ask", "--model", w.answering, clip, "is it red?", "--early-exit", "3GFLOPs")
    return Attempt(words, "; evaluate the model on its data with ", mends=False)


@case
def an_early_exit_of_other_weights(w: Workshop) -> Attempt:
    words = leaving_early(w, "--early-exit", "3GFLOPs", "--split", "test")
    assert run_cli(*words).code == 0
    model = Path(str(words[2]))
    weights = load_file(model / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    clip = next((w.world / "clips").rglob("*.mp4"))
    asked = ("ask", "--model", model, clip, "is it red?", "--early-exit", "3GFLOPs")
    return Attempt(asked, "was changed, evaluate it on its data again with ", mends=False)


@case
def the_world_has_no_questions(w: Workshop) -> Attempt:
    words = ("bench", "frontier", "--model", w.answering, "--data", "world", "--task", "multiple-choice")
    words = (*words[:3], w.model, *words[4:])
    return Attempt(words, "write its questions as files with ", {"OUT": w.folder / "out"}, mends=False)


@case
def a_model_without_answers(w: Workshop) -> Attempt:
    clip = next((w.world / "clips").rglob("*.mp4"))
    return Attempt(("ask", "--model", w.model, clip, "what is it?"), "give some to choose from: ")


@case
def heads_that_no_shape_tells(w: Workshop) -> Attempt:
    path, words = save(w.folder / "a.ckpt", released_state()), forty_words(w.folder / "words")
    typed = ("convert", path, w.folder / "out", "--tokenizer", words)
    return Attempt(typed, "say how many heads it has with ", {"N": 4})


# Serve, which does not end where it works


@case
def serve_with_half_of_tls(w: Workshop) -> Attempt:
    words = ("serve", "--index", w.index, "--tls-key", w.folder / "key.pem")
    return Attempt(words, "TLS needs both files: ", mends=False)


@case
def serve_that_others_can_read(w: Workshop) -> Attempt:
    return Attempt(("serve", "--index", w.index, "--host", "0.0.0.0"), "others can read along, give ", mends=False)


@case
def serve_at_a_port_that_is_taken(w: Workshop) -> Attempt:
    LISTENING.append(socket.create_server(("127.0.0.1", 0)))
    port = LISTENING[-1].getsockname()[1]
    return Attempt(("serve", "--index", w.index, "--port", port), "cannot be listened on (", mends=False)


# Search


def indexing(w: Workshop, *more: object) -> tuple[object, ...]:
    return ("index", "--model", w.model, "--media", w.world, "--split", "test", *more)


@case
def search_of_no_index(w: Workshop) -> Attempt:
    words = ("search", "--index", w.folder / "an index", "red")
    return Attempt(words, "not an index, make one with ", {"MODEL": w.model, "FOLDER": w.world})


@case
def export_of_no_index(w: Workshop) -> Attempt:
    words = ("index", "export", w.folder / "index", "--parquet", w.folder / "index.parquet")
    return Attempt(words, "not an index, make one with ", {"MODEL": w.model, "FOLDER": w.world})


@case
def search_of_an_index_without_clips(w: Workshop) -> Attempt:
    index = w.copy(w.index, "index")
    open_table(index).commit(gone=[entry.file for entry in open_table(index).entries()])
    words = ("search", "--index", index, "red")
    return Attempt(words, "give it some with ", {"MODEL": w.model, "FOLDER": w.world})


@case
def index_of_nothing(w: Workshop) -> Attempt:
    words = ("index", "--out", w.folder / "index")
    return Attempt(words, "say what to make one of with ", {"MODEL": w.model, "FOLDER": w.world})


@case
def index_to_nowhere(w: Workshop) -> Attempt:
    return Attempt(indexing(w), "or is to be made, with ", {"INDEX": w.folder / "index"})


@case
def index_by_another_model(w: Workshop) -> Attempt:
    other = w.copy(w.model, "other model")
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    words = ("index", "--model", other, "--media", w.world, "--split", "test", "--out", w.copy(w.index, "index"))
    return Attempt(words, "), use ", {"OTHER": w.folder / "other"})


@case
def index_with_other_frames(w: Workshop) -> Attempt:
    words = indexing(w, "--num-frames", 2, "--out", w.copy(w.index, "index"))
    return Attempt(words, "; leave that out or use ", {"OTHER": w.folder / "other"})


@case
def index_of_other_media(w: Workshop) -> Attempt:
    media = w.folder / "media"
    assert run_cli("world", media, "--clips", 6, "--size", 32, "--seed", 9).code == 0
    words = ("index", "--model", w.model, "--media", media, "--out", w.copy(w.index, "index"))
    return Attempt(words, "; use ", {"OTHER": w.folder / "other"})


@case
def a_limit_for_no_model(w: Workshop) -> Attempt:
    model = w.copy(w.model, "model")
    assert run_cli("bench", "frontier", "--model", model, "--data", w.world, *GRID).code == 0
    words = ("index", "--media", w.world, "--out", w.folder / "index", "--budget", "1TFLOPs")
    return Attempt(words, "say of which model, with ", {"MODEL": model})


@case
def search_whose_model_has_moved(w: Workshop) -> Attempt:
    model = w.copy(w.model, "model")
    build_index(model, w.world, w.folder / "index", split="test")
    model.rename(w.folder / "moved")
    return Attempt(
        ("search", "--index", w.folder / "index", "red"), "say where it is with ", {"FOLDER": w.folder / "moved"}
    )


@case
def search_whose_model_has_changed(w: Workshop) -> Attempt:
    model = w.copy(w.model, "model")
    build_index(model, w.world, w.folder / "index", split="test")
    weights = load_file(model / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    return Attempt(
        ("search", "--index", w.folder / "index", "red"), "give the one that made it with ", {"FOLDER": w.model}
    )


@case
def search_of_a_damaged_index(w: Workshop) -> Attempt:
    index = w.copy(w.index, "index")
    for file in open_table(index).data_files():
        path = index / "clips.lance" / "data" / file
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
    return Attempt(("search", "--index", index, "red"), "mend it with ")


@case
def null_characters_after_nothing(w: Workshop) -> Attempt:
    return Attempt(("search", "--index", w.index, "red", "-0"), "ends paths, ask for ", mends=False)  # writes bytes


@case
def moments_of_an_index_without_segments(w: Workshop) -> Attempt:
    return Attempt(
        ("search", "--index", w.copy(w.index, "index"), "red", "--moments"), "has no segments, index again with "
    )


@case
def frames_of_segments_that_are_not_asked_for(w: Workshop) -> Attempt:
    index = "index", "--model", w.model, "--media", w.world, "--out", w.folder / "index"
    return Attempt((*index, "--segment-fps", "2"), "say how long these are with ")


@case
def options_of_moments_without_them(w: Workshop) -> Attempt:
    index = w.copy(w.index, "index")
    build_index(None, None, index, segments=1)
    return Attempt(("search", "--index", index, "red", "--per-video", "2"), "is of moments, ask for ")


@case
def a_benchmark_of_moments_without_its_annotations(w: Workshop) -> Attempt:
    video = next((w.world / "clips").rglob("*.mp4")).stem
    (w.folder / "sta.txt").write_text(f"{video} 0 1##a red circle")
    return Attempt(evaluating(w, w.world, "--task", "moments"), "or TVR with ", {"FILE": w.folder / "sta.txt"})


@case
def moments_of_an_index_with_other_segments(w: Workshop) -> Attempt:
    video = next((w.world / "clips").rglob("*.mp4")).stem
    (w.folder / "sta.txt").write_text(f"{video} 0 1##a red circle")
    words = evaluating(w, w.world, "--task", "moments", "--metadata", w.folder / "sta.txt")
    index = w.folder / "index"
    assert run_cli(*words, "--index", index).code == 0
    asked = (*words, "--index", index, "--segments", 1)
    return Attempt(asked, "; leave that out or use ", {"OTHER": w.folder / "other"})


# Notes


def transcribing(w: Workshop, out: Path) -> tuple[object, ...]:
    small = {"conv_channels": 2, "num_bins": 8, "hidden_size": 8, "num_blocks": 1, "num_latents": 2}
    PerceiverTFForTranscription(PerceiverTFConfig(**small)).save_pretrained(w.folder / "hears")
    write_wav(w.folder / "a tone.wav", np.zeros(8000), 8000)
    return ("transcribe", w.folder / "a tone.wav", "--model", w.folder / "hears", "--out", out)


@case
def notes_into_a_recording(w: Workshop) -> Attempt:
    return Attempt(transcribing(w, w.folder / "a tone.wav"), "not the name of a MIDI file, give one, as in ")


@case
def notes_that_are_there(w: Workshop) -> Attempt:
    (w.folder / "a tone.mid").write_bytes(b"a score")
    return Attempt(transcribing(w, w.folder / "a tone.mid"), ", or replace it with ")


# Training


@case
def a_run_that_is_there(w: Workshop) -> Attempt:
    recipe = w.recipe()
    assert run_cli("train", recipe).code == 0
    return Attempt(("train", recipe), "holds a run already, go on with it with ")


@case
def a_cache_of_random_frames(w: Workshop) -> Attempt:
    return Attempt(("train", w.recipe(), "data.cache=true"), "takes new frames each time, set ")


@case
def half_precision_without_a_gpu(w: Workshop) -> Attempt:
    words = ("train", w.recipe(), "training.fp16=true", "training.use_cpu=true")
    return Attempt(words, "float16 needs a GPU, leave it out or set ")


@case
def a_warm_up_of_a_constant_rate(w: Workshop) -> Attempt:
    recipe = world_recipe(w.folder / "run", w.world)
    del recipe["training"]["max_steps"]
    recipe["training"]["lr_scheduler_type"] = "constant"
    recipe["stages"] = [{"steps": 4, "warmup_steps": 2}]
    return Attempt(("train", write_recipe(w.folder / "recipe.yaml", recipe)), "has no warm-up, set ")


@case
def a_best_model_that_is_damaged(w: Workshop) -> Attempt:
    recipe = world_recipe(w.folder / "run", w.world)
    recipe["training"] |= {"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}
    recipe["training"] |= {"load_best_model_at_end": True, "metric_for_best_model": "mixed_r1", "save_total_limit": 3}
    path = write_recipe(w.folder / "recipe.yaml", recipe)
    assert run_cli("train", path).code == 0
    (w.folder / "run" / "checkpoints" / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    return Attempt(("train", path, "--resume"), "to end with the last one: ")


@case
def eyes_of_other_sizes(w: Workshop) -> Attempt:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(w.folder / "vit")
    recipe = w.recipe(initialise={"vision": str(w.folder / "vit")})
    words = ("train", recipe, "model.num_channels=1", "model.hidden_size=16")
    return Attempt(words, "but the model needs ")


@case
def words_of_other_sizes(w: Workshop) -> Attempt:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 64}
    more = {"type_vocab_size": 3, "max_position_embeddings": 12}
    BertModel(BertConfig(**sizes, **more, vocab_size=40)).save_pretrained(forty_words(w.folder / "bert"))
    recipe = w.recipe(initialise={"text": str(w.folder / "bert")})
    return Attempt(("train", recipe, "model.type_vocab_size=2"), "but the model needs ")


@case
def a_run_that_may_have_stopped(w: Workshop) -> Attempt:
    run = w.folder / "run"
    assert run_cli("train", w.recipe()).code == 0
    (run / "metrics.json").unlink()
    for path in run.rglob("*"):
        os.utime(path, (time.time() - 6000,) * 2)
    return Attempt(("watch", "--once", run), "it may have stopped: go on with ", mends=False)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions") / "world"
    options = "--clips", 12, "--held-out", 4, "--size", 32, "--num-frames", 4
    assert run_cli("world", folder, "--tasks", "yesno,count", *options).code == 0
    return folder


def with_head(model: Path, folder: Path, **head: object) -> Path:
    config = PerceiverVLConfig.from_pretrained(model, **head)
    PerceiverVLForQuestionAnswering.from_pretrained(model, config=config).save_pretrained(folder)
    PerceiverVLProcessor.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workshop(
    world: Path, model: Path, index: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    folder = tmp_path_factory.mktemp("models")
    answering = with_head(model, folder / "answering", id2label={0: "yes", 1: "no"})
    counting = with_head(model, folder / "counting", num_labels=1, problem_type="regression")
    return Workshop(folder, world, questions, model, answering, counting, index)


def remedies(message: str, says: str) -> list[list[str]]:
    """The words that a message says to type, after the words `says`: whole commands, or what to add to the one typed.

    Where it gives a choice, each of it.
    """
    assert says in message, message
    rest = message.partition(says)[2]
    if commands := re.findall(r"perceiver-vl (?:(?! names them all| wrote|; )[^\n])+", rest):
        return [shlex.split(command) for command in commands]
    choices = [list(typed(shlex.split(choice))) for choice in re.split(r",? or |; ", rest)]
    return [words for words in choices if words]


def typed(words: list[str]) -> Iterator[str]:
    """Options with their values, and keys with theirs, of words among which there may be others."""
    for word, following in zip(words, [*words[1:], "and"], strict=True):
        if word.startswith("--"):
            yield word.rstrip(",)")
            if following != "and" and not re.match(rf"--|{KEY}", following):
                yield following.rstrip(",)")
        elif re.match(KEY, word):
            yield word.rstrip(",)")


def message_of(answer: Answer) -> str:
    """The line of an error, or all that a command said."""
    if answer.code == 0:
        return answer.out + answer.err
    assert "Traceback" not in answer.err
    assert answer.err.splitlines()[-1].startswith("error: "), answer.err
    return answer.err.splitlines()[-1]


def test_what_is_to_be_typed_is_found_in_a_message() -> None:
    assert remedies("no x; name it with --metadata 'a b.jsonl', or ignore it with --metadata none", "x; ") == [
        ["--metadata", "a b.jsonl"],
        ["--metadata", "none"],
    ]
    assert remedies("go on with --resume data.cache=false", "with ") == [["--resume", "data.cache=false"]]
    assert remedies("see perceiver-vl data list x", "see ") == [["perceiver-vl", "data", "list", "x"]]


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_to_type_works(name: str, workshop: Workshop, tmp_path: Path) -> None:
    choice, choices = 0, 1
    while choice < choices:
        torch.manual_seed(0)
        own = Workshop(**(vars(workshop) | {"folder": tmp_path / str(choice)}))
        own.folder.mkdir()
        attempt = CASES[name](own)
        words = tuple(map(str, attempt.words))
        answer = run_cli(*words)
        found = remedies(message_of(answer), attempt.says)
        assert found, f"nothing to type in: {message_of(answer)}"
        choices = max(choices, len(found))
        for _ in range(8):  # a second mistake may come to light when the first is mended
            pasted = found[min(choice, len(found) - 1)]
            filled = [str(attempt.fills.get(word, word)) for word in pasted]
            if filled[0] == "perceiver-vl":
                made = run_cli(*filled[1:])
                assert made.code == 0, f"{shlex.join(filled)}: {made.err}"
            else:
                words = (*words, *filled)
            if not attempt.mends:
                break
            answer = run_cli(*words)
            if answer.code == 0:
                break
            found = remedies(message_of(answer), attempt.says)
        assert answer.code == 0 or not attempt.mends, f"{shlex.join(words)}: {answer.err}"
        choice += 1


def test_an_index_that_is_interrupted_goes_on_as_is_said(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    index = shutil.copytree(workshop.index, tmp_path / "an index")
    with monkeypatch.context() as patch:
        patch.setattr("perceiver_vl.search.build_index", interrupted)
        answer = run_cli("index", "--out", index)
    assert answer.code == 130
    [[program, *words]] = remedies(answer.err.splitlines()[0], "what is encoded is kept, go on with ")
    assert program == "perceiver-vl"
    assert run_cli(*words).code == 0


# The guard

REMEDY = re.compile(r"(?<![\w-])--[a-z](?![a-z-]*$)|\s--[a-z]|perceiver-vl [a-z]")
ELSEWHERE = {
    "what is encoded is kept": "tests/e2e/test_remedies.py",
    "before the first step": "tests/training/test_signals.py",
    "which is saved, to go on": "tests/training/test_signals.py",
    "is whole, go on from it with": "tests/faults/test_kills.py",
    "no cluster there": "tests/search/test_ray_encoder.py",
    "all of them with --json": "tests/e2e/test_bad_input.py",
    "of frames at the encoder's size": "tests/e2e/test_encoder_commands.py",
    "Refuse a folder of features": "tests/training/test_encoder_training.py",
    "which this model has none of": "tests/training/test_encoder_training.py",
    "its multi-stream was never": "tests/e2e/test_encoder_commands.py",
    "its two encoders have never met": "tests/e2e/test_encoder_commands.py",
    "or a dual one (--vision and --text": "tests/models/perceiver_vl/test_encoders.py",
    "not a dual encoder in the form of": "tests/models/perceiver_vl/test_encoders.py",
    "its vector of a": "tests/models/perceiver_vl/test_encoders.py",
    "torch is imported instead": "tests/search/test_query_graph.py",
    "shows the best all the same": "tests/e2e/test_moment_commands.py",
    "unknown benchmark, ": "tests/data/test_validate.py",
    "asks pretrained encoders, and this model has no": "tests/training/test_encoder_training.py",
    "are asked for; ask for fewer": "tests/training/test_encoder_training.py",
    "What of a source's configuration must": "tests/models/perceiver_vl/test_warm_start.py",
    "not a name of this service": "tests/serve/test_guard.py",
    "a link that leads out of its folder": "tests/serve/test_library.py",
    "a stretch is cut elsewhere each time": "tests/training/test_moments_training.py",
    "of the path between two models, say how": "tests/e2e/test_merge_command.py",
    "of the clips that are scored are there, too": "tests/e2e/test_caption_command.py",
    "this model has none, name the language model": "tests/e2e/test_language_bridge_commands.py",
    "what is between two models is scored on": "tests/e2e/test_merge_command.py",
}
"""Messages of what ends a command from outside, takes a cluster, encoders or a service: the tests that meet them."""


PARTS = {
    "how_to_make": "search_of_no_index",
    "remedy": "search_of_a_damaged_index",
    "_task_option": "a_budget_of_a_model_for_questions",
    "set_to": "eyes_of_other_sizes",
}
"""Functions that give a part of messages: the cases that type it."""


def messages() -> Iterator[tuple[str, str]]:
    """Where the sources say what to type, and all that is said in that block."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and REMEDY.search(node.value)
            is_setting = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Setting"
            if not (is_text or is_setting):
                continue
            line, block, shown = node.lineno, node, True  # type: ignore[attr-defined]
            while block in parents and not isinstance(getattr(block, "body", None), list):
                is_help = isinstance(block, ast.Call) and "typer" in ast.unparse(block.func)
                shown = shown and not is_help and not isinstance(block, ast.arguments | ast.AnnAssign)
                shown = shown and not (isinstance(block, ast.Expr) and isinstance(block.value, ast.Constant))
                block = parents[block]
            while isinstance(block, ast.FunctionDef) and isinstance(parents[block], ast.FunctionDef):
                block = parents[block]
            if shown and not isinstance(block, ast.Module) and getattr(block, "name", "") not in PARTS:
                parts = (one.value for one in ast.walk(block) if isinstance(one, ast.Constant))
                yield f"{path.relative_to(ROOT)}:{line}", " ".join(part for part in parts if isinstance(part, str))


def said_in_cases() -> set[str]:
    """The words by which the cases above know their messages."""
    calls = [
        node for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    attempts = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Attempt"]
    return {ast.literal_eval(attempt.args[1]) for attempt in attempts}


def test_no_message_says_what_no_case_types() -> None:
    found = list(messages())
    assert len(found) > 30
    said = said_in_cases()
    assert set(PARTS.values()) <= CASES.keys()
    untested = [where for where, text in found if not any(one in text for one in (*said, *ELSEWHERE))]
    assert not untested, "say it in a case above"
    for words, test in ELSEWHERE.items():
        assert any(words in text for _, text in found), f"{words}: nobody says this any more"
        assert (ROOT / test).is_file()


def test_what_is_to_be_installed_can_be() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"perceiver-vl\[(\w+)\]", text)) | set(
            re.findall(r'require_extra\(\w+, "(\w+)"\)', text)
        )
        named |= set(re.findall(r'require_extra\("\w+", "(\w+)"\)', text))
    assert named >= {"train", "report", "export", "cluster", "heic"}
    assert named <= extras.keys()
