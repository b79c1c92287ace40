"""Media files → rows of an index on many machines, with Ray Data: each worker writes those of its clips as fragments of
the table, and this process commits them.

The machines read the media and the model, and write the index, where this one does (a shared file system, or object
storage), and have the same versions of this package and its decoder. The index is the one that a single machine makes:
the same clips in the same batches, except that a file that cannot be read leaves its batch short instead of being
replaced by the next.

Ray starts a worker that died anew and gives it its clips again. Clips whose worker dies each time are tried once more
one by one, so that a file that brings its reader down costs itself alone.
"""

import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from perceiver_vl.media.decode import decoder_version
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.folder import model_fingerprint
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search.encode import encode_files
from perceiver_vl.search.engine import location
from perceiver_vl.search.rows import EncodedClip, IndexEntry, IndexSettings, SkippedFile, WrittenClips
from perceiver_vl.search.table import write_rows
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, Setting, UsageError, first_line

LOCAL = "local"
"""Instead of the address of a cluster: one of this machine alone, for as long as the run takes."""
BATCHES_A_TASK = 4
RETRIES = 2
"""How often clips whose worker died are given to another, before they are tried one by one."""
_STARTS = 3  # Ray gives itself 30 seconds to start here, which a busy machine may exceed
_DEADLY = "every process that read it died"


class RayEncoder:
    """Encodes clips on the Ray cluster at `address` (`auto`, `HOST:PORT`, `ray://HOST:PORT`), or `local`.

    Each worker has a GPU if there are some (and `device` is not the CPU), else a core. If Ray runs in this process
    already, `address` is not asked.
    """

    def __init__(
        self,
        address: str,
        index: str | Path,
        settings: IndexSettings,
        budget: ComputeBudget,
        batch_size: int,
        device: str | None,
    ) -> None:
        self._address, self._settings, self._device = address, settings, device
        self._how = location(index), settings, budget, batch_size
        self._clips_a_task = BATCHES_A_TASK * batch_size

    def encode(self, clips: Sequence[IndexEntry], strict: bool) -> Generator[WrittenClips | SkippedFile, None, None]:
        """As `encode_files`. Clips that bring their worker down come last, and are tried again by the next run.

        Raises `UsageError` if there is no cluster at the address, `PerceiverVLError` if it is lost, or if a machine of
        it has another model or decoder.
        """
        if not clips:
            return
        with _cluster(self._address):
            left = list(range(len(clips)))
            for clips_a_task in (self._clips_a_task, 1):
                returned: set[int] = set()
                for done in self._run(clips, left, clips_a_task, alone=clips_a_task == 1):
                    if done["failed"] is not None:
                        raise PerceiverVLError(done["failed"])
                    returned.update(done["numbers"])
                    for name, reason in done["broken"].items():
                        clip = next(clips[number] for number in done["numbers"] if clips[number].file == name)
                        if strict:
                            raise MediaError(Path(self._settings.media, name), reason)
                        yield SkippedFile(name, clip.size, clip.mtime, reason)
                    if done["files"]:
                        yield WrittenClips(done["fragments"], done["files"], done["damaged"])
                left = [number for number in left if number not in returned]
            for number in left:
                name = clips[number].file
                if strict:
                    raise MediaError(Path(self._settings.media, name), _DEADLY)
                yield SkippedFile(name, 0, 0, _DEADLY)

    def _run(
        self, clips: Sequence[IndexEntry], numbers: Sequence[int], clips_a_task: int, alone: bool
    ) -> Iterator[dict[str, Any]]:
        """What workers say of the clips, in order; nothing of those whose worker died each time.

        Nothing waits for a worker, and would be lost with it. alone: each has but one try.
        """
        if not numbers:
            return
        tasks = [
            pa.table({"task": [_as_task(numbers[start : start + clips_a_task], clips)]})
            for start in range(0, len(numbers), clips_a_task)
        ]
        places = ray.cluster_resources()
        gpu = not str(self._device).startswith("cpu") and places.get("GPU", 0) >= 1
        workers = max(1, min(len(tasks), int(places.get("GPU" if gpu else "CPU", 1))))
        how: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": 1}
        try:
            with DataContext.current(_context()), warnings.catch_warnings(), _silent():
                warnings.simplefilter("ignore", RayDeprecationWarning)  # max_task_retries has no other place yet
                encoded = ray.data.from_arrow(tasks).map_batches(
                    _Worker,
                    fn_constructor_args=(*self._how, "cuda" if gpu else "cpu"),
                    batch_size=None,
                    batch_format="pyarrow",
                    compute=ActorPoolStrategy(min_size=1, initial_size=workers, max_tasks_in_flight_per_actor=1),
                    max_task_retries=0 if alone else RETRIES,
                    **how,
                )
                for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    yield from map(json.loads, batch["done"].to_pylist())
        except (RayError, ConnectionError) as error:
            raise PerceiverVLError(f"ray: {first_line(error)}; what is encoded is kept, run it again") from error


