"""The nine recipes of the paper's data sets run end to end on official files: assembled, trained, scored, submitted.

    python scripts/nine_recipes.py --data ../shared/data

DATA holds the first records of the official annotation files (`official_formats`) and small sets of real media. Of each
benchmark a folder is assembled in the official layout. A split that is not there takes the rows of another one, and
media that are not there are clips of the generated world by the names that the annotations give: the table says what
was real. A tiny model is pre-trained for two steps by `pretrain.yaml`; each recipe takes two from there; `evaluate`
scores the result by the official metric and writes the submission file. Two steps teach nothing: the figures say that
the files go through, not how good a model is.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from perceiver_vl.data.datasets.file_index import MISSING
from perceiver_vl.data.datasets.read import read_splits
from perceiver_vl.data.datasets.table import BENCHMARKS
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.writing import write_frames
from perceiver_vl.media.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from perceiver_vl.utils.console import ProgressBars, out
from perceiver_vl.utils.files import write_text

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STAND_INS = "stand-ins"
SHORT = [
    *("training.max_steps=2", "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=1"),
    *("training.use_cpu=true", "training.report_to=none", "training.save_strategy=no"),
]
TINY = [
    *("model.hidden_size=32", "model.num_attention_heads=4", "model.self_attentions_per_block=1"),
    *("model.num_latents=8", "model.num_text_latents=4", "model.image_size=64", "model.patch_size=16"),
    *("tokenizer.name=null", "tokenizer.vocab_size=1000", "training.bf16=false", "training.dataloader_num_workers=0"),
]
WORLD = World(clips=1000, size=64)


@dataclass(frozen=True)
class Case:
    """A benchmark and what of it there is.

    files: the annotation files, each from one of `official_formats`. media: folders of real media. invents: writes
    annotations that there are none of. borrowed: in words, which annotations are not their own. scored: the split.
    submitted: the split whose predictions are written; None: the task has no submission file.
    """

    benchmark: str
    files: Mapping[str, str]
    media: tuple[str, ...] = ()
    borrowed: str = ""
    task: str = "retrieval"
    scored: str = "test"
    submitted: str | None = None
    invents: Callable[[Path], None] | None = None


def _train_list(folder: Path) -> None:
    """1k-A's training list, of the training clips that the sample has captions of."""
    videos = json.loads((folder / "MSRVTT_data.json").read_text(encoding="utf-8"))["videos"]
    names = [video["video_id"] for video in videos if video["split"] == "train"]
    write_text(folder / "MSRVTT_train.9k.csv", "\n".join(["video_id", *names]) + "\n")


def _films(folder: Path) -> None:
    """LSMDC's two tables, about clips of the world."""
    for name, places in (("annos_training", range(20)), ("challenge_1000_publictect", range(20, 30))):
        rows = []
        for place in places:
            times = [f"00.00.{place:02d}.000", f"00.00.{place:02d}.900"]
            clip = f"0000_The_World_{times[0]}-{times[1]}"
            rows.append("\t".join([clip, *times, *times, WORLD.captions(place)[0]]))
        write_text(folder / f"LSMDC16_{name}.csv", "\n".join(rows) + "\n")


