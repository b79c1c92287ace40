"""Does to training runs what machines do besides killing them, goes on with them, and compares their ends.

Usage: injected.py [--tries 3] [--seed 0] [--only FAULT …] [--json]

The run is that of `kills.py`. Each fault comes at a moment drawn from the seed; then the run must say in one line what
happened, or not mind; and its end, resumed if need be, must be that of the run left alone. Exit code 0 only if all are.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kills import HUNG, PROGRAM, Run, differences, prepare

CLOCK = """
import os, random, sys, threading, time
from contextlib import suppress
from pathlib import Path
checkpoints, draw = sys.argv[2], random.Random(int(sys.argv[1]))
real, offset = time.time, [0.0]
def jump():
    while True:
        offset[0] = draw.uniform(-1e7, 1e7)
        for path in Path(checkpoints).glob("checkpoint-*"):
            with suppress(OSError):
                os.utime(path, (time.time(),) * 2)
        time.sleep(0.05)
time.time = lambda: real() + offset[0]
threading.Thread(target=jump, daemon=True).start()
sys.argv[1:] = sys.argv[3:]
from perceiver_vl.cli import main
main()
"""
"""Runs the command line under a clock that jumps by days, the times of checkpoints with it."""


class Try:
    """One try of a fault: a run of this name and so many steps, moments and other things drawn for it."""

    def __init__(self, folder: Path, name: str, steps: int, processes: int = 1) -> None:
        self.folder, self.name, self.steps, self.processes = folder, name, steps, processes
        self.output, self.draw = folder / name, random.Random(name)

    def run(self, *more: str, program: tuple[str | Path, ...] = (PROGRAM,)) -> Run:
        return Run(self.folder, self.processes, self.name, more, program)

    def wait(self, run: Run, first: float = 0.1, last: float = 0.7) -> None:
        """Until a moment between these shares of the run: it has a checkpoint, and has gone on for a little while."""
        began, step = time.monotonic(), self.draw.uniform(first, last) * self.steps
        while run.is_running and newest_step(self.output) < step:
            time.sleep(0.01)
        a_step = (time.monotonic() - began) / max(newest_step(self.output), 1)
        time.sleep(self.draw.uniform(0, 4 * a_step))

    def ended(self, run: Run) -> list[str]:
        """What is wrong with a run that should have ended as the one left alone."""
        code, said = run.outcome()
        if code:
            return [f"exit code {code}: {' '.join(said)[-500:]}"]
        return differences(self.output, self.folder / "whole")


def refused(run: Run, *words: str) -> list[str]:
    """What is wrong with a run that should have ended with one line that has these words."""
    code, said = run.outcome()
    found = [] if code > 0 else [f"exit code {code}"]
    if len(said) != 1 or not said[0].startswith("error: ") or any(word not in said[0] for word in words):
        found.append(f"said {said[-8:]}, not one line with {words}")
    return found


def damaged_checkpoint(this: Try, damage: Callable[[Path, random.Random], None]) -> list[str]:
    """Killed, the newest checkpoint spoilt, resumed."""
    run = this.run()
    this.wait(run, first=0.25)  # it has two by then
    run.kill_after(0)
    newest = this.output / "checkpoints" / f"checkpoint-{newest_step(this.output)}"
    file = this.draw.choice(sorted(newest.glob("*.*")))
    damage(file, this.draw)
    run = this.run()
    found = this.ended(run)
    _, said = run.outcome()
    named = file.name if file.name != "checksums.json" else ""  # which is damaged may seem to be another then
    if not said or newest.name not in said[0] or named not in said[0]:
        found.append(f"said {said}, not that {file.name} of {newest.name} is damaged")
    return found


def truncate(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def flip_a_bit(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def full_disk(this: Try) -> list[str]:
    """The disk of the output fills up at some moment but for some bytes; resumed with room."""
    whole = this.folder / "whole"
    size = sum(path.stat().st_size for path in whole.glob(f"checkpoints/checkpoint-{newest_step(whole)}/*"))
    with small_disk(this.output) as fill:
        run = this.run()
        this.wait(run)
        made_room = fill(run.pid, this.draw.randrange(size))
        found = refused(run, str(this.output), "cannot be written", "free")
        made_room()
        return found + this.ended(this.run())


@contextmanager
def small_disk(output: Path) -> Iterator[Callable[[int, int], Callable[[], object]]]:
    """`fill(process, rest)` leaves `rest` bytes of the disk of a folder, and gives what makes room again.

    The disk is one of its own in memory; where nobody may mount one, no file of the process may become longer.
    """
    output.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(output)]
    mounted = shutil.which("mount") and not subprocess.run(words, capture_output=True, check=False).returncode

    def fill(process: int, rest: int) -> Callable[[], object]:
        if not mounted:
            import resource

            _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (rest, most))
            return lambda: None
        filler = output / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):  # the run may take of the room meanwhile
            while file.write(bytes(1 << 16)):
                pass
        os.truncate(filler, filler.stat().st_size - rest)
        return filler.unlink

    try:
        yield fill
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(output)], check=True)


def worker_killed(this: Try) -> list[str]:
    """A process that loads data is killed; resumed."""
    run = this.run("training.dataloader_num_workers=2")
    this.wait(run)
    workers: list[int] = []
    while run.is_running and not workers:  # each epoch has its own
        time.sleep(0.01)
        workers = children(run.pid)
    os.kill(this.draw.choice(workers), signal.SIGKILL)
    return refused(run, "data worker was killed", "resume") + this.ended(this.run())


def process_killed(this: Try) -> list[str]:
    """One of two processes is killed; neither may stay behind; resumed."""
    run = this.run()
    (other,) = children(run.pid)
    this.wait(run)
    first = this.draw.random() < 0.5
    os.kill(run.pid if first else other, signal.SIGKILL)
    found = [] if first else refused(run, "process 1 of 2 was ended by SIGKILL", "resume")
    run.outcome()
    patience = time.monotonic() + HUNG
    while is_alive(other) and time.monotonic() < patience:
        time.sleep(0.1)
    if is_alive(other):
        found.append("the other process hangs")
    return found + this.ended(this.run())


def media_vanishing(this: Try) -> list[str]:
    """Clips are removed while the run reads nearly all of them every epoch; one more has been damaged all along."""
    world = this.folder / f"{this.name}-world"
    shutil.copytree(this.folder / "world", world)
    run = this.run(f"data.train.folder={world}", f"data.validation.folder={world}", "data.max_failed_fraction=0.2")
    this.wait(run, last=0.4)
    names = {f"clips/train/{number:06d}.mp4" for number in this.draw.sample(range(10, 20), 3)}
    for name in names:
        (world / name).unlink()
    code, said = run.outcome()
    if code:
        return [f"exit code {code}: {said}"]
    lines = (this.output / "skipped.jsonl").read_text().splitlines()
    skipped = {json.loads(line)["file_name"] for line in lines} - {"clips/train/000002.mp4"}
    return [] if skipped and skipped <= names else [f"{sorted(names)} are gone, but skipped were {sorted(skipped)}"]


def clock_jumping(this: Try) -> list[str]:
    """Twenty jumps a second, a kill, and the same after the resume."""
    command = (sys.executable, "-c", CLOCK, str(this.draw.randrange(1000)), str(this.output / "checkpoints"))
    run = this.run(program=command)
    this.wait(run)
    run.kill_after(0)
    found = this.ended(this.run(program=command))
    if not found and not 0 < json.loads((this.output / "metrics.json").read_text())["seconds"] < HUNG:
        found.append("metrics.json: seconds")
    kept = sorted(path.name for path in (this.output / "checkpoints").glob("checkpoint-*"))
    wanted = sorted(path.name for path in (this.folder / "whole" / "checkpoints").glob("checkpoint-*"))
    return found + ([] if kept == wanted else [f"kept {kept}, not {wanted}"])


def two_runs_in_one_folder(this: Try) -> list[str]:
    """The second is refused; the first, which stands still meanwhile, does not mind."""
    run = this.run()
    this.wait(run)
    os.kill(run.pid, signal.SIGSTOP)
    try:
        found = refused(this.run(), str(this.output), "another run is writing it")
    finally:
        os.kill(run.pid, signal.SIGCONT)
    return found + this.ended(run)


FAULTS: dict[str, Callable[[Try], list[str]]] = {
    "truncated checkpoint": lambda this: damaged_checkpoint(this, truncate),
    "bit-flipped checkpoint": lambda this: damaged_checkpoint(this, flip_a_bit),
    "full disk": full_disk,
    "data worker killed": worker_killed,
    "media vanishing": media_vanishing,
    "clock jumping": clock_jumping,
    "two runs in one folder": two_runs_in_one_folder,
    "one of two processes killed": process_killed,
}


def inject(
    folder: Path, faults: list[str], tries: int, seed: int = 0, steps: int = 40
) -> Iterator[tuple[str, list[list[str]]]]:
    """Try each fault so often, → each, and of each try what was wrong, nothing if it was survived."""
    for processes in (1, 2):
        here = [fault for fault in faults if (fault == "one of two processes killed") == (processes == 2)]
        if not here:
            continue
        place = folder / str(processes)
        prepare(place, processes, steps)
        Run(place, processes, "whole").end()
        for fault in here:
            names = [f"{fault.replace(' ', '-')}-{seed}-{number}" for number in range(tries)]
            yield fault, [_tried(fault, Try(place, name, steps, processes)) for name in names]


def _tried(fault: str, this: Try) -> list[str]:
    try:
        return FAULTS[fault](this)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        return [f"{type(error).__name__}: {error}"]


def children(process: int) -> list[int]:
    """Of a process, those that run the same program; none where it has ended."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except FileNotFoundError:
        return []
    found = [int(number) for number in listed.split()]
    return [number for number in found if b"perceiver" in Path(f"/proc/{number}/cmdline").read_bytes()]


def is_alive(process: int) -> bool:
    """Whether it is there, and no zombie whose parent has gone before it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def newest_step(output: Path) -> int:
    """Of its checkpoints; 0 without any."""
    found = output.glob("checkpoints/checkpoint-*")
    return max((int(path.name.split("-")[1]) for path in found), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40, help="of a run; an epoch has 6")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = {}
    if not given.json:
        print(f"{'fault':30} survived / tried (seed {given.seed})")
    with tempfile.TemporaryDirectory() as folder:
        for fault, tries in inject(Path(folder), given.only, given.tries, given.seed, given.steps):
            found[fault] = tries
            if not given.json:
                print(f"{fault:30} {sum(not wrong for wrong in tries)} / {len(tries)}", flush=True)
                print("".join(f"  {line}\n" for wrong in tries for line in wrong), end="", flush=True)
    if given.json:
        print(json.dumps(found, indent=2))
    sys.exit(any(wrong for tries in found.values() for wrong in tries))


if __name__ == "__main__":
    main()
