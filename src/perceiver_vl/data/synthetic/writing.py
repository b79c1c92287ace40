"""The generated world on disk: video and picture files with their metadata, a folder for each task."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

from perceiver_vl.data.metadata import record_to_row
from perceiver_vl.data.records import Record
from perceiver_vl.data.synthetic.collection import GENERATOR_VERSION, World
from perceiver_vl.data.synthetic.official import official_annotations, official_media, official_splits
from perceiver_vl.data.synthetic.scene import SPLITS
from perceiver_vl.data.synthetic.tasks import (
    LONG_FRAMES_PER_SECOND,
    TASKS,
    AnyWorld,
    LongWorld,
    PairWorld,
    QuestionWorld,
    open_world,
    splits_of,
)
from perceiver_vl.media.sampling import Frames
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.files import write_json, write_text, write_with
from perceiver_vl.utils.jsonl import write_lines

FRAMES_PER_SECOND = 8
LAYOUTS = ("folder", "official")
TASKS_VERSION = 3
"""As `GENERATOR_VERSION`, of all tasks but captions."""
_OF_ONE_FRAME = ("image", "pairs")


def version_of(task: str) -> int:
    """The version of what is drawn for a task: another one draws other clips."""
    return GENERATOR_VERSION if task == "captions" else TASKS_VERSION


def write_world(
    out: Path,
    clips: int = 2000,
    seed: int = 0,
    num_frames: int | None = None,
    size: int = 64,
    held_out: int | None = None,
    captions_per_clip: int = 5,
    singles: float = 0.25,
    progress: bool = False,
    *,
    tasks: Sequence[str] = ("captions",),
    layout: str = "folder",
    seconds: float | None = None,
) -> dict[str, int]:
    """Write a world of `clips` clips for each of `TASKS` asked for; return how many examples each split has in all.

    Of one task `out` itself is the data set, of several `out/<task>`. Validation and test get `held_out` clips each
    (an eighth of all, at most 256, unless given), training the rest; the splits of generalisation, which tasks other
    than captions have, come on top with as many. A clip has `num_frames` frames at 8 a second (unless given, 8 with
    captions, 16 with questions), a long one lasts `seconds` (60) at 2 a second.

    layout: `folder` gives `clips/<split>/000000.mp4` (`pictures/….png`), beside them a `metadata.jsonl` with a line for
    each, from which `datasets` loads them; the same for all splits in one, with the truth (`scene`); and `world.json`,
    the arguments. `official` gives the benchmarks' own annotation files, and the splits that these have, as
    `synthetic.official` says.

    The same arguments give the same bytes. Called again after an interruption it writes what is missing; annotations
    come last, so a folder that has them is complete.

    Raises:
        UsageError: a value that cannot work, or a folder that holds something else.
    """
    held_out = _check(clips, size, held_out, num_frames, tasks, layout, seconds)
    worlds: dict[str, list[AnyWorld]] = {}
    for task in tasks:
        splits = splits_of(task) if layout == "folder" else official_splits(task)
        counts = dict.fromkeys(splits, held_out) | {"train": clips - 2 * held_out}
        for split, count in counts.items():
            frames = None if task == "long" else num_frames
            world = open_world(task, split, count, seed, frames, size, seconds, captions_per_clip, singles)
            worlds.setdefault(task, []).append(world)
            world.record(count - 1)  # too few descriptions shall show before anything is written
    folders = {task: out if len(tasks) == 1 else out / task for task in tasks}
    for task in tasks:
        _claim(folders[task], _arguments(task, worlds[task], layout))
    with ProgressBars(progress) as bar:
        for task in tasks:
            advance = bar.stage(f"Writing {task}", sum(map(len, worlds[task])))
            write = _write_folder if layout == "folder" else _write_official
            write(folders[task], task, worlds[task], advance)
    totals = Counter[str]()
    for world in itertools.chain(*worlds.values()):
        totals[world.split] += len(world)
    return dict(totals)


def _check(
    clips: int,
    size: int,
    held_out: int | None,
    num_frames: int | None,
    tasks: Sequence[str],
    layout: str,
    seconds: float | None,
) -> int:
    """The number of held-out clips; raises `UsageError` for values that no world can have."""
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UsageError(f"tasks={unknown[0]}: choose from {', '.join(TASKS)}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UsageError(f"tasks={','.join(tasks)}: name each task once, from {', '.join(TASKS)}")
    if layout not in LAYOUTS:
        raise UsageError(f"layout={layout}: choose {' or '.join(LAYOUTS)}")
    if seconds is not None and "long" not in tasks:
        raise UsageError(f"seconds={seconds:g}: only long clips have a length, add long to tasks")
    if num_frames is not None and set(tasks) <= {*_OF_ONE_FRAME, "long"}:
        raise UsageError(f"num_frames={num_frames}: {', '.join(tasks)} have no short clips, leave it out")
    if clips < len(SPLITS):
        raise UsageError(f"clips={clips}: need at least {len(SPLITS)}, one for each split")
    if size % 2:
        raise UsageError(f"size={size}: video needs an even number of pixels, take {size + 1}")
    held_out = max(1, min(256, clips // 8)) if held_out is None else held_out
    if not 1 <= held_out <= (clips - 1) // 2:
        raise UsageError(f"held_out={held_out}: choose 1 to {(clips - 1) // 2}, so that {clips} clips fill every split")
    return held_out


def _arguments(task: str, worlds: Sequence[AnyWorld], layout: str) -> dict[str, Any]:
    """What decides the bytes of a task's folder, for its `world.json`."""
    first = worlds[0]
    arguments: dict[str, Any] = {
        "generator_version": version_of(task),
        "seed": first.seed,
        "splits": {world.split: len(world) for world in worlds},
    }
    if isinstance(first, World) or (isinstance(first, QuestionWorld) and task not in _OF_ONE_FRAME):
        arguments["num_frames"] = first.num_frames
    arguments["size"] = first.size
    if isinstance(first, World):
        arguments |= {"captions_per_clip": first.captions_per_clip, "singles": first.singles}
    else:
        arguments["task"] = task
    if isinstance(first, LongWorld):
        arguments["seconds"] = first.seconds
    return arguments if layout == "folder" else arguments | {"layout": layout}