_VQA_QUESTIONS = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
_VQA_ANNOTATIONS = "vqav2/v2_mscoco_train2014_annotations.json"
SOURCES = {
    "conceptual-captions": Case(
        "conceptual-captions",
        {"Train_GCC-training.tsv": "conceptual_captions/Validation_GCC-1.1.0-Validation.tsv"},
        borrowed="train: rows of validation",
    ),
    "webvid": Case(
        "webvid", {"results_2M_train.csv": "webvid/results_2M_val.csv"}, borrowed="train: rows of validation"
    ),
}
CASES = {
    "msrvtt": Case(
        "msrvtt-1ka",
        {name: f"msrvtt/{name}" for name in ("MSRVTT_JSFUSION_test.csv", "MSRVTT_data.json")},
        ("msrvtt_keyframes/videos", "msrvtt_full_motion/videos"),
        "train: list made of MSRVTT_data.json",
        invents=_train_list,
    ),
    "lsmdc": Case("lsmdc", {}, (), "all made up in its format", invents=_films),
    "didemo": Case(
        "didemo",
        {"train_data.json": "didemo/val_data.json", "test_data.json": "didemo/test_data.json"},
        borrowed="train: rows of validation",
    ),
    "activitynet": Case(
        "activitynet-captions",
        {name: f"activitynet_captions/{name}" for name in ("train.json", "val_1.json")},
        scored="validation",
    ),
    "flickr30k": Case(
        "flickr30k",
        {"dataset_flickr30k.json": "flickr_karpathy/dataset_flickr8k.json"},
        ("flickr8k/images",),
        "all: Flickr8k in the same layout",
    ),
    "tgif_qa": Case(
        "tgif-qa-frame",
        {f"{part}_frameqa_question.csv": "tgif_qa/Test_frameqa_question.csv" for part in ("Train", "Test")},
        borrowed="train: rows of test",
        task="question-answering",
        submitted="test",
    ),
    "msrvtt_qa": Case(
        "msrvtt-qa",
        {"train.csv": "msrvtt_qa/val.csv", "test.csv": "msrvtt_qa/test.csv"},
        ("msrvtt_keyframes/videos", "msrvtt_full_motion/videos"),
        "train: rows of validation",
        task="question-answering",
        submitted="test",
    ),
    "vqav2": Case(
        "vqav2",
        {
            **{f"v2_OpenEnded_mscoco_{part}_questions.json": _VQA_QUESTIONS for part in ("train2014", "val2014")},
            **{f"v2_mscoco_{part}_annotations.json": _VQA_ANNOTATIONS for part in ("train2014", "val2014")},
            "v2_OpenEnded_mscoco_test2015_questions.json": _VQA_QUESTIONS,
        },
        ("vqa_mini/images",),
        "validation, test: rows of train",
        task="vqa",
        scored="validation",
        submitted="test",
    ),
    "nlvr2": Case(
        "nlvr2",
        {"train.json": "nlvr2/dev.json", "test1.json": "nlvr2/test1.json"},
        ("nlvr2_mini/images",),
        "train: rows of validation",
        task="nlvr2",
        submitted="test",
    ),
}


@dataclass
class Outcome:
    """What one recipe did: on how many media of each kind, the metrics, and the lines of its submission file."""

    recipe: str
    benchmark: str
    borrowed: str
    trained: int
    scored: int
    real_media: int
    stand_in_media: int
    metrics: dict[str, float] = field(default_factory=dict)
    submitted: int | None = None
    seconds: float = 0.0


def command(*words: object) -> Any:
    """What `perceiver-vl WORDS… --json` prints."""
    typed = [sys.executable, "-m", "perceiver_vl", *map(str, words), "--json"]
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"perceiver-vl {' '.join(map(str, words))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def assemble(case: Case, data: Path, folder: Path) -> tuple[int, int]:
    """Make the folder of a benchmark; → how many different media of its records are real, and how many are not."""
    folder.mkdir(parents=True)
    for name, sample in case.files.items():
        shutil.copy(data / "official_formats" / sample, folder / name)
    for name in case.media:
        (folder / name.replace("/", "-")).symlink_to(data.resolve() / name)
    if case.invents:
        case.invents(folder)
    kind = BENCHMARKS[case.benchmark].kind
    for part in read_splits(case.benchmark, folder).values():
        for problem in part.skipped:
            if problem.reason == MISSING:
                _stand_in(folder / STAND_INS, problem.file_name, kind)
    records = [record for part in read_splits(case.benchmark, folder).values() for record in part.records]
    named = {name for record in records for name in (record.file_name, record.second_file_name) if name is not None}
    made = sum(name.startswith(f"{STAND_INS}/") for name in named)
    return len(named) - made, made


