"""What a frozen language model says of clips that it is shown through one linear layer (eP-ALM, Shukor et al. 2023),
beside a captioner over the same Perceiver-VL whose every weight learns for as many operations, and beside itself
unseeing.

Clips and captions are the generated world's. The language model is a small GPT-2 that has read the training captions
alone. What was trained is kept in a folder, by the hash of all that it depends on, and not trained again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from perceiver_vl.bench.learning.runs import Run, RunResult, Test, digest, is_done, make_run, read_run
from perceiver_vl.bench.siblings.training import train
from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.tasks import open_world
from perceiver_vl.models.folder import check_model_folder
from perceiver_vl.models.language_bridge.flops import bridge_flops
from perceiver_vl.models.perceiver_vl.caption_words import caption_inputs, ends_of, tidied
from perceiver_vl.models.perceiver_vl.captioning import caption_loss
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.flops import caption_flops
from perceiver_vl.models.perceiver_vl.tokenizer import read_tokenizer, train_tokenizer
from perceiver_vl.tasks.captioning import Captioning
from perceiver_vl.tasks.example_task import Scored
from perceiver_vl.training.recipe import DataSource, WorldSplit, read_recipe
from perceiver_vl.utils.console import ProgressBars, quiet
from perceiver_vl.utils.errors import UsageError

BATCH = 64
POSITIONS = 128
UNSEEING, FREQUENT, CAPTIONER = "unseeing", "most frequent", "captioner"
BRIDGES: dict[str, dict[str, Any]] = {
    "soft tokens": {},
    "one soft token": {"bridge_tokens": 1},
    "late layers": {"bridge_blocks": [0, 1, 2], "bridge_layers": [-3, -2, -1], "bridge_tokens": 4},
}
"""How latents are shown: all of the last block; their mean; of each block four means, in a layer each (eP-ALM)."""
METRICS = ("cider_d", "colour", "shape", "motion", "all_attributes")
_UNWATCHED = ["data.validation=null", "training.eval_strategy=no", "training.save_strategy=steps"]
_UNWATCHED += ["training.load_best_model_at_end=false", "training.metric_for_best_model=null"]


@dataclass(frozen=True)
class Told:
    """Who tells what is in the clips: how many weights learned of how many, in how many steps and processor seconds
    (None: nothing did); metrics of the test captions, in per cent.
    """

    who: str
    metrics: dict[str, float]
    learning: int | None = None
    parameters: int | None = None
    steps: int | None = None
    processor_seconds: float | None = None


@dataclass(frozen=True)
class LanguageBridgeReport(BenchReport):
    """What each of them came to; says: what the unseeing language model says of every clip."""

    told: list[Told]
    tested: int
    clips: int
    says: str
    folder: str

    def sections(self) -> list[Section]:
        """A row for each."""
        rows = [
            (
                one.who,
                *(f"{one.metrics[name]:.1f}" for name in METRICS),
                "–" if one.learning is None else f"{100 * one.learning / (one.parameters or 1):.2f}",
                or_dash(one.steps, "d"),
                or_dash(one.processor_seconds, ".0f"),
            )
            for one in self.told
        ]
        columns = ("words by", "CIDEr-D", "colours", "shapes", "motions", "all", "% learn", "steps", "s")
        notes = (
            f"{self.tested} test clips, {self.clips} to train on, {BATCH} a step; colours, …: % of clips whose are all "
            "named rightly.",
            "Steps: the captioner's are as many operations as those of the first. s: of processor time, all threads.",
            *(f"{one.who}: {one.learning:,} of {one.parameters:,} weights learn." for one in self.told if one.learning),
            f"Unseeing it says: {self.says}",
        )
        return [Section("what is said of clips, greedy", columns, rows, notes)]


def measure_language_bridge(
    out: str | Path,
    *,
    clips: int = 3000,
    tested: int = 200,
    size: int = 64,
    frames: int = 8,
    retrieval_steps: int = 300,
    language_steps: int = 300,
    steps: int = 300,
    width: int = 128,
    model: str | Path | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    progress: bool = False,
) -> LanguageBridgeReport:
    """Train a language model of this width on captions, and a Perceiver-VL to search, or take `model`; then each bridge
    between them (`only`: of `BRIDGES`) for `steps` steps, and a captioner for as many operations as the first of these.
    Everything is kept in `out`. Raises `UsageError` for a `model` or a bridge that is none.
    """
    folder = Path(out)
    for one in only:
        if one not in BRIDGES:
            raise UsageError(f"only={one}: unknown, choose from {', '.join(BRIDGES)}")
    data = [f"data.train={{split: train, world: {{clips: {clips}, seed: {seed}, size: {size}}}}}"]
    data += [f"data.num_frames={frames}", f"training.per_device_train_batch_size={BATCH}", f"training.seed={seed}"]
    data += _UNWATCHED
    test = Test("test", DataSource(split="test", world=WorldSplit(tested, seed, size)), frames)
    start, begin = None, f"initialise.model={model or 'null'}"
    if model is None:
        small = [f"model.image_size={size}", f"model.patch_size={size // 8}", *_length(retrieval_steps)]
        start = Run("searches", read_recipe("world", [*data, *small]))
    else:
        check_model_folder(model)
    known = _records(DataSource(split="train", world=WorldSplit(clips, seed, size)), frames)
    asked = _records(test.split, frames)
    language = folder / f"language-{digest([clips, seed, size, frames, language_steps, width])}"
    with ProgressBars(progress) as stages:
        if not (language / "config.json").is_file():
            _read_captions(language, known, language_steps, width, seed, stages.stage("reads", language_steps))
        says = _unseeing(language)
        shown = [*data, begin, f"initialise.language_model={language}", f"training.warmup_steps={_warm(steps)}"]
        shown += [f"stages=[{{steps: {steps}, train: [bridge]}}]", f"training.save_steps={_saves(steps)}"]
        runs = {
            who: Run(who, read_recipe("bridge_captions", [*shown, f"model={fields}"]), start=start, tests=(test,))
            for who, fields in BRIDGES.items()
            if who in (only or BRIDGES)
        }
        advance = stages.stage("learns", len(runs) + 1 + (start is not None))

        def make(run: Run) -> RunResult:
            if not is_done(run, folder):
                make_run(run, folder, torch.get_num_threads())
            advance(note=run.name)
            return read_run(run, folder)

        if start is not None:
            make(start)
        found = {who: make(run) for who, run in runs.items()}
        bridge = PerceiverVLConfig.from_pretrained(next(iter(runs.values())).folder(folder) / "model")
        own = PerceiverVLConfig.from_pretrained(start.folder(folder) / "model" if start else model)
        count = max(1, round(steps * _steps_for_one(bridge, own, frames)))
        plain = ["model={caption_prefix: latents, caption_layers: 2, caption_cross_attentions: 2}", *_length(count)]
        runs[CAPTIONER] = Run(
            CAPTIONER, read_recipe("world_captions", [*data, begin, *plain]), start=start, tests=(test,)
        )
        found[CAPTIONER] = make(runs[CAPTIONER])
    told = []
    for who, result in found.items():
        metrics = {name: float(result.figure(test, name) or 0.0) for name in METRICS}
        learning = _learning(runs[who].folder(folder) / "model" / "model.safetensors", who in BRIDGES)
        told.append(Told(who, metrics, learning, result.parameters, result.steps, result.processor_seconds))
    task = Captioning()
    for who, one in ((UNSEEING, says), (FREQUENT, task.most_frequent(known))):
        scores = task.metrics_of([Scored(record, one, {}) for record in asked])
        told.append(Told(who, {name: scores[name] for name in METRICS}))
    return LanguageBridgeReport(told, tested, clips, says, str(folder), runs=1, seed=seed)


def _warm(steps: int) -> int:
    return min(30, steps // 5)


def _saves(steps: int) -> int:
    return max(1, steps // 4)


def _length(steps: int) -> list[str]:
    how = {"max_steps": steps, "warmup_steps": _warm(steps), "save_steps": _saves(steps)}
    return [f"training.{name}={value}" for name, value in how.items()]


def _records(split: DataSource, frames: int) -> list[Record]:
    """All that is said of the clips of a split, which none are rendered for."""
    assert split.world is not None
    how = split.world
    world = open_world("captions", split.split or "train", how.clips, how.seed, frames, how.size)
    return [world.record(place) for place in range(len(world))]


def _read_captions(
    folder: Path, records: Sequence[Record], steps: int, width: int, seed: int, advance: Callable[..., object]
) -> None:
    """A small GPT-2 that learns to go on with captions, into a folder with its tokenizer."""
    texts = [text for record in records for text in record.texts]
    tokenizer = train_tokenizer(texts, max_length=POSITIONS)
    torch.manual_seed(seed)
    ends = ends_of(tokenizer) | {"pad_token_id": tokenizer.pad_token_id}
    sizes = {"n_positions": POSITIONS, "n_embd": width, "n_layer": 4, "n_head": 4}
    undropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **undropped, **ends))

    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        some = [texts[place] for place in torch.randint(len(texts), (BATCH,), generator=draw).tolist()]
        words = caption_inputs(tokenizer, [""] * BATCH, some)
        labels = words.pop("labels")
        return caption_loss(model(**words).logits[:, :-1][labels[:, 1:] != -100], labels)

    train(model, loss_of, steps, learning_rate=2e-3, advance=advance)
    with quiet():
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


@torch.inference_mode()
def _unseeing(folder: Path) -> str:
    """What the language model says by itself, the likeliest word each time."""
    with quiet():
        model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), read_tokenizer(folder)
        begin = torch.tensor([[ends_of(tokenizer)["bos_token_id"]]])
        words = model.generate(begin, attention_mask=torch.ones_like(begin), do_sample=False, max_new_tokens=40)
    return tidied(tokenizer.decode(words[0], skip_special_tokens=True))


def _steps_for_one(bridge: PerceiverVLConfig, own: PerceiverVLConfig, frames: int, words: int = 24) -> float:
    """How many steps of the captioner, all of whose weights have a gradient, one step of the bridge is worth: only
    the language model is gone through backwards, and its weights have none.
    """
    seeing, language = bridge_flops(bridge, frames, words)
    captioner = PerceiverVLConfig.from_dict(own.to_dict() | {"caption_layers": 2, "caption_cross_attentions": 2})
    return (seeing + 2 * language) / (3 * caption_flops(captioner, frames, words))


def _learning(weights: Path, is_bridge: bool) -> int:
    """How many of the weights of a file have learned: all, or those between the two models."""
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not is_bridge or name.startswith(("bridge.", "soft_tokens"))]  # noqa: SIM118
        return sum(prod(file.get_slice(name).get_shape()) for name in names)