def _claim(out: Path, arguments: dict[str, Any]) -> None:
    """Make `out` a folder for the world of these arguments, or make sure that it is one."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; name a folder to write the world into")
    manifest = out / "world.json"
    if not out.exists() or not any(out.iterdir()):
        write_json(manifest, arguments)
    elif not manifest.exists():
        raise UsageError(f"{out}: holds files that are not a generated world; name a new or empty folder")
    elif manifest.read_text(encoding="utf-8") != json.dumps(arguments, indent=2, ensure_ascii=False) + "\n":
        version, now = _version_of(manifest), arguments["generator_version"]
        if version != now:
            raise UsageError(f"{out}: holds a world of generator_version {version}, this is {now}; name another folder")
        raise UsageError(f"{out}: holds a world made with other arguments (see world.json); name another folder")


def claim_folder(out: Path, name: str, arguments: dict[str, Any]) -> None:
    """Make `out` a folder whose file `name` says what it was made with. Raises `UsageError` for one that holds
    something else.
    """
    try:
        there = sorted(one.name for one in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise UsageError(f"{out}: is no folder ({error.strerror}), name another") from error
    try:
        made_with = json.loads((out / name).read_text(encoding="utf-8")) if there else arguments
    except (OSError, ValueError, RecursionError):
        made_with = None
    if made_with != arguments:
        raise UsageError(f"{out}: holds something else, or a world made with other arguments; name another folder")
    write_json(out / name, arguments)


def _version_of(manifest: Path) -> Any:
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["generator_version"]
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _write_folder(out: Path, task: str, worlds: Sequence[AnyWorld], advance: Callable[..., None]) -> None:
    lines = []
    for world in worlds:
        of_split = []
        for index in range(len(world)):
            record = world.record(index)
            _write_media(out, [record.file_name, record.second_file_name], world, index)
            texts = {"text": record.texts} if task == "captions" else {}  # a list, however many there are
            row = record_to_row(record) | texts
            lines.append(row | {"scene": _truth(world, index)})
            of_split.append(row | {name: Path(row[name]).name for name in row if name.endswith("file_name")})
            advance()
        write_lines(out / Path(lines[-1]["file_name"]).parent / "metadata.jsonl", of_split)
    write_lines(out / "metadata.jsonl", lines)


def _write_official(out: Path, task: str, worlds: Sequence[AnyWorld], advance: Callable[..., None]) -> None:
    records: dict[str, list[tuple[int, Record]]] = {}
    number = 0
    for world in worlds:
        records[world.split] = []
        for index in range(len(world)):
            record = world.record(index)
            _write_media(out, official_media(task, world.split, number, record), world, index)
            records[world.split].append((number, record))
            number += 1
            advance()
    for name, text in official_annotations(task, records).items():
        write_text(out / name, text)


def _truth(world: AnyWorld, index: int) -> Any:
    if isinstance(world, World):
        return asdict(world.scene(index))
    if isinstance(world, PairWorld):
        pair = world.pair(index)
        return [asdict(pair.left), asdict(pair.right)]
    if isinstance(world, LongWorld):
        return asdict(world.clip(index))
    return asdict(world.question(index).scene)


def _write_media(out: Path, names: Iterable[str | None], world: AnyWorld, index: int) -> None:
    """Write the files of one example, unless they are there: its clip or picture, and of a pair the second one."""
    for place, name in enumerate(names):
        if name is None or (out / name).exists():
            continue
        if isinstance(world, PairWorld):
            frames: Iterable[Frames] = (world.second if place else world).frames(index)
        elif isinstance(world, LongWorld):
            frames = world.stream(index, LONG_FRAMES_PER_SECOND)
        else:
            frames = world.frames(index)
        rate = LONG_FRAMES_PER_SECOND if isinstance(world, LongWorld) else FRAMES_PER_SECOND
        write_frames(out / name, frames, rate)


def write_frames(path: Path, frames: Iterable[Frames], rate: int = FRAMES_PER_SECOND) -> None:
    """Write frames (H, W, 3) as a video at `rate` frames a second, or the first of them as a `.png`."""
    if path.suffix == ".png":
        write_with(path, lambda beside: Image.fromarray(next(iter(frames))).save(beside, format="png"))
    else:
        write_with(path, lambda beside: _encode(beside, frames, rate))


def _encode(path: Path, frames: Iterable[Frames], rate: int) -> None:
    """Write frames (H, W, 3) as H.264 with full colour resolution.

    One thread and no vector instructions, so that the bytes are repeatable: x264's lookahead otherwise decides by
    memory that nobody has written, and differently on each kind of processor.
    """
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "14", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
        for frame in frames:
            if not stream.codec_context.is_open:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
