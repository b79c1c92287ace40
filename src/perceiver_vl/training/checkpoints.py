"""Checkpoints that are whole or not there, in a folder that one run at a time writes to.

A checkpoint is written in `.part` beside its place, sealed (all its files flushed to disk, `checksums.json` the last of
them) and renamed. A kill or a power cut at any moment leaves the one before it as it was, and a file that has changed
since is noticed before anything is read from it.
"""

import errno
import json
import multiprocessing
import os
import pickle
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.multiprocessing import reductions
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import rotate_checkpoints

from perceiver_vl.utils.console import err
from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError, first_line
from perceiver_vl.utils.files import sha256, write_json
from perceiver_vl.utils.launch import LostProcessError

CHECKSUMS = "checksums.json"
"""Of each file of a checkpoint, by its path in there: `sha256` and `bytes`."""
PART = ".part"
_LOCK = ".lock"
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_Found = TypeVar("_Found")


def first_for_all(function: Callable[[], _Found]) -> _Found:
    """What `function` gives the first process, in all processes; an error of it is raised in all."""
    if not (dist.is_available() and dist.is_initialized()):
        return function()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = function()
        except (PerceiverVLError, OSError) as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    found: _Found = told[0]
    return found


@contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """While this lasts, no other run may write to `output`, which is made if need be; all processes of a run are one.

    What was made for this alone, and is empty at the end, is removed again. The lock is the operating system's: it goes
    with the process that holds it. Raises `UsageError` where another run has it, `PerceiverVLError` where the folder
    cannot be written to.
    """
    with ExitStack() as held:
        first_for_all(lambda: held.enter_context(_locked(output)))
        yield


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"output={output}: another run is writing it, wait for it to end") from error
    except OSError as error:
        raise PerceiverVLError(
            f"{output}: cannot be written ({error.strerror}), need the right to, or another output"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            if made and [path.name for path in output.iterdir()] == [_LOCK]:
                (output / _LOCK).unlink()
        lock.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def seal(folder: Path) -> None:
    """Flush all files of a folder to disk, and write what they are into `checksums.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    for path in files:
        _flush(path)
    found = {_name(path, folder): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
    write_json(folder / CHECKSUMS, found)
    for inner in {folder, *(path.parent for path in files)}:
        _flush(inner)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that was sealed; None for nothing. Reads each of its files once."""
    try:
        listed = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        there = {_name(path, folder): path for path in folder.rglob("*") if path.is_file()}
        for name, wanted in listed.items():
            if name not in there:
                return f"{name} is missing"
            if (size := there[name].stat().st_size) != wanted["bytes"]:
                return f"{name} has {size:,} bytes, not the {wanted['bytes']:,} that were written"
            if sha256(there[name]) != wanted["sha256"]:
                return f"{name} is not what was written, its SHA-256 is another"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing, so it was never finished"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"cannot be read ({first_line(error)})"
    return None


def put_in_place(folder: Path, place: Path) -> None:
    """Seal a folder in `.part` and rename it to `place`, for good even if the power fails then."""
    seal(folder)
    if place.exists():  # saved twice at one step
        place.replace(folder.with_name(f"replaced-{place.name}"))
    folder.replace(place)
    _flush(place.parent)
    shutil.rmtree(folder.parent, ignore_errors=True)


def keep_last(checkpoints: Path, limit: int | None, best: str | None) -> None:
    """Remove all checkpoints but the newest `limit` by their steps (a clock may be wrong), and the best."""
    rotate_checkpoints(str(checkpoints), save_total_limit=limit, best_model_checkpoint=best)


def move_out(part: Path, output: Path) -> None:
    """Rename the files of `part`, flushed to disk, into `output` one by one."""
    for path in sorted(part.iterdir()):
        _flush(path)
        path.replace(output / path.name)
    _flush(output)
    part.rmdir()


def checkpoint_of(output: Path, resume: bool) -> Path | None:
    """The newest whole checkpoint of a run; None where there is none yet. Clears away what was never finished.

    Newer ones that are damaged are named on standard error and kept as `damaged-checkpoint-N`. Raises `UsageError` for
    a run that is not to be resumed and is there all the same, `PerceiverVLError` where it has checkpoints and none of
    them can be used.
    """
    checkpoints = output / "checkpoints"
    newest_first = _newest_first(checkpoints)
    if not resume and (newest_first or (output / "metrics.json").is_file()):
        raise UsageError(
            f"output={output}: holds a run already, go on with it with ",
            Setting("resume", True),
            " or name another output",
        )
    for part in (output / PART, checkpoints / PART):
        shutil.rmtree(part, ignore_errors=True)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in newest_first:
        reason = damage(checkpoint)
        if reason is None:
            if not any(checkpoint.glob("optimizer*")):
                raise PerceiverVLError(f"{checkpoint}: holds no optimiser (save_only_model), no run can go on from it")
            _put_aside(damaged, checkpoint)
            return checkpoint
        damaged.append((checkpoint, reason))
    if damaged:
        newest, reason = damaged[0]
        raise PerceiverVLError(
            f"{checkpoints}: none of {len(damaged)} checkpoints is whole ({newest.name}: {reason}), "
            "remove the folder to begin again"
        )
    return None


def _put_aside(damaged: list[tuple[Path, str]], used: Path) -> None:
    """Out of the way of the run that goes on, which will write others of these names."""
    for checkpoint, reason in damaged:
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.replace(aside)
        err.print(f"{checkpoint}: damaged ({reason}), going on from {used.name}; kept as {aside.name}")


@contextmanager
def told_in_one_line(output: Path) -> Iterator[None]:
    """Say in one line, with what to do, what ends a run from outside.

    Raises `PerceiverVLError` for no room or no right to write, a data worker that is gone, and a checkpoint that brings
    code; `LostProcessError` for another process that is gone. Other errors pass as they are.
    """
    try:
        with _lost_data_worker_as_runtime_error():
            yield
    except pickle.UnpicklingError as error:
        raise PerceiverVLError(_which_brings_code(output) or f"{output}: {first_line(error)}") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if could_not_write(error, output):
            raise cannot_write(output, error) from error
        if "DataLoader worker" in str(error):
            raise PerceiverVLError(
                "a data worker was killed, perhaps for want of memory: fewer training.dataloader_num_workers need "
                "less; ",
                *_what_is_kept(output),
            ) from error
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise LostProcessError(*_what_is_kept(output)) from error
        raise


@contextmanager
def _lost_data_worker_as_runtime_error() -> Iterator[None]:
    """A killed worker of a `DataLoader`, met where a tensor is taken from it, as torch tells of it at other times.

    What torch says, a `RuntimeError`, comes with SIGCHLD: wherever this process is then. A worker that is killed while
    it hands a tensor over is missed a moment before.
    """
    try:
        yield
    except (ConnectionError, EOFError) as error:
        if all(frame.f_globals is not vars(reductions) for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        workers = multiprocessing.active_children()
        patience = time.monotonic() + 1  # for the signal: it is to come in here, not while the error is told
        while all(worker.is_alive() for worker in workers) and time.monotonic() < patience:
            time.sleep(0.01)
        raise RuntimeError("DataLoader worker is gone") from error


def could_not_write(error: Exception, output: Path) -> bool:
    """Whether an error means that something in `output` could not be written."""
    if isinstance(error, OSError):
        inside = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(output)
        return error.errno in _NOT_WRITABLE and inside
    return bool(re.search(r"os error|PytorchStreamWriter|inline_container|iostream", str(error)))


def cannot_write(output: Path, error: Exception, checkpoint_bytes: int | None = None) -> PerceiverVLError:
    """What says in one line: the folder, why, what is needed, and which checkpoint is safe."""
    reason = error.strerror if isinstance(error, OSError) else "a file could not be written whole"
    if isinstance(error, SafetensorError):
        reason = first_line(error)
    need = f" and a checkpoint takes about {checkpoint_bytes / 1e6:,.1f} MB" if checkpoint_bytes else ""
    free = shutil.disk_usage(output).free / 1e6
    return PerceiverVLError(
        f"{output}: cannot be written ({reason}); {free:,.1f} MB are free there{need}: "
        "make room or give the right to write; ",
        *_what_is_kept(output),
    )


def _what_is_kept(output: Path) -> tuple[str | Setting, ...]:
    sealed = [path for path in _newest_first(output / "checkpoints") if (path / CHECKSUMS).is_file()]
    if not sealed:
        return ("no checkpoint is lost, begin again",)
    return f"{sealed[0].name} is whole, go on from it with ", Setting("resume", True)


def _which_brings_code(output: Path) -> str | None:
    """Says which file of the checkpoint in use is more than data; None if none is."""
    for checkpoint in _newest_first(output / "checkpoints")[:1]:
        for path in sorted(path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")):
            try:
                with safe_globals():
                    torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                found = re.search(r"GLOBAL (\S+)", str(error))
                what = f"it needs {found[1]}" if found else "it is not a plain pickle of tensors"
                return f"{path}: holds more than tensors and numbers ({what}), which is never run; resume your own runs"
    return None


def _newest_first(checkpoints: Path) -> list[Path]:
    found = [path for path in checkpoints.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _flush(path: Path) -> None:
    """To disk, a file's bytes or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