class _Worker:
    """One process of the cluster. What is wrong with all it could do is said in its results, for Ray retries errors."""

    def __init__(
        self, index: str, settings: IndexSettings, budget: ComputeBudget, batch_size: int, device: str
    ) -> None:
        self._index, self._settings = index, settings
        self._failed: str | None = None
        try:
            _check_machine(settings)
            self._how = *load_retriever(settings.model, device, settings.dtype), settings, budget, batch_size
        except PerceiverVLError as error:
            self._failed = f"{socket.gethostname()}: {error}"

    def __call__(self, task: pa.Table) -> pa.Table:
        """Column `task`, one of `_as_task` → column `done`, what came of it as JSON."""
        numbers, clips = _of_task(task["task"][0].as_py())
        done: dict[str, Any] = {"numbers": numbers, "failed": self._failed, "broken": {}, "files": []}
        if self._failed is None:
            try:
                done |= self._write(clips)
            except PerceiverVLError as error:
                done["failed"] = self._failed = str(error)
            except Exception as error:  # Ray would try the same again; a GPU without memory, say, ends the run
                done["failed"] = self._failed = f"{socket.gethostname()}: {type(error).__name__}: {first_line(error)}"
        return pa.table({"done": [json.dumps(done)]})

    def _write(self, clips: Sequence[IndexEntry]) -> dict[str, Any]:
        results = list(encode_files(*self._how, clips, strict=False))
        encoded = [one for one in results if isinstance(one, EncodedClip)]
        return {
            "broken": {one.file: one.reason for one in results if isinstance(one, SkippedFile)},
            "files": [one.clip.file for one in encoded],
            "damaged": [one.clip.file for one in encoded if one.damaged],
            "fragments": write_rows(self._index, encoded, self._settings),
        }


def _as_task(numbers: Sequence[int], clips: Sequence[IndexEntry]) -> str:
    return json.dumps([(number, asdict(clips[number])) for number in numbers])


def _of_task(task: str) -> tuple[list[int], list[IndexEntry]]:
    listed = json.loads(task)
    entries = [IndexEntry(**{**entry, "captions": tuple(entry["captions"])}) for _, entry in listed]
    return [number for number, _ in listed], entries


def _check_machine(settings: IndexSettings) -> None:
    if model_fingerprint(settings.model) != settings.fingerprint:
        raise PerceiverVLError(f"{settings.model} is another model on this machine, copy the one that was named to it")
    if (here := decoder_version()) not in settings.decoders:
        raise PerceiverVLError(
            f"{here} decodes on this machine, not {settings.decoders[-1]}; install the same versions"
        )


def _context() -> DataContext:
    """In order; a task that fails after its retries is left out of the result; nothing is said meanwhile."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Ray Data logs: workers that die are a matter of course here."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Join a cluster, or start one here, and leave or end it afterwards."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "lance is not fork-safe")  # a child that does not go on as this process
        here: dict[str, Any] = {}
        if address == LOCAL:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
            scratch = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            here = {"include_dashboard": False, "_temp_dir": stack.enter_context(scratch)}
        for left in reversed(range(_STARTS if address == LOCAL else 1)):
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **here)
                break
            except Exception as error:  # Ray raises its own kinds, and bare ones
                ray.shutdown()
                if not left:
                    raise UsageError(
                        f"ray={address}: no cluster there ({first_line(error)}), start one with ray start --head, or ",
                        Setting("ray", LOCAL),
                    ) from error
        stack.callback(ray.shutdown)
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints there what becomes of its workers
        yield