def _stand_in(folder: Path, name: str, kind: str) -> None:
    """A clip or picture of the world, another one for each name."""
    known = VIDEO_EXTENSIONS if kind == "video" else IMAGE_EXTENSIONS
    path = folder / (name if Path(name).suffix.lower() in known else f"{name}.{'mp4' if kind == 'video' else 'jpg'}")
    frames = WORLD.frames(sum(name.encode()) % len(WORLD))
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "video":
        write_frames(path, frames)
    else:
        Image.fromarray(frames[len(frames) // 2]).save(path)


def pretrain(data: Path, work: Path) -> list[Outcome]:
    """Two steps of a tiny model by our recipe on both sources; its masked words and matches on each."""
    outcomes = []
    sources = []
    for place, (name, case) in enumerate(SOURCES.items()):
        real, made = assemble(case, data, work / name)
        sources.append(f"data.train.{place}.folder={work / name}")
        outcomes.append(Outcome("pretrain", case.benchmark, case.borrowed, 0, 0, real, made))
    model, start = work / "pretrained", time.perf_counter()
    command("train", RECIPES / "pretrain.yaml", f"output={model}", *sources, *TINY, *SHORT)
    for outcome in outcomes:
        where = "--data", work / outcome.benchmark, "--benchmark", outcome.benchmark, "--split", "train"
        found = command("evaluate", "--model", model, "--task", "pre-training", *where)
        outcome.trained = outcome.scored = found["clips"]
        outcome.metrics = found["metrics"]
        outcome.seconds, start = time.perf_counter() - start, time.perf_counter()
    return outcomes


def fine_tune(name: str, data: Path, work: Path) -> Outcome:
    """Two steps by a recipe, its metrics, and its submission file."""
    case, folder, model = CASES[name], work / name, work / f"{name}-model"
    start = time.perf_counter()
    real, made = assemble(case, data, folder)
    folders = [f"data.train.folder={folder}", f"data.validation.folder={folder}"]
    begun = f"initialise.model={work / 'pretrained'}", f"output={model}"
    command("train", RECIPES / f"{name}.yaml", *begun, *folders, *SHORT)
    where = "--model", model, "--task", case.task, "--data", folder, "--benchmark", case.benchmark, "--split"
    streams = ("--streams", "mixed") if case.task == "retrieval" else ()
    found = command("evaluate", *where, case.scored, *streams)
    rows = {split: part.records for split, part in read_splits(case.benchmark, folder).items()}
    outcome = Outcome(name, case.benchmark, case.borrowed, len(rows["train"]), len(rows[case.scored]), real, made)
    outcome.metrics = found["metrics"] if case.task != "retrieval" else _recalls(found)
    if case.submitted is not None:
        file = work / f"{name}-submission"
        command("evaluate", *where, case.submitted, "--submission", file)
        outcome.submitted = _lines(file)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _recalls(found: dict[str, Any]) -> dict[str, float]:
    recall = found["streams"][0]["text_to_video"]
    return {"R@1": recall["r1"], "median rank": recall["median_rank"]}


def _lines(file: Path) -> int:
    text = file.read_text(encoding="utf-8")
    return len(json.loads(text)) if text.startswith("[") else len(list(csv.reader(text.splitlines())))


def print_table(outcomes: list[Outcome]) -> None:
    """A row for each recipe, of pre-training for each source."""
    table = Table("recipe", "benchmark", "annotations not their own", pad_edge=False)
    for column in ("trained", "scored", "real media", "stand-ins"):
        table.add_column(column, justify="right")
    for column in ("metrics", "submission", "s"):
        table.add_column(column)
    for one in outcomes:
        counts = one.trained, one.scored, one.real_media, one.stand_in_media
        metrics = ", ".join(f"{name} {value:.1f}" for name, value in one.metrics.items())
        submitted = "" if one.submitted is None else f"{one.submitted} rows"
        table.add_row(
            *(one.recipe, one.benchmark, one.borrowed), *map(str, counts), metrics, submitted, f"{one.seconds:.0f}"
        )
    out.print(table, soft_wrap=False)


def main() -> None:
    """Run all, or those that are named, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--data", type=Path, required=True, help="folder with official_formats and the sets of media")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    chosen = parser.parse_args()
    if unknown := set(chosen.recipes) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: unknown, choose from {', '.join(CASES)}")
    if not (chosen.data / "official_formats").is_dir():
        parser.error(f"{chosen.data}: no folder official_formats in it")
    names = chosen.recipes or list(CASES)
    with tempfile.TemporaryDirectory() as folder, ProgressBars(True) as bar:
        advance = bar.stage("Recipes", len(names) + 1)
        outcomes = pretrain(chosen.data, Path(folder))
        for name in names:
            advance(note=name)
            outcomes.append(fine_tune(name, chosen.data, Path(folder)))
        advance()
    if chosen.json:
        print(json.dumps([asdict(one) for one in outcomes], indent=2))
    else:
        print_table(outcomes)


if __name__ == "__main__":
    main()
