"""The pages are true: every `bash` and `python` block in the README and docs runs, top to bottom, in a folder that has
what the pages speak of: `my-videos`, `my-photos`, models in `runs`, the recipes, and weights of others in small.

Training is shortened: to each `perceiver-vl train` the overrides of `SHORT` are added.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from perceiver_vl.cli import main
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.models.perceiver_vl.convert import convert
from perceiver_vl.training import train
from perceiver_vl.training.recipe import read_recipe
from released_checkpoint import forty_words, released_state, save
from small_encoders import save_dual, save_text, save_vision
from small_language_models import save_language_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY_MODEL = ["model.hidden_size=32", "model.num_blocks=3", "model.num_latents=8", "model.num_text_latents=4"]
SHORT = [*TINY_MODEL, "training.max_steps=2", "training.eval_steps=1", "training.save_steps=1"]
SHORT += ["training.per_device_train_batch_size=2", "training.use_cpu=true", "training.report_to=none"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    write_world(folder / "my-videos", clips=12, held_out=3, captions_per_clip=2)
    for name, clip in zip(("a.mp4", "b.mp4"), sorted((folder / "my-videos" / "clips").rglob("*.mp4")), strict=False):
        shutil.copy(clip, folder / "my-videos" / name)
    photos = folder / "my-photos"
    photos.mkdir()
    lines = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(256, size=(48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
        lines.append(json.dumps({"file": f"{number}.png", "captions": ["noise"], "split": "val"}))
    (photos / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    save(folder / "authors.ckpt", released_state())
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 128}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder / "my-vit")
    BertModel(BertConfig(**sizes, vocab_size=40)).save_pretrained(forty_words(folder / "my-bert"))
    save_dual(folder / "my-clip", "clip")
    save_vision(folder / "my-seeing-encoder", "vit")
    save_text(folder / "my-sentence-encoder")
    save_language_model(folder / "my-language-model", positions=128)
    overrides = [f"output={folder / 'runs' / 'world'}", "data.train.world.clips=16", "data.validation.world.clips=4"]
    train(read_recipe(ROOT / "recipes" / "world.yaml", [*overrides, *SHORT]), progress=False)
    answers = released_state(hidden_size=32, depth=3, answers=5)
    heads = {name: value for name, value in answers.items() if not name.startswith(("matching", "mlm_score"))}
    convert(
        save(folder / "vqa.ckpt", heads),
        folder / "runs" / "answers",
        tokenizer=str(folder / "my-bert"),
        num_attention_heads=4,
    )
    return folder


def commands(block: str) -> list[list[str]]:
    """The lines of a bash block, continued lines joined, as words."""
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@contextlib.contextmanager
def serving() -> Iterator[Callable[[list[str]], None]]:
    """Starts a service that a page speaks of, and ends it with the page."""
    processes: list[subprocess.Popen[str]] = []

    def start(words: list[str]) -> None:
        program = Path(sys.executable).with_name("perceiver-vl")
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([program, *words[1:]], stdout=subprocess.PIPE, stderr=quiet, text=True)
        processes.append(process)
        assert process.stdout is not None
        wait_until_ready(process.stdout.readline().strip())

    try:
        yield start
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


def wait_until_ready(address: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), urlopen(f"{address}health/ready"):
            return
        time.sleep(0.2)
    pytest.fail(f"{address} never answered")


def shortened(words: list[str]) -> list[str]:
    if words[1] == "train" and {"recipes/encoders_questions.yaml", "recipes/encoders_counting.yaml"} & set(words):
        return [
            *words,
            "stages.0.steps=1",
            "stages.1.steps=1",
            "stages.1.warmup_steps=0",
            "training.warmup_steps=0",
            *SHORT[len(TINY_MODEL) + 1 :],
        ]
    if words[1] == "train" and "recipes/bridge_captions.yaml" in words:
        return [*words, "stages.0.steps=1", "training.warmup_steps=0", *SHORT[len(TINY_MODEL) + 1 :]]
    if words[1] == "train" and any(word.startswith("recipes/encoders") for word in words):
        return [*words, *SHORT[len(TINY_MODEL) :]]
    if words[1] == "train":
        return [*words, *SHORT]
    if words[1] == "world":
        return [word if word != "2000" else "24" for word in words]
    return words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks, f"{page.name} shows nothing to run"
    monkeypatch.chdir(workplace)
    torch.manual_seed(0)
    with serving() as serve:
        for language, block in blocks:
            if language == "python":
                exec(compile(block, str(page), "exec"), {})
                continue
            for words in commands(block):
                assert words[0] == "perceiver-vl"
                if words[1] == "serve":
                    serve(words)
                    continue
                monkeypatch.setattr("sys.argv", shortened(words))
                with pytest.raises(SystemExit) as stop:
                    main()
                assert stop.value.code == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_the_readme_types_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    typed = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert typed == ["demo", "test"]
    for target in [*typed, "check", "bench"]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
